"""The bytes of a regular MIDI file to tables by array arithmetic: what the loop of ``music.midi_bytes`` reads, faster
where nothing is compiled.

Regular is nearly every file: whole MTrk chunks of format 0 or 1, data bytes below 128, and nothing but channel, meta
and system-exclusive events. What is not regular is left to the loop, so its rules and its errors hold; the two are
tested equal.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_music.music.midi_bytes import (
    BENDS,
    CONTROL_FIELDS,
    CONTROLLERS,
    DRUM_CHANNEL,
    HANGING,
    KEYS,
    LYRICS,
    METER,
    NAMES,
    NUM_NUMBERS,
    PEDALS,
    PRESSURES,
    SET_PEDAL,
    SET_PROGRAM,
    SILENT,
    SYSEX,
    TEMPO,
    TEXTS,
    number_at,
    quantity_at,
)

MAX_CHUNKS = 1 << 9
_SPECIAL = 0x80  # the step at an event that is not a channel's, and where a chunk ends
_PAD = bytes([0xFF]) * 16  # more than an event can be too long
# Bytes of an event without its delta time, by its first byte: data under running status is taken for that of two bytes.
_LENGTHS = bytes([2] * 128 + [3] * 64 + [2] * 32 + [3] * 16 + [_SPECIAL] * 16)
_NOTE_OFF, _NOTE_ON, _PRESSURE, _CONTROLLER, _PROGRAM, _CHANNEL_PRESSURE, _BEND = 0x8, 0x9, 0xA, 0xB, 0xC, 0xD, 0xE
_SYSEX_START, _SYSEX_MORE, _META, _SUSTAIN = 0xF0, 0xF7, 0xFF, 64
_TRACK_NAME, _LYRIC, _LAST_TEXT, _PORT, _END_OF_TRACK, _SET_TEMPO, _TIME_SIGNATURE, _KEY = (
    3,
    5,
    15,
    0x21,
    0x2F,
    0x51,
    0x58,
    0x59,
)


class _Chunk(NamedTuple):
    """An MTrk chunk."""

    start: int
    port: int
    name: tuple[int, int]  # where the last track name begins and ends


class _Events(NamedTuple):
    """All channel events of a file, in its order; int64 [E] each."""

    time: np.ndarray
    status: np.ndarray
    data: np.ndarray  # first data byte
    value: np.ndarray  # second data byte, or the first where there is one
    chunk: np.ndarray


class ArrayTables(NamedTuple):
    """The content of a file, as ``midi_tables.Tables`` has it."""

    numbers: list[int]
    columns: np.ndarray
    limits: list[int]
    heads: list[list[int]]
    marks: list[list[int]]
    controls: np.ndarray


def read_arrays(content: bytes, place: int, form: int, promised: int, max_tracks: int) -> ArrayTables | None:
    """The tables of a regular file; None where it is not regular.

    Args:
        content: the bytes.
        place: where the first chunk begins.
        form: the format.
        promised: chunks, by the header.
    """
    bounds = _chunk_bounds(content, place, promised)
    if not bounds or form == 2:
        return None
    numbers = [0] * NUM_NUMBERS
    found = _find_events(content, bounds, numbers)
    if found is None:
        return None
    steps, delta_lengths, chunks, specials = found
    read = _read_events(content, steps, delta_lengths, chunks)
    if read is None:
        return None
    events, place_times = read
    marks = _marks(content, specials, place_times)
    kind, channel = events.status >> 4, events.status & 15
    is_on = (kind == _NOTE_ON) & (events.value > 0)
    programs = _programs_of_notes(events, kind, channel, is_on)
    if programs is None:
        return None
    kinds = np.bincount(kind, minlength=16).tolist()
    is_pedal = (kind == _CONTROLLER) & (events.data == _SUSTAIN)
    numbers[PEDALS] = int(np.count_nonzero(is_pedal)) if kinds[_CONTROLLER] else 0
    numbers[CONTROLLERS] = kinds[_CONTROLLER] - numbers[PEDALS]
    numbers[BENDS], numbers[PRESSURES] = kinds[_BEND], kinds[_PRESSURE] + kinds[_CHANNEL_PRESSURE]
    on = np.flatnonzero(is_on)
    numbers[SILENT] = len(chunks) - 1 - int(np.count_nonzero(np.bincount(events.chunk[on], minlength=len(chunks))[1:]))

    group = (events.chunk[on] << 11) | (channel[on] << 7) | programs
    is_used = np.zeros(len(chunks) << 11, bool)
    is_used[group] = True
    groups = np.flatnonzero(is_used)
    if len(groups) > max_tracks:
        return None
    heads = [_head(chunks[code >> 11], code) for code in groups.tolist()]
    ends = _ends_of_notes(events, kind, channel, on, is_on)
    track = groups.searchsorted(group)
    order = np.flatnonzero(ends >= 0)
    numbers[HANGING] = len(on) - len(order)
    if (track[1:] < track[:-1]).any():
        order = order[np.argsort(track[order].astype(np.uint16), kind="stable")]  # a radix sort
    columns, rows = np.empty((5, len(order)), np.int64), on[order]
    columns[0], columns[1], columns[2] = track[order], events.time[rows], ends[order]
    columns[3], columns[4] = events.data[rows], events.value[rows]
    limits = columns[0].searchsorted(np.arange(len(groups) + 1)).tolist()
    return ArrayTables(numbers, columns, limits, heads, marks, _controls(events, kind, channel, is_pedal, chunks))


def _chunk_bounds(content: bytes, place: int, promised: int) -> list[tuple[int, int]]:
    """Where the events of each chunk begin and end; empty where a chunk is not whole or not an MTrk."""
    bounds = []
    while place + 8 <= len(content):
        if content[place : place + 4] != b"MTrk":
            if len(bounds) >= promised:
                break
            return []
        limit = place + 8 + int.from_bytes(content[place + 4 : place + 8], "big")
        if limit > len(content):
            return []
        bounds.append((place + 8, limit))
        place = limit
    return bounds if len(bounds) <= MAX_CHUNKS else []


def _find_events(content: bytes, bounds: Sequence[tuple[int, int]], numbers: list[int]):
    """Follow the events of each chunk.

    The step to the next event is computed for every byte, as if an event began there; the chain from the first event
    then finds those that do.

    Returns:
        The places of events (int64, rising), the bytes of the delta time at each byte (uint8), the chunks, and
        (place, kind, place of the data) of each tempo and meter; None where a file is not regular. ``numbers`` gets the
        counts of events that are not a channel's.
    """
    padded, count = content + _PAD, len(content) + len(_PAD) - 4
    high = np.frombuffer(padded, np.uint8) >> 7
    length = np.frombuffer(padded.translate(_LENGTHS), np.uint8)
    one = high[:count]
    two = one & high[1 : count + 1]
    three = two & high[2 : count + 2]
    delta_lengths = one + two + three + np.uint8(1)
    more = length[1:] - length[:-1]  # modulo 256, as all of it
    step = (
        delta_lengths
        + length[1 : count + 1]
        + one * more[1 : count + 1]
        + two * more[2 : count + 2]
        + three * more[3 : count + 3]
    )
    step |= (three & high[3 : count + 3]) << 7
    steps = bytearray(step)
    for _, limit in bounds:
        steps[limit] = _SPECIAL
    is_event = bytearray(count)
    chunks, specials = [], []
    for start, limit in bounds:
        place, port, name, is_channel = start, 0, (0, 0), False
        while True:
            before = place
            while (stride := steps[place]) < _SPECIAL:
                is_event[place] = 1
                place += stride
            is_channel = is_channel or place > before
            if place >= limit:
                if place > limit:
                    return None
                break
            first = place + int(delta_lengths[place])
            if first + 1 >= limit or content[first - 1] >= 128:
                return None
            byte = content[first]
            kind = content[first + 1] if byte == _META else -1
            if byte not in (_META, _SYSEX_START, _SYSEX_MORE):
                return None
            size, data = quantity_at(content, first + 1 + (byte == _META), limit)
            if data < 0 or data + size > limit:
                return None
            is_event[place] = 1
            if kind == _END_OF_TRACK:
                break
            if kind == -1:
                numbers[SYSEX] += byte == _SYSEX_START
            elif kind == _TRACK_NAME:
                name = data, data + size
                numbers[NAMES] += size > 0
            elif kind == _LYRIC:
                numbers[LYRICS] += 1
            elif 0 < kind <= _LAST_TEXT:
                numbers[TEXTS] += 1
            elif kind == _KEY:
                numbers[KEYS] += 1
            elif kind == _PORT and size:
                if is_channel:
                    return None
                port = content[data]
            elif (kind == _SET_TEMPO and size >= 3) or (kind == _TIME_SIGNATURE and size >= 2):
                specials.append((place, kind, data))
            place = data + size
        chunks.append(_Chunk(start, port, name))
    return np.flatnonzero(np.frombuffer(is_event, bool)), delta_lengths, chunks, specials


def _read_events(content: bytes, places: np.ndarray, delta_lengths: np.ndarray, chunks: Sequence[_Chunk]):
    """The channel events at some places, and the places and times of all; None where they are not regular."""
    byte = np.frombuffer(content + _PAD, np.uint8)
    length = delta_lengths[places]
    first = places + length
    delta = byte[first - 1].astype(np.int64)
    for back in range(2, 5):
        longer = np.flatnonzero(length >= back)
        if not len(longer):
            break
        delta[longer] += (byte[first[longer] - back] & np.int64(127)) << 7 * (back - 1)
    time = np.cumsum(delta)
    starts = places.searchsorted([chunk.start for chunk in chunks])
    counts = np.diff(starts, append=len(places))
    chunk = np.repeat(np.arange(len(chunks)), counts)
    time -= np.append(0, time)[starts][chunk]
    if len(time) and time.max() >= 1 << 31:
        return None
    place_times = places, time
    status = byte[first].astype(np.int64)
    is_channel = status < _SYSEX_START
    if not is_channel.all():
        first, status, chunk, time = first[is_channel], status[is_channel], chunk[is_channel], time[is_channel]
    is_written = status >= 128
    data = first + is_written
    if not is_written.all():
        index = np.maximum.accumulate(np.where(is_written, np.arange(len(status)), 0))
        status = status[index]
        if len(status) and ((status < 128).any() or (chunk[index] != chunk).any()):
            return None  # data before any status
        kind = status[~is_written] >> 4
        if ((kind == _PROGRAM) | (kind == _CHANNEL_PRESSURE)).any():
            return None  # these have one data byte, not the two that the steps were made for
    one = (status >> 4 == _PROGRAM) | (status >> 4 == _CHANNEL_PRESSURE)
    pitch, velocity = byte[data].astype(np.int64), byte[data + ~one].astype(np.int64)
    if len(status) and max(pitch.max(), velocity.max()) >= 128:
        return None
    return _Events(time, status, pitch, velocity, chunk), place_times


def _marks(
    content: bytes, specials: Sequence[tuple[int, int, int]], place_times: tuple[np.ndarray, np.ndarray]
) -> list[list[int]]:
    """Tempos and meters, as ``midi_bytes`` has them."""
    places, times = place_times
    marks = []
    for time, (_, kind, data) in zip(
        times[places.searchsorted([place for place, _, _ in specials])].tolist(), specials, strict=True
    ):
        if kind == _SET_TEMPO:
            marks.append([TEMPO, time, number_at(content, data, 3), 0])
        else:
            power = content[data + 1]
            marks.append([METER, time, content[data], 1 << power if power < 8 else 0])
    return marks


def _programs_of_notes(events: _Events, kind: np.ndarray, channel: np.ndarray, is_on: np.ndarray) -> np.ndarray | None:
    """The program of each NOTE_ON (int64); None where the programs of a channel are set in another chunk than its notes
    are.
    """
    on, changes = np.flatnonzero(is_on), np.flatnonzero(kind == _PROGRAM)
    if not len(changes):
        return np.zeros(len(on), np.int64)
    seat = events.chunk << 4 | channel
    # By chunk, channel and order; the last change before a note holds.
    change_keys = np.sort(seat[changes] << 32 | changes)
    place = change_keys.searchsorted(seat[on] << 32 | on) - 1
    change = change_keys[np.maximum(place, 0)]
    has_program = (place >= 0) & (change >> 32 == seat[on])
    if not has_program.all():
        waiting = np.unique(seat[on[~has_program]])
        setting = np.unique(seat[changes])
        for number in range(16):
            waiters, setters = waiting[waiting & 15 == number].tolist(), setting[setting & 15 == number].tolist()
            if number != DRUM_CHANNEL and waiters and setters and (waiters != setters or len(setters) > 1):
                return None
    return np.where(has_program, events.data[change & 0xFFFFFFFF], 0)


def _ends_of_notes(
    events: _Events, kind: np.ndarray, channel: np.ndarray, on: np.ndarray, is_on: np.ndarray
) -> np.ndarray:
    """When each NOTE_ON is switched off (int64), -1 where it never is: a NOTE_OFF ends the oldest note that sounds on
    its key.
    """
    keyed = np.flatnonzero((kind == _NOTE_ON) | (kind == _NOTE_OFF))
    key = events.chunk[keyed] << 11 | channel[keyed] << 7 | events.data[keyed]
    order = np.argsort(key.astype(np.uint16) if not len(key) or key.max() < 1 << 16 else key, kind="stable")
    index, key = keyed[order], key[order]
    begins = is_on[index]
    ends = np.full(len(is_on), -1)
    half = len(index) // 2
    if 2 * half == len(index) and begins[::2].all() and not begins[1::2].any() and np.array_equal(key[::2], key[1::2]):
        ends[index[::2]] = events.time[
            index[1::2]
        ]  # each note ends before the next of its key begins, as in most files
        return ends[on]
    is_new = np.ones(len(key), bool)
    is_new[1:] = key[1:] != key[:-1]
    group = np.cumsum(is_new) - 1
    firsts = np.flatnonzero(is_new)
    balance = np.cumsum(np.where(begins, 1, -1))
    balance -= np.append(0, balance)[firsts][group]
    # A NOTE_OFF for which nothing sounds takes the balance of its key below all that it has been, and below 0.
    base = -2 * (len(key) + 1) * group
    lowest = np.minimum.accumulate(np.minimum(balance, 0) + base)
    is_void = ~begins & (np.minimum(balance, 0) + base < np.where(is_new, base, np.append(0, lowest[:-1])))
    closes = ~begins & ~is_void
    rank = np.cumsum(begins) - 1  # of a note among all, key after key
    num_on, num_off = (
        np.bincount(group[begins], minlength=len(firsts)),
        np.bincount(group[closes], minlength=len(firsts)),
    )
    before_on, before_off = np.cumsum(num_on) - num_on, np.cumsum(num_off) - num_off
    of_note = group[begins]
    nth = rank[begins] - before_on[of_note]
    has_end = nth < num_off[of_note]
    closing = events.time[index[closes]]
    ends[index[begins][has_end]] = closing[(before_off[of_note] + nth)[has_end]]
    return ends[on]


def _head(chunk: _Chunk, code: int) -> list[int]:
    return [chunk.port << 4 | code >> 7 & 15, code & 127, *chunk.name]


def _controls(
    events: _Events, kind: np.ndarray, channel: np.ndarray, is_pedal: np.ndarray, chunks: Sequence[_Chunk]
) -> np.ndarray:
    """Programs and pedals, as ``midi_bytes`` has them."""
    rows = np.flatnonzero(is_pedal | (kind == _PROGRAM))
    controls = np.empty((len(rows), CONTROL_FIELDS), np.int64)
    is_program = kind[rows] == _PROGRAM
    ports = np.array([chunk.port for chunk in chunks])
    controls[:, 0] = np.where(is_program, SET_PROGRAM, SET_PEDAL)
    controls[:, 1], controls[:, 4] = events.time[rows], events.chunk[rows]
    controls[:, 2] = ports[controls[:, 4]] << 4 | channel[rows]
    controls[:, 3] = np.where(is_program, events.data[rows], events.value[rows])
    return controls
