"""What a profiled stretch of time was spent on: kinds of kernels, idle time, messages hidden and exposed, ranges, skew of ranks.

Of torch.profiler's Chrome trace or the sqlite that nsys exports. Times of kinds are lengths of unions, not sums: kernels of several
streams run at once. Without a GPU in a Chrome trace, the innermost operators on the CPU stand in for kernels. Knows nothing
about torch.
"""

import gzip
import json
import re
import sqlite3
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.profiling.intervals import innermost, length, overlap, union

KINDS = ("gemm", "attention", "communication", "memory", "other")
# The first that is found in a name decides: NCCL's kernels have names of products' types in them, attention's of products.
_KINDS = (
    ("communication", r"nccl|nvshmem|deep_?ep|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|send_?recv|broadcast_?kernel|c10d::|gloo|ModelParallelRegion"),
    ("attention", r"flash|fmha|attention|sdpa|scaled_(upper_triang_)?masked_softmax|cudnn.*_sdpa"),
    ("gemm", r"gemm|cutlass|cublas|nvjet|xmma|wgrad|dgrad|aten::(addmm|mm|bmm|baddbmm|linear|matmul|mkldnn_linear)"),
    ("memory", r"memcpy|memset|copy|aten::(fill_|zero_|empty|cat|to\b|clone|contiguous)|CatArray|FillFunctor"),
)
_COMPILED = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _KINDS)
SLOWEST = 12


class Timeline(NamedTuple):
    """What one rank did. Times are in microseconds from an origin of the file's own."""

    rank: str
    device: str  # "GPU" or "CPU"
    intervals: dict[str, np.ndarray]  # of each kind, [N, 2]; a kind that did not occur is left out
    names: dict[str, float]  # microseconds of each kernel, summed
    ranges: dict[str, list[tuple[float, float]]]  # NVTX ranges and annotations, by name


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
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); name a Chrome trace or nsys's sqlite") from None
    timelines = _read_sqlite(path) if head.startswith(b"SQLite format 3") else [_read_chrome(path, head)]
    timelines = [timeline for timeline in timelines if timeline.intervals]
    if not timelines:
        raise ValueError(f"{path} has no kernel and no operator; profile with CUDA activities, or `nsys profile --trace=cuda,nvtx`")
    return timelines


def kind_of(name: str) -> str:
    """The kind of a kernel or operator, by its name."""
    return next((kind for kind, pattern in _COMPILED if pattern.search(name)), "other")


def share_of(timeline: Timeline) -> Share:
    """What a rank's time went into."""
    unions = {kind: union(timeline.intervals[kind]) if kind in timeline.intervals else np.zeros((0, 2)) for kind in KINDS}
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
    """The ranges that most time passed in, with the skew of ranks: how much longer the slowest was in it than the median one."""
    found = []
    for name in {name for timeline in timelines for name in timeline.ranges}:
        totals = [sum(end - start for start, end in timeline.ranges[name]) / 1e6 for timeline in timelines if name in timeline.ranges]
        counts = [len(timeline.ranges[name]) for timeline in timelines if name in timeline.ranges]
        found.append({"range": name, "times": max(counts), "seconds": float(np.median(totals)),
                      "skew": max(totals) / float(np.median(totals)) - 1 if min(totals) > 0 else 0.0})  # fmt: skip
    return sorted(found, key=lambda row: -row["seconds"])[:SLOWEST]


def slowest_kernels(timelines: Sequence[Timeline]) -> list[dict]:
    """The kernels that took most, over all ranks, each stream counted."""
    totals: dict[str, float] = defaultdict(float)
    for timeline in timelines:
        for name, microseconds in timeline.names.items():
            totals[name] += microseconds / 1e6
    rows = sorted(totals.items(), key=lambda item: -item[1])[:SLOWEST]
    return [{"kernel": name, "kind": kind_of(name), "seconds": seconds} for name, seconds in rows]


def _read_chrome(path: Path, head: bytes) -> Timeline:
    opened = gzip.open if head.startswith(b"\x1f\x8b") else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            tree = json.load(file)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, EOFError) as error:
        raise ValueError(f"{path} is no Chrome trace ({str(error)[:80]}); name torch.profiler's export_chrome_trace or nsys's sqlite") from None
    events = tree.get("traceEvents") if isinstance(tree, dict) else tree
    if not isinstance(events, list):
        raise ValueError(f"{path} has no traceEvents; name torch.profiler's export_chrome_trace or nsys's sqlite")
    events = [event for event in events if isinstance(event, dict) and event.get("ph") == "X" and event.get("dur", 0) > 0]
    rank = str((tree.get("distributedInfo") or {}).get("rank", path.stem)) if isinstance(tree, dict) else path.stem
    ranges: dict[str, list[tuple[float, float]]] = defaultdict(list)
    messages = []  # of gloo: work of its own threads, which torch marks as it marks ranges
    for event in events:
        if event.get("cat") == "user_annotation":
            span = (float(event["ts"]), float(event["ts"]) + event["dur"])
            messages.append((event["name"], [span])) if event["name"].startswith("gloo:") else ranges[event["name"]].append(span)
    kernels = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    if kernels:
        pieces = [(event["name"], [(float(event["ts"]), float(event["ts"]) + event["dur"])]) for event in kernels]
        return _timeline(rank, "GPU", pieces, ranges)
    threads: dict[tuple, list[dict]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "cpu_op":
            threads[event.get("pid"), event.get("tid")].append(event)
    pieces = messages
    for calls in threads.values():
        spans = np.array([(float(call["ts"]), float(call["ts"]) + call["dur"]) for call in calls])
        pieces += [(call["name"], own) for call, own in zip(calls, innermost(spans), strict=True)]
    return _timeline(rank, "CPU", pieces, ranges)


def _timeline(rank: str, device: str, pieces, ranges) -> Timeline:
    """Of each name with its intervals."""
    found: dict[str, list] = defaultdict(list)
    names: dict[str, float] = defaultdict(float)
    for name, own in pieces:
        own = np.asarray(own, float).reshape(-1, 2)
        if len(own):
            found[kind_of(name)].append(own)
            names[name] += length(own)
    return Timeline(rank, device, {kind: np.concatenate(parts) for kind, parts in found.items()}, dict(names), dict(ranges))


def _read_sqlite(path: Path) -> list[Timeline]:
    """Each process of an export. Tables are there only for what was traced; columns differ between versions of nsys."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as base:
            tables = {row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
            texts = dict(base.execute("SELECT id, value FROM StringIds")) if "StringIds" in tables else {}
            pieces: dict[int, list] = defaultdict(list)
            for table, fixed in (
                ("CUPTI_ACTIVITY_KIND_KERNEL", None),
                ("CUPTI_ACTIVITY_KIND_MEMCPY", "memcpy"),
                ("CUPTI_ACTIVITY_KIND_MEMSET", "memset"),
            ):
                if table not in tables:
                    continue
                columns = {row[1] for row in base.execute(f"PRAGMA table_info({table})")}
                name = next((column for column in ("demangledName", "shortName", "name") if column in columns), None)
                process = next((column for column in ("globalPid", "globalTid", "deviceId") if column in columns), "0")
                wanted = f"SELECT start, \"end\", {process}, {name if fixed is None and name else 'NULL'} FROM {table}"  # fixed names
                for start, end, owner, text in base.execute(wanted):
                    label = fixed or str(texts.get(text, text))
                    pieces[_process(owner, process)].append((label, [(start / 1e3, end / 1e3)]))
            ranges = _nvtx(base, tables, texts)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} cannot be read as nsys's sqlite ({error}); export it again: nsys export --type sqlite") from None
    return [
        _timeline(f"{path.stem}:{owner}" if len(pieces) > 1 else path.stem, "GPU", own, ranges.get(owner, {})) for owner, own in pieces.items()
    ]


def _nvtx(base: sqlite3.Connection, tables: set[str], texts: dict) -> dict[int, dict[str, list]]:
    found: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    if "NVTX_EVENTS" not in tables:
        return found
    columns = {row[1] for row in base.execute("PRAGMA table_info(NVTX_EVENTS)")}
    chosen = [column if column in columns else "NULL" for column in ("text", "textId", "globalTid")]
    wanted = f"SELECT start, \"end\", {', '.join(chosen)} FROM NVTX_EVENTS WHERE eventType IN (59, 60) AND \"end\" IS NOT NULL"  # fixed names
    for start, end, text, identifier, owner in base.execute(wanted):
        found[_process(owner, "globalTid")][str(text or texts.get(identifier, identifier))].append((start / 1e3, end / 1e3))
    return found


def _process(owner: int | None, column: str) -> int:
    """The process id within nsys's global ids: bits 24 to 47."""
    if owner is None:
        return 0
    return (owner >> 24) & 0xFFFFFF if column in ("globalPid", "globalTid") else owner
