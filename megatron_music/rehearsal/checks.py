"""What a rehearsal proves before a job is queued: messages that meet, gradients that arrive, devices, room."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, zip_longest

from megatron_music.config.errors import counted
from megatron_music.config.load import load_run
from megatron_music.profiling.memory import HEADROOM
from megatron_music.rehearsal.collectives import POINT_TO_POINT, Message
from megatron_music.rehearsal.job import Job, RankFailed, rehearse
from megatron_music.rehearsal.one_rank import Rehearsed
from megatron_music.rehearsal.roles import Role
from megatron_music.reports.findings import NOTE, OK, WRONG, Finding, finding_of

_MOST_NAMED = 10  # tensors, of which each is a finding
# The coordinates that the ranks of a group have in common, by the group's name.
_SHARED = {
    "tensor": ("context", "data", "pipeline"),
    "pipeline": ("tensor", "context", "data"),
    "data": ("tensor", "pipeline"),
    "context": ("tensor", "data", "pipeline"),
    "model": ("data", "context"),
    "world": (),
    "embedding": ("tensor", "context", "data"),
    "position embedding": ("tensor", "context", "data"),
    "tensor and data": ("pipeline",),
}


def check(job: Job) -> list[Finding]:
    """All findings about a rehearsed job."""
    return [*_point_to_point(job), *_collectives(job), *_gradients(job), *_devices(job), *_room(job)]


def rehearsed_findings(recipe: Sequence[str], num_gpus: int, gpu: str | None) -> list[Finding]:
    """Rehearse a recipe with its overrides, and say what was found; what goes wrong is a finding."""
    try:
        return check(rehearse(load_run(recipe[0], recipe[1:]), num_gpus, gpu=gpu))
    except ValueError as error:
        return [finding_of(error, recipe[0])]
    except RankFailed as error:
        return [
            Finding(
                WRONG,
                f"the first step fails: {error}",
                recipe[0],
                f"see megatron-music -v rehearse {' '.join(recipe)} --num-gpus {num_gpus}",
            )
        ]


def _point_to_point(job: Job) -> Iterator[Finding]:
    messages = {rank.role.rank: rank.messages() for rank in job.ranks}
    count, is_sound = 0, True
    for sender, receiver in ((a, b) for a in messages for b in messages if a != b):
        sent = [message for message in messages[sender] if message.operation == "send" and message.peer == receiver]
        received = [
            message for message in messages[receiver] if message.operation == "receive" and message.peer == sender
        ]
        count += len(sent)
        difference = _first_difference(sent, received)
        if difference:
            is_sound = False
            yield Finding(
                WRONG,
                f"rank {sender} sends rank {receiver} what it does not wait for: {difference}",
                "pipeline",
                "the step would hang or stop with an error; use one version of the model on all stages",
            )
    unmet = sum(
        message.operation in POINT_TO_POINT and message.peer not in messages
        for found in messages.values()
        for message in found
    )
    if is_sound and count:
        yield Finding(
            OK,
            f"{counted(count, 'send')} between pipeline stages met their receives in order, shape and dtype",
            "pipeline",
        )
    if unmet and not count:
        yield Finding(
            NOTE,
            f"{counted(unmet, 'message')} to ranks that were not rehearsed",
            "pipeline",
            "rehearse the neighbouring ranks, too",
        )


def _collectives(job: Job) -> Iterator[Finding]:
    is_sound, count = True, 0
    own = {rank.role: _by_group(rank) for rank in job.ranks}
    for (one, first), (other, second) in combinations(own.items(), 2):
        for label in sorted((first.keys() | second.keys()) & _SHARED.keys()):
            if not _same_group(one, other, label, job):
                continue
            count += 1
            difference = _first_difference(first.get(label, []), second.get(label, []))
            if difference:
                is_sound = False
                yield Finding(
                    WRONG,
                    f"rank {one.rank} and rank {other.rank} start other collectives: {difference}",
                    f"group {label}",
                    "the step would hang; every rank of a group must start the same ones",
                )
    if is_sound and count:
        yield Finding(
            OK, f"the same collectives in the same order on {counted(count, 'pair')} of ranks of one group", "groups"
        )


def _same_group(one: Role, other: Role, label: str, job: Job) -> bool:
    if label in ("embedding", "position embedding"):  # of the outer stages alone
        stages = {0, job.run.parallel.pipeline_model_parallel_size - 1}
        if not {one.pipeline, other.pipeline} <= stages:
            return False
    return all(getattr(one, name) == getattr(other, name) for name in _SHARED[label])


def _by_group(rank: Rehearsed) -> dict[str, list[Message]]:
    found: dict[str, list[Message]] = {}
    for message in rank.messages():
        if message.operation not in POINT_TO_POINT:
            found.setdefault(message.group, []).append(message)
    return found


def _first_difference(first: list[Message], second: list[Message]) -> str | None:
    for number, (one, other) in enumerate(zip_longest(first, second), 1):
        words = [_told(message) for message in (one, other)]
        if words[0] != words[1]:
            return f"number {number} is {words[0]} here and {words[1]} there"
    return None


def _told(message: Message | None) -> str:
    if message is None:
        return "nothing"
    name = "a message" if message.operation in POINT_TO_POINT else message.operation
    return f"{name} of {message.dtype} {list(message.shape)}"


def _gradients(job: Job) -> Iterator[Finding]:
    wrong, remedy = "gets no gradient", "the backward pass never reaches it: use it, or freeze it"
    return _named(job, lambda rank: rank.without_gradient, wrong, remedy, "every parameter got a gradient")


def _devices(job: Job) -> Iterator[Finding]:
    wrong, remedy = "is on the CPU", "move it to the GPU when the model is built"
    return _named(
        job, lambda rank: rank.left_on_cpu, wrong, remedy, "nothing stays on the CPU, and no operator mixed devices"
    )


def _named(
    job: Job, names_of: Callable[[Rehearsed], list[str]], wrong: str, remedy: str, sound: str
) -> Iterator[Finding]:
    """A finding for each of the first tensors that ``names_of`` gives of a rank, or one for all ranks where it gives
    none.
    """
    found = [(rank.role, name) for rank in job.ranks for name in names_of(rank)]
    for role, name in found[:_MOST_NAMED]:
        yield Finding(WRONG, f"{name} {wrong}", str(role), remedy)
    if len(found) > _MOST_NAMED:
        yield Finding(
            WRONG, f"{len(found) - _MOST_NAMED:,} more, of which each {wrong}", counted(len(job.ranks), "rank"), remedy
        )
    if not found:
        yield Finding(OK, sound, counted(len(job.ranks), "rank"))


def _room(job: Job) -> Iterator[Finding]:
    fullest = max(job.ranks, key=lambda rank: rank.peak.num_bytes)
    gigabytes = fullest.peak.num_bytes / 1e9
    said = f"the fullest moment holds {gigabytes:.4g} GB"
    if job.gpu_memory_gb is None:
        yield Finding(
            NOTE, f"{said}; the memory of {job.gpu} is not known", str(fullest.role), "give it with --gpu-memory GB"
        )
        return
    share = gigabytes / job.gpu_memory_gb
    said += f", {share:.0%} of the {job.gpu_memory_gb:g} GB of {job.gpu}"
    said += "; the allocator's fragments, the CUDA context and NCCL's buffers come on top"
    if share <= 1 - HEADROOM:
        yield Finding(OK, said, str(fullest.role))
    else:
        yield Finding(
            WRONG,
            said,
            str(fullest.role),
            "raise the parallel sizes, recompute activations, or use the distributed optimizer",
        )
