"""Which split each file goes to, and which files are copies of others.

Decided by the hash of a file's notes, so that byte-identical files and near copies (the same music in other bytes) share
a split. Knows hashes, not files.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

DROPPED = -1
KEY_BYTES = 16


@dataclass(frozen=True)
class Assignment:
    """What became of the files.

    Args:
        splits: int8 [files]: 0 train, 1 valid, 2 test, DROPPED.
        copies: files of the same bytes as an earlier one.
        near_copies: other files of the same notes as an earlier one.
    """

    splits: np.ndarray
    copies: int
    near_copies: int


def assign_splits(
    contents: np.ndarray,
    digests: np.ndarray,
    seed: int,
    fractions: tuple[float, float, float],
    drop_duplicates: bool = False,
) -> Assignment:
    """Assign files, given in canonical order.

    The place of a group of files with one content is a number in [0, 1) from SHA-256 of ``seed:content``; the fractions
    cut [0, 1) into train, valid and test. A wanted split that would stay empty takes the group of the lowest place from
    train, if train keeps one.

    Args:
        contents: hashes of the notes, uint8 [files, KEY_BYTES].
        digests: hashes of the bytes, likewise.
        drop_duplicates: whether all but the first file of a group are dropped.
    """
    group, first = _groups(contents)
    group_of_bytes, first_of_bytes = _groups(digests)
    splits = _split_groups(contents[first], seed, fractions)[group]
    own = np.arange(len(contents))
    is_copy = first_of_bytes[group_of_bytes] != own
    is_later = first[group] != own
    if drop_duplicates:
        splits[is_later] = DROPPED
    return Assignment(splits, int(is_copy.sum()), int((is_later & ~is_copy).sum()))


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of equal keys that each key is in, and the first member of each group."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, KEY_BYTES // 8)
    order = np.lexsort(words.T)  # stable: members of a group stay in their order
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any(words[order[1:]] != words[order[:-1]], axis=1)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(is_new) - 1
    return group, order[is_new]


def _split_groups(contents: np.ndarray, seed: int, fractions: tuple[float, float, float]) -> np.ndarray:
    places = _places(contents, seed)
    bounds = np.cumsum(fractions)
    bounds[max(np.flatnonzero(fractions)) :] = 1  # the last wanted split takes what rounding leaves
    splits = np.searchsorted(bounds[:2], places, side="right").astype(np.int8)
    order = np.argsort(places, kind="stable")
    if fractions[0] and len(order) and not np.any(splits == 0):  # training needs at least one file
        splits[order[0]] = 0
    train = order[splits[order] == 0].tolist()
    for split in (1, 2):
        if fractions[split] and not np.any(splits == split) and len(train) > 1:
            splits[train.pop(0)] = split
    return splits


def _places(contents: np.ndarray, seed: int) -> np.ndarray:
    """Of each hash and the seed a number in [0, 1): the first 52 bits of SHA-256."""
    text, width = contents.tobytes().hex().encode(), 2 * KEY_BYTES
    seeded = hashlib.sha256(f"{seed}:".encode())
    digests = []
    for first in range(0, len(text), width):
        hasher = seeded.copy()
        hasher.update(text[first : first + width])
        digests.append(hasher.digest()[:8])
    return (np.frombuffer(b"".join(digests), ">u8") >> 12) / 2**52
