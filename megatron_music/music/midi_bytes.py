"""The bytes of a Standard MIDI File to notes, tempos, meters and controllers: the loop itself.

Plain Python on flat sequences of integers, written so that numba can compile it as it stands: ``music.midi`` runs it as
Python, ``music.midi_numba`` compiled, so that both read the same. Tolerant where players are: system-exclusive packets
(F7) and system messages are passed over, running status lasts across them and across meta events, chunks of other kinds
are skipped, and every MTrk is read, whatever number the header gives. A track is the notes of a channel and program in
an MTrk; a NOTE_OFF ends the oldest note that sounds on its key.
"""

MTRK = int.from_bytes(b"MTrk", "big")

# What ``read_file`` returns: 0, or what is wrong.
FULL, CUT, DATA, STATUS, UNKNOWN, LONG, LATE, NO_CHUNK, SHORT = range(1, 10)

# Places in ``numbers``: how much there is so far, then counts of what becomes neither note nor tempo nor meter.
NOTES, TRACKS, MARKS, CONTROLS, TIME, PLACE, CHUNK = range(7)
NUM_STATE = 7
BENDS, PEDALS, CONTROLLERS, PRESSURES, KEYS, LYRICS, TEXTS, NAMES, SYSEX, SILENT, HANGING = range(7, 18)
NUM_NUMBERS = 18

# Fields of a row in each of the flat tables.
NOTE_FIELDS = 6  # track, start, end (-1 while it sounds), pitch, velocity, and the next note that sounds on its key
HEAD_FIELDS = (
    6  # port * 16 + channel, program, first byte of the name and the one after its last, chunk, number before ordering
)
MARK_FIELDS = 4  # TEMPO, time, microseconds a quarter, 0; or METER, time, numerator, denominator
CONTROL_FIELDS = 5  # SET_PROGRAM or SET_PEDAL, time, port * 16 + channel, value, chunk
TEMPO, METER = 0, 1
SET_PROGRAM, SET_PEDAL = 0, 1

TABLE_LENGTHS = (2048, 2048, 2048, 16, 16, 16)  # of ``tables``: see ``read_file``
DRUM_CHANNEL = 9  # counted from 0
MAX_MISSING_BYTES = 64  # that the end of a file may lack to be rescued
_NOTE_OFF, _NOTE_ON, _PRESSURE, _CONTROLLER, _PROGRAM, _CHANNEL_PRESSURE, _BEND = 0x8, 0x9, 0xA, 0xB, 0xC, 0xD, 0xE
_SYSEX_START, _SYSEX_MORE, _META = 0xF0, 0xF7, 0xFF
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
_SUSTAIN = 64
_MANY = -2  # chunks, where the number of one is kept


def read_file(content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables):
    """Read all chunks from ``place`` on; the flat tables are filled, and ``numbers`` has how far.

    Args:
        content: the bytes.
        form: 0, 1 or 2: patterns of format 2 follow one another.
        promised: chunks, by the header.
        lenient: whether data bytes above 127 are clamped, and up to MAX_MISSING_BYTES may lack at the end of the last
            chunk.
        tables: six sequences of integers, all -1: [2048] each for the track of a channel and program, the oldest and
            the newest note that sounds on a key; [16] each for the program of a channel, the chunk that sets programs
            on it, and the chunk with notes before any. The last is also what is known of programs from a first reading.

    Returns:
        0, or what is wrong; ``numbers`` has the place and chunk then.
    """
    error, shared = read_chunks(
        content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables, 0, 0
    )
    if error == 0 and shared and form != 2:
        # Programs of some channel are set in another chunk than its notes are: they are needed from the beginning. They
        # are copied behind the rows of this reading, which the second one writes again as they are.
        known = numbers[CONTROLS]
        after = known
        for row in range(0, CONTROL_FIELDS * known, CONTROL_FIELDS):
            if controls[row] == SET_PROGRAM:
                if CONTROL_FIELDS * (after + 1) > len(controls):
                    return FULL
                for field in range(CONTROL_FIELDS):
                    controls[CONTROL_FIELDS * after + field] = controls[row + field]
                after += 1
        for number in range(NUM_NUMBERS):
            numbers[number] = 0
        for table in range(6):
            for index in range(len(tables[table])):
                tables[table][index] = -1
        error, shared = read_chunks(
            content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables, known, after
        )
    return error


def read_chunks(content, place, form, promised, lenient, notes, marks, controls, heads, numbers, tables, known, after):
    """One reading of all chunks: what is wrong, and whether notes take their program from another chunk."""
    size = len(content)
    chunks = 0
    setters, waiters = tables[4], tables[5]
    while place + 8 <= size:
        kind, length = number_at(content, place, 4), number_at(content, place + 4, 4)
        if kind != MTRK:
            if chunks >= promised:
                break  # what follows the last track is not looked at, unless it is one
            is_named = True
            for index in range(place, place + 4):
                is_named = is_named and 32 <= content[index] < 127
            numbers[PLACE], numbers[CHUNK] = place, chunks
            if not is_named:
                return NO_CHUNK, False
            if place + 8 + length > size:
                return SHORT, False
            place += 8 + length
            continue
        limit = place + 8 + length
        missing = limit - size
        if missing > 0:
            numbers[PLACE], numbers[CHUNK] = missing, chunks
            if chunks >= promised:
                break
            if not lenient or missing > MAX_MISSING_BYTES or chunks + 1 < promised:
                return SHORT, False
            limit = size
        numbers[CHUNK] = chunks
        error = read_chunk(
            content,
            place + 8,
            limit,
            form,
            lenient,
            missing > 0,
            notes,
            marks,
            controls,
            heads,
            numbers,
            tables,
            known,
            after,
        )
        if error:
            return error, False
        place = limit
        chunks += 1
    shared = False
    for channel in range(16):
        setter, waiter = setters[channel], waiters[channel]
        shared = shared or (setter != -1 and waiter != -1 and (setter == _MANY or setter != waiter))
    return 0, shared


def read_chunk(
    content, place, limit, form, lenient, is_clipped, notes, marks, controls, heads, numbers, tables, known, after
):
    """The events from ``place`` to ``limit``; tracks are numbered as their first notes come. What is wrong, or 0."""
    track_of, oldest, newest, programs, setters, waiters = (
        tables[0],
        tables[1],
        tables[2],
        tables[3],
        tables[4],
        tables[5],
    )
    chunk = numbers[CHUNK]
    num_notes, num_tracks, num_marks, num_controls = numbers[NOTES], numbers[TRACKS], numbers[MARKS], numbers[CONTROLS]
    room_notes, room_controls = len(notes) // NOTE_FIELDS, len(controls) // CONTROL_FIELDS
    room_marks, room_tracks = len(marks) // MARK_FIELDS, len(heads) // HEAD_FIELDS
    is_pattern = form == 2
    first_note, first_new_track = num_notes, num_tracks
    first_track = 0 if is_pattern else num_tracks
    time = numbers[TIME] if is_pattern else 0
    if not is_pattern:
        for channel in range(16):
            programs[channel] = -1
    status = name = name_end = port = 0
    cut = 0 if is_clipped else CUT
    error = 0
    while place < limit:
        byte = 0 + content[place]
        place += 1
        if byte < 128:  # as most delta times are
            time += byte
        else:
            delta, place = quantity_at(content, place - 1, limit)
            if place < 0:
                error = LONG if place == -1 else cut
                place = limit
                break
            time += delta
            if time >= 1 << 31:
                error = LATE
                break
        if place >= limit:
            error = cut
            break
        byte = 0 + content[place]
        if byte < _SYSEX_START:
            if byte >= 128:
                status = byte
                place += 1
            elif status == 0:
                error = STATUS
                break
            kind, channel = status >> 4, status & 15
            last = place if kind == _PROGRAM or kind == _CHANNEL_PRESSURE else place + 1
            if last >= limit:
                error = cut
                break
            pitch, velocity = 0 + content[place], 0 + content[last]
            if pitch >= 128 or velocity >= 128:
                if not lenient:
                    error = DATA
                    break
                pitch, velocity = min(pitch, 127), min(velocity, 127)
            place = last + 1
            if kind == _NOTE_ON and velocity:
                program = programs[channel]
                if program < 0:
                    program = 0
                    if channel != DRUM_CHANNEL:
                        if waiters[channel] == -1:
                            waiters[channel] = chunk
                        elif waiters[channel] != chunk:
                            waiters[channel] = _MANY
                        if known:
                            program = program_at(controls, known, after, time, port << 4 | channel, chunk)
                group = channel << 7 | program
                track = track_of[group]
                if track < first_track:
                    track = num_tracks
                    if num_tracks >= room_tracks or num_notes >= room_notes:
                        error = FULL
                        break
                    track_of[group] = track
                    row = HEAD_FIELDS * track
                    heads[row], heads[row + 1], heads[row + 4] = (
                        port << 4 | channel,
                        program,
                        0 if is_pattern else chunk,
                    )
                    num_tracks += 1
                elif num_notes >= room_notes:
                    error = FULL
                    break
                key = channel << 7 | pitch
                row = NOTE_FIELDS * num_notes
                notes[row], notes[row + 1], notes[row + 2], notes[row + 3], notes[row + 4], notes[row + 5] = (
                    track,
                    time,
                    -1,
                    pitch,
                    velocity,
                    -1,
                )
                if oldest[key] < first_note:
                    oldest[key] = num_notes
                else:
                    notes[NOTE_FIELDS * newest[key] + 5] = num_notes
                newest[key] = num_notes
                num_notes += 1
            elif kind == _NOTE_ON or kind == _NOTE_OFF:
                key = channel << 7 | pitch
                if oldest[key] >= first_note:
                    row = NOTE_FIELDS * oldest[key]
                    notes[row + 2] = time
                    oldest[key] = notes[row + 5]
            elif kind == _PROGRAM or (kind == _CONTROLLER and pitch == _SUSTAIN):
                if num_controls >= room_controls:
                    error = FULL
                    break
                row = CONTROL_FIELDS * num_controls
                controls[row], controls[row + 1], controls[row + 2] = SET_PROGRAM, time, port << 4 | channel
                controls[row + 3], controls[row + 4] = pitch, chunk
                num_controls += 1
                if kind == _PROGRAM:
                    programs[channel] = pitch
                    if setters[channel] == -1:
                        setters[channel] = chunk
                    elif setters[channel] != chunk:
                        setters[channel] = _MANY
                else:
                    controls[row], controls[row + 3] = SET_PEDAL, velocity
                    numbers[PEDALS] += 1
            elif kind == _CONTROLLER:
                numbers[CONTROLLERS] += 1
            elif kind == _BEND:
                numbers[BENDS] += 1
            else:
                numbers[PRESSURES] += 1
        elif byte == _META or byte == _SYSEX_START or byte == _SYSEX_MORE:
            kind = -1
            if byte == _META:
                place += 1
                if place >= limit:
                    error = cut
                    break
                kind = 0 + content[place]
            length, place = quantity_at(content, place + 1, limit)
            if place < 0 or place + length > limit:
                error = LONG if place == -1 else cut
                place = limit
                break
            if kind == -1:
                numbers[SYSEX] += byte == _SYSEX_START
            elif kind == _END_OF_TRACK:
                break
            elif kind == _TRACK_NAME:
                name, name_end = place, place + length
                numbers[NAMES] += length > 0
            elif kind == _LYRIC:
                numbers[LYRICS] += 1
            elif 0 < kind <= _LAST_TEXT:
                numbers[TEXTS] += 1
            elif kind == _KEY:
                numbers[KEYS] += 1
            elif kind == _PORT and length:
                port = 0 + content[place]
            elif (kind == _SET_TEMPO and length >= 3) or (kind == _TIME_SIGNATURE and length >= 2):
                if num_marks >= room_marks:
                    error = FULL
                    break
                row = MARK_FIELDS * num_marks
                marks[row], marks[row + 1], marks[row + 2], marks[row + 3] = (
                    TEMPO,
                    time,
                    number_at(content, place, 3),
                    0,
                )
                if kind == _TIME_SIGNATURE:
                    power = 0 + content[place + 1]
                    marks[row], marks[row + 2], marks[row + 3] = (
                        METER,
                        0 + content[place],
                        1 << power if power < 8 else 0,
                    )
                num_marks += 1
            place += length
        elif byte == 0xF4 or byte == 0xF5 or byte == 0xF9 or byte == 0xFD:
            error = UNKNOWN
            break
        else:  # a system message, which files should not have
            place += 3 if byte == 0xF2 else 2 if byte == 0xF1 or byte == 0xF3 else 1
    for track in range(first_new_track, num_tracks):
        heads[HEAD_FIELDS * track + 2], heads[HEAD_FIELDS * track + 3] = name, name_end
    numbers[SILENT] += chunk > 0 and num_notes == first_note
    numbers[NOTES], numbers[TRACKS], numbers[MARKS], numbers[CONTROLS] = num_notes, num_tracks, num_marks, num_controls
    numbers[TIME] = time
    if error:
        numbers[PLACE] = place
    return error


def program_at(controls, known, after, time, channel, chunk):
    """The program that another chunk has set on a channel by a time, of the rows from ``known`` to ``after``; 0 if none
    has.
    """
    program, latest = 0, -1
    for row in range(CONTROL_FIELDS * known, CONTROL_FIELDS * after, CONTROL_FIELDS):
        if controls[row + 2] == channel and controls[row + 4] != chunk and latest <= controls[row + 1] <= time:
            program, latest = controls[row + 3], controls[row + 1]
    return program


def quantity_at(content, place, limit):
    """A variable-length quantity and the place after it: -1 if it has more than four bytes, -2 if it is cut off."""
    value = 0
    for index in range(place, min(place + 4, limit)):
        byte = 0 + content[index]
        value = value << 7 | byte & 127
        if byte < 128:
            return value, index + 1
    return 0, -1 if place + 4 <= limit else -2


def number_at(content, place, length):
    """A number of ``length`` bytes, the highest first."""
    value = 0
    for index in range(place, place + length):
        value = value << 8 | (0 + content[index])
    return value


def order_tracks(heads, num_tracks, new):
    """Put the heads in order of chunk, channel and program; ``new`` gets the new number of each track."""
    for track in range(num_tracks):
        heads[HEAD_FIELDS * track + 5] = track
    for track in range(1, num_tracks):  # few: a chunk has seldom more than one
        row = HEAD_FIELDS * track
        while row and (heads[row - HEAD_FIELDS + 4], heads[row - HEAD_FIELDS], heads[row - HEAD_FIELDS + 1]) > (
            heads[row + 4],
            heads[row],
            heads[row + 1],
        ):
            for field in range(HEAD_FIELDS):
                heads[row - HEAD_FIELDS + field], heads[row + field] = (
                    heads[row + field],
                    heads[row - HEAD_FIELDS + field],
                )
            row -= HEAD_FIELDS
    for track in range(num_tracks):
        new[heads[HEAD_FIELDS * track + 5]] = track
