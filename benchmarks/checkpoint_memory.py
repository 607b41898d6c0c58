"""Memory that saving and resuming take beside training, per process, on several processes of this machine.

    torchrun --nproc_per_node 8 benchmarks/checkpoint_memory.py [section.field=value ...]

A GPT on random tokens takes a step, is saved, and is loaded into another engine after its first step. For each, every
process counts what PyTorch allocates above what it held before (the profiler's record of each allocation: exact) and
how far its resident memory rises (a sample every few milliseconds: with buffers of files and of gloo). The main process
prints one JSON
object: the worst process of each, and what training holds. Without a GPU the optimizer's state lies in the same memory.
"""

import contextlib
import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from machine import machine

from megatron_music.config.load import load_run
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import made_up_task
from megatron_music.training.state import (
    Progress,
    begin_save,
    load_checkpoint,
    save_checkpoint,
)

# About 31 million parameters.
MODEL = [
    "model.num_layers=6",
    "model.hidden_size=640",
    "model.num_attention_heads=10",
    "model.ffn_hidden_size=2560",
    "model.seq_length=64",
    "train.micro_batch_size=1",
    "logging.tensorboard=false",
]


def resident() -> int:
    """Bytes of memory that this process has on the machine."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def allocated_peak(work: Callable[[], object]) -> int:
    """The most bytes that PyTorch holds on the CPU at any moment of ``work`` above those before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    held = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_peak(work: Callable[[], object]) -> int:
    """How far this process's resident memory rises during ``work``."""
    before, seen, ended = resident(), [resident()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.003):
            seen.append(resident())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        ended.set()
        thread.join()
    return max(seen) - before


def measure(work: Callable[[], object]) -> dict[str, float]:
    """MB that ``work`` takes on the worst process: allocated by PyTorch, resident; and its seconds."""
    gc.collect()
    dist.barrier()
    start = time.perf_counter()
    rise = resident_peak(work)
    seconds = time.perf_counter() - start
    peak = allocated_peak(work)
    worst = torch.tensor([peak / 1e6, rise / 1e6, seconds], dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return dict(
        zip(("allocated_mb", "resident_mb", "seconds"), (round(value, 2) for value in worst.tolist()), strict=True)
    )


def save_with_copies(place: Path, engine: Engine) -> None:
    """As with ``checkpoint.async_save``, but for the thread, whose memory the profiler would not see."""
    save = begin_save(place, engine, Progress(1, 8), copies=True)
    save.finish(save.write)


def engine_of(overrides: list[str]) -> Engine:
    config = load_run("tiny", [*MODEL, f"train.global_batch_size={distributed.launched_size()}", *overrides])
    distributed.start(config.parallel)
    return Engine(config, made_up_task(config))


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A temporary folder that all processes name alike."""
    with tempfile.TemporaryDirectory(prefix="checkpoint-memory-") as own:
        names = [own]
        dist.broadcast_object_list(names)
        yield Path(names[0])
        dist.barrier()


def main() -> None:
    overrides = sys.argv[1:]
    engine = engine_of(overrides)
    engine.step(engine.task.train_batches(0))
    with shared_folder() as place:
        saved = measure(lambda: save_checkpoint(place, engine, Progress(1, 8)))
        beside = measure(lambda: save_with_copies(place, engine))
        (checkpoint,) = place.glob("iter_*")
        files = {path.name: path.stat().st_size for path in checkpoint.glob("*.distcp")}
        del engine
        gc.collect()
        engine = engine_of([*overrides, "train.seed=7"])
        engine.step(engine.task.train_batches(0))  # its moments exist: they are training's own, whenever they are made
        loaded = measure(lambda: load_checkpoint(checkpoint, engine, resume=True))
    parameters = sum(parameter.numel() for module in engine.modules for parameter in module.parameters())
    if dist.get_rank() == 0:
        found = {
            "machine": machine(),
            "torch": torch.__version__,
            "processes": dist.get_world_size(),
            "overrides": overrides,
            "parameters_of_rank": parameters,
        }
        found |= {"state_mb": round(12e-6 * parameters, 2), "save": saved, "async_save": beside, "load": loaded}
        print(
            json.dumps(found | {"files": len(files), "largest_file_mb": round(max(files.values()) / 1e6, 2)}),
            flush=True,
        )
    distributed.stop()


if __name__ == "__main__":
    main()
