"""What one rank did over a profiled stretch: intervals by kind, time by kernel, named ranges."""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from megatron_music.profiling.intervals import length
from megatron_music.profiling.kernel_kinds import kind_of


class Timeline(NamedTuple):
    """Times are in microseconds from an origin of the file's own."""

    rank: str
    device: str  # "GPU" or "CPU"
    intervals: dict[str, np.ndarray]  # of each kind, [N, 2]; a kind that did not occur is absent
    names: dict[str, float]  # microseconds of each kernel, summed
    ranges: dict[str, list[tuple[float, float]]]  # NVTX ranges and annotations, by name
    num_graphs: int = 0  # CUDA graphs that were traced as a whole
    num_left_out: int = 0  # events without a name, a start or a length


def timeline_of(rank: str, device: str, pieces, ranges, *, num_graphs: int = 0, num_left_out: int = 0) -> Timeline:
    """The timeline of names, each with its intervals."""
    found: dict[str, list] = defaultdict(list)
    names: dict[str, float] = defaultdict(float)
    for name, own in pieces:
        own = np.asarray(own, float).reshape(-1, 2)
        if len(own):
            found[kind_of(name)].append(own)
            names[name] += length(own)
    return Timeline(rank, device, {kind: np.concatenate(parts) for kind, parts in found.items()}, dict(names), dict(ranges), num_graphs, num_left_out)
