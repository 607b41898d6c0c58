"""Score, Track, Note: a piece of music in grid steps.

The grid is ``steps_per_quarter`` fine. A score read from a MIDI file stands on the file's own ticks, a
quantised one on 4 or 12 steps a quarter; both are the same class. Knows nothing about files or tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from megatron_music.music.names import printable

DEFAULT_VELOCITY = 80
DEFAULT_QUARTERS_PER_MINUTE = 120.0
VOICE_NAMES = ("SOPRANO", "ALTO", "TENOR", "BASS")
VOICE_PROGRAM = 52  # choir aahs: what a named voice plays
VOICE_MODES = ("auto", "names", "off")
CHOIR_PROGRAMS = frozenset({52, 53, 54})
_UNNAMED_VOICE_PROGRAMS = frozenset({0, *range(16, 21)})  # the default piano, and organs
_VOICE_SET = frozenset(VOICE_NAMES)


class Note(NamedTuple):
    """One note. Notes order by start, end, pitch, velocity."""

    start_step: int
    end_step: int
    pitch: int
    velocity: int = DEFAULT_VELOCITY


class TimeSignature(NamedTuple):
    start_step: int
    numerator: int
    denominator: int


METER_COUNTS, METER_UNITS = range(1, 17), (2, 4, 8, 16)  # what tokens, and so models, know


def known_meter(numerator: int, denominator: int) -> tuple[int, int]:
    """The meter itself, or one with bars of the same length that tokens know, where they do not know it: 12/8 for
    24/16.
    """
    if numerator in METER_COUNTS and denominator in METER_UNITS:
        return numerator, denominator
    for unit in sorted(METER_UNITS, key=lambda unit: abs(unit - denominator)):
        count, rest = divmod(numerator * unit, denominator)
        if not rest and count in METER_COUNTS:
            return count, unit
    return numerator, denominator


class Tempo(NamedTuple):
    start_step: int
    quarters_per_minute: float


_NO_NOTES = np.empty((0, 4), np.int64)
FOUR_FOUR = (TimeSignature(0, 4, 4),)
DEFAULT_TEMPO = (Tempo(0, DEFAULT_QUARTERS_PER_MINUTE),)


class Track:
    """One instrument's notes.

    Args:
        notes: ``Note`` tuples or an int64 array [N, 4] of their fields, in any order.
        program: General MIDI program, 0..127; 0 for drums.
        is_drum: whether pitches mean percussion instruments.
        voice: SOPRANO, ALTO, TENOR or BASS in four-voice music, else empty.
        name: as the file says it.
    """

    def __init__(
        self,
        notes: Iterable[Note] | np.ndarray = (),
        program: int = 0,
        is_drum: bool = False,
        voice: str = "",
        name: str = "",
    ):
        if voice and voice not in VOICE_NAMES:
            raise ValueError(f"voice is {voice!r}; use one of {', '.join(VOICE_NAMES)} or leave it empty")
        if not 0 <= program <= 127:
            raise ValueError(f"program is {program}; General MIDI has 0..127")
        if not isinstance(notes, np.ndarray):
            notes = np.array(list(notes), np.int64).reshape(-1, 4) if notes else _NO_NOTES
        self.rows = notes if notes.dtype == np.int64 else notes.astype(np.int64)  # as they were given, in any order
        self.program, self.is_drum, self.voice, self.name = program, is_drum, voice, name

    @cached_property
    def notes(self) -> np.ndarray:
        """Start, end, pitch and velocity of every note (int64, [N, 4]), sorted; sorting waits until it is asked for."""
        return _in_order(self.rows)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Track):
            return NotImplemented
        same = (self.program, self.is_drum, self.voice, self.name) == (
            other.program,
            other.is_drum,
            other.voice,
            other.name,
        )
        return same and np.array_equal(self.notes, other.notes)

    __hash__ = None

    def __repr__(self) -> str:
        options = {"program": self.program, "is_drum": self.is_drum, "voice": self.voice, "name": self.name}
        said = "".join(f", {name}={value!r}" for name, value in options.items() if value)
        return f"Track({[tuple(row) for row in self.notes.tolist()]}{said})"

    def __iter__(self):
        """The notes as ``Note`` tuples, in order."""
        return (Note(*row) for row in self.notes.tolist())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def label(self) -> str:
        """What a person calls the track: its voice, its name (printable), or its program."""
        return (
            self.voice.capitalize() or printable(self.name) or ("Drums" if self.is_drum else f"Program {self.program}")
        )


def _in_order(rows: np.ndarray) -> np.ndarray:
    """The rows sorted by start, end, pitch and velocity."""
    start, end, pitch, velocity = rows.T
    length = end - start
    if len(rows) < 2:
        return rows
    if (
        min(start.min(), length.min(), pitch.min()) >= 0
        and max(start.max() >> 16, length.max(), pitch.max() << 13) < 1 << 20
    ):
        key = start << 27 | length << 7 | pitch  # 36, 20 and 7 bits
        if np.all(key[1:] > key[:-1]):
            return rows
        order = np.argsort(key)
        key = key[order]
        if np.all(key[1:] > key[:-1]):
            return rows[order]
    return rows[np.lexsort((velocity, pitch, end, start))]


class QuantizationReport(NamedTuple):
    """What quantising changed. Errors are in steps of the new grid."""

    notes_in: int
    notes_out: int
    notes_lost: int  # same track, pitch and onset step as a longer note
    notes_shortened: int  # cut where their own pitch is struck again
    notes_lengthened: int  # shorter than one step
    onsets_on_grid: int
    mean_onset_error: float
    max_onset_error: float
    onset_errors: tuple[int, ...] = ()  # how many onsets moved by 0-0.05, 0.05-0.1, ... 0.45-0.5 steps


class FileContent(NamedTuple):
    """What a file holds beside notes, programs, tempos and meters."""

    counts: dict[str, int]  # events by kind, those there are
    pedal_lengthening: np.ndarray  # int64: by how many ticks the sustain pedal lengthens each note that it lengthens
    pedal_is_applied: bool  # whether the notes have these lengths


@dataclass(frozen=True)
class Score:
    """A piece: tracks on one grid.

    Args:
        tracks: in the file's order.
        steps_per_quarter: grid steps in a quarter note.
        length_steps: the end of the piece; by default the end of its last note.
        quantization: what ``quantize`` changed; not part of equality.
        content: what else its file holds; not part of equality.
    """

    tracks: tuple[Track, ...]
    steps_per_quarter: int
    time_signatures: tuple[TimeSignature, ...] = FOUR_FOUR
    tempos: tuple[Tempo, ...] = DEFAULT_TEMPO
    length_steps: int = -1
    quantization: QuantizationReport | None = field(default=None, compare=False, repr=False)
    content: FileContent | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "tracks", tuple(self.tracks))
        if self.length_steps < 0:
            object.__setattr__(self, "length_steps", self.last_end_step)

    @staticmethod
    def from_columns(columns: np.ndarray, tracks: Sequence[Track], **fields) -> "Score":
        """A score of tracks that were made of ``columns`` (see there) with ``rows_of_tracks``."""
        score = object.__new__(
            Score
        )  # without __init__, which a frozen dataclass makes slow: builds do this twice a file
        score.__dict__.update(
            fields, tracks=tuple(tracks), columns=columns
        )  # columns: what the cached property would compute
        if "length_steps" not in fields:
            score.__dict__["length_steps"] = score.last_end_step
        return score

    @cached_property
    def columns(self) -> np.ndarray:
        """Track number, start, end, pitch and velocity of all notes, track after track (int64, [5, N])."""
        lengths = [len(track) for track in self.tracks]
        columns = np.empty((5, sum(lengths)), np.int64)
        columns[0] = np.repeat(np.arange(len(lengths)), lengths)
        if lengths:
            np.concatenate([track.rows for track in self.tracks], out=columns[1:].T)
        return columns

    @cached_property
    def bar_starts(self) -> np.ndarray:
        """Where bars begin, by the time signatures, and the end of the last one, counted whole (int64, [bars + 1])."""
        return bar_lines(self.time_signatures, self.steps_per_quarter, self.length_steps)

    @property
    def last_end_step(self) -> int:
        return int(np.maximum.reduce(self.columns[2], initial=0))  # as max, without its detour through Python

    @property
    def num_notes(self) -> int:
        return self.columns.shape[1]

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar of 4/4."""
        return 4 * self.steps_per_quarter

    @property
    def num_bars(self) -> int:
        """Bars, the last one counted whole."""
        return len(self.bar_starts) - 1


def rows_of_tracks(columns: np.ndarray, num_tracks: int) -> list[np.ndarray]:
    """The notes of each track (int64, [N, 4] each) as views of ``Score.columns``."""
    limits = columns[0].searchsorted(np.arange(num_tracks + 1)).tolist()
    rows = columns[1:].T
    return [rows[first:last] for first, last in pairwise(limits)]


def bar_lines(time_signatures: Sequence[TimeSignature], steps_per_quarter: int, length_steps: int) -> np.ndarray:
    """Where bars begin, and the end of the last one, counted whole (int64, [bars + 1]).

    Bars begin anew at each time signature; before the first one the meter is 4/4.
    """
    if time_signatures[0].start_step:
        time_signatures = (*FOUR_FOUR, *time_signatures)
    parts = []
    for place, (first, numerator, denominator) in enumerate(time_signatures):
        is_last = place + 1 == len(time_signatures)
        length = (length_steps if is_last else time_signatures[place + 1].start_step) - first
        quarters = 4 * steps_per_quarter * numerator
        count = max(-(-length * denominator // quarters), 0)
        parts.append(first + np.arange(count + is_last) * quarters // denominator)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def name_voices(score: Score, mode: str = "auto") -> Score:
    """The score with SOPRANO, ALTO, TENOR, BASS named, where it is music for voices: see ``voices_of``."""
    voices = voices_of(score.tracks, score.columns, mode)
    if not any(voices):
        return score
    tracks = [
        Track(track.rows, track.program, track.is_drum, track.voice or voice, track.name)
        for track, voice in zip(score.tracks, voices, strict=True)
    ]
    return replace(score, tracks=tracks)


def voices_of(tracks: Sequence[Track], columns: np.ndarray, mode: str = "auto") -> list[str]:
    """The voice of each track, or empty.

    It is music for voices when no sounding track is drums and one of these holds:

    - there are four, named as the four voices in any order and case;
    - all play a choir program (52-54) and have a voice's name, as ``write_midi`` leaves them;
    - there are four of one program, never two notes at a time, their mean pitches fall from first to last, and the
      program is a choir, or it is the default piano (0) or an organ (16-20) and no track has a name.

    Args:
        mode: ``auto`` is all of this, ``names`` the first two, ``off`` none.
    """
    none = [""] * len(tracks)
    sounding = [track for track in tracks if len(track.rows)]
    four = len(sounding) == len(VOICE_NAMES)
    programs = {track.program for track in sounding}
    are_choirs = CHOIR_PROGRAMS.issuperset(programs)
    if (
        not sounding
        or not (four or are_choirs)
        or mode == "off"
        or any([track.is_drum or track.voice for track in sounding])
    ):
        return none
    names = [track.name.strip().upper() if track.name else "" for track in sounding]
    are_voices = _VOICE_SET.issuperset(names)
    if not (are_voices and (are_choirs or len(set(names)) == len(VOICE_NAMES))):
        may_be_voices = are_choirs or (_UNNAMED_VOICE_PROGRAMS.issuperset(programs) and not any(names))
        if not (
            mode == "auto" and four and len(programs) == 1 and may_be_voices and _are_falling_lines(sounding, columns)
        ):
            return none
        names = list(VOICE_NAMES)
    named = iter(names)
    return [next(named) if len(track.rows) else "" for track in tracks]


def _are_falling_lines(tracks: list[Track], columns: np.ndarray) -> bool:
    """Whether mean pitches fall from track to track, and no track has two notes at a time."""
    lengths = [len(track.rows) for track in tracks]
    firsts = [0, *accumulate(lengths[:-1])]
    sums = np.add.reduceat(columns[3], firsts).tolist()
    for a, b, n, m in zip(sums, sums[1:], lengths, lengths[1:], strict=False):
        if a * m <= b * n:
            return False
    overlaps = columns[1, 1:] < columns[2, :-1]
    for first in firsts[1:]:
        overlaps[first - 1] = False  # from one track to the next
    return not np.count_nonzero(overlaps) or all(map(_is_monophonic, tracks))


def _is_monophonic(track: Track) -> bool:
    return bool((track.notes[1:, 0] >= track.notes[:-1, 1]).all())
