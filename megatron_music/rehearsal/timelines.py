"""A rehearsed step as timelines: of ``profiling`` for its page, and as a Chrome trace for Perfetto or chrome://tracing.

Times are the least that operators and messages take (``speed``), each rank by itself: no rank waits for another. Micro
batches of the schedule's steady state that were not run are left out.
"""

from megatron_music.profiling.timeline import Spans, Timeline, timeline_of
from megatron_music.rehearsal.collectives import Message
from megatron_music.rehearsal.job import Job
from megatron_music.rehearsal.ledger import CATEGORIES
from megatron_music.rehearsal.one_rank import Rehearsed

_PARTS, _COMPUTE, _MESSAGES = 0, 1, 2  # threads of a rank in the Chrome trace
_THREADS = {_PARTS: "parts of the step", _COMPUTE: "operators", _MESSAGES: "messages"}


def messages_in_time(rank: Rehearsed) -> list[tuple[Message, float, float]]:
    """Each message with its start and its end, in seconds: one after another."""
    found, free = [], 0.0
    for segment in rank.segments:
        for sent in segment.messages:
            start = max(sent.start, free)
            free = start + sent.seconds
            found.append((sent.message, start, free))
    return found


def kernel_name(message: Message) -> str:
    """As ``profiling.kernel_kinds`` reads it."""
    return f"nccl {message.operation} ({message.group}, {message.num_bytes:,} bytes)"


def timeline(rank: Rehearsed) -> Timeline:
    """One rank's operators and messages by kind, in microseconds."""
    pieces, ranges = Spans(), Spans()
    for span in rank.kernels:
        pieces.add(span.name, 1e6 * span.start, 1e6 * span.end)
    for message, start, end in messages_in_time(rank):
        if end > start:
            pieces.add(kernel_name(message), 1e6 * start, 1e6 * end)
    for span in (span for segment in rank.segments for span in segment.spans):
        ranges.add(span.name.split()[0], 1e6 * span.start, 1e6 * span.end)
    return timeline_of(str(rank.role.rank), "GPU", pieces.arrays().items(), ranges.arrays())


def chrome_trace(job: Job) -> dict:
    """All ranks, each as a process; ``megatron-music trace`` reads it, too."""
    events: list[dict] = []
    for rank in job.ranks:
        process = {"pid": rank.role.rank}
        events.append({"ph": "M", "name": "process_name", "args": {"name": str(rank.role)}, **process})
        events += [
            {"ph": "M", "name": "thread_name", "tid": thread, "args": {"name": name}, **process}
            for thread, name in _THREADS.items()
        ]
        for segment in rank.segments:
            events += [
                _event(process, _PARTS, "user_annotation", span.name, span.start, span.end) for span in segment.spans
            ]
        events += [_event(process, _COMPUTE, "kernel", span.name, span.start, span.end) for span in rank.kernels]
        events += [
            _event(process, _MESSAGES, "kernel", kernel_name(message), start, end)
            | {"args": {"shape": list(message.shape), "dtype": message.dtype, "peer": message.peer}}
            for message, start, end in messages_in_time(rank)
        ]
        events += [
            {
                "ph": "C",
                "name": "memory in GB",
                "ts": 1e6 * row["seconds"],
                "args": {name: row[name] / 1e9 for name in CATEGORIES},
                **process,
            }
            for row in rank.curve
        ]
    about = f"a rehearsal: the least that a {job.ranks[0].timed_as} would take, no rank waits for another"
    found = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"about": about}}
    return found | ({"distributedInfo": {"rank": job.ranks[0].role.rank}} if len(job.ranks) == 1 else {})


def _event(process: dict, thread: int, category: str, name: str, start: float, end: float) -> dict:
    return {
        "ph": "X",
        "cat": category,
        "name": name,
        "tid": thread,
        "ts": 1e6 * start,
        "dur": 1e6 * (end - start),
        **process,
    }
