"""Copies of documents in other keys and with their tracks in another order: arithmetic on ids, nothing is parsed again.

What a document becomes depends on the file, the window and the copy alone.

Shapes: D documents, N tokens of all of them.
"""

import numpy as np

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.counter_rng import below, draw

_DRUMS = v.IDS[f"INST={v.DRUMS}"]
_NOTE_IDS = 256  # NOTE_ON, then NOTE_OFF: pitch p is NOTE_ON + p or NOTE_ON + 128 + p
assert v.NOTE_OFF == v.NOTE_ON + 128


def augment(
    ids: np.ndarray,
    lengths: np.ndarray,
    windows: np.ndarray,
    key: int,
    copy: int,
    transpose: tuple[int, int],
    permute_tracks: bool,
) -> np.ndarray:
    """Documents transposed and with their tracks in a drawn order.

    Each document is moved by a number of semitones drawn evenly from those of ``transpose`` that leave all its pitches
    within 0..127; where there are none, it stays. Drums stay, and so does every id that is no note, open densities too.

    Args:
        ids: the documents one after another (uint16, [N]), each ending with DOCUMENT_END, none with FILL_IN bars.
        lengths: tokens in each [D].
        windows: the number of each document's window in its file [D].
        key: 64 bits of (seed, file).
        copy: number of the copy; the documents as they are are copy 0.
        transpose: lowest and highest number of semitones.
        permute_tracks: whether the tracks are reordered.

    Returns:
        Ids of the same documents (uint16, [N]), each as long as it was.
    """
    starts = np.flatnonzero(ids == v.TRACK_START)
    if not len(starts):
        return ids.copy()
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, starts, side="right")  # of each track
    first = np.searchsorted(document, document)  # the first track of its document
    place = np.arange(len(starts)) - first
    draws = draw(key, windows, copy, "augmentation", 2 + int(place.max()))
    if transpose != (0, 0):
        ids = _transposed(ids, starts, document, draws[:, 0], transpose)
    if permute_tracks:
        order = np.lexsort((draws[document, 1 + place], document))
        return _reordered(ids, starts, ends[document] - 1, order)
    return ids if transpose != (0, 0) else ids.copy()


def _transposed(ids, starts, document, draws, transpose: tuple[int, int]) -> np.ndarray:
    """The notes of pitched tracks moved by their document's shift."""
    offset = ids - np.uint16(v.NOTE_ON)  # ids before NOTE_ON wrap to high numbers
    is_note = offset < _NOTE_IDS
    pitch = offset.astype(np.uint8) & 127
    no_note = is_note.view(np.uint8) - np.uint8(1)  # 255, and 0 for a note
    lowest = np.minimum.reduceat(pitch | no_note, starts).astype(np.int64)
    highest = np.maximum.reduceat(pitch & ~no_note, starts).astype(np.int64)
    pitched = ids[starts + 1] != _DRUMS
    low, high = np.full(len(draws), transpose[0]), np.full(len(draws), transpose[1])
    np.maximum.at(low, document[pitched], -lowest[pitched])
    np.minimum.at(high, document[pitched], 127 - highest[pitched])
    shift = np.where(low <= high, low + below(draws, np.maximum(high - low + 1, 1)), 0)

    # From its TRACK_START up to the next one: heads between them have no notes.
    moves = np.empty(len(ids), np.uint16)
    moves[: starts[0]] = 0
    moves[starts[0] :] = np.repeat((shift[document] * pitched).astype(np.uint16), np.diff(starts, append=len(ids)))
    moves *= is_note
    return ids + moves  # uint16 wraps: a shift below 0 subtracts


def _reordered(ids, starts, document_ends, order) -> np.ndarray:
    """The tracks in another order; what lies between the tracks of two documents stays between them.

    Args:
        document_ends: the place of the DOCUMENT_END of each track's document.
        order: numbers of tracks, those of a document where they were.
    """
    following = np.append(starts[1:], len(ids))
    ends = np.minimum(following, document_ends)
    data = ids.tobytes()
    starts, ends, following = (2 * starts).tolist(), (2 * ends).tolist(), (2 * following).tolist()  # bytes
    parts = [b""] * (2 * len(starts))
    parts[0::2] = [data[starts[track] : ends[track]] for track in order.tolist()]
    parts[1::2] = [data[end:start] for end, start in zip(ends, following, strict=True)]
    return np.frombuffer(bytearray().join((data[: starts[0]], *parts)), np.uint16)
