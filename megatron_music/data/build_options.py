"""What a build is asked for: the encoding, and all that decides which documents there are. Never imports torch."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import encoding_of_json

DEFAULT_FRACTIONS = (0.9, 0.05, 0.05)
# ``Encoding()`` is that of NVIDIA's article, in 4/4 alone; a folder of music has many meters.
DEFAULT_ENCODING = Encoding(meters=("all",), lone_quarter_undeclared=True)
FORMATS = ("megatron", "text")


@dataclass(frozen=True)
class Filters:
    """Bounds on what is encoded, each (lowest, highest), both allowed; None leaves a side open.

    Args:
        piece_bars: bars of a stretch of music, counted before windows are cut.
        tracks: tracks with a note in the window.
        notes_per_bar: notes struck in the window, over its bars, all tracks together.
        empty_tracks: tracks of the piece without a note in the window.
        pitches: every pitch of the window, drums aside.
    """

    piece_bars: tuple[int | None, int | None] = (None, None)
    tracks: tuple[int | None, int | None] = (None, None)
    notes_per_bar: tuple[float | None, float | None] = (None, None)
    empty_tracks: tuple[int | None, int | None] = (None, None)
    pitches: tuple[int | None, int | None] = (None, None)

    def __post_init__(self):
        for field in fields(self):
            low, high = getattr(self, field.name)
            if low is not None and high is not None and low > high:
                raise ValueError(f"{field.name} is {low} to {high}; give the smaller number first")


@dataclass(frozen=True)
class BuildOptions:
    """Everything the bytes of a dataset follow from, beside the files.

    Args:
        encoding: how a score becomes ids; its density bins and label names are found by the build.
        seed: of the split, of augmentation and of infill.
        fractions: of the music in train, valid and test; their sum is 1.
        split_by: what keeps files in one split beside equal notes, or names their splits; see ``data.grouping``.
        copies: documents made of each training window: itself, and ``copies - 1`` augmented ones.
        transpose: lowest and highest number of semitones of an augmented copy.
        permute_tracks: whether augmented copies have their tracks in another order.
        infill: share of windows that are written with FILL_IN bars, 0 to 1.
        drop_duplicates: whether a file whose notes an earlier file has is left out.
        filters: bounds on what is encoded.
        sanitize: whether a damaged file is read once more with its bytes clamped.
        seconds_per_file: after so long a file is given up.
        labels: the CSV file of labels, or empty.
        formats: any of ``megatron`` (.bin/.idx) and ``text`` (.txt, one window a line).
    """

    encoding: Encoding = DEFAULT_ENCODING
    seed: int = 0
    fractions: tuple[float, float, float] = DEFAULT_FRACTIONS
    split_by: str = ""
    copies: int = 1
    transpose: tuple[int, int] = (0, 0)
    permute_tracks: bool = False
    infill: float = 0.0
    drop_duplicates: bool = False
    filters: Filters = Filters()
    sanitize: bool = True
    seconds_per_file: float = 60.0
    labels: str = ""
    formats: tuple[str, ...] = ("megatron",)

    def __post_init__(self):
        if (
            not all(map(math.isfinite, self.fractions))
            or min(self.fractions) < 0
            or abs(sum(self.fractions) - 1) > 1e-6
        ):
            raise ValueError(
                f"the split {self.fractions} does not add up to 1; give three fractions such as 0.9,0.05,0.05"
            )
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}; use 1 (the windows alone) or more")
        if self.transpose[0] > self.transpose[1] or max(map(abs, self.transpose)) > 127:
            raise ValueError(
                f"transpose is {self.transpose}; give the lowest and highest number of semitones, such as -5 and 6"
            )
        augments = self.transpose != (0, 0) or self.permute_tracks
        if augments and self.copies == 1:
            raise ValueError("transpose and permute_tracks are for copies of a window; ask for copies of 2 or more")
        if self.copies > 1 and not augments:
            raise ValueError(
                f"copies is {self.copies} and all would be the same; ask for transpose or permute_tracks too"
            )
        if not 0 <= self.infill <= 1:
            raise ValueError(f"infill is {self.infill}; use a share of the windows from 0 to 1")
        if self.infill and not self.encoding.bars:
            raise ValueError("infill needs windows; set bars to 1 or more")
        for name in ("density", "bar_density"):
            if getattr(self.encoding, name) == 1:
                raise ValueError(f"{name} is 1, which says nothing; use 0 for none, or 2 to 10 levels")
        if (self.infill > 0) != self.encoding.infill:
            raise ValueError(
                f"infill is {self.infill} while the encoding says infill={self.encoding.infill}; set both or neither"
            )
        if not 0 < self.seconds_per_file < math.inf:
            raise ValueError(f"seconds_per_file is {self.seconds_per_file}; use more than 0")
        if not self.formats or set(self.formats) - set(FORMATS):
            raise ValueError(f"formats is {self.formats}; use {' and '.join(FORMATS)}, or one of them")

    def as_json(self) -> dict:
        """A dict that ``json`` can write and ``from_json`` reads."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping) -> "BuildOptions":
        """The options that ``as_json`` and JSON made of some.

        Raises:
            TypeError, AttributeError: a field is unknown or of another type.
            ValueError: they cannot be.
        """
        values = {
            **values,
            "encoding": encoding_of_json(values["encoding"]),
            "filters": Filters(**_typed(Filters, values["filters"])),
        }
        return BuildOptions(**_typed(BuildOptions, values))


def _typed(kind: type, values: Mapping) -> dict:
    """The fields of a dataclass as JSON has them, lists as tuples.

    Raises:
        TypeError: one has another type or length than its default.
    """
    defaults = {field.name: field.default for field in fields(kind)}
    found = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    wrong = [name for name, value in found.items() if not _is_like(value, defaults.get(name), is_open=kind is Filters)]
    if wrong:
        raise TypeError(f"look at {', '.join(sorted(wrong))}")
    return found


def _is_like(value, default, is_open: bool) -> bool:
    if isinstance(default, tuple) and default and isinstance(value, tuple):
        if isinstance(default[0], str):
            return all(isinstance(part, str) for part in value)
        return len(value) == len(default) and all(
            _is_like(part, wanted, is_open) for part, wanted in zip(value, default, strict=True)
        )
    if default is None:
        return is_open and (value is None or type(value) in (int, float))
    return type(value) is type(default) or (type(default) is float and type(value) is int)
