"""What a rehearsal found, as rows for tables and as JSON."""

from collections import defaultdict
from typing import NamedTuple

from megatron_music.config.run import RunConfig
from megatron_music.profiling.flops import step_flops
from megatron_music.rehearsal.collectives import totals
from megatron_music.rehearsal.job import Job
from megatron_music.rehearsal.ledger import AT_REST
from megatron_music.rehearsal.one_rank import Rehearsed

_GB = ("weights", "gradients", "optimizer", "activations", "peak")
ROLE_COLUMNS = {
    "rank": "",
    "pipeline": "",
    "tensor": "",
    "data": "",
    "parameters": ",",
    **dict.fromkeys((f"{name}_gb" for name in _GB), ".4g"),
} | {"tflop": ".4g", "messages": ",", "message_gb": ".4g", "waits": ",", "copies": ","}
HOLDER_COLUMNS = {"category": "", "what": "", "gb": ".4g", "share": ".1%"}
MESSAGE_COLUMNS = {
    "group": "",
    "operation": "",
    "count": ",",
    "gb": ".4g",
    "smallest_message": ",",
    "largest_message": ",",
}
WAIT_COLUMNS = {"kind": "", "call": "", "where": "", "count": ",", "bytes": ",", "pinned": ""}


class Operations(NamedTuple):
    """Floating-point operations of the job's step, all GPUs together."""

    model: float  # without what is recomputed
    hardware: float  # all
    formula: float | None  # what the formula mcore gives for the first; None where it is of another kind of model


def role_row(rank: Rehearsed) -> dict:
    """One rank's line of the first table."""
    memory, role = rank.memory, rank.role
    messages = rank.counted_messages()
    waits = rank.waits()
    return {
        **role._asdict(),
        "parameters": rank.parameters,
        **{f"{name}_gb": memory[name] / 1e9 for name in _GB[:-1]},
        "peak_gb": rank.peak.num_bytes / 1e9,
        "tflop": sum(rank.flops().values()) / 1e12,
        "messages": sum(times for _, times in messages),
        "message_gb": sum(message.num_bytes * times for message, times in messages) / 1e9,
        "waits": sum(times for wait, times in waits if wait.kind != "copy to the GPU"),
        "copies": sum(times for wait, times in waits if wait.kind == "copy to the GPU"),
    }


def holder_rows(rank: Rehearsed) -> list[dict]:
    """What holds memory at a rank's fullest moment."""
    total = max(rank.peak.num_bytes, 1)
    return [
        {"category": category, "what": what, "gb": size / 1e9, "bytes": size, "share": size / total}
        for category, what, size in rank.peak.by_holder
    ]


def message_rows(rank: Rehearsed) -> list[dict]:
    """A rank's messages by group and operation."""
    found: dict[tuple[str, str], list] = defaultdict(list)
    for total in totals(rank.counted_messages()):
        found[total.group, total.operation].append(total)
    rows = [
        {
            "group": group,
            "operation": operation,
            "count": sum(row.count for row in rows),
            "gb": sum(row.num_bytes for row in rows) / 1e9,
            "bytes": sum(row.num_bytes for row in rows),
            "smallest_message": min(row.message_bytes for row in rows),
            "largest_message": max(row.message_bytes for row in rows),
            "sizes": [{"count": row.count, "message_bytes": row.message_bytes} for row in rows],
        }
        for (group, operation), rows in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def wait_rows(rank: Rehearsed) -> list[dict]:
    """Where a rank waits for its GPU, and what it copies to it."""
    found: dict[tuple, list[int]] = defaultdict(lambda: [0, 0])
    for wait, times in rank.waits():
        entry = found[wait.kind, wait.what, wait.where, wait.is_pinned if wait.kind == "copy to the GPU" else None]
        entry[0] += times
        entry[1] += times * wait.num_bytes
    rows = [
        {
            "kind": kind,
            "call": call,
            "where": place,
            "count": count,
            "bytes": size,
            "pinned": None if pinned is None else ("yes" if pinned else "no"),
        }
        for (kind, call, place, pinned), (count, size) in found.items()
    ]
    return sorted(rows, key=lambda row: (row["kind"], -row["count"]))


def operations(job: Job) -> Operations | None:
    """The operations of all GPUs, from one rank of each stage; None where not every stage was rehearsed."""
    parallel = job.run.parallel
    of_stage = {rank.role.pipeline: rank for rank in reversed(job.ranks)}
    if len(of_stage) < parallel.pipeline_model_parallel_size:
        return None
    copies = job.num_gpus // parallel.pipeline_model_parallel_size
    model = hardware = 0.0
    for rank in of_stage.values():
        for (part, _), value in rank.flops().items():
            hardware += copies * value
            model += copies * value if part != "recomputation" else 0.0
    formula = (
        step_flops(job.run.model, job.run.train.global_batch_size).model if isinstance(job.run, RunConfig) else None
    )
    return Operations(model, hardware, formula)


def as_json(job: Job, findings: list) -> dict:
    """All of it."""
    counted = operations(job)
    return {
        "num_gpus": job.num_gpus,
        "gpu": job.gpu,
        "gpu_memory_gb": job.gpu_memory_gb,
        "flops": counted._asdict() if counted else None,
        "ranks": [_rank_json(rank) for rank in job.ranks],
        "findings": [finding._asdict() for finding in findings],
    }


def _rank_json(rank: Rehearsed) -> dict:
    return {
        **rank.role._asdict(),
        "parameters": rank.parameters,
        "num_microbatches": rank.num_microbatches,
        "micro_batches_repeated": rank.repeated[2] - 1,
        "seconds_to_rehearse": rank.seconds,
        "memory_bytes": {
            **rank.memory,
            "at_rest": sum(rank.memory[name] for name in AT_REST),
            "peak": rank.peak.num_bytes,
        },
        "peak": {"by_category": rank.peak.by_category, "by_holder": holder_rows(rank)},
        "memory_over_time": rank.curve,
        "flops": [{"part": part, "kind": kind, "flops": value} for (part, kind), value in rank.flops().items()],
        "moved_bytes": rank.moved(),
        "messages": message_rows(rank),
        "waits_and_copies": wait_rows(rank),
        "checkpoint_bytes": rank.saving._asdict(),
        "left_on_cpu": rank.left_on_cpu,
        "without_gradient": rank.without_gradient,
    }
