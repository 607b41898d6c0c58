"""Chrome traces as profilers really write them: torch.profiler of any version since 1.8, plain or gzipped.

Read too: control characters and single backslashes in names, an array left open, numbers as strings. An event without a
name, a start or a length is left out and counted. Without a GPU in the trace, the innermost operators on the CPU stand
in for kernels.
"""

import gzip
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from megatron_music.profiling.intervals import innermost
from megatron_music.profiling.json_stream import TraceEvents
from megatron_music.profiling.timeline import Spans, Timeline, span_of, timeline_of
from megatron_music.storage.reading import open_regular

# Lower case: torch 1.8 wrote "Kernel", "Memcpy" and "Operator".
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")
_ON_CPU = ("cpu_op", "operator")
_READ = frozenset((*_ON_GPU, *_ON_CPU, "user_annotation"))
_MAX_OPERATORS = 5_000_000  # where they stand in for kernels: which is within which is found with lists of all
_REMEDY = "name torch.profiler's export_chrome_trace or nsys's sqlite"


def read_chrome(path: Path) -> Timeline:
    """The timeline of one file.

    Raises:
        ValueError: it is not a Chrome trace, or larger than is read.
    """
    try:
        with open_regular(path) as file:
            content = gzip.GzipFile(fileobj=file) if file.peek(2).startswith(b"\x1f\x8b") else file
            events = TraceEvents(content, keep="distributedInfo")
            timeline = _timeline(re.sub(r"(\.json)?(\.gz)?$", "", path.name), events)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no Chrome trace that can be read ({str(error)[:80]}); {_REMEDY}") from None
    if not events.has_events:
        raise ValueError(f"{path} has no traceEvents; {_REMEDY}")
    rank = events.kept.get("rank") if isinstance(events.kept, dict) else None
    return timeline._replace(rank=str(rank)[:100]) if isinstance(rank, int | str) else timeline


def _timeline(rank: str, events: Iterable) -> Timeline:
    """
    Raises:
        ValueError: what the events raise, or there are too many.
    """
    ranges, kernels, operators = Spans(), Spans(), Spans()
    messages = Spans()  # of gloo: work of its own threads, which torch marks as it marks ranges
    num_left_out = 0
    for event in events:
        if not isinstance(event, dict) or event.get("ph") != "X" or not isinstance(event.get("cat"), str):
            continue
        category = event["cat"].lower()
        if category not in _READ:
            continue
        name, start, duration = event.get("name"), _number(event.get("ts")), _number(event.get("dur"))
        span = None if start is None or duration is None else span_of(start, start + duration)
        if not isinstance(name, str) or span is None:
            num_left_out += 1
        elif span[1] <= span[0]:
            continue
        elif category == "user_annotation":
            (messages if name.startswith("gloo:") else ranges).add(name, *span)
        elif category in _ON_GPU:
            kernels.add(name, *span)
        else:
            operators.add((_label(event.get("pid")), _label(event.get("tid")), name), *span)
    if kernels:
        return timeline_of(rank, "GPU", kernels.arrays().items(), ranges.arrays(), num_left_out=num_left_out)
    pieces = [*messages.arrays().items(), *_innermost(operators)]
    return timeline_of(rank, "CPU", pieces, ranges.arrays(), num_left_out=num_left_out)


def _innermost(operators: Spans) -> Iterable[tuple[str, np.ndarray]]:
    """The operators' own time, without that of operators within them; keys are process, thread and name."""
    threads: dict[tuple, list] = defaultdict(list)
    for (process, thread, name), spans in operators.arrays().items():
        threads[process, thread].append((name, spans))
    if sum(len(spans) for calls in threads.values() for _, spans in calls) > _MAX_OPERATORS:
        raise ValueError(f"it has no kernel and more than {_MAX_OPERATORS:,} operators; profile fewer steps")
    for calls in threads.values():
        names = [name for name, spans in calls for _ in range(len(spans))]
        yield from zip(names, innermost(np.concatenate([spans for _, spans in calls])), strict=True)


def _label(value) -> str:
    """A process or a thread, which profilers number or name."""
    return str(value)[:100] if isinstance(value, int | float | str) else ""


def _number(value) -> float | None:
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
