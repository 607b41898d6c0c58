"""MIDI files in and out. The one owner of miditoolkit.

``music.midi_tables`` reads the bytes to tables, of which scores are made here; ``music.midi_events`` writes.
"""

import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import miditoolkit
import numpy as np

from megatron_music.music import pedal as pedals
from megatron_music.music.midi_bytes import METER, NUM_STATE, PEDALS
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
from megatron_music.music.midi_tables import (
    Header,
    MidiError,
    Tables,
    damage,
    read_header,
    read_tables,
)
from megatron_music.music.midi_text import decode_text
from megatron_music.music.score import (
    DEFAULT_TEMPO,
    FOUR_FOUR,
    FileContent,
    Score,
    Tempo,
    TimeSignature,
    Track,
    name_voices,
    voices_of,
)
from megatron_music.storage import reading
from megatron_music.storage.writing import write_whole

MAX_QUARTERS = (
    40_000  # 10,000 bars of 4/4, five and a half hours at 120 quarters per minute: longer pieces are looked at twice
)
MAX_SILENT_QUARTERS = 4_000
TICKS_PER_QUARTER = 480
_NONE_LONGER = np.empty(0, np.int64)

# Names of what ``midi_bytes`` counts, in its order.
CONTENT_COUNTS = (
    "pitch bends",
    "pedal",
    "other controllers",
    "aftertouch",
    "key signatures",
    "lyrics",
    "texts and markers",
    "track names",
    "system exclusive",
    "silent tracks",
    "notes never switched off",
)
_MELODIC_CHANNELS = [channel for channel in range(16) if channel != DRUM_CHANNEL]


def read_midi(
    source: str | os.PathLike | bytes | miditoolkit.MidiFile,
    sanitize: bool = False,
    voices: str = "auto",
    pedal: str = "ignore",
) -> Score:
    """A score on the file's own ticks, with the four voices named where it is four-voice music.

    Events of one kind at one time stay in the file's order, so that the last one holds.

    Args:
        source: a path, the file's bytes, or a loaded ``miditoolkit.MidiFile`` (left as it is, its pedals ignored).
        sanitize: instead of refusing a damaged file, clamp its data bytes above 127, leave out meters that cannot be,
            and do without the last few bytes of its last track.
        voices: which tracks become SOPRANO .. BASS: see ``score.voices_of``.
        pedal: ``extend`` has notes end as the sustain pedal lets them, ``auto`` those of keyboards (programs 0-7),
            ``ignore`` none.

    Raises:
        MidiError: the file is missing, damaged or not music; the sentence names it.
    """
    if isinstance(source, miditoolkit.MidiFile):
        return name_voices(checked(_from_miditoolkit(source), "the MidiFile"), voices)
    if isinstance(source, bytes):
        return read_bytes(source, "the file", sanitize, voices, pedal, PLAIN)
    where = os.fspath(source)
    try:
        content = reading.read_bytes(source, reading.MIDI_BYTES)
    except (OSError, ValueError) as error:
        raise MidiError(f"{where} cannot be read ({reading.reason_of(error)}); check the path") from None
    return read_bytes(content, where, sanitize, voices, pedal, PLAIN)


def write_midi(score: Score, path: str | os.PathLike) -> None:
    """Write a Standard MIDI File, under a temporary name first; ``path`` never holds half a file.

    Every track is an MTrk chunk. Up to 15 tracks that are not drums have a channel each; of more, those of one program
    share a channel, and more than 15 programs are spread over MIDI ports. Names are UTF-8.

    Raises:
        ValueError: a pitch or velocity is outside 0..127, or a time is before 0.
    """
    write_midi_bytes(to_events(score).to_bytes(), path)


def write_midi_bytes(content: bytes, path: str | os.PathLike) -> None:
    """Write a file's bytes under a temporary name first; ``path`` never holds half a file."""
    write_whole(path, content)


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


def checked(score: Score, where: str) -> Score:
    """The score, if it is music."""
    if score.steps_per_quarter <= 0:
        raise MidiError(f"{where} has {score.steps_per_quarter} ticks in a quarter note; at least 1 is needed")
    for _, numerator, denominator in score.time_signatures:
        if not _is_meter(numerator, denominator):
            raise MidiError(
                f"{where} has the meter {numerator}/{denominator}; the count must be at least 1 and the unit a power "
                f"of two"
            )
    if score.num_notes == 0:
        raise MidiError(f"{where} has no notes; skip it")
    if score.length_steps > MAX_QUARTERS * score.steps_per_quarter:
        starts = np.sort(score.columns[1])
        silence = int(np.diff(starts, prepend=0, append=score.length_steps).max())
        if silence > MAX_SILENT_QUARTERS * score.steps_per_quarter:
            bars = silence / 4 / score.steps_per_quarter
            raise MidiError(f"{where} has {bars:,.0f} bars of 4/4 in which no note begins: a damaged time; skip it")
    return score


class Engine(NamedTuple):
    """The loops of reading."""

    read_tables: Callable[[Header, bool], Tables]
    lengthen: Callable[[np.ndarray, list[list[int]], np.ndarray, str], np.ndarray]  # ``pedal.lengthen``


PLAIN = Engine(read_tables, pedals.lengthen)


def read_bytes(content: bytes, where: str, sanitize: bool, voices: str, pedal: str, engine: Engine) -> Score:
    """``read_midi`` of a file's bytes.

    Args:
        where: what errors call it.
        engine: ``PLAIN``, or faster functions that give the same.
    """
    header = read_header(content, where)
    error, numbers, columns, limits, heads, marks, controls = engine.read_tables(header, sanitize)
    if error:
        raise MidiError(f"{where} is damaged ({damage(error, numbers, header)}); repair or skip it")
    if len(set(limits)) < len(limits):  # tracks of notes that are never switched off are none
        sounding = [number for number, (first, last) in enumerate(pairwise(limits)) if first < last]
        heads, limits = [heads[number] for number in sounding], [0, *(limits[number + 1] for number in sounding)]
        columns[0] = np.repeat(np.arange(len(heads)), np.diff(limits))
    found = _file_content(columns, heads, numbers, controls, pedal, engine)
    meters, tempos = [], []
    for kind, time, value, unit in marks:
        if kind == METER:
            if not sanitize or _is_meter(value, unit):
                meters.append(TimeSignature(time, value, unit))
        elif value:
            tempos.append(Tempo(time, 60_000_000 / value))
    rows = columns[1:].T
    tracks = []
    for head, first, last in zip(heads, limits, limits[1:], strict=False):
        is_drum = head[0] & 15 == DRUM_CHANNEL
        name = decode_text(header.content[head[2] : head[3]]) if head[3] > head[2] else ""
        tracks.append(Track(rows[first:last], 0 if is_drum else head[1], is_drum, name=name))
    for track, voice in zip(tracks, voices_of(tracks, columns, voices), strict=True):
        track.voice = voice
    score = Score.from_columns(
        columns,
        tracks,
        steps_per_quarter=header.ticks_per_quarter,
        time_signatures=_by_time(meters) or FOUR_FOUR,
        tempos=_by_time(tempos) or DEFAULT_TEMPO,
        content=found,
    )
    return checked(score, where)


def _by_time(events: list) -> tuple:
    if len(events) > 1:
        events.sort(key=itemgetter(0))
    return tuple(events)


def _file_content(
    columns: np.ndarray,
    heads: list[list[int]],
    numbers: Sequence[int],
    controls: np.ndarray,
    pedal: str,
    engine: Engine,
) -> FileContent:
    """What else the file holds. Notes that the pedal lengthens get their ends in ``columns``, if they are to
    have them.
    """
    counts = {name: number for name, number in zip(CONTENT_COUNTS, numbers[NUM_STATE:], strict=True) if number}
    if not numbers[PEDALS] or not heads:
        return FileContent(counts, _NONE_LONGER, False)
    return FileContent(counts, engine.lengthen(columns, heads, controls, pedal), pedal != "ignore")


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
        *(
            (s.start_step, 0, meta(TIME_SIGNATURE, time_signature_data(s.numerator, s.denominator)))
            for s in score.time_signatures
        ),
        *((t.start_step, 1, meta(SET_TEMPO, tempo_data(t.quarters_per_minute))) for t in score.tempos),
    ]
    tracks = []
    for number, (track, (port, channel)) in enumerate(
        zip(score.tracks, channels_of(score.tracks), strict=True), start=1
    ):
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
            *(
                (end, 3 + 2 * (start == end), bytes((NOTE_OFF | channel, pitch, velocity)))
                for start, end, pitch, velocity in notes
            ),
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
