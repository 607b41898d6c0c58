"""Where the time of a profiled stretch went: kinds of kernels, idle time, hidden and exposed communication, ranges,
skew of ranks.

Read from torch.profiler's Chrome trace or the sqlite that nsys exports. Times of kinds are lengths of unions, not sums:
kernels of several streams run at once.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.profiling.chrome_trace import read_chrome
from megatron_music.profiling.intervals import length, overlap, union
from megatron_music.profiling.kernel_kinds import KINDS, kind_of
from megatron_music.profiling.nsys_trace import read_nsys
from megatron_music.profiling.timeline import Timeline
from megatron_music.storage.reading import open_regular, reason_of

SLOWEST = 12


class Share(NamedTuple):
    """One rank's time."""

    rank: str
    device: str
    seconds: float  # from the first kernel's start to the last one's end
    gemm: float  # shares of it, of unions: they may overlap, so that they need not add up to what is busy
    attention: float
    communication: float
    memory: float
    other: float
    idle: float  # in which nothing ran
    exposed_communication: float  # beside which nothing else ran
    hidden_communication: float


def read_trace(path: Path) -> list[Timeline]:
    """The ranks of a file.

    Raises:
        ValueError: it is no trace, or has no kernel and no operator.
    """
    try:
        with open_regular(path) as file:
            head = file.read(16)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); name a Chrome trace or nsys's sqlite") from None
    timelines = read_nsys(path) if head.startswith(b"SQLite format 3") else [read_chrome(path)]
    timelines = [timeline for timeline in timelines if timeline.intervals]
    if not timelines:
        raise ValueError(
            f"{path} has no kernel and no operator; profile with CUDA activities, or `nsys profile --trace=cuda,nvtx`"
        )
    return timelines


def share_of(timeline: Timeline) -> Share:
    """What a rank's time went into."""
    unions = {
        kind: union(timeline.intervals[kind]) if kind in timeline.intervals else np.zeros((0, 2)) for kind in KINDS
    }
    busy = union(np.concatenate(list(unions.values())))
    span = busy[-1, 1] - busy[0, 0]
    computing = union(np.concatenate([unions[kind] for kind in KINDS if kind != "communication"]))
    hidden = overlap(unions["communication"], computing)
    return Share(
        rank=timeline.rank,
        device=timeline.device,
        seconds=span / 1e6,
        **{kind: length(unions[kind]) / span for kind in KINDS},
        idle=1 - length(busy) / span,
        exposed_communication=(length(unions["communication"]) - hidden) / span,
        hidden_communication=hidden / span,
    )


def slowest_ranges(timelines: Sequence[Timeline]) -> list[dict]:
    """The ranges that most time passed in, with the skew of ranks: how much longer the slowest was in it than the
    median one.
    """
    found = []
    for name in {name for timeline in timelines for name in timeline.ranges}:
        totals = [length(timeline.ranges[name]) / 1e6 for timeline in timelines if name in timeline.ranges]
        counts = [len(timeline.ranges[name]) for timeline in timelines if name in timeline.ranges]
        found.append(
            {
                "range": name,
                "times": max(counts),
                "seconds": float(np.median(totals)),
                "skew": max(totals) / float(np.median(totals)) - 1 if min(totals) > 0 else 0.0,
            }
        )
    return sorted(found, key=lambda row: -row["seconds"])[:SLOWEST]


def slowest_kernels(timelines: Sequence[Timeline]) -> list[dict]:
    """The kernels that took most, over all ranks, each stream counted."""
    totals: dict[str, float] = defaultdict(float)
    for timeline in timelines:
        for name, microseconds in timeline.names.items():
            totals[name] += microseconds / 1e6
    rows = sorted(totals.items(), key=lambda item: -item[1])[:SLOWEST]
    return [{"kernel": name, "kind": kind_of(name), "seconds": seconds} for name, seconds in rows]
