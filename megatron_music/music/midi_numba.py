"""The loop of ``music.midi_bytes`` compiled: ``music.midi.read_midi`` of a file's bytes, faster, and the same."""

from types import FunctionType

import numpy as np

from megatron_music.music import midi, midi_bytes
from megatron_music.music.midi_tables import FIRST_ROOM, MAX_TRACKS, Header, Tables
from megatron_music.music.numba_jit import compiled
from megatron_music.music.pedal import NUM_KEYBOARD_PROGRAMS, PEDAL_DOWN
from megatron_music.music.score import Score

# The functions as they stand, each with the compiled ones before it in the place of its helpers.
_LOOP = dict(vars(midi_bytes))
for _name in ("number_at", "quantity_at", "program_at", "read_chunk", "read_chunks", "read_file", "order_tracks"):
    _LOOP[_name] = compiled(FunctionType(getattr(midi_bytes, _name).__code__, _LOOP, _name))
_read_file, _order_tracks = _LOOP["read_file"], _LOOP["order_tracks"]
_NUM_NUMBERS, _TABLE_LENGTHS, _MAX_TRACKS = midi_bytes.NUM_NUMBERS, midi_bytes.TABLE_LENGTHS, MAX_TRACKS
_NOTE, _MARK, _CONTROL, _HEAD = (
    midi_bytes.NOTE_FIELDS,
    midi_bytes.MARK_FIELDS,
    midi_bytes.CONTROL_FIELDS,
    midi_bytes.HEAD_FIELDS,
)
_NOTES, _TRACKS, _MARKS, _CONTROLS, _HANGING = (
    midi_bytes.NOTES,
    midi_bytes.TRACKS,
    midi_bytes.MARKS,
    midi_bytes.CONTROLS,
    midi_bytes.HANGING,
)
_SET_PEDAL, _PEDAL_DOWN, _DRUM_CHANNEL = midi_bytes.SET_PEDAL, PEDAL_DOWN, midi_bytes.DRUM_CHANNEL
_ALL_PROGRAMS = 128
_PITCHED, _CHANNELS = _TABLE_LENGTHS[0], _TABLE_LENGTHS[3]


def read_midi(content: bytes, sanitize: bool = False, voices: str = "auto", pedal: str = "ignore") -> Score:
    """``music.midi.read_midi`` of a file's bytes."""
    return midi.read_bytes(content, "the file", sanitize, voices, pedal, _ENGINE)


def read_tables(header: Header, lenient: bool) -> Tables:
    """``music.midi_tables.read_tables``."""
    content, room = np.frombuffer(header.content, np.uint8), min(len(header.content) // 3 + 1, FIRST_ROOM)
    while True:
        error, columns, packed, controls = _read(content, *header[1:4], lenient, room)
        if error != midi_bytes.FULL or room > len(content) // 3:
            break
        room = min(4 * room, len(content) // 3 + 1)
    packed = packed.tolist()
    numbers = packed[:_NUM_NUMBERS]
    heads = _NUM_NUMBERS + numbers[_TRACKS] + 1
    marks = heads + _HEAD * numbers[_TRACKS]
    return Tables(
        error,
        numbers,
        columns,
        packed[_NUM_NUMBERS:heads],
        [packed[row : row + _HEAD] for row in range(heads, marks, _HEAD)],
        [packed[row : row + _MARK] for row in range(marks, len(packed), _MARK)],
        controls,
    )


def lengthen(columns: np.ndarray, heads: list[list[int]], controls: np.ndarray, mode: str) -> np.ndarray:
    """``music.pedal.lengthen``; by arrays where tracks share a channel, or chunks a channel's pedal."""
    keyboards = {"auto": NUM_KEYBOARD_PROGRAMS, "extend": _ALL_PROGRAMS}.get(mode, 0)
    is_simple, longer = _lengthen(columns, np.array(heads, np.int64), controls, keyboards)
    return longer if is_simple else midi.PLAIN.lengthen(columns, heads, controls, mode)


_ENGINE = midi.Engine(read_tables, lengthen)


@compiled
def _read(content, place, form, promised, lenient, room):
    """``music.midi_tables.loop_tables`` with room for a number of rows in each table.

    Few arrays are returned, because each costs a microsecond: numbers, limits, heads and marks are one.
    """
    notes, marks = np.empty(_NOTE * room, np.int32), np.empty(_MARK * room, np.int32)
    controls, heads = np.empty(3 * _CONTROL * room, np.int32), np.empty(_HEAD * min(room, _MAX_TRACKS), np.int32)
    numbers = np.zeros(_NUM_NUMBERS, np.int64)
    tables = (
        np.full(_PITCHED, -1, np.int32),
        np.full(_PITCHED, -1, np.int32),
        np.full(_PITCHED, -1, np.int32),
        np.full(_CHANNELS, -1, np.int32),
        np.full(_CHANNELS, -1, np.int32),
        np.full(_CHANNELS, -1, np.int32),
    )
    error = _read_file(content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables)
    num_tracks, num_marks, num_controls = numbers[_TRACKS], numbers[_MARKS], numbers[_CONTROLS]
    new = np.empty(num_tracks, np.int32)
    _order_tracks(heads, num_tracks, new)
    columns, limits = _by_track(notes, numbers, new)
    packed = np.empty(_NUM_NUMBERS + num_tracks + 1 + _HEAD * num_tracks + _MARK * num_marks, np.int64)
    packed[:_NUM_NUMBERS] = numbers
    first = _NUM_NUMBERS + num_tracks + 1
    packed[_NUM_NUMBERS:first] = limits
    packed[first : first + _HEAD * num_tracks] = heads[: _HEAD * num_tracks]
    packed[first + _HEAD * num_tracks :] = marks[: _MARK * num_marks]
    # A copy: the room is too large to be kept.
    return error, columns, packed, controls[: _CONTROL * num_controls].copy().reshape(num_controls, _CONTROL)


@compiled
def _by_track(notes, numbers, new):
    """The notes track after track, and where each track begins; those that are never switched off are none."""
    num_tracks, num_notes = len(new), numbers[_NOTES]
    limits = np.zeros(num_tracks + 1, np.int64)
    for row in range(0, _NOTE * num_notes, _NOTE):
        if notes[row + 2] >= 0:
            limits[new[notes[row]] + 1] += 1
    for track in range(num_tracks):
        limits[track + 1] += limits[track]
    numbers[_HANGING] = num_notes - limits[num_tracks]
    columns, free = np.empty((5, limits[num_tracks]), np.int64), limits.copy()
    for row in range(0, _NOTE * num_notes, _NOTE):
        if notes[row + 2] >= 0:
            track = new[notes[row]]
            place = free[track]
            free[track] += 1
            columns[0, place] = track
            for column in range(1, 5):
                columns[column, place] = notes[row + column]
    return columns, limits


@compiled
def _lengthen(columns, heads, controls, keyboards):
    """Whether the loop may do it, and ``music.pedal.lengthen``: presses of the pedal first, then notes from last to
    first.

    Args:
        keyboards: tracks with a program below it get the ends.
    """
    num_notes, num_controls, num_tracks = columns.shape[1], len(controls), len(heads)
    longer = np.zeros(num_notes, np.int64)
    ports = 1
    for track in range(num_tracks):
        ports = max(ports, heads[track, 0] + 1)
    for row in range(num_controls):
        ports = max(ports, controls[row, 2] + 1)
    owner, latest, is_down = np.full(ports, -1), np.zeros(ports, np.int64), np.zeros(ports, np.bool_)
    for track in range(num_tracks):
        if owner[heads[track, 0]] >= 0:
            return False, longer
        owner[heads[track, 0]] = track
    first, count = np.zeros(ports + 1, np.int64), np.zeros(ports, np.int64)
    for row in range(num_controls):
        if controls[row, 0] == _SET_PEDAL:
            channel = controls[row, 2]
            if controls[row, 1] < latest[channel]:
                return False, longer
            latest[channel] = controls[row, 1]
            first[channel + 1] += 1
    for channel in range(ports):
        first[channel + 1] += first[channel]
    last = 0
    for note in range(num_notes):
        last = max(last, columns[2, note])
    down, up = np.empty(first[ports], np.int64), np.full(first[ports], last)
    for row in range(num_controls):
        if controls[row, 0] == _SET_PEDAL:
            channel, time, goes_down = controls[row, 2], controls[row, 1], controls[row, 3] >= _PEDAL_DOWN
            if goes_down and not is_down[channel]:
                down[first[channel] + count[channel]] = time
                count[channel] += 1
            elif is_down[channel] and not goes_down:
                up[first[channel] + count[channel] - 1] = time
            is_down[channel] = goes_down
    following, next_of = np.empty(num_notes, np.int64), np.empty(128, np.int64)
    track, low, high, press, num_longer = -1, 0, 0, 0, 0
    for note in range(num_notes - 1, -1, -1):
        if columns[0, note] != track:
            track = columns[0, note]
            channel = heads[track, 0]
            low, high = first[channel], first[channel] + (0 if channel & 15 == _DRUM_CHANNEL else count[channel])
            press = high
            next_of[:] = -1
        if low == high:
            continue
        start, end, pitch = columns[1, note], columns[2, note], columns[3, note]
        after = next_of[pitch]
        following[note] = after
        next_of[pitch] = note
        while press < high and down[press] <= end:  # seldom far: notes are by onset, and their ends nearly
            press += 1
        while press > low and down[press - 1] > end:
            press -= 1
        if press == low or end >= up[press - 1]:
            continue
        while after >= 0 and columns[1, after] < max(end, start + 1):
            after = following[after]
        until = up[press - 1] if after < 0 else min(up[press - 1], columns[1, after])
        if until > end:
            longer[note] = until - end
            num_longer += 1
            if heads[track, 1] < keyboards:
                columns[2, note] = until
    found, place = np.empty(num_longer, np.int64), 0
    for note in range(num_notes):
        if longer[note]:
            found[place] = longer[note]
            place += 1
    return True, found
