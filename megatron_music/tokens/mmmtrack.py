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

Encoding is array arithmetic over all notes of all windows at once. Knows nothing about files.
"""

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
    track, start, end, pitch = _columns(score)
    index, start, end = cut_at_bar_lines(start, end, bar_steps, bar_line)
    track, pitch = track[index], pitch[index]

    # Every (note, window) pair that sounds together, the note cut to the window.
    window_start = np.asarray(first_bars, np.int64) * bar_steps
    first = np.searchsorted(window_start + bars * bar_steps, start, side="right")
    count = np.searchsorted(window_start, end, side="left") - first
    index = np.repeat(np.arange(len(start)), count)
    window = first[index] + np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
    start = np.maximum(start[index] - window_start[window], 0)
    end = np.minimum(end[index] - window_start[window], bars * bar_steps)

    # A row is one track of one window; silent rows are left out, so rows are numbered anew.
    row = window * num_tracks + track[index]
    notes_in_row = np.bincount(row, minlength=num_windows * num_tracks)
    written = np.ones(len(notes_in_row), bool) if keep_silent else notes_in_row > 0
    row = (np.cumsum(written) - 1)[row]
    row_window, row_track = np.divmod(np.flatnonzero(written), max(num_tracks, 1))
    notes_in_row = notes_in_row[written]

    ids, row_length = _write_rows(
        row, start, end, pitch[index], bars, bar_steps, row_window,
        np.array([instrument_id(t) for t in score.tracks], np.int64)[row_track],
        np.searchsorted(density_bins, notes_in_row, side="right") if density_bins else None,
    )  # fmt: skip
    lengths = np.bincount(row_window, row_length, minlength=num_windows).astype(np.int32)
    return ids, lengths[lengths > 0]


def _columns(score: Score) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Track number, start, end and pitch of every note, int64 [N] each."""
    track = np.repeat(np.arange(len(score.tracks)), [len(t) for t in score.tracks])
    rows = np.concatenate([t.notes for t in score.tracks]) if score.tracks else np.empty((0, 4), np.int64)
    return track, rows[:, 0], rows[:, 1], rows[:, 2]


def _write_rows(row, start, end, pitch, bars, bar_steps, row_window, instrument_id, density):
    """The tokens of every row: heads, bars, events. Returns ids (uint16) and the length of each row."""
    start_bar, end_bar = start // bar_steps, (end - 1) // bar_steps
    on = (row * bars + start_bar) << _BAR_SHIFT | (start - start_bar * bar_steps) << _TIME_SHIFT | 1 << _ON_SHIFT
    off = (row * bars + end_bar) << _BAR_SHIFT | (end - end_bar * bar_steps) << _TIME_SHIFT
    key = np.sort(np.concatenate((on | pitch, off | pitch)))
    bar, time, is_on = key >> _BAR_SHIFT, (key >> _TIME_SHIFT) & 63, (key >> _ON_SHIFT) & 1
    delta = time.copy()
    delta[1:] -= np.where(bar[1:] == bar[:-1], time[:-1], 0)
    has_delta = delta > 0

    num_rows = len(row_window)
    opens_window = np.ones(num_rows, bool)
    opens_window[1:] = row_window[1:] != row_window[:-1]
    head = opens_window + 2 + (density is not None)  # [PIECE_START] TRACK_START INST [DENSITY]
    bar_length = np.bincount(bar, 1 + has_delta, minlength=num_rows * bars).astype(np.int64) + 2
    row_length = head + bar_length.reshape(num_rows, bars).sum(axis=1) + 1
    row_start = np.cumsum(row_length) - row_length
    bar_start = np.cumsum(bar_length) - bar_length + np.repeat(np.cumsum(head) + np.arange(num_rows), bars)

    ids = np.empty(int(row_length.sum()), np.uint16)
    ids[row_start[opens_window]] = v.PIECE_START
    ids[row_start + opens_window] = v.TRACK_START
    ids[row_start + opens_window + 1] = instrument_id
    if density is not None:
        ids[row_start + head - 1] = v.DENSITY + density
    ids[bar_start] = v.BAR_START
    ids[bar_start + bar_length - 1] = v.BAR_END
    ids[row_start + row_length - 1] = v.TRACK_END
    # An event's place: those written before it, its bar's start, and its own TIME_DELTA.
    written = np.cumsum(1 + has_delta)
    before_bar = np.cumsum(bar_length - 2) - (bar_length - 2)
    place = bar_start[bar] + written - before_bar[bar]
    ids[place] = np.where(is_on, v.NOTE_ON, v.NOTE_OFF) + (key & 127)
    ids[place[has_delta] - 1] = v.TIME_DELTA + delta[has_delta]
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
