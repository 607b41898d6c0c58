"""What a person asks of a piece, as token ids: instruments, meter, tempo, densities, labels.

Each function refuses what the model's data did not have, in one sentence.
"""

from collections.abc import Sequence

from megatron_music.config.errors import counted
from megatron_music.music.score import VOICE_NAMES
from megatron_music.music.tempo import FASTEST, SLOWEST, tempo_bin
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import meter_ids


def instrument_ids(instruments: Sequence[str]) -> list[int]:
    ids = []
    for name in instruments:
        token = f"INST={name.strip().upper()}"
        if token not in v.IDS:
            raise ValueError(f"instrument {name!r} is unknown; use 0..127, {v.DRUMS} or {', '.join(VOICE_NAMES)}")
        ids.append(v.IDS[token])
    return ids


def meter_id(meter: str, encoding: Encoding) -> int:
    if not encoding.writes_meters:
        raise ValueError(f"the model writes only 4/4, not {meter}; train it on data built with --meters")
    token_id = v.IDS.get(f"TIME_SIGNATURE={meter.strip()}")
    if token_id not in meter_ids(encoding):
        there = ", ".join(v.TOKENS[token_id].removeprefix("TIME_SIGNATURE=") for token_id in meter_ids(encoding))
        raise ValueError(f"the model does not know the meter {meter}; use one of {there}")
    return token_id


def density_ids(levels: Sequence[int], instruments: Sequence[int] | None, encoding: Encoding) -> list[int]:
    ids = [_density_id(level, encoding.density_levels("density"), "--density") for level in levels]
    if len(ids) != 1 and len(ids) != len(instruments or ()):
        tracks = counted(len(instruments), "instrument") if instruments else "instruments that are the model's choice"
        raise ValueError(
            f"there are {len(ids)} densities for {tracks}; give one for all, or one for each instrument named"
        )
    return ids


def bar_density_id(level: int, encoding: Encoding) -> int:
    return _density_id(level, encoding.density_levels("bar_density"), "--bar-density")


def _density_id(level: int, known: Sequence[int], option: str) -> int:
    if not known:
        raise ValueError(f"the model has no densities; train it on data built with {option}")
    if level not in known:
        whole = list(known) == list(range(known[-1] + 1))
        levels = f"0 (few notes) to {known[-1]} (many)" if whole else f"one of {', '.join(map(str, known))}"
        raise ValueError(f"{option} {level} is none of the model's levels; use {levels}")
    return v.DENSITY + level


def tempo_id(tempo: float, encoding: Encoding) -> int:
    if not encoding.tempo:
        raise ValueError("the model writes no tempo; train it on data built with --tempo")
    if not SLOWEST <= tempo <= FASTEST:
        raise ValueError(f"the tempo is {tempo:g}; use {SLOWEST:g} to {FASTEST:g} quarter notes per minute")
    return v.TEMPO + tempo_bin(tempo)


def label_ids(labels: Sequence[str], encoding: Encoding) -> list[int]:
    """The ids of labels in the encoding's order.

    Raises:
        ValueError: one is not among the encoding's, or there are two of one kind.
    """
    wanted = [label.strip().upper().replace(" ", "_") for label in labels]
    for label in wanted:
        if not encoding.labels:
            raise ValueError(f"the model has no labels, so not {label}; train it on data built with --labels")
        if label not in encoding.label_ids:
            raise ValueError(f"the model does not know the label {label}; use one of {', '.join(encoding.label_ids)}")
    kinds = [label.partition("=")[0] for label in wanted]
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"two labels of one kind are given ({', '.join(wanted)}); give one of each")
    return [token_id for label, token_id in encoding.label_ids.items() if label in wanted]
