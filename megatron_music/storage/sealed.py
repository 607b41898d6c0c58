"""JSON objects that carry a hash of themselves, so that a file in which a digit changed is not read as another one.

The first key is ``sha256``, and its value is that of every byte behind it. The file stays JSON that anybody can read.
"""

import hashlib
import re
from typing import Any

from megatron_music.storage.reading import parse_json

KEY = "sha256"
_SEAL = re.compile(rb'\{"sha256": "([0-9a-f]{64})",')


def sealed(text: str) -> bytes:
    """The text of a JSON object that is not empty, with its hash in front."""
    rest = text.lstrip().removeprefix("{").encode()
    return b'{"sha256": "%s",' % hashlib.sha256(rest).hexdigest().encode() + rest


def parse_sealed(content: bytes) -> dict[str, Any]:
    """The object of a sealed text, without its hash.

    Raises:
        ValueError: it is no JSON object, or does not begin with the hash of the rest; half a sentence.
    """
    found = _SEAL.match(content)
    if found is None:
        raise ValueError("it does not begin with its hash")
    if hashlib.sha256(content[found.end() :]).hexdigest().encode() != found[1]:
        raise ValueError("it was changed since it was written: its hash is another")
    values = parse_json(content)
    del values[KEY]
    return values
