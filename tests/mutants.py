"""Damaged MIDI files, made from good ones: what a crawl of the web brings."""

import random
from collections.abc import Sequence


def mutant(files: Sequence[bytes], number: int, seed: int = 0) -> tuple[str, bytes]:
    """The kind of the damage and the damaged file; a function of ``number`` and ``seed`` alone."""
    chance = random.Random(f"{seed}:{number}")
    content = bytearray(chance.choice(files))
    kind = chance.choice(list(KINDS))
    for _ in range(chance.choice((1, 1, 2, 3))):
        KINDS[kind](content, chance, files)
    return kind, bytes(content)


def _flip_bits(content: bytearray, chance: random.Random, files) -> None:
    for _ in range(chance.randint(1, 30)):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _replace_bytes(content: bytearray, chance: random.Random, files) -> None:
    for _ in range(chance.randint(1, 10)):
        if content:
            content[chance.randrange(len(content))] = chance.choice(
                (0, 0x7F, 0x80, 0xFF, 0xF0, 0x2F, chance.randrange(256))
            )


def _truncate(content: bytearray, chance: random.Random, files) -> None:
    del content[chance.randint(0, len(content)) :]


def _drop(content: bytearray, chance: random.Random, files) -> None:
    start = chance.randint(0, len(content))
    del content[start : start + chance.randint(1, 200)]


def _splice(content: bytearray, chance: random.Random, files) -> None:
    other = chance.choice(files)
    start = chance.randint(0, len(other))
    place = chance.randint(0, len(content))
    content[place : place + chance.choice((0, 50))] = other[start : start + chance.randint(1, 2000)]


def _huge_deltas(content: bytearray, chance: random.Random, files) -> None:
    for _ in range(chance.randint(1, 4)):
        place = chance.randint(min(22, len(content)), len(content))
        content[place : place + chance.choice((0, 1))] = bytes([0xFF, 0xFF, 0xFF, 0x7F])


def _wrong_header(content: bytearray, chance: random.Random, files) -> None:
    if len(content) > 14:
        content[chance.randrange(4, 14)] = chance.randrange(256)


def _wrong_length(content: bytearray, chance: random.Random, files) -> None:
    place = content.find(b"MTrk", chance.randint(0, len(content) // 2))
    if place >= 0:
        content[place + 4 : place + 8] = chance.choice((0, 1, 2**31, 2**32 - 1, chance.randrange(2**20))).to_bytes(
            4, "big"
        )


def _wild_meta(content: bytearray, chance: random.Random, files) -> None:
    """A tempo or meter event with any numbers, at the start of a track."""
    place = content.find(b"MTrk") + 8
    any_bytes = [chance.randrange(256) for _ in range(4)]
    event = (
        bytes([0, 0xFF, 0x51, 3, *any_bytes[:3]]) if chance.random() < 0.5 else bytes([0, 0xFF, 0x58, 4, *any_bytes])
    )
    if 8 <= place <= len(content):
        length = int.from_bytes(content[place - 4 : place], "big") + len(event)
        content[place - 4 : place] = (length % 2**32).to_bytes(4, "big")
        content[place:place] = event


KINDS = {
    "bit flips": _flip_bits,
    "bytes replaced": _replace_bytes,
    "truncation": _truncate,
    "bytes dropped": _drop,
    "splice": _splice,
    "huge deltas": _huge_deltas,
    "header": _wrong_header,
    "track length": _wrong_length,
    "tempo or meter": _wild_meta,
}
