"""A few steps of a run, timed: the same engine as training's, no evaluation, nothing saved."""

import time
from typing import NamedTuple

import megatron.core
import torch
import torch.distributed as dist

from megatron_music import __version__
from megatron_music.config.checks import check_world_size
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import Run
from megatron_music.parallel import distributed
from megatron_music.profiling.gpu_monitor import GpuMonitor
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import made_up_task
from megatron_music.training.run_folder import with_facts_of_data
from megatron_music.training.task import Work
from megatron_music.training.tasks import task_of
from megatron_music.training.throughput import peak_memory_gib


class Measurement(NamedTuple):
    """What was seen; the same on every process but for ``gpu``."""

    step_seconds: list[float]  # of each step after the warm-up
    work: Work
    memory_gib: float  # the most on any process: of tensors on its GPU, or resident
    device: str
    gpu: dict[str, float | None] | None  # of the main process's GPU, as nvidia-smi says
    versions: dict[str, str]


def measure(config: Run, *, steps: int, warmup: int) -> Measurement:
    """Build a run's model and train it for a few steps; the processes are joined here and parted again.

    Without ``data.path`` a GPT is trained on tokens drawn at random, which take as long as music.

    Raises:
        ValueError: the run cannot be on these processes.
        torch.OutOfMemoryError: it has no room.
    """
    check_world_size(config, distributed.launched_size())
    distributed.start(config.parallel)
    try:
        if config.data.path is None and isinstance(config, RunConfig):
            task = made_up_task(config)
        else:
            config = distributed.on_main(lambda: with_facts_of_data(config))
            task = task_of(config)
        engine = Engine(config, task)
        batches = task.train_batches(0)
        for _ in range(warmup):
            engine.step(batches)
        with GpuMonitor(_own_gpu() if distributed.is_main() else None) as monitor:
            seconds = [_timed(engine, batches) for _ in range(steps)]
        return Measurement(seconds, task.work, _most_on_any(peak_memory_gib()), _device(), monitor.figures, _versions())
    finally:
        distributed.stop()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU, or the machine, had no room for a tensor."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _timed(engine: Engine, batches) -> float:
    """Seconds of one step. The loss is waited for, as in training; the update of one step may run into the next."""
    begin = time.perf_counter()
    engine.step(batches)
    return time.perf_counter() - begin


def _most_on_any(value: float) -> float:
    if dist.get_world_size() == 1:
        return value
    most = torch.tensor([value], dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.item()


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def _versions() -> dict[str, str]:
    return {"megatron_music": __version__, "torch": torch.__version__, "megatron_core": megatron.core.__version__}


def _own_gpu() -> str | None:
    """This process's GPU as nvidia-smi takes it; a slice of one has figures of its own that it does not give."""
    if not torch.cuda.is_available():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
