"""Bounded reading of files that somebody else may have made: the one reader of JSON, YAML and other small files.

A file is opened without waiting for a writer, must be a regular file, and has at most so many bytes; JSON and YAML
nested too deeply, and YAML whose aliases repeat each other, are refused. Every refusal is a ValueError of half a
sentence without the path, which the caller puts in front.
"""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MIB = 1 << 20
MIDI_BYTES = 64 * MIB
TABLE_BYTES = 4096 * MIB  # of labels, captions or a log: text that people and programs write line by line
SMALL_FILE_BYTES = 64 * MIB  # of a configuration, a manifest, an index
YAML_BYTES = 1 * MIB
LINE_BYTES = 1 * MIB  # of a file of JSON lines
# A disk that is not mounted any more, and too many open files: errors that say nothing about a file's content.
NOT_OF_THE_FILE = (errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ENFILE)
YAML_VALUES = 100_000  # with every alias written out


def open_regular(path: str | os.PathLike, *, follow_links: bool = True) -> BinaryIO:
    """Open a file for reading in binary mode, never a pipe, a device or a folder.

    Args:
        path: the file.
        follow_links: False refuses a path whose last part is a symbolic link.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file.
    """
    if not follow_links and os.path.islink(path):
        raise ValueError("it is a symbolic link")
    flags = (
        os.O_RDONLY
        | os.O_CLOEXEC
        | getattr(os, "O_NONBLOCK", 0)
        | (0 if follow_links else getattr(os, "O_NOFOLLOW", 0))
    )
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a regular file")
    return open(descriptor, "rb")


def regular(path: str | os.PathLike, *, follow_links: bool = False) -> Path:
    """The path itself, of a regular file: for readers such as safetensors' that open it themselves.

    Raises:
        OSError: there is no such file.
        ValueError: it is a link, or not a regular file.
    """
    open_regular(path, follow_links=follow_links).close()
    return Path(path)


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in a few words without its path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def refusing(path: str | os.PathLike, remedy: str) -> Iterator[None]:
    """What odd content of a file makes its readers raise, as one ValueError that names the file.

    For files whose every value would else have to be checked by hand; a ValueError that names the file passes as it is.
    """
    try:
        yield
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
    ) as error:
        if isinstance(error, ValueError) and os.fspath(path) in str(error):
            raise
        raise ValueError(f"{path} is damaged ({reason_of(error)}); {remedy}") from None


def read_bytes(path: str | os.PathLike, limit: int = SMALL_FILE_BYTES, *, follow_links: bool = True) -> bytes:
    """The whole content of a regular file.

    Args:
        path: the file.
        limit: the most bytes that are read.
        follow_links: see ``open_regular``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or has more bytes.
    """
    with open_regular(path, follow_links=follow_links) as file:
        if os.fstat(file.fileno()).st_size > limit:  # nothing of it is read
            raise ValueError(f"it has more than {limit:,} bytes")
        parts = []
        while part := file.read(
            min(limit + 1 - sum(map(len, parts)), MIB)
        ):  # a read of so many bytes takes them at once
            parts.append(part)
        content = b"".join(parts)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def hash_of_file(path: str | os.PathLike, *, follow_links: bool = True) -> str:
    """SHA-256 of a regular file of any size, in hexadecimal.

    Raises:
        OSError, ValueError: see ``open_regular``.
    """
    with open_regular(path, follow_links=follow_links) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | os.PathLike, limit: int = SMALL_FILE_BYTES, *, follow_links: bool = True) -> str:
    """See ``read_bytes``; a text that is not UTF-8 is a UnicodeDecodeError, which is a ValueError."""
    return read_bytes(path, limit, follow_links=follow_links).decode("utf-8")


def parse_json(content: str | bytes) -> Any:
    """What a JSON text holds; bytes are UTF-8.

    Raises:
        ValueError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def read_json(path: str | os.PathLike, limit: int = SMALL_FILE_BYTES, *, follow_links: bool = True) -> Any:
    """What a JSON file holds; see ``read_bytes`` and ``parse_json``."""
    return parse_json(read_bytes(path, limit, follow_links=follow_links))


def read_json_object(path: str | os.PathLike, limit: int = SMALL_FILE_BYTES, *, follow_links: bool = True) -> dict:
    """The JSON object of a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds no JSON, or something that is not an object.
    """
    found = read_json(path, limit, follow_links=follow_links)
    if not isinstance(found, dict):
        raise ValueError(f"it holds a JSON {_json_name(found)} where an object is wanted")
    return found


def _json_name(value: Any) -> str:
    return {list: "array", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def parse_yaml(text: str) -> Any:
    """What a YAML text holds, of plain values alone (``yaml.SafeLoader``).

    Raises:
        yaml.YAMLError: it is not YAML.
        ValueError: it is nested too deeply, contains itself, or has more than 100,000 values once aliases are written
            out.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"its YAML has more than {YAML_BYTES:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _size_of(node, {}) > YAML_VALUES:
                raise ValueError(f"its YAML has more than {YAML_VALUES:,} values, aliases written out")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ValueError("its YAML is nested too deeply") from None
    except (
        AttributeError,
        LookupError,
        TypeError,
        ArithmeticError,
    ):  # of PyYAML, as for `!!bool perhaps` and `!!timestamp 5`
        raise ValueError("its YAML has a value that is not what its tag says") from None


def _size_of(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Values below a node, those of an alias as often as it is used; ``known`` by identity, None while it is
    counted.
    """
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ValueError("its YAML contains itself")
        return size
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        size = 1 + sum(_size_of(part, known) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        size = 1 + sum(_size_of(part, known) for part in node.value)
    else:
        size = 1
    known[id(node)] = size
    return size


def read_yaml(path: str | os.PathLike, *, follow_links: bool = True) -> Any:
    """What a YAML file holds; see ``read_bytes`` and ``parse_yaml``."""
    return parse_yaml(read_text(path, YAML_BYTES, follow_links=follow_links))


def is_outward_link(path: Path) -> bool:
    """Whether a file is a link that leads out of its folder; within a cache of Hugging Face's hub, out of the cache of
    its repository.

    There ``snapshots/REVISION/NAME`` are links to ``blobs``.
    """
    folder = Path(os.path.realpath(path.parent))
    home = folder.parent.parent if folder.parent.name == "snapshots" else folder
    return path.is_symlink() and home not in Path(os.path.realpath(path)).parents


def copy_regular(source: str | os.PathLike, target: str | os.PathLike, *, follow_links: bool = False) -> None:
    """Copy the content of a regular file; no file may be in the new place.

    Raises:
        OSError: it cannot be read or written.
        ValueError: it is a link or not a regular file.
    """
    with open_regular(source, follow_links=follow_links) as file, open(target, "xb") as copy:
        shutil.copyfileobj(file, copy, MIB)
