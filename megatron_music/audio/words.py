"""Words of a caption or prompt, in any script.

A word is a run of letters, marks and digits after NFKC normalisation and case folding. Scripts that put no spaces
between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) give overlapping pairs of characters, so that captions
share some.
"""

import itertools
import re
import unicodedata
from typing import NamedTuple

RULE = 2  # the rule that new encoders are fitted by; 1: runs of a to z and 0 to 9 alone, until version 0.1
_ASCII_WORD = re.compile(r"[a-z0-9]+(?:/[0-9]+)?")
_PER = re.compile("/[0-9]+")
_WITHOUT_SPACES = (
    ("han", ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))),
    ("hiragana", ((0x3040, 0x309F),)),
    ("katakana", ((0x30A0, 0x30FF), (0x31F0, 0x31FF))),
    ("thai", ((0x0E00, 0x0E7F),)),
    ("lao", ((0x0E80, 0x0EFF),)),
    ("burmese", ((0x1000, 0x109F),)),
    ("khmer", ((0x1780, 0x17FF),)),
)


class Read(NamedTuple):
    """What an encoder reads of a text, each word once."""

    known: tuple[str, ...]
    unknown: tuple[str, ...]


def words_of(text: str, rule: int = RULE) -> list[str]:
    """The words of a text; a meter such as 3/4 is one word, and a number is rounded down to tens.

    Args:
        rule: 1 for encoders that were fitted before other scripts were read, whose vocabulary that rule made.

    >>> words_of("Slow piano, at 96 beats; 3/4")
    ['slow', 'piano', 'at', '90', 'beats', '3/4']
    >>> words_of("Café, медленно; 静かなピアノ")
    ['café', 'медленно', '静', 'かな', 'ピア', 'アノ']
    """
    if rule == 1:
        return [_in_tens(word) for word in _ASCII_WORD.findall(text.lower())]
    folded = text.lower() if text.isascii() else _folded(text)
    return [_in_tens(word) for run in _runs(folded) for word in run]


def _folded(text: str) -> str:
    """The text without differences of case, width and digits."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return "".join(str(unicodedata.decimal(character, character)) for character in folded)


def _in_tens(word: str) -> str:
    return str(int(word) // 10 * 10) if word.isdecimal() and len(word) < 10 else word


def _runs(text: str) -> list[list[str]]:
    """The words of each run of letters, marks and digits of one script; ``/`` and digits behind a run belong to it."""
    found: list[list[str]] = []
    place = 0
    while place < len(text):
        if unicodedata.category(text[place])[0] not in "LN":
            place += 1
            continue
        script, characters = _script(text[place]), []  # each character with its marks
        while place < len(text):
            kind = unicodedata.category(text[place])[0]
            if kind == "M" and characters:
                characters[-1] += text[place]
            elif kind in "LN" and _script(text[place]) == script:
                characters.append(text[place])
            else:
                break
            place += 1
        if script:
            pairs = [first + second for first, second in itertools.pairwise(characters)]
            found.append(pairs or characters)
            continue
        behind = _PER.match(text, place)
        found.append(["".join(characters) + (behind[0] if behind else "")])
        place = behind.end() if behind else place
    return found


def _script(character: str) -> str:
    """The name of a script without spaces, or nothing for any other."""
    code = ord(character)
    if code < 0x0E00:
        return ""
    return next((name for name, ranges in _WITHOUT_SPACES if any(first <= code <= last for first, last in ranges)), "")
