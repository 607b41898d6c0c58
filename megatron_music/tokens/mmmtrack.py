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

Encoding is array arithmetic: each bar is written once, and windows string bars together. Knows nothing about files.
"""

from typing import NamedTuple

import numpy as np

from megatron_music.music.grid import cut_at_bar_lines
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

    # A row is one track of one window: which of the written bars it strings together, [rows, bars].
    row_window, row_track = np.divmod(np.arange(num_windows * num_tracks), num_tracks)
    strung = (row_track * num_bars + first_bars[row_window])[:, None] + np.arange(bars)
    strung[:, 0] = written.opened[strung[:, 0]]
    if bars > 1:
        strung[:, -1] = written.closed[strung[:, -1]]
    notes_in_row = written.notes[strung].sum(axis=1)
    if not keep_silent:
        sounding = notes_in_row > 0
        row_window, row_track, strung, notes_in_row = (
            array[sounding] for array in (row_window, row_track, strung, notes_in_row)
        )
    instrument_ids = np.array([instrument_id(track) for track in score.tracks], np.int64)
    density = np.searchsorted(density_bins, notes_in_row, side="right") if density_bins else None
    ids, row_length = _string_rows(written, strung, row_window, instrument_ids[row_track], density)
    lengths = np.bincount(row_window, row_length, minlength=num_windows).astype(np.int32)
    return ids, lengths[lengths > 0]


class _Bars(NamedTuple):
    """Every bar of every track as tokens, BAR_START to BAR_END; bar b of track t is number ``t * num_bars + b``.

    After these come the same bars as they stand at a window's edge, where a note sounds across it.
    """

    ids: np.ndarray  # uint16, all bars one after another
    start: np.ndarray  # of each bar in ``ids``
    length: np.ndarray
    notes: np.ndarray  # NOTE_ONs in each
    opened: np.ndarray  # for each plain bar the number of the bar that begins a window
    closed: np.ndarray  # for each plain bar the number of the bar that ends a window


def _write_bars(score: Score, bar_line: str, num_bars: int, first_bars: np.ndarray, last_bars: np.ndarray) -> _Bars:
    """Encode each bar once, whatever windows it is in, and once more where a window begins or ends with it."""
    bar_steps = score.steps_per_bar
    track = np.repeat(np.arange(len(score.tracks)), [len(t) for t in score.tracks])
    start, end, pitch, _ = (np.concatenate(c) for c in zip(*(t.columns for t in score.tracks), strict=True))
    index, start, end = cut_at_bar_lines(start, end, bar_steps, bar_line)
    pitch, first_bar = pitch[index], track[index] * num_bars
    start_bar, end_bar = start // bar_steps, (end - 1) // bar_steps
    plain = np.concatenate((
        (first_bar + start_bar) << _BAR_SHIFT | (start - start_bar * bar_steps) << _TIME_SHIFT | 1 << _ON_SHIFT | pitch,
        (first_bar + end_bar) << _BAR_SHIFT | (end - end_bar * bar_steps) << _TIME_SHIFT | pitch,
    ))  # fmt: skip

    # Across each bar line a note sounds over: an end at the line, and a start behind it.
    crossings = end_bar - start_bar
    index = np.repeat(np.arange(len(start)), crossings)
    before = start_bar[index] + np.arange(len(index)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    first_bar, pitch = first_bar[index], pitch[index]
    close = (first_bar + before) << _BAR_SHIFT | bar_steps << _TIME_SHIFT | pitch
    open_ = (first_bar + before + 1) << _BAR_SHIFT | 1 << _ON_SHIFT | pitch
    begins, ends = np.zeros(num_bars, bool), np.zeros(num_bars, bool)
    begins[first_bars], ends[last_bars] = True, True
    close, open_ = close[ends[before]], open_[begins[before + 1]]

    num_plain = len(score.tracks) * num_bars
    if np.array_equal(first_bars, last_bars):  # windows of one bar: an edge is both a beginning and an end
        edges, opened = _edge_bars(plain, np.concatenate((open_, close)), num_plain, num_plain)
        keys, closed = [plain, edges], opened
    else:
        edges, opened = _edge_bars(plain, open_, num_plain, num_plain)
        total = max(num_plain, int(opened.max()) + 1)
        more_edges, closed = _edge_bars(plain, close, num_plain, total)
        keys = [plain, edges, more_edges]
    total = max(num_plain, int(opened.max()) + 1, int(closed.max()) + 1)
    return _Bars(*_write_events(np.sort(np.concatenate(keys)), total), opened, closed)


def _edge_bars(plain: np.ndarray, added: np.ndarray, num_plain: int, first_number: int):
    """Keys of the bars that have ``added`` events, with these and their plain ones, under new bar numbers.

    Returns the keys, and for each plain bar the number of its edge form, or its own.
    """
    number = np.arange(num_plain)
    if not len(added):
        return added, number
    touched = np.unique(added >> _BAR_SHIFT)
    number[touched] = first_number + np.arange(len(touched))
    bar = plain >> _BAR_SHIFT
    keys = np.concatenate((plain[number[bar] != bar], added))
    bar = keys >> _BAR_SHIFT
    return keys + ((number[bar] - bar) << _BAR_SHIFT), number


def _write_events(key: np.ndarray, num_bars: int):
    """The tokens of sorted keys: ids (uint16), and start, length and NOTE_ONs of each bar."""
    bar, time, is_on = key >> _BAR_SHIFT, (key >> _TIME_SHIFT) & 63, (key >> _ON_SHIFT) & 1
    delta = time.copy()
    delta[1:] -= np.where(bar[1:] == bar[:-1], time[:-1], 0)
    has_delta = delta > 0
    words = has_delta + 1
    length = np.bincount(bar, words, minlength=num_bars).astype(np.int64) + 2
    start = np.cumsum(length) - length
    ids = np.empty(int(length.sum()), np.uint16)
    ids[start] = v.BAR_START
    ids[start + length - 1] = v.BAR_END
    place = np.cumsum(words) + 2 * bar  # words before it and its own, and the ends of the bars before it
    ids[place] = np.where(is_on, v.NOTE_ON, v.NOTE_OFF) + (key & 127)
    rests = np.flatnonzero(has_delta)
    ids[place[rests] - 1] = v.TIME_DELTA + delta[rests]
    return ids, start, length, np.bincount(bar, is_on, minlength=num_bars).astype(np.int64)


def _string_rows(bars: _Bars, strung, row_window, instrument_id, density):
    """Heads, the bars of each row, and ends. Returns ids (uint16) and the length of each row."""
    opens_window = np.ones(len(row_window), bool)
    opens_window[1:] = row_window[1:] != row_window[:-1]
    head = opens_window + 2 + (density is not None)  # [PIECE_START] TRACK_START INST [DENSITY]
    length = bars.length[strung]
    body = length.sum(axis=1)
    row_length = head + body + 1
    row_start = np.cumsum(row_length) - row_length
    ids = np.empty(int(row_length.sum()), np.uint16)
    ids[row_start[opens_window]] = v.PIECE_START
    ids[row_start + opens_window] = v.TRACK_START
    ids[row_start + opens_window + 1] = instrument_id
    if density is not None:
        ids[row_start + head - 1] = v.DENSITY + density
    ids[row_start + row_length - 1] = v.TRACK_END
    # All bars as one gather: where each token comes from, and that it is no head or end.
    length = length.ravel()
    source = np.arange(int(length.sum())) + np.repeat(bars.start[strung].ravel() - (np.cumsum(length) - length), length)
    is_body = np.ones(len(ids), bool)
    for place in range(4):
        is_body[(row_start + place)[head > place]] = False
    is_body[row_start + row_length - 1] = False
    ids[is_body] = bars.ids[source]
    return ids, row_length


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
