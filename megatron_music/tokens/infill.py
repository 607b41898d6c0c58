"""Bars taken out of documents and written at their end: what a model learns to fill them in from.

``BAR_START NOTE_ON=60 ... BAR_END`` becomes ``BAR_START FILL_IN BAR_END``, and its events follow the last track as
``FILL_START NOTE_ON=60 ... FILL_END``, in the order of the FILL_INs. What a bar says of itself (meter, tempo, density)
stays with it. Arithmetic on ids.

Source: Ens and Pasquier 2020, arXiv:2008.06048, BarFill.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.counter_rng import below, draw

# TIME_DELTA, NOTE_ON and NOTE_OFF are one range; VELOCITY is another.
assert v.TIME_DELTA + v.MAX_TIME_DELTA + 1 == v.NOTE_ON and v.NOTE_ON + 128 == v.NOTE_OFF
_FIRST_EVENT, _AFTER_EVENTS = v.TIME_DELTA + 1, v.NOTE_OFF + 128
_MOST_ATTRIBUTES = 3  # TIME_SIGNATURE, TEMPO, DENSITY


def is_event(ids: np.ndarray) -> np.ndarray:
    """Which ids are a bar's events (bool)."""
    return (ids >= _FIRST_EVENT) & (ids < _AFTER_EVENTS) | (ids >= v.VELOCITY) & (ids < v.VELOCITY + v.NUM_VELOCITIES)


def take_out(ids: np.ndarray, bars: Iterable[tuple[int, int]]) -> np.ndarray:
    """A document with some bars taken out.

    Args:
        ids: of one document without FILL_IN, with or without its DOCUMENT_END.
        bars: (track, bar) of each, both from 0, in any order.

    Returns:
        A new array of the same type, longer by three ids a bar.

    Raises:
        ValueError: there is no such bar, or bars are taken out already.
    """
    ids = np.asarray(ids)
    if (ids == v.FILL_IN).any():
        raise ValueError("the document has bars taken out already; put them back first")
    starts = np.flatnonzero(ids == v.BAR_START)
    track = np.cumsum(ids == v.TRACK_START)[starts] - 1
    place = np.arange(len(starts)) - np.searchsorted(track, track)
    chosen = np.zeros(len(starts), bool)
    for wanted in set(bars):
        found = (track == wanted[0]) & (place == wanted[1])
        if not found.any():
            raise ValueError(
                f"bar {wanted[1]} of track {wanted[0]} is not in the document; count both from 0, in its "
                f"{len(starts)} bars"
            )
        chosen |= found
    open_ended = not len(ids) or ids[-1] != v.DOCUMENT_END
    if open_ended:
        ids = np.append(ids, ids.dtype.type(v.DOCUMENT_END))
    moved, _ = _move(ids, np.array([len(ids)]), _contents(ids, starts[chosen]))
    return moved[:-1] if open_ended else moved


def put_back(ids: np.ndarray) -> np.ndarray:
    """A document with the bars that were taken out of it: the inverse of ``take_out``.

    Lenient where a model may slip: a bar whose fill is missing is empty, surplus fills are dropped, and so is all that
    is no event in a fill.

    Args:
        ids: of one document, with or without its DOCUMENT_END; what follows that is dropped.

    Returns:
        A new array of the same type.
    """
    ids = np.asarray(ids)
    end = np.flatnonzero(ids == v.DOCUMENT_END)[:1]
    closing, ids = (ids[end], ids[: end[0]]) if len(end) else (ids[:0], ids)
    body, *fills = np.split(ids, np.flatnonzero(ids == v.FILL_START))
    before, *after = np.split(body, np.flatnonzero(body == v.FILL_IN))
    parts = [before]
    for number, part in enumerate(after):
        fill = fills[number] if number < len(fills) else ids[:0]
        stop = np.flatnonzero(fill == v.FILL_END)[:1]
        fill = fill[: stop[0]] if len(stop) else fill
        parts += [fill[is_event(fill)], part[1:]]
    return np.concatenate([*parts, closing])


def infill_documents(
    ids: np.ndarray, lengths: np.ndarray, windows: np.ndarray, key: int, copy: int, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """Documents, some of them with bars taken out.

    Whether a document is one of them, how many of its bars are taken out (at least one, at most half of them, each
    number alike) and which ones depends on (key, window, copy) alone.

    Args:
        ids: documents one after another, each ending with DOCUMENT_END, none with FILL_IN; open densities may stand in
            them.
        lengths: tokens in each [D].
        windows: number of each document's window in its file [D].
        key: 64 bits of (seed, file).
        copy: number of the copy of the file.
        share: of the documents, 0 to 1.

    Returns:
        New ids and lengths, of the same types.
    """
    ends = np.cumsum(lengths)
    starts = np.flatnonzero(ids == v.BAR_START)
    document = np.searchsorted(ends, starts, side="right")
    num_bars = np.bincount(document, minlength=len(lengths))
    draws = draw(key, windows, copy, "number of bars to fill", 2)
    is_chosen = ((draws[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share) & (num_bars > 0)
    if not is_chosen.any():
        return ids.copy(), lengths.copy()
    counts = np.where(is_chosen, 1 + below(draws[:, 1], np.maximum(num_bars // 2, 1)), 0)

    # A bar is taken out where few of its document's bars have a lower number.
    numbers = draw(key, windows, copy, "bars to fill", int(num_bars.max()))
    first = np.cumsum(num_bars) - num_bars
    order = np.lexsort((numbers[document, np.arange(len(starts)) - first[document]], document))
    rank = np.empty(len(starts), np.int64)
    rank[order] = np.arange(len(starts)) - first[document]  # sorting leaves each document's bars in its own places
    return _move(ids, lengths, _contents(ids, starts[rank < counts[document]]))


class _Contents(NamedTuple):
    """Where the events of bars begin, and the BAR_END after them; rising."""

    starts: np.ndarray
    ends: np.ndarray


def _contents(ids: np.ndarray, bar_starts: np.ndarray) -> _Contents:
    bar_ends = np.flatnonzero(ids == v.BAR_END)
    ends = bar_ends[np.searchsorted(bar_ends, bar_starts)]
    starts = bar_starts + 1
    for _ in range(_MOST_ATTRIBUTES):
        starts = starts + ((starts < ends) & ~is_event(ids[starts]))
    return _Contents(starts, ends)


def _move(ids: np.ndarray, lengths: np.ndarray, holes: _Contents) -> tuple[np.ndarray, np.ndarray]:
    """Documents with the contents of ``holes`` at their ends, before their DOCUMENT_ENDs."""
    ends = np.cumsum(lengths)
    document = np.searchsorted(ends, holes.starts, side="right")
    sizes = holes.ends - holes.starts
    num_holes = np.bincount(document, minlength=len(lengths))
    num_moved = np.bincount(document, sizes, minlength=len(lengths)).astype(np.int64)
    new_lengths = lengths + 3 * num_holes
    new_ends = np.cumsum(new_lengths)

    # Of each hole: how many come before it in its document, and how many events they had.
    holes_before_document = np.cumsum(num_holes) - num_holes
    number = np.arange(len(sizes)) - holes_before_document[document]
    gone = np.cumsum(sizes) - sizes - (np.cumsum(num_moved) - num_moved)[document]
    fills = (new_ends - 1 - num_moved - 2 * num_holes)[document] + gone + 2 * number  # places of the FILL_STARTs

    # How far an id moves to the right: 3 for each hole of earlier documents; in its own document 1 for each FILL_IN
    # before it, less the events gone; within a hole, to its fill. Summed up from its changes.
    before = 3 * holes_before_document[document] + number - gone
    inside = fills + 1 - holes.starts
    change = np.zeros(len(ids) + 1, np.int64)
    change[ends - 1] = 2 * num_holes + num_moved  # a DOCUMENT_END stays the last
    change[holes.starts] += inside - before
    change[holes.ends] += before + 1 - sizes - inside
    target = np.arange(len(ids)) + np.cumsum(change[:-1])

    moved = np.empty(len(ids) + 3 * len(sizes), ids.dtype)
    moved[target] = ids
    moved[holes.starts + before] = v.FILL_IN
    moved[fills] = v.FILL_START
    moved[fills + sizes + 1] = v.FILL_END
    return moved, new_lengths.astype(lengths.dtype)
