"""Encode scores as mmmtrack tokens, and decode them. The two sides mirror the grammar:

    piece := PIECE_START track+ [PIECE_END] [DOCUMENT_END]        the two ends are read, not written, here
    track := TRACK_START INST=<0..127|DRUMS|voice> [DENSITY=<k>] bar+ TRACK_END
    bar   := BAR_START event* BAR_END
    event := TIME_DELTA=<1..48> | NOTE_ON=<pitch> | NOTE_OFF=<pitch>

Time counts in grid steps and restarts in each bar. A rest before a note is written, a rest after the last one is
not. At one time NOTE_OFF comes before NOTE_ON, each by rising pitch. A note that ends on a bar line is switched
off in the bar it fills, at its last step, not in the next.

The law, for each bar-line policy: ``decode(encode(quantize(score))) == apply_bar_lines(quantize(score))``, which
for ``carry`` is ``quantize(score)`` itself. A window decodes to ``slice_bars`` of the piece.

Encoding is array arithmetic: each bar is written once, and a window is a run of bars between two edges. Knows nothing about files.
"""

from typing import NamedTuple

import numpy as np

from megatron_music.music.grid import concatenated_columns, cut_at_bar_lines
from megatron_music.music.score import DEFAULT_VELOCITY, VOICE_NAMES, VOICE_PROGRAM, Score, Track
from megatron_music.tokens import vocabulary as v

# A sort key of one int64: the bar's place in the output, the time in the bar, off before on, pitch.
_TIME_SHIFT, _ON_SHIFT, _BAR_SHIFT = 8, 7, 14


def encode_piece(score: Score, bar_line: str = "carry", density_bins: tuple[int, ...] = ()) -> np.ndarray:
    """Token ids (uint16) of the whole quantised piece, its silent tracks included.

    Args:
        score: from ``quantize``, or decoded.
        bar_line: ``carry``, ``clip`` or ``split``; see ``cut_at_bar_lines``.
        density_bins: rising note counts; a track with fewer than the first has DENSITY=0. Empty: no DENSITY.
    """
    return encode_windows(score, np.zeros(1, np.int64), score.num_bars, bar_line, density_bins, keep_silent=True)[0]


def window_starts(score: Score, bars: int, hop: int, bar_line: str = "carry") -> np.ndarray:
    """First bars of the full windows of the piece, the last full window included.

    Under ``clip`` no note sounds past the bar it starts in, so a piece ends with the bar of its last onset.
    """
    num_bars = score.num_bars
    if bar_line == "clip":
        num_bars = max((int(t.notes[-1, 0]) // score.steps_per_bar + 1 for t in score.tracks if len(t)), default=0)
    return np.arange(0, num_bars - bars + 1, hop)


def encode_windows(
    score: Score,
    first_bars: np.ndarray,
    bars: int,
    bar_line: str = "carry",
    density_bins: tuple[int, ...] = (),
    keep_silent: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of windows of a quantised piece.

    Args:
        first_bars: rising bar numbers [W] at which the windows start.
        bars: bars in each.
        keep_silent: also write tracks without a note in the window, and windows without a note.

    Returns:
        The ids of all windows one after another (uint16), and the length of each (int32). A window without a
        note has none.
    """
    num_tracks, num_windows, bar_steps = len(score.tracks), len(first_bars), score.steps_per_bar
    if bar_steps > v.MAX_TIME_DELTA:
        raise ValueError(f"{score.steps_per_quarter} steps a quarter; quantize to at most {v.MAX_TIME_DELTA // 4}")
    if not num_windows or not num_tracks or not bars:
        return np.empty(0, np.uint16), np.empty(0, np.int32)
    first_bars = np.asarray(first_bars, np.int64)
    num_bars = max(score.num_bars, int(first_bars[-1]) + bars)
    written = _write_bars(score, bar_line, num_bars, first_bars, first_bars + bars - 1)

    # A row is one track of one window: the bars from ``first`` to ``last``.
    row_window, row_track = np.divmod(np.arange(num_windows * num_tracks), num_tracks)
    first = row_track * num_bars + first_bars[row_window]
    notes_in_row = written.notes[first + bars] - written.notes[first] + written.heads.added[first]
    if not keep_silent:
        sounding = np.flatnonzero(notes_in_row)
        row_window, row_track, first, notes_in_row = (
            array[sounding] for array in (row_window, row_track, first, notes_in_row)
        )
    instrument_ids = np.array([instrument_id(track) for track in score.tracks], np.int64)
    density = np.searchsorted(density_bins, notes_in_row, side="right") if density_bins else None
    ids, row_length = _write_rows(written, first, first + bars - 1, row_window, instrument_ids[row_track], density)
    lengths = np.bincount(row_window, row_length, minlength=num_windows).astype(np.int32)
    return ids, lengths[lengths > 0]


class _Edges(NamedTuple):
    """How bars begin (or end) at the edge of a window, where notes sound across it; all by bar number.

    Where none does, a bar is as it is anywhere, and all its numbers here are 0.
    """

    ids: np.ndarray  # uint16, all edges one after another
    start: np.ndarray  # of the bar's edge in ``ids``
    length: np.ndarray
    replaced: np.ndarray  # how many of the bar's own tokens the edge stands for
    added: np.ndarray  # notes that sound across


class _Bars(NamedTuple):
    """Every bar of every track as tokens, BAR_START to BAR_END; bar b of track t is number ``t * num_bars + b``."""

    ids: np.ndarray  # uint16, all bars one after another
    start: np.ndarray  # of each bar in ``ids``, and the end of the last
    notes: np.ndarray  # NOTE_ONs before each bar, and before the end
    heads: _Edges
    tails: _Edges


def _write_bars(score: Score, bar_line: str, num_bars: int, begins: np.ndarray, ends: np.ndarray) -> _Bars:
    """Write each bar once, whatever windows it is in, and its edges where windows begin or end in each track."""
    bar_steps, total = score.steps_per_bar, len(score.tracks) * num_bars
    track = np.repeat(np.arange(len(score.tracks)), [len(t) for t in score.tracks])
    start, end, pitch = concatenated_columns(score.tracks)
    index, start, end = cut_at_bar_lines(start, end, bar_steps, bar_line)
    pitch, offset = pitch[index], track[index] * num_bars
    start_bar, end_bar = start // bar_steps, (end - 1) // bar_steps
    on = (offset + start_bar) << _BAR_SHIFT | (start - start_bar * bar_steps) << _TIME_SHIFT | 1 << _ON_SHIFT
    off = (offset + end_bar) << _BAR_SHIFT | (end - end_bar * bar_steps) << _TIME_SHIFT
    key = np.sort(np.concatenate((on | pitch, off | pitch)))
    bar, time, is_on = key >> _BAR_SHIFT, (key >> _TIME_SHIFT) & 63, (key >> _ON_SHIFT) & 1
    ids, bar_start = _write_events(key, bar, time, is_on, total)
    notes = np.append(0, np.cumsum(np.bincount(bar, is_on, minlength=total).astype(np.int64)))

    # Every bar line that a note sounds across, by the number of the bar before it.
    crossings = end_bar - start_bar
    index = np.repeat(np.arange(len(start)), crossings)
    before = start_bar[index] + np.arange(len(index)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    offset, pitch = offset[index], pitch[index]
    is_begin, is_end = np.zeros(num_bars, bool), np.zeros(num_bars, bool)
    is_begin[begins], is_end[ends] = True, True
    at_begin, at_end = is_begin[before + 1], is_end[before]
    if not at_begin.any() and not at_end.any():
        none = np.zeros(total, np.int64)
        plain = _Edges(np.empty(0, np.uint16), none, none, none, none)
        return _Bars(ids, bar_start, notes, plain, plain)

    own_bar, own_pitch, at_start, at_line = bar, key & 127, time == 0, time == bar_steps
    heads = _edges(
        (offset + before + 1)[at_begin], pitch[at_begin], own_bar[at_start], own_pitch[at_start], v.NOTE_ON, total,
        opening=np.full(total, v.BAR_START),
    )  # fmt: skip
    last_step = np.zeros(total, np.int64)
    last_step[bar[~at_line]] = time[~at_line]  # times rise within a bar: its last one stays
    tails = _edges(
        (offset + before)[at_end], pitch[at_end], own_bar[at_line], own_pitch[at_line], v.NOTE_OFF, total,
        opening=v.TIME_DELTA + bar_steps - last_step, closing=v.BAR_END,
    )  # fmt: skip
    return _Bars(ids, bar_start, notes, heads, tails)


def _write_events(key, bar, time, is_on, num_bars: int) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of sorted events: ids (uint16), and the start of each bar and the end of the last."""
    delta = time.copy()
    delta[1:] -= np.where(bar[1:] == bar[:-1], time[:-1], 0)
    words = 1 + (delta > 0)
    length = np.bincount(bar, words, minlength=num_bars).astype(np.int64) + 2
    start = np.append(0, np.cumsum(length))
    ids = np.empty(start[-1], np.uint16)
    ids[start[:-1]] = v.BAR_START
    ids[start[1:] - 1] = v.BAR_END
    place = np.cumsum(words) + 2 * bar  # words up to its own, and the ends of the bars before
    ids[place] = np.where(is_on, v.NOTE_ON, v.NOTE_OFF) + (key & 127)
    rests = np.flatnonzero(delta)
    ids[place[rests] - 1] = v.TIME_DELTA + delta[rests]
    return ids, start


def _edges(bar, pitch, own_bar, own_pitch, note_id: int, num_bars: int, opening, closing: int | None = None) -> _Edges:
    """Edges of the bars in which notes sound across: an opening token, notes by rising pitch, a closing token.

    Args:
        bar, pitch: of the notes that sound across.
        own_bar, own_pitch: of the events that stand at this edge anyway.
        opening: token id for each bar: BAR_START, or the rest before the releases.
        closing: BAR_END, or None.
    """
    added = np.bincount(bar, minlength=num_bars)
    if not len(bar):
        return _Edges(np.empty(0, np.uint16), added, added, added, added)
    touched = added > 0
    stays = touched[own_bar]
    own = np.bincount(own_bar[stays], minlength=num_bars)
    key = np.sort(np.concatenate((bar << 7 | pitch, own_bar[stays] << 7 | own_pitch[stays])))
    ends = 1 if closing is None else 2
    length = np.where(touched, added + own + ends, 0)
    start = np.cumsum(length) - length
    ids = np.empty(int(length.sum()), np.uint16)
    ids[start[touched]] = opening[touched]
    if closing is None:
        replaced = np.where(touched, 1 + own, 0)
    else:
        ids[(start + length - 1)[touched]] = closing
        replaced = np.where(touched, 1 + own + (own > 0), 0)  # own releases have a rest before them
    before = np.cumsum(touched)[key >> 7]  # touched bars up to this one
    ids[np.arange(len(key)) + ends * (before - 1) + 1] = note_id + (key & 127)
    return _Edges(ids, start, length, replaced, added)


def _write_rows(bars: _Bars, first, last, row_window, instrument_id, density) -> tuple[np.ndarray, np.ndarray]:
    """Each row: its head, the edge it begins with, its bars as they stand, the edge it ends with, TRACK_END.

    Returns:
        Ids of all rows (uint16), and the length of each.
    """
    opens_window = np.ones(len(row_window), bool)
    opens_window[1:] = row_window[1:] != row_window[:-1]
    head = opens_window + 2 + (density is not None)  # [PIECE_START] TRACK_START INST [DENSITY]
    ids = np.concatenate((bars.ids, bars.heads.ids, bars.tails.ids))
    plain_start, plain_end = bars.start[first] + bars.heads.replaced[first], bars.start[last + 1] - bars.tails.replaced[last]
    sources = np.stack((
        len(bars.ids) + bars.heads.start[first], plain_start, len(bars.ids) + len(bars.heads.ids) + bars.tails.start[last]
    ), axis=1).ravel()  # fmt: skip
    lengths = np.stack((bars.heads.length[first], plain_end - plain_start, bars.tails.length[last]), axis=1)
    row_length = head + lengths.sum(axis=1) + 1
    row_start = np.cumsum(row_length) - row_length

    # The three runs of a row follow one another: one gather for all.
    lengths = lengths.ravel()
    source = np.arange(int(lengths.sum())) + np.repeat(sources - (np.cumsum(lengths) - lengths), lengths)
    out = np.empty(int(row_length.sum()), np.uint16)
    is_body = np.ones(len(out), bool)
    for place in range(4):
        is_body[(row_start + place)[head > place]] = False
    is_body[row_start + row_length - 1] = False
    out[is_body] = ids[source]
    out[row_start[opens_window]] = v.PIECE_START
    out[row_start + opens_window] = v.TRACK_START
    out[row_start + opens_window + 1] = instrument_id
    if density is not None:
        out[row_start + head - 1] = v.DENSITY + density
    out[row_start + row_length - 1] = v.TRACK_END
    return out, row_length


def instrument_id(track: Track) -> int:
    """The id of a track's INST token."""
    if track.voice:
        return v.IDS[f"INST={track.voice}"]
    return v.IDS[f"INST={v.DRUMS}"] if track.is_drum else v.INST + track.program


def decode_piece(token_ids, steps_per_quarter: int = 4) -> Score:
    """The score that ``token_ids`` spell, up to the end of the document or of the ids.

    Lenient where a model may slip: tokens out of place are skipped, a NOTE_OFF without its NOTE_ON is ignored, a
    note that is never switched off lasts a quarter, at most to the end of the piece. Tokens of ``encode_piece``
    need none of this.

    Args:
        token_ids: ids of ``mmmtrack-1``.
        steps_per_quarter: the grid the ids were made on; ``Encoding`` knows it.
    """
    token_ids = np.asarray(token_ids, np.int64)
    ends = np.flatnonzero((token_ids == v.DOCUMENT_END) | (token_ids == v.PIECE_END))
    if len(ends):
        token_ids = token_ids[: ends[0]]
    bodies = np.split(token_ids, np.flatnonzero(token_ids == v.TRACK_START))[1:]
    bar_steps = 4 * steps_per_quarter
    decoded = [_decode_track(body.tolist(), bar_steps) for body in bodies]
    length = max((bars for _, _, _, bars in decoded), default=0) * bar_steps
    return Score(
        tracks=tuple(_finish_track(*track, steps_per_quarter, length) for track in decoded),
        steps_per_quarter=steps_per_quarter,
        length_steps=length,
    )


def _decode_track(token_ids: list[int], bar_steps: int):
    """Instrument id, closed notes, still open notes {pitch: start} and number of bars of one track."""
    instrument, notes, sounding, bars = v.INST, [], {}, 0
    place = 0
    while place < len(token_ids):
        token_id = token_ids[place]
        place += 1
        if v.INST <= token_id < v.INST + v.NUM_INSTRUMENTS:
            instrument = token_id
        elif token_id == v.BAR_START:
            place = _decode_bar(token_ids, place, bars * bar_steps, notes, sounding)
            bars += 1
        elif token_id == v.TRACK_END:
            break
    return instrument, notes, sounding, bars


def _decode_bar(token_ids: list[int], place: int, step: int, notes: list, sounding: dict[int, int]) -> int:
    """Read one bar's events into ``notes`` and ``sounding``; returns the place after the bar."""
    while place < len(token_ids):
        token_id = token_ids[place]
        if token_id in (v.BAR_START, v.TRACK_END):  # the bar was never closed
            return place
        place += 1
        if token_id == v.BAR_END:
            return place
        if v.TIME_DELTA < token_id <= v.TIME_DELTA + v.MAX_TIME_DELTA:
            step += token_id - v.TIME_DELTA
        elif v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            pitch = token_id - v.NOTE_ON
            _close(notes, sounding, pitch, step)
            sounding[pitch] = step
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            _close(notes, sounding, token_id - v.NOTE_OFF, step)
    return place


def _close(notes: list, sounding: dict[int, int], pitch: int, step: int) -> None:
    start = sounding.pop(pitch, step)
    if start < step:
        notes.append((start, step, pitch))


def _finish_track(instrument: int, notes: list, sounding: dict[int, int], bars, steps_per_quarter: int, length: int):
    for pitch, start in sounding.items():
        _close(notes, {pitch: start}, pitch, min(start + steps_per_quarter, length))
    rows = np.full((len(notes), 4), DEFAULT_VELOCITY, np.int64)
    rows[:, :3] = np.array(notes, np.int64).reshape(-1, 3)
    name = v.TOKENS[instrument].removeprefix("INST=")
    if name == v.DRUMS:
        return Track(rows, is_drum=True)
    return Track(rows, VOICE_PROGRAM, voice=name) if name in VOICE_NAMES else Track(rows, int(name))
