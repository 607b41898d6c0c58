"""The way from a score to its windows as compiled loops: the same results as ``music.grid`` and ``tokens.windows``,
faster.

Notes are put in order by counting, which takes a time in proportion to their number; they are sorted where they come in
no order of time.
"""

from collections.abc import Callable
from functools import cache

import numpy as np

from megatron_music.music.grid import (
    MAX_STEPS,
    check_length,
    cut_at_bar_lines,
    on_grid,
    sounding_tracks,
)
from megatron_music.music.numba_jit import compiled
from megatron_music.music.score import DEFAULT_VELOCITY, QuantizationReport, Score
from megatron_music.tokens.density import (
    MAX_COUNT,
    density_ids,
    open_bar_ids,
    open_track_ids,
)
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.windows import (
    EncodedStretch,
    Windows,
    attributes,
    first_bars_of,
    instrument_id,
)
from megatron_music.tokens.windows_numba import write_windows

_NO_HEAD, _NO_CHANGE = np.empty((0, 0), np.uint16), np.empty((0, 2), np.uint16)  # where nothing is said


def encode_stretch(score: Score, encoding: Encoding, label_ids: tuple[int, ...] = ()) -> EncodedStretch:
    """``tokens.windows.encode_stretch``."""
    score = sounding_tracks(score)
    velocity, old, new = encoding.velocity, score.steps_per_quarter, encoding.steps_per_quarter
    tracks = score.tracks
    columns, counts = _quantize(score.columns, new, old, velocity, len(tracks))
    last, last_onset, shortened, lengthened, error, worst, on_steps, *errors = counts.tolist()
    check_length(last)
    notes, kept = score.num_notes, columns.shape[1]
    report = QuantizationReport(
        notes_in=notes,
        notes_out=kept,
        notes_lost=notes - kept,
        notes_shortened=shortened,
        notes_lengthened=lengthened,
        onsets_on_grid=on_steps,
        mean_onset_error=error / old / notes,
        max_onset_error=worst / old,
        onset_errors=tuple(errors),
    )
    if encoding.writes_meters or encoding.tempo:
        quantized = on_grid(score, columns, report, new, encoding.writes_meters, encoding.tempo)
        lines, (head, change) = quantized.bar_starts, attributes(quantized, encoding, label_ids)
    else:
        bar = 4 * new
        lines, head, change = np.arange(0, last + bar, bar), _NO_HEAD, _NO_CHANGE
        if label_ids:
            head = np.empty((len(lines) - 1, len(label_ids)), np.uint16)
            head[:] = label_ids
    num_bars = len(lines) - 1
    if encoding.bar_line != "carry":
        index, start, end = cut_at_bar_lines(columns[1], columns[2], lines, encoding.bar_line)
        columns = columns[:, index]
        columns[1], columns[2] = start, end
        last_onset = int(start.max())
    first_bars = first_bars_of(lines, last_onset, encoding)
    if not len(first_bars):
        return EncodedStretch(Windows.none(), report, num_bars, len(tracks))
    instruments = np.array([instrument_id(track) for track in tracks])
    ids, lengths, begins, rows = write_windows(
        columns,
        lines,
        head,
        change,
        instruments,
        first_bars,
        encoding.bars or num_bars,
        _track_table(encoding),
        _bar_table(encoding),
        velocity,
        not encoding.bars,
    )
    return EncodedStretch(Windows(ids, lengths, begins, *rows), report, num_bars, len(tracks))


@compiled
def _quantize(columns, new, old, velocity, num_tracks):
    """``music.grid.quantize_columns``: the columns; and the last step and onset, and what the report is of, in one
    array.

    One call, and one for the windows: to go from Python into compiled code and back costs as much as a hundred notes,
    and each array as much as twenty.
    """
    key, is_sorted, last, lengthened, error, worst, on_steps, errors = _quantize_keys(
        columns, new, old, velocity, num_tracks
    )
    if not is_sorted:
        key.sort()
    quantized, shortened = _quantize_columns(key, velocity)
    counts = np.zeros(7 + len(errors), np.int64)
    for note in range(quantized.shape[1]):
        counts[1] = max(counts[1], quantized[1, note])
    counts[0], counts[2], counts[3], counts[4], counts[5], counts[6] = (
        last,
        shortened,
        lengthened,
        error,
        worst,
        on_steps,
    )
    counts[7:] = errors
    return quantized, counts


@compiled
def _quantize_keys(columns, new, old, velocity, num_tracks):
    """A key for each note, by which ``music.grid.quantize_columns`` sorts, and whether they are in order already."""
    num_notes = columns.shape[1]
    unplaced = np.empty(num_notes, np.int64)
    errors = np.zeros(10, np.int64)
    place = np.zeros(num_tracks * 128 + 1, np.int64)
    last = lengthened = total = worst = on_steps = 0
    for note in range(num_notes):
        # Division of floats, which is exact here (quotients below 2**21 of numbers below 2**53) and faster than of
        # integers.
        start = int((2 * new * columns[1, note] + old) / (2.0 * old))
        end = int((2 * new * columns[2, note] + old) / (2.0 * old))
        if end <= start:
            end = start + 1
            lengthened += 1
        last = max(last, end)
        error = abs(start * old - columns[1, note] * new)
        total += error
        worst = max(worst, error)
        on_steps += error == 0
        errors[min(int(error * 20 / float(old)), 9)] += 1
        softness = 31 - (columns[4, note] >> 2) if velocity else 0
        group = columns[0, note] << 7 | columns[3, note]
        place[group + 1] += 1
        unplaced[note] = group << 45 | start << 25 | (MAX_STEPS - end) << 5 | softness
    if last > MAX_STEPS:  # which the caller refuses: the keys have no room for it
        return np.empty(0, np.int64), True, last, lengthened, total, worst, on_steps, errors
    for group in range(num_tracks * 128):
        place[group + 1] += place[group]
    key = np.empty(num_notes, np.int64)
    for note in range(num_notes):
        group = unplaced[note] >> 45
        key[place[group]] = unplaced[note]
        place[group] += 1
    # In a file the notes of a pitch are in order of time but for chords of one note: a few steps put the rest right.
    steps = 0
    for note in range(1, num_notes):
        here, to = key[note], note
        while to and key[to - 1] > here and steps < num_notes:
            key[to] = key[to - 1]
            to -= 1
            steps += 1
        key[to] = here
    return key, steps < num_notes, last, lengthened, total, worst, on_steps, errors


@compiled
def _quantize_columns(key, velocity):
    """Sorted keys to columns: of equal onsets the first, an earlier note cut where its pitch is struck again."""
    count = 0
    for note in range(len(key)):
        count += note == 0 or key[note] >> 25 != key[note - 1] >> 25
    columns = np.empty((5, count), np.int64)
    shortened = place = 0
    for note in range(len(key)):
        if note and key[note] >> 25 == key[note - 1] >> 25:
            continue
        group, start = key[note] >> 45, key[note] >> 25 & MAX_STEPS
        if (
            place
            and columns[0, place - 1] == group >> 7
            and columns[3, place - 1] == group & 127
            and columns[2, place - 1] > start
        ):
            columns[2, place - 1] = start
            shortened += 1
        columns[0, place], columns[1, place], columns[2, place] = (
            group >> 7,
            start,
            MAX_STEPS - (key[note] >> 5 & MAX_STEPS),
        )
        columns[3, place] = group & 127
        columns[4, place] = 126 - ((key[note] & 31) << 2) if velocity else DEFAULT_VELOCITY
        place += 1
    return columns, shortened


def _track_table(encoding: Encoding) -> np.ndarray:
    """What DENSITY stands for each number of notes; empty for no DENSITY."""
    return _table(encoding.density, encoding.density_bins, open_track_ids)


def _bar_table(encoding: Encoding) -> np.ndarray:
    return _table(encoding.bar_density, encoding.bar_density_bins, open_bar_ids)


@cache  # by what the table follows from: an Encoding has many fields to hash for each file
def _table(levels: int, bins: tuple[int, ...], open_ids: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    counts = np.arange(MAX_COUNT + 1 if levels else 0)
    return density_ids(counts, bins) if bins or levels == 1 else open_ids(counts)
