"""A real trace of this package: steps of a tiny GPT under torch.profiler.

    [torchrun --nproc_per_node 2] tests/trace_worker.py FOLDER

FOLDER holds ``data``; ``rankN.json`` is left for each rank.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    size = distributed.launched_size()
    config = tiny_run(folder / "data", f"parallel.tensor_model_parallel_size={size}")
    distributed.start(config.parallel)
    engine = Engine(config, task := gpt_task(config))
    batches = task.train_batches(0)
    engine.step(batches)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(3):
            with torch.profiler.record_function("step"):
                engine.step(batches)
    profiler.export_chrome_trace(str(folder / f"rank{torch.distributed.get_rank()}.json"))
    distributed.stop()
