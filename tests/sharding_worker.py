"""What test_sharding.py needs of four processes, in one launch of torchrun.

    torchrun --nproc_per_node 4 tests/sharding_worker.py FOLDER

FOLDER holds ``data`` and ``start``, a checkpoint of one process. Every layout loads it and saves it again under its own
number, and then every layout loads each of those and saves it once more, as ``from-to``.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from megatron_music.config.checks import check_world_size

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from checkpoint_memory import allocated_peak
from tiny_gpt import tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.flow.ema import WeightAverage
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.optimizer import own_state
from megatron_music.training.state import Progress, load_checkpoint, save_checkpoint

# Rows of 80 and 100 elements, which the shares of four processes, multiples of 32, do not respect.
MODEL = (
    "train.bf16=true",
    "model.num_layers=4",
    "model.hidden_size=80",
    "model.ffn_hidden_size=100",
    "model.swiglu=true",
    "model.normalization=RMSNorm",
    "model.add_bias_linear=false",
    "model.num_attention_heads=4",
    "model.share_embeddings_and_output_weights=false",
)
DISTRIBUTED, BUCKETS = "optimizer.use_distributed_optimizer=true", "parallel.ddp_bucket_size=20000"
TENSOR, SEQUENCE = "parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"
PIPELINE, INTERLEAVED = "parallel.pipeline_model_parallel_size=2", "parallel.virtual_pipeline_model_parallel_size=2"
LAYOUTS = [
    (DISTRIBUTED, BUCKETS),
    (),
    (DISTRIBUTED, TENSOR, SEQUENCE),
    (DISTRIBUTED, PIPELINE, INTERLEAVED, "train.micro_batch_size=1"),
    (TENSOR, PIPELINE),
]
# Large enough for its tensors to count beside what a save and a load hold in any case.
LARGE = ("train.bf16=true", "model.num_layers=8", "model.hidden_size=256", "model.num_attention_heads=4", DISTRIBUTED)
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")


def engine_of(folder: Path, *overrides: str, averages: bool = True) -> Engine:
    config = tiny_run(folder / "data", *overrides)
    check_world_size(config, distributed.launched_size())
    distributed.start(config.parallel)
    engine = Engine(config, gpt_task(config))
    if averages:
        engine.averages = [WeightAverage(module.named_parameters()) for module in engine.modules]
    return engine


def losses_of(engine: Engine, first: int, last: int) -> list[float]:
    batches = engine.task.train_batches(8 * first)
    return [engine.step(batches).loss for _ in range(first, last)]


@torch.no_grad()
def spoil(engine: Engine) -> None:
    """Nothing of before is left to be taken for what was loaded."""
    for module in engine.modules:
        for parameter in module.parameters():
            parameter.fill_(7)
    for tensors in [part.tensors for part in own_state(engine.optimizer).values()] + [
        average.weights for average in engine.averages
    ]:
        for tensor in tensors.values():
            tensor.fill_(float("nan"))


def each_to_each(folder: Path) -> None:
    for number, layout in enumerate(LAYOUTS):
        engine = engine_of(folder, *MODEL, *layout)
        spoil(engine)
        save_checkpoint(
            folder / str(number), engine, load_checkpoint(find_checkpoint(folder / "start"), engine, resume=True)
        )
    for loaded, layout in enumerate(LAYOUTS):
        engine = engine_of(folder, *MODEL, *layout)
        for saved in range(len(LAYOUTS)):
            spoil(engine)
            progress = load_checkpoint(find_checkpoint(folder / str(saved)), engine, resume=True)
            save_checkpoint(folder / f"{saved}-{loaded}", engine, progress)


def resumed(folder: Path, number: int, *overrides: str) -> dict:
    """The losses after a checkpoint, undisturbed and of an engine that loads it."""
    place = folder / f"resumed-{number}"
    engine = engine_of(folder, *MODEL, *DROPOUT, *overrides, averages=False)
    losses_of(engine, 0, 3)
    save_checkpoint(place, engine, Progress(3, 24))
    expected = losses_of(engine, 3, 6)
    engine = engine_of(folder, *MODEL, *DROPOUT, *overrides, averages=False)
    load_checkpoint(find_checkpoint(place), engine, resume=True)
    return {"expected": expected, "found": losses_of(engine, 3, 6)}


def memory(folder: Path) -> dict[str, int]:
    """Bytes that a save and a load take above what training holds, and what the state and its largest tensor have."""
    engine = engine_of(folder, *LARGE, averages=False)
    losses_of(engine, 0, 1)
    save = allocated_peak(lambda: save_checkpoint(folder / "large", engine, Progress(1, 8)))
    checkpoint = find_checkpoint(folder / "large")
    load = allocated_peak(lambda: load_checkpoint(checkpoint, engine, resume=True))
    sizes = [parameter.numel() for module in engine.modules for parameter in module.parameters()]
    return {"save": save, "load": load, "state": 12 * sum(sizes), "largest": 4 * max(sizes)}


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder = Path(sys.argv[1])
    each_to_each(folder)
    results = {
        "resumed": [resumed(folder, number, *LAYOUTS[number]) for number in (0, 1, 2)],
        "memory": memory(folder),
    }
    (folder / f"rank{torch.distributed.get_rank()}.json").write_text(json.dumps(results))
    distributed.on_main(lambda: None)
    distributed.stop()
