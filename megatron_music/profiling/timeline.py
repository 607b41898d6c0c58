"""What one rank did over a profiled stretch: intervals by kind, time by kernel, named ranges."""

import math
from array import array
from collections import defaultdict
from typing import NamedTuple

import numpy as np

from megatron_music.profiling.intervals import length
from megatron_music.profiling.kernel_kinds import kind_of

# Of one file. An event takes 16 bytes here, so that honest traces of many gigabytes fit.
MAX_EVENTS = 50_000_000
MAX_NAMES = 1_000_000
MAX_NAME_CHARACTERS = 64 << 10  # of one name; a longer one is cut
MAX_MICROSECONDS = 1e17  # three thousand years: beyond, a microsecond is no difference


class Timeline(NamedTuple):
    """Times are in microseconds from an origin of the file's own."""

    rank: str
    device: str  # "GPU" or "CPU"
    intervals: dict[str, np.ndarray]  # of each kind, [N, 2]; a kind that did not occur is absent
    names: dict[str, float]  # microseconds of each kernel, summed
    ranges: dict[str, np.ndarray]  # NVTX ranges and annotations, by name, [N, 2]
    num_graphs: int = 0  # CUDA graphs that were traced as a whole
    num_left_out: int = 0  # events without a name, a start or a length


class Spans:
    """Intervals by name, or by another key that has one."""

    def __init__(self):
        self._spans: dict[object, array] = {}
        self._num_events = 0

    def __bool__(self) -> bool:
        return bool(self._spans)

    def add(self, key, start: float, end: float) -> None:
        """
        Raises:
            ValueError: there are more than are kept.
        """
        self._num_events += 1
        own = self._spans.get(key)
        if own is None:
            if isinstance(key, str) and len(key) > MAX_NAME_CHARACTERS:
                return self.add(key[:MAX_NAME_CHARACTERS], start, end)
            if len(self._spans) == MAX_NAMES:
                raise ValueError(f"it has more than {MAX_NAMES:,} different names; profile fewer steps")
            own = self._spans[key] = array("d")
        if self._num_events > MAX_EVENTS:
            raise ValueError(f"it has more than {MAX_EVENTS:,} events; profile fewer steps")
        own.extend((start, end))

    def arrays(self) -> dict[object, np.ndarray]:
        """The intervals of each key, [N, 2]."""
        return {key: np.frombuffer(own).reshape(-1, 2) for key, own in self._spans.items()}


def span_of(start: float, end: float) -> tuple[float, float] | None:
    """The interval in microseconds; None where it is no time that anything took place at."""
    return (start, end) if max(abs(start), abs(end)) <= MAX_MICROSECONDS and not math.isnan(start + end) else None


def timeline_of(rank: str, device: str, pieces, ranges, *, num_graphs: int = 0, num_left_out: int = 0) -> Timeline:
    """The timeline of pieces, each a name and its intervals [N, 2]."""
    found: dict[str, list] = defaultdict(list)
    names: dict[str, float] = defaultdict(float)
    for name, own in pieces:
        if len(own):
            found[kind_of(name)].append(own)
            names[name] += length(own)
    return Timeline(
        rank,
        device,
        {kind: np.concatenate(parts) for kind, parts in found.items()},
        dict(names),
        dict(ranges),
        num_graphs,
        num_left_out,
    )
