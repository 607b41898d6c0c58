"""Whether two runs differ: medians, the difference, and how much of it is noise.

Steps that follow each other are alike, so an interval from single steps would be too narrow: blocks of them are drawn
(Kuensch 1989, the moving-block bootstrap). It is the noise within these two runs; another day or other nodes are not in
it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_music.profiling.sweep import MEASURED, Row, Sweep, outcome_of

DRAWS = 2000
CONFIDENCE = 0.95
FEWEST = 8  # values on each side, below which no interval is drawn


class Difference(NamedTuple):
    """One quantity of two runs. Shares are of the first run's median: 0.1 says that the second is a tenth above."""

    quantity: str
    first: float  # medians
    second: float
    num_first: int
    num_second: int
    share: float
    low: float | None  # the interval that CONFIDENCE of the draws lie in; None: too few values
    high: float | None
    verdict: str


def difference(quantity: str, first: Sequence[float], second: Sequence[float], seed: int = 0) -> Difference:
    """The medians of two runs and the interval of their difference.

    Args:
        first, second: values of consecutive steps, above 0, warm-up left out.

    Raises:
        ValueError: a run has none.
    """
    sides = [np.asarray(values, float) for values in (first, second)]
    for name, values in zip(("first", "second"), sides, strict=True):
        if not len(values):
            raise ValueError(f"the {name} run has no {quantity} after the warm-up; give --warmup 0, or a longer run")
    medians = [float(np.median(values)) for values in sides]
    share = medians[1] / medians[0] - 1
    if min(map(len, sides)) < FEWEST:
        verdict = f"too few steps to tell: an interval needs {FEWEST} on each side"
        return Difference(quantity, *medians, *map(len, sides), share, None, None, verdict)
    random = np.random.default_rng(seed)
    draws = [_medians_of_blocks(values, random) for values in sides]
    shares = draws[1] / draws[0] - 1
    low, high = (float(bound) for bound in np.quantile(shares, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]))
    verdict = (
        "no difference shown"
        if low <= 0 <= high
        else f"the second is {abs(share):.1%} {'above' if share > 0 else 'below'}"
    )
    return Difference(quantity, *medians, *map(len, sides), share, low, high, verdict)


def _medians_of_blocks(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Medians of as many values, put together of blocks of consecutive ones."""
    length = max(1, round(math.sqrt(len(values))))
    blocks = -(-len(values) // length)
    starts = random.integers(0, len(values) - length + 1, (DRAWS, blocks))
    places = (starts[:, :, None] + np.arange(length)).reshape(DRAWS, -1)[:, : len(values)]
    return np.median(values[places], axis=1)


def compare_sweeps(first: Sweep, second: Sweep) -> tuple[list[tuple[Row, Difference]], int]:
    """The seconds of a step of each setting that both sweeps have measured, and how many settings one or both have not.

    Raises:
        ValueError: there is no such setting.
    """
    sides = [
        {(row.num_gpus, *sorted(row.settings.items())): (row, outcome_of(sweep, row)) for row in sweep.rows}
        for sweep in (first, second)
    ]
    found = []
    for key, (row, outcome) in sides[0].items():
        other = sides[1][key][1] if key in sides[1] else None
        if other and outcome.status == other.status == MEASURED:
            found.append((row, difference("step seconds", outcome.step_seconds, other.step_seconds)))
    if not found:
        raise ValueError(f"{first.folder} and {second.folder} have no setting that both have measured; plan them alike")
    return found, len(sides[0].keys() | sides[1].keys()) - len(found)


def largest_loss_difference(first: dict[int, float], second: dict[int, float]) -> tuple[int, float] | None:
    """The iteration, of those that both have, where the losses differ most, and by what share; None: they share
    none.
    """
    common = sorted(first.keys() & second.keys())
    if not common:
        return None
    shares = {iteration: abs(second[iteration] / first[iteration] - 1) for iteration in common}
    worst = max(shares, key=shares.get)
    return worst, shares[worst]
