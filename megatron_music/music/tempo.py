"""Tempos in bins, and seconds of steps."""

import numpy as np

from megatron_music.music.score import DEFAULT_TEMPO, Score


def seconds_at(score: Score, steps: np.ndarray) -> np.ndarray:
    """When grid steps are heard, in seconds from the beginning, by the score's tempos (float64, like ``steps``)."""
    tempos = score.tempos if score.tempos[0].start_step <= 0 else (*DEFAULT_TEMPO, *score.tempos)
    starts = np.array([tempo.start_step for tempo in tempos], np.float64)
    per_step = np.array([60 / tempo.quarters_per_minute / score.steps_per_quarter for tempo in tempos])
    begun = np.concatenate([[0.0], np.cumsum(np.diff(starts) * per_step[:-1])])
    place = np.maximum(np.searchsorted(starts, steps, side="right") - 1, 0)
    return begun[place] + (steps - starts[place]) * per_step[place]


TEMPO_BINS = 32


SLOWEST, FASTEST = 30.0, 240.0  # quarters a minute


def tempo_bin(quarters_per_minute: float) -> int:
    """One of 32 bins, geometric from 30 to 240 quarters per minute; the nearest."""
    place = np.log(max(quarters_per_minute, 1e-9) / SLOWEST) / np.log(FASTEST / SLOWEST) * (TEMPO_BINS - 1)
    return int(min(max(round(place), 0), TEMPO_BINS - 1))


def tempo_of_bin(bin_: int) -> float:
    """Quarters per minute: the roundest number in the bin, so that 60, 90, 100, 120 or 140 come back as they were."""
    return _BIN_TEMPOS[bin_]


def _roundest(bin_: int) -> float:
    """The number of a bin divisible by the most of 20, 10, 5 and 2; of equals the nearest to its middle."""
    middle = SLOWEST * (FASTEST / SLOWEST) ** (bin_ / (TEMPO_BINS - 1))
    inside = [speed for speed in range(int(SLOWEST), int(FASTEST) + 1) if tempo_bin(speed) == bin_]
    return float(
        min(inside, key=lambda speed: (-sum(speed % by == 0 for by in (20, 10, 5, 2)), abs(np.log(speed / middle))))
    )


_BIN_TEMPOS = tuple(map(_roundest, range(TEMPO_BINS)))
