"""Chrome traces as profilers really write them: torch.profiler of any version since 1.8, plain or gzipped.

Read too: control characters and single backslashes in names, an array left open, numbers as strings. An event without a name, a start or a
length is left out and counted. Without a GPU in the trace, the innermost operators on the CPU stand in for kernels.
"""

import gzip
import json
import math
import re
from collections import defaultdict
from pathlib import Path

import numpy as np

from megatron_music.profiling.intervals import innermost
from megatron_music.profiling.timeline import Timeline, timeline_of

_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?')
# Lower case: torch 1.8 wrote "Kernel", "Memcpy" and "Operator".
_ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset", "memcpy", "memset")
_ON_CPU = ("cpu_op", "operator")
_REMEDY = "name torch.profiler's export_chrome_trace or nsys's sqlite"


def read_chrome(path: Path, head: bytes) -> Timeline:
    """The timeline of one file.

    Raises:
        ValueError: it is not a Chrome trace.
    """
    opened = gzip.open if head.startswith(b"\x1f\x8b") else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            tree = _parse(file.read())
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no Chrome trace ({str(error)[:80]}); {_REMEDY}") from None
    events = tree.get("traceEvents") if isinstance(tree, dict) else tree
    if not isinstance(events, list):
        raise ValueError(f"{path} has no traceEvents; {_REMEDY}")
    about = tree.get("distributedInfo") if isinstance(tree, dict) else None
    rank = str(about["rank"]) if isinstance(about, dict) and "rank" in about else re.sub(r"(\.json)?(\.gz)?$", "", path.name)
    return _timeline(rank, events)


def _timeline(rank: str, events: list) -> Timeline:
    ranges: dict[str, list[tuple[float, float]]] = defaultdict(list)
    messages = []  # of gloo: work of its own threads, which torch marks as it marks ranges
    kernels = []
    threads: dict[tuple, list[tuple[str, tuple[float, float]]]] = defaultdict(list)
    num_left_out = 0
    for event in events:
        if not isinstance(event, dict) or event.get("ph") != "X":
            continue
        category = str(event.get("cat", "")).lower()
        if category not in (*_ON_GPU, *_ON_CPU, "user_annotation"):
            continue
        name, start, duration = event.get("name"), _number(event.get("ts")), _number(event.get("dur"))
        if not isinstance(name, str) or start is None or duration is None:
            num_left_out += 1
            continue
        if duration <= 0:
            continue
        span = (start, start + duration)
        if category == "user_annotation":
            messages.append((name, [span])) if name.startswith("gloo:") else ranges[name].append(span)
        elif category in _ON_GPU:
            kernels.append((name, [span]))
        else:
            threads[str(event.get("pid")), str(event.get("tid"))].append((name, span))
    if kernels:
        return timeline_of(rank, "GPU", kernels, ranges, num_left_out=num_left_out)
    pieces = messages
    for calls in threads.values():
        pieces += [(name, own) for (name, _), own in zip(calls, innermost(np.array([span for _, span in calls])), strict=True)]
    return timeline_of(rank, "CPU", pieces, ranges, num_left_out=num_left_out)


def _parse(text: str):
    """The JSON of a trace, forgiving what profilers get wrong.

    Raises:
        ValueError: it is not JSON even so.
    """
    try:
        return json.loads(text, strict=False)
    except ValueError as error:
        first = error
    text = _ESCAPE.sub(lambda escape: escape[0] if escape[1] else r"\\", text)
    open_end = text.rstrip().rstrip(",")
    for candidate in (text, open_end + "]", open_end + "]}"):
        try:
            return json.loads(candidate, strict=False)
        except ValueError:
            continue
    raise first


def _number(value) -> float | None:
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None
