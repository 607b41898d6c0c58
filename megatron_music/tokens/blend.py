"""The encoding of several datasets that one model is trained on.

Datasets are refused where the same token means different things in two of them: another grid, other merged tokens,
other names of labels, other density levels. Options that only add tokens (meters, velocity, tempo, infill, labels,
densities) may be on in
a part of the data: the model's encoding has them all, so that generation offers everything that some of its data had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_music.music.pedal import PEDAL_MODES
from megatron_music.music.score import VOICE_MODES
from megatron_music.tokens.encoding import Encoding

ADDED = ("velocity", "tempo", "infill", "lone_quarter_undeclared")
_REBUILD = "build them again with the same options, or as one dataset"


def blend_encodings(encodings: Mapping[str, Encoding]) -> Encoding:
    """One encoding for several datasets.

    Args:
        encodings: of each dataset, by the name that an error gives it; at least one.

    Raises:
        ValueError: a token would mean different things in two of them.
    """
    (first, blended), *others = encodings.items()
    for name, encoding in others:
        blended = _joined(first, blended, name, encoding)
    return blended


def added_by_some(encodings: Sequence[Encoding]) -> list[str]:
    """The options that add tokens to a part of the datasets only, by their names."""
    found = [
        name
        for name in ("meters", *ADDED, "labels", "density", "bar_density", "bars")
        if len({getattr(encoding, name) for encoding in encodings}) > 1
    ]
    return [name.replace("_", "-") for name in found]


def _joined(first: str, one: Encoding, second: str, other: Encoding) -> Encoding:
    _refuse_if(
        one.steps_per_quarter != other.steps_per_quarter,
        f"{first} ({one.steps_per_quarter}) and {second} ({other.steps_per_quarter}) differ in steps a quarter",
    )
    _refuse_if(one.bpe != other.bpe, f"{first} ({one.bpe}) and {second} ({other.bpe}) differ in merged tokens")
    _refuse_if(
        bool(one.labels and other.labels) and one.labels != other.labels,
        f"{first} and {second} differ in the names of labels",
        "build them as one dataset with one --labels file",
    )
    changes = {name: getattr(one, name) or getattr(other, name) for name in ADDED}
    for name in ("density", "bar_density"):
        of_one, of_other = (
            (getattr(encoding, name), getattr(encoding, f"{name}_bins"), encoding.bars) for encoding in (one, other)
        )
        if name == "bar_density":
            of_one, of_other = of_one[:2], of_other[:2]  # a bar has as many notes in a window of any length
        _refuse_if(
            bool(of_one[0] and of_other[0]) and of_one != of_other,
            f"{first} ({_levels(of_one)}) and {second} ({_levels(of_other)}) differ in the levels of "
            f"--{name.replace('_', '-')}",
            "build them as one dataset, or leave the option out of all but one",
        )
        levels, bins = of_one[:2] if of_one[0] else of_other[:2]
        changes |= {name: levels, f"{name}_bins": bins}
    windows = [bars for bars in (one.bars, other.bars) if bars]
    return replace(
        one,
        bars=min(windows, default=0),
        hop=min(one.hop, other.hop),
        bar_line=next(policy for policy in ("carry", "split", "clip") if policy in (one.bar_line, other.bar_line)),
        meters=_meters(one, other),
        unknown_meters=tuple(dict.fromkeys((*one.unknown_meters, *other.unknown_meters))),
        labels=one.labels or other.labels,
        voices=next(mode for mode in VOICE_MODES if mode in (one.voices, other.voices)),
        pedal=next(mode for mode in PEDAL_MODES if mode in (one.pedal, other.pedal)),
        **changes,
    )


def _meters(one: Encoding, other: Encoding) -> tuple[str, ...]:
    if "all" in (*one.meters, *other.meters):
        return ("all",)
    return tuple(dict.fromkeys((*one.meters, *other.meters)))


def _levels(level: tuple) -> str:
    levels, bins, *bars = level
    of_windows = f" in windows of {bars[0]} bars" if bars else ""
    return f"{levels} levels cut at {', '.join(map(str, bins)) or 'nothing'} notes{of_windows}"


def _refuse_if(wrong: bool, what: str, remedy: str = _REBUILD) -> None:
    if wrong:
        raise ValueError(f"{what}; {remedy}")
