"""The loop of ``music.midi_bytes`` compiled: ``music.midi.read_midi`` of a file's bytes, faster, and the same."""

from types import FunctionType

import numpy as np

from megatron_music.music import midi, midi_bytes
from megatron_music.music.compiling import compiled
from megatron_music.music.pedal import PEDAL_DOWN
from megatron_music.music.score import Score

# The functions as they stand, each with the compiled ones before it in the place of its helpers.
_LOOP = dict(vars(midi_bytes))
for _name in ("number_at", "quantity_at", "program_at", "read_chunk", "read_chunks", "read_file", "order_tracks"):
    _LOOP[_name] = compiled(FunctionType(getattr(midi_bytes, _name).__code__, _LOOP, _name))
_read_file, _order_tracks = _LOOP["read_file"], _LOOP["order_tracks"]
_NUM_NUMBERS, _TABLE_LENGTHS, _MAX_TRACKS = midi_bytes.NUM_NUMBERS, midi_bytes.TABLE_LENGTHS, midi.MAX_TRACKS
_NOTE, _MARK, _CONTROL, _HEAD = (
    midi_bytes.NOTE_FIELDS, midi_bytes.MARK_FIELDS, midi_bytes.CONTROL_FIELDS, midi_bytes.HEAD_FIELDS
)  # fmt: skip
_NOTES, _TRACKS, _MARKS, _CONTROLS, _HANGING = (
    midi_bytes.NOTES, midi_bytes.TRACKS, midi_bytes.MARKS, midi_bytes.CONTROLS, midi_bytes.HANGING
)  # fmt: skip
_SET_PEDAL, _PEDAL_DOWN, _DRUM_CHANNEL = midi_bytes.SET_PEDAL, PEDAL_DOWN, midi_bytes.DRUM_CHANNEL
_PITCHED, _CHANNELS = _TABLE_LENGTHS[0], _TABLE_LENGTHS[3]


def read_midi(content: bytes, sanitize: bool = False, voices: str = "auto", pedal: str = "ignore") -> Score:
    """``music.midi.read_midi`` of a file's bytes."""
    return midi.read_bytes(content, "the file", sanitize, voices, pedal, _ENGINE)


def read_tables(header: midi.Header, lenient: bool) -> midi.Tables:
    """``music.midi.read_tables``."""
    content, room = np.frombuffer(header.content, np.uint8), min(len(header.content) // 3 + 1, midi.FIRST_ROOM)
    while True:
        error, numbers, columns, limits, heads, marks, controls = _read(content, *header[1:4], lenient, room)
        if error != midi_bytes.FULL or room > len(content) // 3:
            return error, numbers.tolist(), columns, limits.tolist(), heads.tolist(), marks.tolist(), controls
        room = min(4 * room, len(content) // 3 + 1)


def lengthening(columns: np.ndarray, heads: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """``music.pedal.lengthening``; by arrays where tracks share a channel, or chunks a channel's pedal."""
    is_simple, longer = _lengthening(columns, heads, controls)
    return longer if is_simple else midi.PLAIN.lengthening(columns, heads, controls)


_ENGINE = midi.Engine(read_tables, lengthening)


@compiled
def _read(content, place, form, promised, lenient, room):
    """``music.midi.read_tables`` with room for a number of rows in each table."""
    notes, marks = np.empty(_NOTE * room, np.int32), np.empty(_MARK * room, np.int32)
    controls, heads = np.empty(_CONTROL * room, np.int32), np.empty(_HEAD * min(room, _MAX_TRACKS), np.int32)
    numbers = np.zeros(_NUM_NUMBERS, np.int64)
    tables = (
        np.full(_PITCHED, -1, np.int32), np.full(_PITCHED, -1, np.int32), np.full(_PITCHED, -1, np.int32),
        np.full(_CHANNELS, -1, np.int32), np.full(_CHANNELS, -1, np.int32), np.full(_CHANNELS, -1, np.int32),
    )  # fmt: skip
    error = _read_file(content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables)
    num_tracks = numbers[_TRACKS]
    new = np.empty(num_tracks, np.int32)
    _order_tracks(heads, num_tracks, new)
    columns, limits = _by_track(notes, numbers, new)
    return (
        error, numbers, columns, limits, _rows(heads, _HEAD, num_tracks), _rows(marks, _MARK, numbers[_MARKS]),
        _rows(controls, _CONTROL, numbers[_CONTROLS]),
    )  # fmt: skip


@compiled
def _rows(table, fields, count):
    return table[: fields * count].reshape(count, fields).astype(np.int64)  # a copy: the room is too large to be kept


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
def _lengthening(columns, heads, controls):
    """Whether the loop may do it, and ``music.pedal.lengthening``: presses of the pedal first, then notes from last to first."""
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
    following, next_of = np.empty(num_notes, np.int64), np.full(128, -1)
    for note in range(num_notes - 1, -1, -1):
        track, start, end, pitch = columns[0, note], columns[1, note], columns[2, note], columns[3, note]
        if note == num_notes - 1 or columns[0, note + 1] != track:
            next_of[:] = -1
        after = next_of[pitch]
        following[note] = after
        next_of[pitch] = note
        channel = heads[track, 0]
        if channel & 15 == _DRUM_CHANNEL or count[channel] == 0:
            continue
        low, high = first[channel], first[channel] + count[channel]
        while low < high:
            middle = (low + high) >> 1
            if down[middle] <= end:
                low = middle + 1
            else:
                high = middle
        if low > first[channel] and end < up[low - 1]:
            while after >= 0 and columns[1, after] < max(end, start + 1):
                after = following[after]
            until = up[low - 1] if after < 0 else min(up[low - 1], columns[1, after])
            longer[note] = max(until - end, 0)
    return True, longer
