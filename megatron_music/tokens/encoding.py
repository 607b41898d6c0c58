"""The options of an encoding."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from megatron_music.music.pedal import PEDAL_MODES
from megatron_music.music.score import VOICE_MODES
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import MAX_MERGES
from megatron_music.tokens.labels import LabelNames, label_ids

LONE_QUARTER = (1, 4)


BAR_LINES = ("carry", "clip", "split")


MAX_BARS = 1 << 16


METERS = tuple(
    token.removeprefix("TIME_SIGNATURE=") for token in vocabulary.TOKENS if token.startswith("TIME_SIGNATURE=")
)


@dataclass(frozen=True)
class Encoding:
    """How scores were turned into ids: the facts a reader cannot guess from the ids.

    Args:
        steps_per_quarter: 4 or 12.
        bars: bars in a window; 0 is the whole piece.
        hop: bars from one window to the next.
        bar_line: what happens to a note that crosses a bar line: ``carry``, ``clip`` or ``split``.
        meters: the time signatures that are encoded, ``("all",)`` for every one the vocabulary has. ``("4/4",)``, the
            default, writes no TIME_SIGNATURE tokens.
        unknown_meters: time signatures that are read as if the file had not declared them, such as ``1/4``.
        velocity: whether a VELOCITY stands before each NOTE_ON.
        tempo: whether TEMPO is written.
        density: levels of the DENSITY after INST; 0 for none, at most 10. A build merges levels that never occur, so
            there may be fewer than it was asked for, down to 1.
        density_bins: the rising note counts that separate the levels, ``density - 1`` of them. Empty while a build has
            not counted yet: ``tokens.density`` says what stands in the ids then.
        bar_density, bar_density_bins: the same for a DENSITY in each bar.
        infill: whether some documents have FILL_IN bars.
        labels: the names of each label, frozen: ``(("GENRE", ("JAZZ", "ROCK")), ("MOOD", ("HAPPY",)))``.
        bpe: merged tokens above the vocabulary's own; 0 for none.
        voices: which tracks are read as SOPRANO .. BASS, ``auto``, ``names`` or ``off``: see ``music.score.voices_of``.
        pedal: whether notes are read as long as the sustain pedal lets them sound: ``auto`` on keyboards (programs
            0-7), ``extend`` on every instrument but drums, ``ignore`` on none.
        lone_quarter_undeclared: whether a 1/4 that is a file's only meter is read as if the file had not declared it:
            many programs write it where they know no meter.
    """

    steps_per_quarter: int = 4
    bars: int = 4
    hop: int = 1
    bar_line: str = "carry"
    meters: tuple[str, ...] = ("4/4",)
    unknown_meters: tuple[str, ...] = ()
    velocity: bool = False
    tempo: bool = False
    density: int = 0
    density_bins: tuple[int, ...] = ()
    bar_density: int = 0
    bar_density_bins: tuple[int, ...] = ()
    infill: bool = False
    labels: LabelNames = ()
    bpe: int = 0
    voices: str = "auto"
    pedal: str = "auto"
    lone_quarter_undeclared: bool = False
    vocabulary_name: str = vocabulary.NAME
    vocabulary_hash: str = vocabulary.HASH

    def __post_init__(self):
        if self.steps_per_quarter not in (4, 12):
            raise ValueError(f"steps_per_quarter is {self.steps_per_quarter}; use 4 or 12")
        if not 0 <= self.bars <= MAX_BARS or not 1 <= self.hop <= MAX_BARS:
            raise ValueError(
                f"bars is {self.bars} and hop {self.hop}; use 0 (the whole piece) to {MAX_BARS:,} bars and a hop from 1"
            )
        if self.bar_line not in BAR_LINES:
            raise ValueError(f"bar_line is {self.bar_line!r}; use one of {', '.join(BAR_LINES)}")
        if not self.meters:
            raise ValueError("meters is empty; name at least one, such as 4/4, or all")
        for meter in (*filter(lambda meter: meter != "all", self.meters), *self.unknown_meters):
            if f"TIME_SIGNATURE={meter}" not in vocabulary.IDS:
                raise ValueError(
                    f"the meter {meter!r} is not in the vocabulary; use 1/2 to 16/16 with 2, 4, 8 or 16 below"
                )
        for name in ("density", "bar_density"):
            levels, bins = getattr(self, name), getattr(self, f"{name}_bins")
            if not 0 <= levels <= vocabulary.NUM_DENSITIES:
                raise ValueError(f"{name} is {levels}; use 0 for none, or 2 to {vocabulary.NUM_DENSITIES} levels")
            if bins and (len(bins) != levels - 1 or list(bins) != sorted(bins)):
                raise ValueError(
                    f"{name}_bins is {bins}; give {max(levels - 1, 0)} rising note counts, one fewer than {name}"
                )
        if not 0 <= self.bpe <= MAX_MERGES:
            raise ValueError(f"bpe is {self.bpe}; use 0 for none, at most {MAX_MERGES:,} merged tokens: ids are uint16")
        for name, modes in (("voices", VOICE_MODES), ("pedal", PEDAL_MODES)):
            if getattr(self, name) not in modes:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(modes)}")
        label_ids(self.labels)  # raises
        if self.vocabulary_hash != vocabulary.HASH:
            raise ValueError(
                f"made with the vocabulary {self.vocabulary_name} ({self.vocabulary_hash[:12]}), while this version "
                f"reads "
                f"{vocabulary.NAME} ({vocabulary.HASH[:12]}); build the dataset again or install the version that "
                f"made it"
            )

    @property
    def steps_per_bar(self) -> int:
        """Steps in a bar of 4/4."""
        return 4 * self.steps_per_quarter

    @property
    def writes_meters(self) -> bool:
        return self.meters != ("4/4",)

    @cached_property
    def meter_set(self) -> tuple[tuple[int, int], ...]:
        """The meters that are encoded, as (numerator, denominator)."""
        named = METERS if "all" in self.meters else self.meters
        return tuple(tuple(map(int, meter.split("/"))) for meter in named)

    @property
    def meters_in_words(self) -> str:
        """For messages."""
        return "any meter of the vocabulary" if "all" in self.meters else " or ".join(self.meters)

    def undeclared(self, signatures: Iterable[tuple[int, int, int]]) -> tuple[tuple[int, int], ...]:
        """The meters that are read as if a file had not declared them.

        Args:
            signatures: the file's, as (start, numerator, denominator) in their order; of several at one time the last
                holds.
        """
        named = self._unknown_meter_set
        if self.lone_quarter_undeclared and LONE_QUARTER not in named:
            in_force = {start: (numerator, denominator) for start, numerator, denominator in signatures}
            if set(in_force.values()) == {LONE_QUARTER}:
                return (*named, LONE_QUARTER)
        return named

    @cached_property
    def _unknown_meter_set(self) -> tuple[tuple[int, int], ...]:
        return tuple(tuple(map(int, meter.split("/"))) for meter in self.unknown_meters)

    def density_levels(self, name: str) -> tuple[int, ...]:
        """The levels of ``density`` or ``bar_density`` that data of this encoding can have.

        Data of earlier versions may have equal bins: the level between them is never written.
        """
        levels, bins = getattr(self, name), getattr(self, f"{name}_bins")
        if not bins:
            return tuple(range(levels))
        edges = (0, *bins)
        return tuple(level for level, low in enumerate(edges) if level == levels - 1 or low < edges[level + 1])

    @property
    def vocab_size(self) -> int:
        return vocabulary.SIZE + self.bpe

    @property
    def label_ids(self) -> dict[str, int]:
        """The ids of the tokens of labels, such as ``GENRE=JAZZ``."""
        return label_ids(self.labels)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The vocabulary's tokens by id, with the names of labels instead of their numbers; unused ids keep theirs."""
        tokens = list(vocabulary.TOKENS)
        for token, token_id in self.label_ids.items():
            tokens[token_id] = token
        return tuple(tokens)
