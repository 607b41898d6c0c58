"""Quantised notes to the ids of all their windows, as compiled loops: what ``tokens.windows`` does by array arithmetic.

Events are put in order by counting, which takes a time in proportion to their number; they are sorted where that does
not fit, as in a long piece with hardly a note.
"""

import numpy as np

from megatron_music.music.numba_jit import compiled
from megatron_music.tokens import vocabulary as v

# Plain integers, which compiled code takes as constants.
_PIECE_START, _TRACK_START, _TRACK_END, _DOCUMENT_END = v.PIECE_START, v.TRACK_START, v.TRACK_END, v.DOCUMENT_END
_BAR_START, _BAR_END = v.BAR_START, v.BAR_END
_NOTE_ON, _NOTE_OFF, _VELOCITY, _TIME_DELTA, _LONGEST = (
    v.NOTE_ON,
    v.NOTE_OFF,
    v.VELOCITY,
    v.TIME_DELTA,
    v.MAX_TIME_DELTA,
)


@compiled
def _event_keys(columns, lines, velocity, num_tracks):
    """A key for each NOTE_ON and NOTE_OFF, and what sounds across each bar line.

    Returns:
        Keys: bar (of all tracks) << 23 | step in it << 13 | on << 12 | pitch << 5 | velocity bin; whether they are in
        order. The low 12 bits of each note that sounds across the line at the start of a bar, bar after bar, by rising
        pitch; and where those of each bar begin.
    """
    num_notes, num_bars, num_steps = columns.shape[1], len(lines) - 1, lines[-1] + 1
    key = np.empty(2 * num_notes, np.int64)
    span = 2 * num_steps
    is_dense = num_tracks * span <= 8 * len(key) + 1024
    bar_of = np.empty(num_steps if is_dense else 0, np.int64)
    if is_dense:
        for bar in range(num_bars):
            for step in range(lines[bar], lines[bar + 1]):
                bar_of[step] = bar
    # By track, step, off before on; notes come by rising pitch, and stay so.
    place = np.zeros(num_tracks * span + 1 if is_dense else 0, np.int32)
    start_of = np.zeros(num_tracks * num_bars + 2, np.int64)
    crossing, num_crossing = np.empty(num_notes, np.int64), 0
    for note in range(num_notes):
        start, end = columns[1, note], columns[2, note]
        if is_dense:
            first, last = bar_of[start], bar_of[end - 1]
            offset = columns[0, note] * span + 1
            place[offset + 2 * start + 1] += 1
            place[offset + 2 * end] += 1
        else:
            first = np.searchsorted(lines, start, side="right") - 1
            last = np.searchsorted(lines, end - 1, side="right") - 1
        low = columns[3, note] << 5 | (columns[4, note] >> 2 if velocity else 0)
        offset = columns[0, note] * num_bars
        key[2 * note] = (offset + first) << 23 | (start - lines[first]) << 13 | 1 << 12 | low
        key[2 * note + 1] = (offset + last) << 23 | (end - lines[last]) << 13 | low
        if first < last:
            crossing[num_crossing] = note
            num_crossing += 1
            for bar in range(first + 1, last + 1):
                start_of[offset + bar + 2] += 1
    for bar in range(2, len(start_of)):
        start_of[bar] += start_of[bar - 1]
    crossings = np.empty(start_of[-1], np.int64)
    for note in crossing[:num_crossing]:
        first, last = (key[2 * note] >> 23) + 1, (key[2 * note + 1] >> 23) + 1
        for bar in range(first, last):
            crossings[start_of[bar + 1]] = key[2 * note] & 4095
            start_of[bar + 1] += 1
    if not is_dense:
        return key, False, crossings, start_of[:-1]
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
        np.zeros(total, np.int64),
        np.zeros(total, np.int64),
        np.zeros(total, np.int64),
        np.zeros(total, np.int64),
    )
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
def write_windows(
    columns, lines, head, change, instruments, first_bars, bars, track_table, bar_table, velocity, keep_silent
):
    """All windows of quantised notes; ``head`` and ``change`` are empty where nothing is said.

    Returns:
        The fields of ``tokens.windows.Windows``, those of rows in one array (int64 [3, R]).
    """
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
    rows = np.empty((3, num_rows), np.int64)
    place = document = row = 0
    for first_bar in first_bars:
        begin = place
        for track in range(num_tracks):
            first, last = track * num_bars + first_bar, track * num_bars + first_bar + bars - 1
            coming, coming_end = crossing_start[first], crossing_start[first + 1]
            count = notes[last + 1] - notes[first] + coming_end - coming
            if count == 0 and not keep_silent:
                continue
            rows[0, row], rows[1, row], rows[2, row] = document, track, count
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
    return out[:place], lengths[:document], documents[:document], rows[:, :row]
