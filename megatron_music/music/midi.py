"""MIDI files in and out. The one owner of symusic and miditoolkit.

symusic reads; it accepts files that are no music (no ticks in a quarter, a meter of 0/4), so the guards here
refuse them. ``music.midi_events`` writes. Knows nothing about tokens.
"""

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import miditoolkit
import numpy as np
import symusic

from megatron_music.music.midi_events import (
    DRUM_CHANNEL,
    NOTE_OFF,
    NOTE_ON,
    PORT,
    PROGRAM,
    SET_TEMPO,
    TIME_SIGNATURE,
    TRACK_NAME,
    Event,
    EventTrack,
    MidiEvents,
    meta,
    tempo_data,
    time_signature_data,
)
from megatron_music.music.score import (
    DEFAULT_TEMPO,
    FOUR_FOUR,
    Score,
    Tempo,
    TimeSignature,
    Track,
    name_voices,
    voices_of,
)

MAX_QUARTERS = 40_000  # 10,000 bars of 4/4: five and a half hours at 120 quarters a minute
TICKS_PER_QUARTER = 480
_MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


class MidiError(ValueError):
    """A file is no MIDI, is damaged, or holds what music cannot."""


def read_midi(source: str | os.PathLike | bytes | miditoolkit.MidiFile, sanitize: bool = False) -> Score:
    """A score on the file's own ticks, with the four voices named where it is four-voice music.

    Args:
        source: a path, the file's bytes, or a loaded ``miditoolkit.MidiFile`` (left as it is).
        sanitize: instead of refusing a damaged file, clamp its data bytes above 127 and leave out meters that cannot be.

    Raises:
        MidiError: the file is missing, damaged or not music; the sentence names it.
    """
    if isinstance(source, miditoolkit.MidiFile):
        return name_voices(checked(_from_miditoolkit(source), "the MidiFile"))
    if isinstance(source, bytes):
        content, where = source, "the file"
    else:
        where = os.fspath(source)
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise MidiError(f"{where} cannot be read ({error.strerror}); check the path") from None
    check_header(content, where)
    try:
        parsed = symusic.Score.from_midi(content, sanitize_data=sanitize)
    except Exception as error:  # symusic raises RuntimeError, ValueError and others for damaged files
        raise MidiError(f"{where} is damaged ({_one_line(error)}); repair it or leave it out") from None
    return checked(_from_symusic(parsed, leave_out_impossible_meters=sanitize), where)


def write_midi(score: Score, path: str | os.PathLike) -> None:
    """Write a Standard MIDI File, under a temporary name first; ``path`` never holds half a file.

    Every track is an MTrk chunk. Up to 15 tracks that are not drums have a channel each; of more, those of one program share a
    channel, and more than 15 programs are spread over MIDI ports. Names are UTF-8.

    Raises:
        ValueError: a pitch or velocity is outside 0..127, or a time is before 0.
    """
    write_midi_bytes(to_events(score).to_bytes(), path)


def write_midi_bytes(content: bytes, path: str | os.PathLike) -> None:
    """Write a file's bytes under a temporary name first; ``path`` never holds half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def to_miditoolkit(score: Score) -> miditoolkit.MidiFile:
    """The score as a ``miditoolkit.MidiFile``, for code that speaks that library."""
    scale, ticks_per_quarter = _tick_scale(score)
    midi = miditoolkit.MidiFile(ticks_per_beat=ticks_per_quarter)
    midi.tempo_changes = [miditoolkit.TempoChange(t.quarters_per_minute, t.start_step * scale) for t in score.tempos]
    midi.time_signature_changes = [
        miditoolkit.TimeSignature(s.numerator, s.denominator, s.start_step * scale) for s in score.time_signatures
    ]
    for track in score.tracks:
        instrument = miditoolkit.Instrument(track.program, track.is_drum, track.name or track.voice)
        instrument.notes = [
            miditoolkit.Note(note.velocity, note.pitch, note.start_step * scale, note.end_step * scale)
            for note in track
        ]
        midi.instruments.append(instrument)
    midi.max_tick = score.length_steps * scale
    return midi


def check_header(content: bytes, where: str) -> None:
    """Refuse bytes that are no MIDI file in ticks a quarter."""
    if not content:
        raise MidiError(f"{where} is empty; leave it out")
    if content[:4] != b"MThd" or len(content) < 14:
        raise MidiError(f"{where} is no MIDI file (it does not begin with MThd); leave it out")
    division = int.from_bytes(content[12:14], "big")
    if division >= 0x8000:
        raise MidiError(f"{where} counts time in SMPTE frames, not quarters; export it with ticks per quarter note")
    if division == 0:
        raise MidiError(f"{where} has 0 ticks in a quarter note, so no note has a length; leave it out")


def checked(score: Score, where: str) -> Score:
    """The score, if it is music."""
    if score.steps_per_quarter <= 0:
        raise MidiError(f"{where} has {score.steps_per_quarter} ticks in a quarter note; at least 1 is needed")
    for _, numerator, denominator in score.time_signatures:
        if not _is_meter(numerator, denominator):
            raise MidiError(
                f"{where} has the meter {numerator}/{denominator}; the count must be at least 1 and the unit a power of two"
            )
    if score.num_notes == 0:
        raise MidiError(f"{where} has no notes; leave it out")
    quarters = score.length_steps / score.steps_per_quarter
    if quarters > MAX_QUARTERS:
        raise MidiError(
            f"{where} lasts {quarters / 4:,.0f} bars of 4/4, more than {MAX_QUARTERS // 4:,}: a damaged time; leave it out"
        )
    return score


def _from_symusic(parsed: symusic.Score, leave_out_impossible_meters: bool = False) -> Score:
    notes, limits, heads = symusic.core.NoteTickList(), [0], []
    for track in parsed.tracks:
        notes.extend(track.notes)
        limits.append(len(notes))
        heads.append((track.is_drum, track.program, track.name))
    fields = notes.numpy()  # one call for all tracks: each costs as much as a hundred notes
    columns = np.empty((5, limits[-1]), np.int64)
    numbers, start, end, pitch, velocity = columns
    start[:], pitch[:], velocity[:] = fields["time"], fields["pitch"], fields["velocity"]
    np.add(start, fields["duration"], out=end)
    for number, (first, last) in enumerate(pairwise(limits)):
        numbers[first:last] = number
    meters = [(s.time, s.numerator, s.denominator) for s in parsed.time_signatures]
    if leave_out_impossible_meters:
        meters = [meter for meter in meters if _is_meter(*meter[1:])]
    tempos = [(tempo.time, tempo.qpm) for tempo in parsed.tempos]
    return put_together(columns, limits, heads, parsed.ticks_per_quarter, meters, tempos)


def put_together(
    columns: np.ndarray,
    limits: Sequence[int],
    heads: Sequence[tuple[bool, int, str]],
    ticks_per_quarter: int,
    meters: Sequence[tuple[int, int, int]],
    tempos: Sequence[tuple[int, float]],
) -> Score:
    """The score of a file's content, with its voices named.

    Args:
        columns: as ``Score.columns``.
        limits: where each track begins in them, and the end of the last.
        heads: of each track: whether it is drums, its program, its name.
        meters: time, numerator and denominator; by time.
        tempos: time and quarters a minute, those that cannot be included; by time.
    """
    rows = columns[1:].T
    tracks = [
        Track(rows[first:last], 0 if is_drum else program, is_drum, name=name)
        for (is_drum, program, name), (first, last) in zip(heads, pairwise(limits), strict=True)
    ]
    for track, voice in zip(tracks, voices_of(tracks, columns), strict=True):
        track.voice = voice
    return Score.from_columns(
        columns,
        tracks,
        steps_per_quarter=ticks_per_quarter,
        time_signatures=tuple([TimeSignature(*meter) for meter in meters]) or FOUR_FOUR,
        tempos=tuple([Tempo(time, speed) for time, speed in tempos if 0 < speed < 1e6]) or DEFAULT_TEMPO,
    )


def _is_meter(numerator: int, denominator: int) -> bool:
    return numerator > 0 and denominator > 0 and not denominator & (denominator - 1)


def _from_miditoolkit(midi: miditoolkit.MidiFile) -> Score:
    for number, instrument in enumerate(midi.instruments, start=1):
        for note in instrument.notes:
            if note.start < 0 or not 0 <= note.pitch <= 127:
                raise MidiError(f"track {number} of the MidiFile has {note}: use times from 0 and pitches 0..127")
    return Score(
        tracks=tuple(
            Track(
                [(note.start, note.end, note.pitch, note.velocity) for note in instrument.notes],
                0 if instrument.is_drum else instrument.program,
                instrument.is_drum,
                name=instrument.name,
            )
            for instrument in midi.instruments
        ),
        steps_per_quarter=midi.ticks_per_beat,
        time_signatures=tuple(TimeSignature(s.time, s.numerator, s.denominator) for s in midi.time_signature_changes)
        or FOUR_FOUR,
        tempos=tuple(Tempo(t.time, t.tempo) for t in midi.tempo_changes) or DEFAULT_TEMPO,
    )


def to_events(score: Score) -> MidiEvents:
    """The score as the events of a MIDI file of format 1; meters and tempos are in the first track.

    Raises:
        ValueError: a pitch or velocity is outside 0..127, or a time is before 0.
    """
    scale, ticks_per_quarter = _tick_scale(score)
    head = [
        *((s.start_step, 0, meta(TIME_SIGNATURE, time_signature_data(s.numerator, s.denominator))) for s in score.time_signatures),
        *((t.start_step, 1, meta(SET_TEMPO, tempo_data(t.quarters_per_minute))) for t in score.tempos),
    ]
    tracks = []
    for number, (track, (port, channel)) in enumerate(zip(score.tracks, channels_of(score.tracks), strict=True), start=1):
        if len(track) and (track.notes.min() < 0 or track.notes[:, 2:].max() > 127):
            raise ValueError(f"track {number} has a pitch or velocity outside 0..127 or a time before 0; mend it first")
        opening = [meta(PORT, bytes((port,)))] if port is not None else []
        if name := track.name or track.voice:
            opening.append(meta(TRACK_NAME, name.encode("utf-8", "replace")))
        opening.append(bytes((PROGRAM | channel, track.program)))
        notes = track.notes.tolist()
        placed = [
            *head,
            *((0, 2, message) for message in opening),
            *((start, 4, bytes((NOTE_ON | channel, pitch, velocity))) for start, _, pitch, velocity in notes),
            # Those that end come before those that begin, but not before their own beginning.
            *((end, 3 + 2 * (start == end), bytes((NOTE_OFF | channel, pitch, velocity))) for start, end, pitch, velocity in notes),
        ]
        head = []
        events = [Event(tick * scale, message) for tick, _, message in sorted(placed, key=lambda event: event[:2])]
        tracks.append(EventTrack(()).edited(events, events[-1].tick + 1))
    header = b"".join(number.to_bytes(2, "big") for number in (1, len(tracks), ticks_per_quarter))
    return MidiEvents(header, tuple(tracks))


def channels_of(tracks: Sequence[Track]) -> list[tuple[int | None, int]]:
    """MIDI port (None where one is enough) and channel of each track; no channel of a port plays two programs."""
    melodic = [number for number, track in enumerate(tracks) if not track.is_drum]
    is_many = len(melodic) > len(_MELODIC_CHANNELS)
    seats = {number: tracks[number].program if is_many else number for number in melodic}
    order = {seat: place for place, seat in enumerate(dict.fromkeys(seats.values()))}
    has_ports = len(order) > len(_MELODIC_CHANNELS)
    found = []
    for number, track in enumerate(tracks):
        port, place = (0, None) if track.is_drum else divmod(order[seats[number]], len(_MELODIC_CHANNELS))
        found.append((port if has_ports else None, DRUM_CHANNEL if place is None else _MELODIC_CHANNELS[place]))
    return found


def _tick_scale(score: Score) -> tuple[int, int]:
    """Ticks in a step and in a quarter: 480 to the quarter where the grid divides it, else the grid itself."""
    if TICKS_PER_QUARTER % score.steps_per_quarter == 0:
        return TICKS_PER_QUARTER // score.steps_per_quarter, TICKS_PER_QUARTER
    return 1, score.steps_per_quarter


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
