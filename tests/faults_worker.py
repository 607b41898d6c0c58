"""The processes of test_faults.py: faults of one process of two, which both must meet alike.

    torchrun --nproc_per_node 2 tests/faults_worker.py FOLDER

FOLDER holds ``data``. Writes ``FOLDER/found-RANK.json``.
"""

import gc
import json
import math
import os
import resource
import sys
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.parallel import distributed
from megatron_music.training.checkpointer import Saver
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.loss_guard import GuardState, reason_to_skip
from megatron_music.training.state import Progress, load_checkpoint

RANK = int(os.environ.get("RANK", "0"))
TENSOR, PIPELINE = "parallel.tensor_model_parallel_size=2", "parallel.pipeline_model_parallel_size=2"
SPLIT, HALF = "optimizer.use_distributed_optimizer=true", "train.bf16=true"
LAYOUTS = {
    "data": (),
    "data, split optimizer": (SPLIT,),
    "data, bf16, split optimizer": (SPLIT, HALF),
    "tensor": (TENSOR,),
    "tensor, sequence": (TENSOR, "parallel.sequence_parallel=true"),
    "pipeline": (PIPELINE,),
    "pipeline, bf16": (PIPELINE, HALF),
}


def engine_of(folder: Path, *overrides: str, spoil=None) -> Engine:
    """An engine; ``spoil(loss, report)`` changes what this process's loss function gives."""
    config = tiny_run(folder / "data", *overrides)
    distributed.start(config.parallel)
    task = gpt_task(config)

    def forward_step(batches, model):
        output, loss_function = task.forward_step(batches, model)
        return output, lambda tensor: spoil(loss_function(tensor))

    return Engine(config, replace(task, forward_step=forward_step) if spoil else task)


def state_of(engine: Engine) -> list[torch.Tensor]:
    kept = [
        tensor
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
        for tensor in [parameter.data, *engine.optimizer.chained_optimizers[0].optimizer.state[parameter].values()]
    ]
    return [tensor.clone() for tensor in [*(parameter.data for parameter in engine.modules[0].parameters()), *kept]]


def skip_alike(folder: Path, overrides: tuple[str, ...], what: str) -> dict:
    """A step whose loss, or whose gradients alone, are no number on process 1."""
    strikes = [False]

    def spoil(given):
        loss, *rest = given
        if strikes[0] and RANK == 1:
            nan = torch.tensor([math.nan if what == "loss" else 1, 1])
            report = {key: value * nan for key, value in rest[-1].items()}
            return loss * math.inf, *rest[:-1], report
        return given

    engine = engine_of(folder, *overrides, spoil=spoil)
    batches, judge = engine.task.train_batches(0), partial(reason_to_skip, GuardState(), loss_spike_factor=0)
    engine.step(batches, judge=judge)
    before = state_of(engine)
    strikes[0] = True
    struck = engine.step(batches, judge=judge)
    same = [torch.equal(old, new) for old, new in zip(before, state_of(engine), strict=True)]
    strikes[0] = False
    healthy = engine.step(batches, judge=judge)
    moved = [not torch.equal(old, new) for old, new in zip(before, state_of(engine), strict=True)]
    return {
        "skipped": struck.skipped,
        "same": all(same),
        "healthy": healthy.skipped is None and math.isfinite(healthy.grad_norm),
        "moved": any(moved),
    }


@contextmanager
def small_files(limit: int):
    """No file of this process may grow above the limit: what a quota or a full disk of one node is like."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def fail_alike(folder: Path, asynchronous: bool) -> dict:
    """A save that process 1 alone cannot write, between two that succeed; then the newest is damaged."""
    run = folder / f"run-{asynchronous}"
    engine = engine_of(folder, TENSOR, f"checkpoint.save={run}", f"checkpoint.async_save={asynchronous}")
    recorded = []
    saver = Saver(engine.config.checkpoint, lambda iteration, **values: recorded.append([iteration, values]))
    batches = engine.task.train_batches(0)
    failures = []
    for iteration in (1, 2, 3):
        engine.step(batches)
        with small_files(100_000 if iteration == 2 and RANK == 1 else resource.RLIM_INFINITY):
            saver.save(engine, Progress(iteration, 8 * iteration))
            saver.finish()
        failures.append(saver.failure)
        names = distributed.on_main(lambda: sorted(path.name for path in run.glob("*iter_*")))
        newest = distributed.on_main(lambda: (run / "latest").read_text().strip())
        failures[-1] = [failures[-1], names, newest]
    saver.close()

    def damage():
        path = run / "iter_0000003" / "__1_0.distcp"
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    distributed.on_main(damage)
    found = find_checkpoint(run)
    progress = load_checkpoint(found, engine, resume=True)
    return {"failures": failures, "recorded": recorded, "found": found.name, "resumed": progress.iteration}


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder = Path(sys.argv[1])
    found = {
        f"{name}, {what}": skip_alike(folder, overrides, what)
        for name, overrides in LAYOUTS.items()
        for what in ("loss", "gradients")
    }
    found["sync save"], found["async save"] = fail_alike(folder, False), fail_alike(folder, True)
    (folder / f"found-{RANK}.json").write_text(json.dumps(found))
    distributed.stop()
