"""One rank of a job, rehearsed in this process: the engine is built and takes one step."""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeWork  # noqa: F401  a missing name is reported at import
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_music.config.checks import check_world_size
from megatron_music.config.log import logger
from megatron_music.config.sections import Run
from megatron_music.parallel import distributed
from megatron_music.rehearsal.batches import WORDS, counted, rehearsed_task
from megatron_music.rehearsal.collectives import Message, group_names
from megatron_music.rehearsal.ledger import Holding, Peak, storages_of
from megatron_music.rehearsal.recorder import Recorder, Segment, Span
from megatron_music.rehearsal.roles import Role
from megatron_music.rehearsal.saving import Saving, rehearse_saving
from megatron_music.rehearsal.speed import speed_of
from megatron_music.rehearsal.standin import GPUS_PER_NODE, installed
from megatron_music.rehearsal.waits import Gpu, Wait
from megatron_music.training.engine import Engine
from megatron_music.training.optimizer import own_state


@dataclass
class Rehearsed:
    """What one rank did in a step.

    Attributes:
        curve: memory by category over the step, with ``seconds``.
        timed_as: the GPU whose rates give the times.
        seconds: that the rehearsal took.
        repeated: segments ``[first, last)`` stand for ``times`` of themselves: the schedule's steady state.
    """

    role: Role
    parameters: int
    memory: dict[str, int]
    peak: Peak
    curve: list[dict]
    segments: list[Segment]
    kernels: list[Span]
    repeated: tuple[int, int, int]
    num_microbatches: int
    left_on_cpu: list[str]
    without_gradient: list[str]
    saving: Saving
    timed_as: str
    seconds: float

    def each(self) -> Iterator[tuple[Segment, int]]:
        """The segments in order, each with how often it occurs in a step."""
        first, last, times = self.repeated
        for number, segment in enumerate(self.segments):
            yield segment, times if first <= number < last else 1

    def unfolded(self) -> Iterator[Segment]:
        """The segments of the whole step in order."""
        first, last, times = self.repeated
        yield from self.segments[:first]
        for _ in range(times):
            yield from self.segments[first:last]
        yield from self.segments[last:]

    def messages(self) -> list[Message]:
        """Every message of the step in order."""
        return [sent.message for segment in self.unfolded() for sent in segment.messages]

    def counted_messages(self) -> list[tuple[Message, int]]:
        """Every message that was seen, with how often it occurs in a step."""
        return [(sent.message, times) for segment, times in self.each() for sent in segment.messages]

    def moved(self) -> dict[str, float]:
        """Bytes that operators without products read and write, by part of the step."""
        found: dict[str, float] = {}
        for segment, times in self.each():
            for part, value in segment.moved.items():
                found[part] = found.get(part, 0.0) + times * value
        return found

    def waits(self) -> list[tuple[Wait, int]]:
        return [(wait, times) for segment, times in self.each() for wait in segment.waits]

    def flops(self) -> dict[tuple[str, str], float]:
        """By part of the step and kind of operator."""
        found: dict[tuple[str, str], float] = {}
        for segment, times in self.each():
            for key, value in segment.flops.items():
                found[key] = found.get(key, 0.0) + times * value
        return found


def rehearse_rank(
    config: Run, role: Role, num_gpus: int, gpu: Gpu, *, whole: bool = False, words: int = WORDS
) -> Rehearsed:
    """Build one rank's engine and let it take a step. Replaces this process's parallel groups.

    Args:
        whole: run every micro batch, also those of the schedule's steady state.
        words: states of a caption, of a text-to-music model.

    Raises:
        ValueError: the run cannot be.
        Exception: what the rank would raise on the cluster.
    """
    begin = time.perf_counter()
    check_world_size(config, num_gpus)
    num_microbatches = config.num_microbatches(num_gpus)
    shorter = None if whole else _shortened(config, num_gpus)
    with _alone(role, num_gpus):
        recorder = Recorder(speed=speed_of(config, gpu.name))
        around = lambda: recorder.during("backward")
        with installed(recorder.note, gpu, around), recorder:
            distributed.start(config.parallel)
            recorder.groups = group_names()
            shown = shorter or config
            engine = Engine(shown, counted(rehearsed_task(shown, words=words), recorder.micro_batch))
            memory, without = watch_step(engine, recorder)
            with torch._C.DisableTorchFunction():
                left = _left_on_cpu(engine)
            peak, curve = recorder.ledger.peak(), _with_seconds(recorder)
            segments, kernels = recorder.segments, recorder.kernels
            saving = rehearse_saving(engine, recorder)
            parameters = sum(parameter.numel() for module in engine.modules for parameter in module.parameters())
    repeated = (0, 0, 1)
    if shorter is not None:
        repeated = _steady(segments, config, num_microbatches, shorter.num_microbatches(num_gpus))
        if repeated is None:  # no steady state was found: run all of it
            return rehearse_rank(config, role, num_gpus, gpu, whole=True, words=words)
    return Rehearsed(
        role,
        parameters,
        memory,
        peak,
        curve,
        segments,
        kernels,
        repeated,
        num_microbatches,
        left,
        without,
        saving,
        recorder.speed.gpu,
        time.perf_counter() - begin,
    )


def _with_seconds(recorder: Recorder) -> list[dict]:
    times = recorder.seconds_at or [0.0]
    return [row | {"seconds": times[min(row["operator"], len(times) - 1)]} for row in recorder.ledger.curve()]


def _shortened(config: Run, num_gpus: int) -> Run | None:
    """The run with as few micro batches as show its schedule's steady state twice; None where it has no more
    than that.
    """
    stages, virtual = config.parallel.pipeline_model_parallel_size, config.parallel.virtual_pipeline_model_parallel_size
    enough = 5 * stages if virtual else stages + 3
    if config.num_microbatches(num_gpus) <= enough:
        return None
    size = enough * config.train.micro_batch_size * config.parallel.data_parallel_size(num_gpus)
    return replace(config, train=replace(config.train, global_batch_size=size))


def _steady(segments: list[Segment], config: Run, wanted: int, ran: int) -> tuple[int, int, int] | None:
    """Which segments stand for more than themselves, and for how many; None where they are not periodic."""
    stages, virtual = config.parallel.pipeline_model_parallel_size, config.parallel.virtual_pipeline_model_parallel_size
    # Segment 0 comes before the first forward pass. The last passes of a chunk reduce its gradients.
    period, micro_batches = (stages * virtual, stages) if virtual else (1, 1)
    last = len(segments) - (period if virtual else 1)
    first = last - period
    pairs = zip(segments[first:last], segments[first - period : first], strict=True)
    if not all(segment.same_work(before) for segment, before in pairs):
        return None
    return first, last, 1 + (wanted - ran) // micro_batches


@contextlib.contextmanager
def _alone(role: Role, num_gpus: int) -> Iterator[None]:
    """The environment and the processes of a rank, of which this is the only one."""
    ours = {
        "RANK": role.rank,
        "WORLD_SIZE": num_gpus,
        "LOCAL_RANK": role.rank % GPUS_PER_NODE,
        "LOCAL_WORLD_SIZE": min(num_gpus, GPUS_PER_NODE),
    }
    before = dict(os.environ)
    level, precision, threads = logger.level, torch.get_float32_matmul_precision(), torch.get_num_threads()
    distributed.stop()
    os.environ.update({name: str(value) for name, value in ours.items()})
    logger.setLevel(logging.ERROR)
    try:
        dist.init_process_group("fake", store=FakeStore(), rank=role.rank, world_size=num_gpus)
        yield
    finally:
        distributed.stop()
        logger.setLevel(level)
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(before)


def watch_step(engine: Engine, recorder: Recorder) -> tuple[dict[str, int], list[str]]:
    """Let an engine take a step under a recorder that is active. It may be a real one, among real processes.

    It is the second: in the first, megatron-core learns which gradients come when, and reduces them all at the end.

    Returns:
        Bytes at rest by category with the most that activations took, and the parameters that no backward pass reached.
    """
    engine.core_config.finalize_model_grads_func = recorder.within(
        "reduction", engine.core_config.finalize_model_grads_func
    )
    engine.measure = recorder.within("update", engine.measure)
    engine.update = recorder.within("update", engine.update)
    memory = _hold(engine, recorder)
    _warm_up(engine)
    recorder.begin_step()
    with recorder.naming(engine.modules), _seeing_gradients(engine) as missing:
        engine.step(engine.task.train_batches(0))
    return {**memory, "activations": recorder.ledger.largest("activations")}, sorted(missing)


def _warm_up(engine: Engine) -> None:
    """A step of as few micro batches as there can be."""
    config = engine.config
    stages = config.parallel.pipeline_model_parallel_size if config.parallel.virtual_pipeline_model_parallel_size else 1
    size = stages * config.train.micro_batch_size * config.parallel.data_parallel_size(engine.world_size)
    engine.config = replace(config, train=replace(config.train, global_batch_size=size))
    engine.step(engine.task.train_batches(0))
    engine.config = config


def _hold(engine: Engine, recorder: Recorder) -> dict[str, int]:
    """Make what lives as long as the run, and say what it is."""
    parameters = [parameter for module in engine.modules for parameter in module.parameters()]
    buffers = [buffer for chunk in engine.chunks for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]]
    gradients = [buffer.grad_data for buffer in buffers]
    own_state(engine.optimizer)  # which a first step would make at its end
    inner = [part.optimizer for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer])]
    moments = [
        tensor
        for part in inner
        for entry in part.state.values()
        for tensor in entry.values()
        if torch.is_tensor(tensor)
    ]
    mains = [tensor for part in inner for group in part.param_groups for tensor in group["params"]]
    averages = [tensor for average in engine.averages for tensor in average.weights.values()]
    with torch._C.DisableTorchFunction():
        held = {storage._cdata for storage in (parameter.untyped_storage() for parameter in parameters)}
        mains = [tensor for tensor in mains if tensor.untyped_storage()._cdata not in held]
        ledger = recorder.ledger
        for category, what, tensors in (
            ("weights", "parameters", parameters),
            ("gradients", "gradients", gradients),
            ("optimizer", "moments", moments),
            ("optimizer", "float32 weights", mains),
            ("other state", "average of the weights", averages),
        ):
            ledger.claim(
                (tensor.data for tensor in tensors if tensor.is_meta or not recorder.alone), Holding(category, what)
            )
    return {
        "weights": storages_of(parameter.data for parameter in parameters),
        "gradients": storages_of(gradients),
        "optimizer": storages_of([*moments, *(tensor.data for tensor in mains)]),
        "other state": storages_of(averages),
    }


@contextlib.contextmanager
def _seeing_gradients(engine: Engine) -> Iterator[set[str]]:
    """The names of the parameters that no backward pass has reached so far."""
    missing: set[str] = set()
    hooks = []
    for chunk, module in enumerate(engine.modules):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                key = f"chunk {chunk} {name}" if len(engine.modules) > 1 else name
                missing.add(key)
                hooks.append(
                    parameter.register_post_accumulate_grad_hook(lambda _parameter, key=key: missing.discard(key))
                )
    try:
        yield missing
    finally:
        for hook in hooks:
            hook.remove()


def _left_on_cpu(engine: Engine) -> list[str]:
    """What of the model, its gradients and its optimizer does not lie on the GPU."""
    named = [
        (name, tensor)
        for module in engine.modules
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
    ]
    named += [
        (f"gradients of chunk {number}", buffer.grad_data)
        for number, chunk in enumerate(engine.chunks)
        for buffer in chunk.buffers
    ]
    for part in getattr(engine.optimizer, "chained_optimizers", [engine.optimizer]):
        for entry in part.optimizer.state.values():
            named += [(f"optimizer's {kind}", tensor) for kind, tensor in entry.items() if torch.is_tensor(tensor)]
    return sorted({name for name, tensor in named if not tensor.is_meta})
