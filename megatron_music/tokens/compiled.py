"""The way from a score to its windows as compiled loops: the same results as ``music.grid`` and ``tokens.windows``, faster.

The one owner of numba (the extra ``fast``). The first use on a machine compiles for some seconds; later ones load what
was compiled from beside this file. Notes and events are put in order by counting, which takes a time in proportion to
their number; they are sorted where that does not fit: notes in no order of time, or a long piece with hardly a note.
"""

from functools import cache

import numpy as np
from numba import njit

from megatron_music.music.grid import MAX_STEPS, check_length, cut_at_bar_lines, on_grid, sounding_tracks
from megatron_music.music.score import DEFAULT_VELOCITY, QuantizationReport, Score
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.density import MAX_COUNT, density_ids, open_bar_ids, open_track_ids
from megatron_music.tokens.folder import Encoding
from megatron_music.tokens.windows import EncodedStretch, Windows, attributes, first_bars_of, instrument_id


def _can_keep() -> bool:
    """Whether there is a place to keep what is compiled; where there is none, each process compiles for itself."""
    try:
        njit(cache=True)(lambda: 0)
    except RuntimeError:  # numba found no folder it may write to
        return False
    return True


compiled = njit(cache=_can_keep(), nogil=True)

# Plain integers, which compiled code takes as constants.
_PIECE_START, _TRACK_START, _TRACK_END, _DOCUMENT_END = v.PIECE_START, v.TRACK_START, v.TRACK_END, v.DOCUMENT_END
_NO_HEAD, _NO_CHANGE = np.empty((0, 0), np.uint16), np.empty((0, 2), np.uint16)
_BAR_START, _BAR_END = v.BAR_START, v.BAR_END
_NOTE_ON, _NOTE_OFF, _VELOCITY, _TIME_DELTA, _LONGEST = v.NOTE_ON, v.NOTE_OFF, v.VELOCITY, v.TIME_DELTA, v.MAX_TIME_DELTA


def encode_stretch(score: Score, encoding: Encoding, label_ids: tuple[int, ...] = ()) -> EncodedStretch:
    """``tokens.windows.encode_stretch``."""
    score = sounding_tracks(score)
    velocity, old, new = encoding.velocity, score.steps_per_quarter, encoding.steps_per_quarter
    tracks = score.tracks
    columns, last, last_onset, shortened, lengthened, error, worst, on_steps, errors = _quantize(
        score.columns, new, old, velocity, len(tracks)
    )
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
        onset_errors=tuple(errors.tolist()),
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
    windows = _write(
        columns, lines, head, change, instruments, first_bars, encoding.bars or num_bars, _track_table(encoding),
        _bar_table(encoding), velocity, not encoding.bars,
    )  # fmt: skip
    return EncodedStretch(Windows(*windows), report, num_bars, len(tracks))


@compiled
def _quantize(columns, new, old, velocity, num_tracks):
    """``music.grid.quantize_columns``: the columns, the last step and onset, and what the report is of.

    One call, and one for the windows: to go from Python into compiled code and back costs as much as a hundred notes.
    """
    key, is_sorted, last, lengthened, error, worst, on_steps, errors = _quantize_keys(columns, new, old, velocity, num_tracks)
    if not is_sorted:
        key.sort()
    quantized, shortened = _quantize_columns(key, velocity)
    last_onset = 0
    for note in range(quantized.shape[1]):
        last_onset = max(last_onset, quantized[1, note])
    return quantized, last, last_onset, shortened, lengthened, error, worst, on_steps, errors


@compiled
def _quantize_keys(columns, new, old, velocity, num_tracks):
    """A key for each note, by which ``music.grid.quantize_columns`` sorts, and whether they are in order already."""
    num_notes = columns.shape[1]
    unplaced = np.empty(num_notes, np.int64)
    errors = np.zeros(10, np.int64)
    place = np.zeros(num_tracks * 128 + 1, np.int64)
    last = lengthened = total = worst = on_steps = 0
    for note in range(num_notes):
        # Division of floats, which is exact here (quotients below 2**21 of numbers below 2**53) and faster than of integers.
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
        if place and columns[0, place - 1] == group >> 7 and columns[3, place - 1] == group & 127 and columns[2, place - 1] > start:
            columns[2, place - 1] = start
            shortened += 1
        columns[0, place], columns[1, place], columns[2, place] = group >> 7, start, MAX_STEPS - (key[note] >> 5 & MAX_STEPS)
        columns[3, place] = group & 127
        columns[4, place] = 126 - ((key[note] & 31) << 2) if velocity else DEFAULT_VELOCITY
        place += 1
    return columns, shortened


@cache
def _track_table(encoding: Encoding) -> np.ndarray:
    """What DENSITY stands for each number of notes; empty for no DENSITY."""
    counts = np.arange(MAX_COUNT + 1 if encoding.density else 0)
    return density_ids(counts, encoding.density_bins) if encoding.density_bins else open_track_ids(counts)


@cache
def _bar_table(encoding: Encoding) -> np.ndarray:
    counts = np.arange(MAX_COUNT + 1 if encoding.bar_density else 0)
    return density_ids(counts, encoding.bar_density_bins) if encoding.bar_density_bins else open_bar_ids(counts)


@compiled
def _event_keys(columns, lines, velocity, num_tracks):
    """A key for each NOTE_ON and NOTE_OFF, and what sounds across each bar line.

    Returns:
        Keys: bar (of all tracks) << 23 | step in it << 13 | on << 12 | pitch << 5 | velocity bin; whether they are in
        order. The low 12 bits of each note that sounds across the line at the start of a bar, bar after bar, by rising
        pitch; and where those of each bar begin.
    """
    num_notes, num_bars = columns.shape[1], len(lines) - 1
    key = np.empty(2 * num_notes, np.int64)
    first, last = np.empty(num_notes, np.int64), np.empty(num_notes, np.int64)
    start_of = np.zeros(num_tracks * num_bars + 2, np.int64)
    bar_length = lines[1] - lines[0]
    is_even = lines[num_bars] - lines[0] == bar_length * num_bars
    for bar in range(num_bars):
        is_even = is_even and lines[bar + 1] - lines[bar] == bar_length
    for note in range(num_notes):
        start, end = columns[1, note], columns[2, note]
        if is_even:
            first[note], last[note] = int(start / float(bar_length)), int((end - 1) / float(bar_length))
        else:
            first[note] = np.searchsorted(lines, start, side="right") - 1
            last[note] = np.searchsorted(lines, end - 1, side="right") - 1
        low = columns[3, note] << 5 | (columns[4, note] >> 2 if velocity else 0)
        offset = columns[0, note] * num_bars
        key[2 * note] = (offset + first[note]) << 23 | (start - lines[first[note]]) << 13 | 1 << 12 | low
        key[2 * note + 1] = (offset + last[note]) << 23 | (end - lines[last[note]]) << 13 | low
        for bar in range(first[note] + 1, last[note] + 1):
            start_of[offset + bar + 2] += 1
    for bar in range(2, len(start_of)):
        start_of[bar] += start_of[bar - 1]
    crossings = np.empty(start_of[-1], np.int64)
    for note in range(num_notes):
        offset = columns[0, note] * num_bars
        for bar in range(first[note] + 1, last[note] + 1):
            crossings[start_of[offset + bar + 1]] = columns[3, note] << 5 | (columns[4, note] >> 2 if velocity else 0)
            start_of[offset + bar + 1] += 1
    span = 2 * (lines[num_bars] + 1)
    if num_tracks * span > 8 * len(key) + 1024:
        return key, False, crossings, start_of[:-1]
    # By track, step, off before on; notes come by rising pitch, and stay so.
    place = np.zeros(num_tracks * span + 1, np.int32)
    for note in range(num_notes):
        offset = columns[0, note] * span + 1
        place[offset + 2 * columns[1, note] + 1] += 1
        place[offset + 2 * columns[2, note]] += 1
    for step in range(num_tracks * span):
        place[step + 1] += place[step]
    ordered = np.empty(len(key), np.int64)
    for note in range(num_notes):
        offset = columns[0, note] * span
        on, off = offset + 2 * columns[1, note] + 1, offset + 2 * columns[2, note]
        ordered[place[on]] = key[2 * note]
        place[on] += 1
        ordered[place[off]] = key[2 * note + 1]
        place[off] += 1
    return ordered, True, crossings, start_of[:-1]


@compiled
def _rest(out, place, steps):
    """Write a rest; returns the place after it."""
    while steps > _LONGEST:
        out[place] = _TIME_DELTA + _LONGEST
        place += 1
        steps -= _LONGEST
    if steps:
        out[place] = _TIME_DELTA + steps
        place += 1
    return place


@compiled
def _write_bars(key, lines, change, num_tracks, bar_table, velocity):
    """Every bar of every track once, BAR_START to BAR_END.

    Returns:
        ids; where each bar begins in them, and the end of the last; NOTE_ONs before each bar; and of each bar: notes
        struck at step 0, releases at the bar line, the last other step, tokens of changes.
    """
    num_bars = len(lines) - 1
    total = num_tracks * num_bars
    longest = 0
    for bar in range(num_bars):
        longest = max(longest, lines[bar + 1] - lines[bar])
    out = np.empty(len(key) * (2 + velocity) + total * (6 + longest // _LONGEST), np.uint16)
    start, notes = np.empty(total + 1, np.int64), np.empty(total + 1, np.int64)
    struck, released, last_step, changes = (
        np.zeros(total, np.int64), np.zeros(total, np.int64), np.zeros(total, np.int64), np.zeros(total, np.int64)
    )  # fmt: skip
    place = event = num_notes = 0
    for bar in range(total):
        start[bar], notes[bar] = place, num_notes
        out[place] = _BAR_START
        place += 1
        if len(change):
            for kind in range(2):
                said = change[bar % num_bars, kind]
                if said:
                    out[place] = said
                    place += 1
                    changes[bar] += 1
        density = place
        place += len(bar_table) > 0
        line = lines[bar % num_bars + 1] - lines[bar % num_bars]
        # Numbers of a bar are kept in variables: a store into one array makes the machine load the others again.
        now = last = at_start = at_line = 0
        end = (bar + 1) << 23
        while event < len(key):
            here = key[event]
            if here >= end:
                break
            time, pitch = here >> 13 & 1023, here >> 5 & 127
            if time > now:
                if time - now <= _LONGEST:
                    out[place] = _TIME_DELTA + time - now
                    place += 1
                else:
                    place = _rest(out, place, time - now)
                now = time
                if time < line:
                    last = time
            if here >> 12 & 1:
                if velocity:
                    out[place] = _VELOCITY + (here & 31)
                    place += 1
                out[place] = _NOTE_ON + pitch
                num_notes += 1
                at_start += time == 0
            else:
                out[place] = _NOTE_OFF + pitch
                at_line += time == line
            place += 1
            event += 1
        struck[bar], released[bar], last_step[bar] = at_start, at_line, last
        if len(bar_table):
            out[density] = bar_table[min(num_notes - notes[bar], len(bar_table) - 1)]
        out[place] = _BAR_END
        place += 1
    start[total], notes[total] = place, num_notes
    return out, start, notes, struck, released, last_step, changes


@compiled
def _write(
    columns, lines, head, change, instruments, first_bars, bars, track_table, bar_table, velocity, keep_silent
):  # fmt: skip
    """All windows of quantised notes; ``head`` and ``change`` are empty where nothing is said."""
    num_bars, num_tracks = len(lines) - 1, len(instruments)
    key, is_sorted, crossings, crossing_start = _event_keys(columns, lines, velocity, num_tracks)
    if not is_sorted:
        key.sort()
    written, start, notes, struck, released, last_step, changes = _write_bars(
        key, lines, change, num_tracks, bar_table, velocity
    )
    words = 1 + velocity
    opening = 1 + (len(bar_table) > 0)
    room, num_rows = 0, 0
    for first_bar in first_bars:
        for track in range(num_tracks):
            first, last = track * num_bars + first_bar, track * num_bars + first_bar + bars - 1
            room += start[last + 1] - start[first] + head.shape[1] + 8 + (lines[-1] - lines[-2]) // _LONGEST
            room += words * (crossing_start[first + 1] - crossing_start[first])
            if first_bar + bars < num_bars:
                room += crossing_start[last + 2] - crossing_start[last + 1]
                room += (lines[first_bar + bars] - lines[first_bar + bars - 1]) // _LONGEST
            num_rows += 1
    out = np.empty(room, np.uint16)
    lengths, documents = np.empty(len(first_bars), np.int32), np.empty(len(first_bars), np.int64)
    row_documents, row_tracks, row_notes = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    place = document = row = 0
    for first_bar in first_bars:
        begin = place
        for track in range(num_tracks):
            first, last = track * num_bars + first_bar, track * num_bars + first_bar + bars - 1
            coming, coming_end = crossing_start[first], crossing_start[first + 1]
            count = notes[last + 1] - notes[first] + coming_end - coming
            if count == 0 and not keep_silent:
                continue
            row_documents[row], row_tracks[row], row_notes[row] = document, track, count
            row += 1
            if place == begin:
                out[place] = _PIECE_START
                place += 1
                for kind in range(head.shape[1]):
                    out[place] = head[first_bar, kind]
                    place += 1
            out[place], out[place + 1] = _TRACK_START, instruments[track]
            place += 2
            if len(track_table):
                out[place] = track_table[min(count, len(track_table) - 1)]
                place += 1

            source = start[first]
            if coming < coming_end or changes[first]:  # the first bar begins otherwise than it is written
                out[place] = _BAR_START
                place += 1
                if len(bar_table):
                    in_bar = notes[first + 1] - notes[first] + coming_end - coming
                    out[place] = bar_table[min(in_bar, len(bar_table) - 1)]
                    place += 1
                source += opening + changes[first]
                own_end = source + words * struck[first]
                while coming < coming_end or source < own_end:
                    own = out[place] if source == own_end else written[source + words - 1]
                    if source == own_end or (coming < coming_end and _NOTE_ON + (crossings[coming] >> 5) < own):
                        if velocity:
                            out[place] = _VELOCITY + (crossings[coming] & 31)
                            place += 1
                        out[place] = _NOTE_ON + (crossings[coming] >> 5)
                        place += 1
                        coming += 1
                    else:
                        for word in range(words):
                            out[place] = written[source + word]
                            place += 1
                        source += words

            going = going_end = 0
            if first_bar + bars < num_bars:
                going, going_end = crossing_start[last + 1], crossing_start[last + 2]
            source_end = start[last + 1]
            if going == going_end:
                out[place : place + source_end - source] = written[source:source_end]
                place += source_end - source
            else:
                line = lines[first_bar + bars] - lines[first_bar + bars - 1]
                rest = line - last_step[last]
                own_end = source_end - 1
                own = own_end - released[last]
                source_end = own - (-(-rest // _LONGEST) if released[last] else 0)
                out[place : place + source_end - source] = written[source:source_end]
                place = _rest(out, place + source_end - source, rest)
                while going < going_end or own < own_end:
                    if own == own_end or (going < going_end and _NOTE_OFF + (crossings[going] >> 5) < written[own]):
                        out[place] = _NOTE_OFF + (crossings[going] >> 5)
                        going += 1
                    else:
                        out[place] = written[own]
                        own += 1
                    place += 1
                out[place] = _BAR_END
                place += 1
            out[place] = _TRACK_END
            place += 1
        if place > begin:
            out[place] = _DOCUMENT_END
            place += 1
            lengths[document], documents[document] = place - begin, first_bar
            document += 1
    return out[:place], lengths[:document], documents[:document], row_documents[:row], row_tracks[:row], row_notes[:row]
