"""Which split each file goes to, and which files are copies of others.

Decided by the hash of a file's notes, so that byte-identical files and near copies (the same music in other bytes)
share a split, and by the groups that ``--split-by`` gives. Knows hashes and numbers, not files.
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
        first: int64 [files], the first file of the same notes; a file's own number where it is the first.
        joined: groups that share notes with another group, so that both are in one split.
        contradictions: pieces of music whose files were given to more than one split; each file is where it was given
            to.
    """

    splits: np.ndarray
    copies: int
    near_copies: int
    first: np.ndarray
    joined: int = 0
    contradictions: int = 0


def assign_splits(
    contents: np.ndarray,
    digests: np.ndarray,
    seed: int,
    fractions: tuple[float, float, float],
    drop_duplicates: bool = False,
    groups: np.ndarray | None = None,
    given: np.ndarray | None = None,
) -> Assignment:
    """Assign files, given in canonical order.

    The place of a set of files that stay together is a number in [0, 1) from SHA-256 of ``seed:content``, of the lowest
    content in it; the fractions cut [0, 1) into train, valid and test. A wanted split that would stay empty takes the
    set of the lowest place from train, if train keeps one. Files stay together that have one content or one group, and
    those that are linked by a chain of both.

    Args:
        contents: hashes of the notes, uint8 [files, KEY_BYTES].
        digests: hashes of the bytes, likewise.
        drop_duplicates: whether all but the first file of a content are dropped.
        groups: int [files], the number of the group each file is of; negative for none.
        given: int8 [files], the split that each file was given to; negative for none. A file that was given to none
            follows the first of its notes that was.
    """
    piece, first = _groups(contents)
    group_of_bytes, first_of_bytes = _groups(digests)
    own = np.arange(len(contents))
    is_copy = first_of_bytes[group_of_bytes] != own
    is_later = first[piece] != own
    together, joined = np.arange(len(first)), 0
    if groups is not None:
        together, joined = _joined(piece, groups, len(first))
    given_to = np.full(len(first), DROPPED, np.int8)  # of each piece
    if given is not None:
        for file in np.flatnonzero(given >= 0)[::-1]:
            given_to[piece[file]] = given[file]
    # Pieces are numbered in the order of their contents, so the lowest of a set has the lowest content.
    splits = _split_groups(contents[first], together, given_to, seed, fractions)[piece]
    contradictions = 0
    if given is not None:
        is_given = given >= 0
        splits[is_given] = given[is_given]
        contradictions = 0 if drop_duplicates else _contradictions(piece[is_given], given[is_given])
    if drop_duplicates:
        splits[is_later] = DROPPED
    return Assignment(
        splits, int(is_copy.sum()), int((is_later & ~is_copy).sum()), first[piece], joined, contradictions
    )


def _joined(piece: np.ndarray, groups: np.ndarray, pieces: int) -> tuple[np.ndarray, int]:
    """Of each piece of music the lowest one that must be in its split, and how many groups share notes with another."""
    parent = np.arange(pieces)

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    has_group = groups >= 0
    pairs = np.unique(np.stack([groups[has_group], piece[has_group]], axis=1), axis=0)
    for (group, one), (next_group, other) in zip(pairs.tolist(), pairs[1:].tolist(), strict=False):
        if group == next_group:
            low, high = sorted((root(one), root(other)))
            parent[high] = low
    of_each = np.array([root(number) for number in range(pieces)], np.int64)
    shared = np.flatnonzero(np.bincount(pairs[:, 1], minlength=pieces) > 1) if len(pairs) else np.empty(0, np.int64)
    return of_each, len(np.unique(pairs[np.isin(pairs[:, 1], shared), 0]))


def _contradictions(piece: np.ndarray, given: np.ndarray) -> int:
    """Pieces that were given to more than one split."""
    pairs = np.unique(np.stack([piece, given.astype(np.int64)], axis=1), axis=0)
    return int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum()) if len(pairs) else 0


def _groups(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The group of equal keys that each key is in, and the first member of each group."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, KEY_BYTES // 8)
    order = np.lexsort(words.T)  # stable: members of a group stay in their order
    is_new = np.ones(len(order), bool)
    is_new[1:] = np.any(words[order[1:]] != words[order[:-1]], axis=1)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(is_new) - 1
    return group, order[is_new]


def _split_groups(
    contents: np.ndarray, together: np.ndarray, given: np.ndarray, seed: int, fractions: tuple[float, float, float]
) -> np.ndarray:
    """The split of each piece of music (int8).

    Args:
        contents: of each piece.
        together: of each piece the lowest of those that stay with it.
        given: the split that each was given to, negative for none.
    """
    splits = given.copy()
    heads = np.flatnonzero((together == np.arange(len(together))) & (given < 0))
    splits[heads] = _split_heads(contents[heads], seed, fractions, set(given[given >= 0].tolist()))
    return np.where(given < 0, splits[together], given).astype(np.int8)


def _split_heads(
    contents: np.ndarray, seed: int, fractions: tuple[float, float, float], filled: set[int]
) -> np.ndarray:
    """The split of each set of files; those that are ``filled`` have files already."""
    places = _places(contents, seed)
    bounds = np.cumsum(fractions)
    bounds[max(np.flatnonzero(fractions)) :] = 1  # the last wanted split takes what rounding leaves
    splits = np.searchsorted(bounds[:2], places, side="right").astype(np.int8)
    order = np.argsort(places, kind="stable")
    if fractions[0] and len(order) and 0 not in filled and not np.any(splits == 0):  # training needs at least one file
        splits[order[0]] = 0
    train = order[splits[order] == 0].tolist()
    for split in (1, 2):
        if fractions[split] and split not in filled and not np.any(splits == split) and len(train) > 1:
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
