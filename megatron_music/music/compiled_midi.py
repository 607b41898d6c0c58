"""MIDI files as a compiled loop: what ``music.midi.read_midi`` reads with symusic, faster, where a file is plain.

Plain is a Standard MIDI File 1.0 of format 0 or 1 in which every chunk is a whole MTrk, every data byte is below 128 and every
event is a channel's, a meta event or a system-exclusive one. What is not plain goes to symusic. So symusic's word holds: what is
refused, and how, is the same, and so is what is read. A track is the notes of a channel and program in an MTrk, and a NOTE_OFF
ends the oldest note that sounds on its key. Lyrics make a track, too: a silent one of channel 16.
"""

import numpy as np

from megatron_music.music import midi
from megatron_music.music.compiling import compiled
from megatron_music.music.score import Score

MOST_BYTES = 8 << 20  # for whose events room is made beforehand: 14 times as many
_MOST_TRACKS = 1024
_MOST_UNORDERED = 23  # so few events of one time symusic keeps in their order
_MTRK = int.from_bytes(b"MTrk", "big")
_NOTE_OFF, _NOTE_ON, _PROGRAM, _PRESSURE, _SYSEX, _META = 0x8, 0x9, 0xC, 0xD, 0xF0, 0xFF
_LYRIC_CHANNEL = 15  # counted from 0
_TRACK_NAME, _LYRIC, _END_OF_TRACK, _SET_TEMPO, _TIME_SIGNATURE = 0x03, 0x05, 0x2F, 0x51, 0x58


def read_midi(content: bytes) -> Score:
    """``music.midi.read_midi`` of a file's bytes."""
    if len(content) > MOST_BYTES:
        return midi.read_midi(content)
    midi.check_header(content, "the file")
    is_plain, columns, limits, heads, meters, tempos = _read(np.frombuffer(content, np.uint8))
    try:
        tracks = [(is_drum, program, content[name:end].decode()) for is_drum, program, name, end in heads.tolist()]
    except UnicodeDecodeError:  # symusic puts something in its place
        is_plain = False
    if not is_plain:
        return midi.read_midi(content)
    score = midi.put_together(
        columns,
        limits.tolist(),
        tracks,
        int.from_bytes(content[12:14], "big"),
        sorted(meters.tolist(), key=_time),
        sorted([(time, 60_000_000 / microseconds) for time, microseconds in tempos.tolist()], key=_time),
    )
    return midi.checked(score, "the file")


def _time(event):
    return event[0]


@compiled
def _read(content):
    """The bytes of a file (uint8).

    Returns:
        Whether it is plain: else the rest means nothing. ``Score.columns``, the notes of a track by onset; where the notes of
        each track begin in them, and the end of the last. Of each track whether it is drums, its program, and where its name
        begins and ends. Time, numerator and denominator of each meter. Time and microseconds a quarter of each tempo.
    """
    size = len(content)
    notes = np.empty((size // 3 + 1, 6), np.int32)  # track, start, end, pitch, velocity, and the next one that sounds on its key
    latest = np.full((3, 16 * 128), -1, np.int32)
    heads = np.empty((_MOST_TRACKS, 4), np.int64)
    meters, tempos = np.empty((size // 6 + 1, 3), np.int64), np.empty((size // 7 + 1, 2), np.int64)
    num_notes = num_tracks = num_meters = num_tempos = 0
    place, chunks = 14, _number(content, 10, 2)
    is_plain = size >= 22 and _number(content, 4, 4) == 6 and _number(content, 8, 2) <= 1
    while is_plain and chunks and place < size:
        is_plain = place + 8 <= size and _number(content, place, 4) == _MTRK
        end = place + 8 + _number(content, place + 4, 4) if is_plain else place
        is_plain = is_plain and end <= size
        if is_plain:
            first_note, first_track = num_notes, num_tracks
            is_plain, num_notes, num_tracks, num_meters, num_tempos = _read_chunk(
                content[:end], place + 8, notes, heads, meters, tempos, latest, num_notes, num_tracks, num_meters, num_tempos
            )
            _put_in_order(notes[first_note:num_notes], heads[:num_tracks], first_track)
        place = end
        chunks -= 1
    is_plain = is_plain and _has_order(meters[:num_meters, 0]) and _has_order(tempos[:num_tempos, 0])
    columns, limits = _by_track(notes[: num_notes if is_plain else 0], num_tracks)
    # Copies: the rooms are too large to be kept.
    return is_plain, columns, limits, heads[:num_tracks].copy(), meters[:num_meters].copy(), tempos[:num_tempos].copy()


@compiled
def _read_chunk(content, place, notes, heads, meters, tempos, latest, num_notes, num_tracks, num_meters, num_tempos):
    """The events from ``place`` to the end of ``content``; tracks are numbered as their first notes come.

    Args:
        latest: the track of a channel and program; the oldest and the newest note that sounds of a channel and pitch. Numbers
            below those this chunk begins with are of chunks before.

    Returns:
        Whether the chunk is plain, and what there is so far of notes, tracks, meters and tempos.
    """
    damaged = False, num_notes, num_tracks, num_meters, num_tempos
    limit = len(content)
    track_of, oldest, newest = latest
    programs = np.zeros(16, np.int64)
    first_note, first_track = num_notes, num_tracks
    time = status = name = name_end = 0
    while place < limit and num_tracks < _MOST_TRACKS:
        delta, place = _quantity(content, place)
        if place < 0 or place >= limit:
            return damaged
        time += delta
        if time >= 1 << 31:
            return damaged
        byte = np.int64(content[place])
        if byte < _SYSEX:
            if byte >= 128:
                status = byte
                place += 1
            kind, channel = status >> 4, status & 15
            last = place if kind == _PROGRAM or kind == _PRESSURE else place + 1
            if status == 0 or last >= limit or content[place] >= 128 or content[last] >= 128:
                return damaged
            pitch, velocity = np.int64(content[place]), np.int64(content[last])
            place = last + 1
            key = channel << 7 | pitch
            if kind == _NOTE_ON and velocity:
                group = channel << 7 | programs[channel]
                if track_of[group] < first_track:
                    num_tracks = _add_track(group, track_of, heads, num_tracks)
                note = notes[num_notes]
                note[0], note[1], note[2], note[3], note[4], note[5] = track_of[group], time, -1, pitch, velocity, -1
                if oldest[key] < first_note:
                    oldest[key] = num_notes
                else:
                    notes[newest[key], 5] = num_notes
                newest[key] = num_notes
                num_notes += 1
            elif kind == _NOTE_ON or kind == _NOTE_OFF:
                if oldest[key] >= first_note:
                    notes[oldest[key], 2] = time
                    oldest[key] = notes[oldest[key], 5]
            elif kind == _PROGRAM:
                programs[channel] = pitch
        else:
            kind = _SYSEX
            if byte == _META and place + 1 < limit:
                place += 1
                kind = np.int64(content[place])
            elif byte != _SYSEX:
                return damaged
            length, place = _quantity(content, place + 1)
            if place < 0 or place + length > limit:
                return damaged
            if byte == _SYSEX:
                status = 0
            elif kind == _END_OF_TRACK:
                break
            elif kind == _TRACK_NAME:
                name, name_end = place, place + length
            elif kind == _SET_TEMPO:
                if length != 3 or _number(content, place, 3) == 0:
                    return damaged
                tempos[num_tempos, 0], tempos[num_tempos, 1] = time, _number(content, place, 3)
                num_tempos += 1
            elif kind == _TIME_SIGNATURE:
                if length < 2 or content[place + 1] > 7:
                    return damaged
                meters[num_meters, 0], meters[num_meters, 1] = time, content[place]
                meters[num_meters, 2] = 1 << np.int64(content[place + 1])
                num_meters += 1
            elif kind == _LYRIC:
                if length == 0:
                    return damaged
                group = _LYRIC_CHANNEL << 7 | programs[_LYRIC_CHANNEL]
                if track_of[group] < first_track:
                    num_tracks = _add_track(group, track_of, heads, num_tracks)
            place += length
    for track in range(first_track, num_tracks):
        heads[track, 2], heads[track, 3] = name, name_end
    return num_tracks < _MOST_TRACKS, num_notes, num_tracks, num_meters, num_tempos


@compiled
def _add_track(group, track_of, heads, num_tracks):
    """Begin the track of a channel and program; how many there are."""
    track_of[group] = num_tracks
    heads[num_tracks, 0], heads[num_tracks, 1] = group >> 7, group & 127
    return num_tracks + 1


@compiled
def _quantity(content, place):
    """A variable-length quantity and the place after it, which is -1 if it is cut off or longer than four bytes."""
    if place < len(content) and content[place] < 128:  # as most are
        return np.int64(content[place]), place + 1
    value = 0
    for at in range(place, min(place + 4, len(content))):
        value = value << 7 | np.int64(content[at]) & 127
        if content[at] < 128:
            return value, at + 1
    return 0, -1


@compiled
def _number(content, place, length):
    """A number of so many bytes, the highest first."""
    value = 0
    for at in range(place, place + length):
        value = value << 8 | np.int64(content[at])
    return value


@compiled
def _put_in_order(notes, heads, first):
    """Number the tracks from ``first`` on by channel and program; of their heads the channel gives way to whether it is drums."""
    number = np.arange(first, len(heads))
    for track in range(first, len(heads)):  # few: a chunk has seldom more than one
        place = track
        while place > first and (heads[place - 1, 0], heads[place - 1, 1]) > (heads[place, 0], heads[place, 1]):
            for column in range(2):
                heads[place - 1, column], heads[place, column] = heads[place, column], heads[place - 1, column]
            number[place - 1 - first], number[place - first] = number[place - first], number[place - 1 - first]
            place -= 1
    is_moved = False
    new = np.empty(len(number), np.int64)
    for place in range(len(number)):
        new[number[place] - first] = first + place
        is_moved = is_moved or number[place] != first + place
        heads[first + place, 0] = heads[first + place, 0] == 9
    if is_moved:
        for note in range(len(notes)):
            notes[note, 0] = new[notes[note, 0] - first]


@compiled
def _has_order(times):
    """Whether the order of events is certain after sorting: symusic does not keep that of many at one time."""
    for event in range(1, len(times)):
        if len(times) > _MOST_UNORDERED and times[event] <= times[event - 1]:
            return False
    return True


@compiled
def _by_track(notes, num_tracks):
    """The notes track after track, and where each track begins; those that are never switched off are none."""
    limits = np.zeros(num_tracks + 1, np.int64)
    for note in range(len(notes)):
        if notes[note, 2] >= 0:
            limits[notes[note, 0] + 1] += 1
    for track in range(num_tracks):
        limits[track + 1] += limits[track]
    columns, free = np.empty((5, limits[num_tracks]), np.int64), limits.copy()
    for note in range(len(notes)):
        if notes[note, 2] >= 0:
            place = free[notes[note, 0]]
            free[notes[note, 0]] += 1
            for column in range(5):
                columns[column, place] = notes[note, column]
    return columns, limits
