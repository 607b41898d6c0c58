"""What test_layouts.py needs of two processes, in one launch of torchrun.

    torchrun --nproc_per_node 2 tests/layouts_worker.py FOLDER

FOLDER holds ``data`` and, for each model of ``STARTS``, its checkpoint ``start`` and its gradients, as parity_worker.py
makes them on one process.
"""

import gc
import json
import sys
from itertools import islice
from pathlib import Path

import torch

from megatron_music.config.checks import check_world_size

sys.path.insert(0, str(Path(__file__).parent))
import parity_worker
from parity_worker import (
    BLOCK,
    FULL,
    INTERLEAVED,
    OVERLAP,
    OVERLAP_BOTH,
    SELECTIVE,
    run_layout,
    run_of,
)

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.state import Progress, load_checkpoint, save_checkpoint

ONE = ((1, 1, 1), False, False)
TENSOR, SEQUENCE, PIPELINE, DATA = (2, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)
# Few parameters of the tiny model in each, so that there are many.
BUCKETS = "parallel.ddp_bucket_size=20000"
STARTS = ("deep", "half", "other deep")

# Each of these trains as one process does: model, layout.
CASES = [
    ("deep", (DATA, False, True, OVERLAP_BOTH, BUCKETS)),
    ("deep", (DATA, False, False, OVERLAP, BUCKETS, "train.micro_batch_size=1")),
    ("deep", (DATA, False, False, "train.micro_batch_size=4")),
    ("deep", (PIPELINE, False, True, INTERLEAVED, OVERLAP_BOTH, "train.micro_batch_size=1")),
    ("deep", (PIPELINE, False, False, OVERLAP, FULL)),
    ("other deep", (PIPELINE, False, False, INTERLEAVED, FULL)),
    ("other deep", (SEQUENCE, True, True, SELECTIVE)),
    ("half", (SEQUENCE, True, True)),
    ("half", (PIPELINE, False, False, INTERLEAVED)),
    ("half", (DATA, False, True, OVERLAP_BOTH, BUCKETS)),
    ("half", (DATA, False, False, FULL)),
]

# Checkpoints: model, the layout that saves, the layouts that load.
SP, VPP, PP = (SEQUENCE, True, False), (PIPELINE, False, True, INTERLEAVED), (PIPELINE, False, False)
ZERO, ZERO_BUCKETS = (DATA, False, True), (DATA, False, True, OVERLAP_BOTH, BUCKETS)
SAVES = [
    ("llama", SP, [VPP, ZERO_BUCKETS]),
    ("llama", VPP, [SP, ZERO]),
    ("llama", ZERO_BUCKETS, [SP, PP, ZERO]),
    ("half", (SEQUENCE, True, True), [VPP, ZERO_BUCKETS]),
    ("half tied", ZERO_BUCKETS, [VPP, SP]),
    ("half tied", VPP, [ZERO, SP]),
]
DROPOUT = ("model.hidden_dropout=0.1", "model.attention_dropout=0.1")
RECOMPUTED = {
    "uniform": (FULL,),
    "block": BLOCK,
    "selective": (SELECTIVE,),
    "pairs": (FULL, "train.recompute_num_layers=2"),
}


def engine_of(folder: Path, model: str, layout) -> Engine:
    config = run_of(folder, model, layout)
    check_world_size(config, distributed.launched_size())
    distributed.start(config.parallel)
    return Engine(config, gpt_task(config))


def losses_of(engine: Engine, first: int, last: int) -> list[float]:
    batches = engine.task.train_batches(8 * first)
    return [engine.step(batches).loss for _ in range(first, last)]


def save_and_load(folder: Path, number: int, model: str, saved, loaded_in: list) -> list[dict]:
    """Three steps, a checkpoint, and two steps more: in the layout that saved, and in each that loads."""
    place = folder / f"saved-{number}"
    engine = engine_of(folder, model, saved)
    losses_of(engine, 0, 3)
    save_checkpoint(place, engine, Progress(3, 24))
    expected = losses_of(engine, 3, 5)
    results = []
    for layout in loaded_in:
        engine = engine_of(folder, model, layout)
        load_checkpoint(find_checkpoint(place), engine, resume=True)
        results.append({"model": model, "saved": str(saved), "loaded": str(layout), "place": str(place)})
        results[-1] |= {"expected": expected, "loss": losses_of(engine, 3, 5)}
    return results


def recompute(folder: Path, layout) -> dict[str, float]:
    """Largest difference that recomputing makes to the loss and gradients of one step with dropout, by its kind."""
    found = {}
    for kind, overrides in {"not": (), "again": (), **RECOMPUTED, "other seed": ("train.seed=7",)}.items():
        engine = engine_of(folder, "deep", (*layout, *DROPOUT, *overrides))
        start = load_checkpoint(find_checkpoint(folder / "deep"), engine, resume=False)
        # Seeded by the run's seed alone, whatever the checkpoint's layout.
        distributed.seed_for_training(engine.config.train.seed, start.iteration)
        samples = gpt_task(run_of(folder, "deep", layout)).train_batches(0)
        num_microbatches = engine.config.num_microbatches(distributed.launched_size())
        sums = engine.compute_gradients(islice(samples, num_microbatches), on_every_rank=True)
        found[kind] = [torch.tensor(sums), *(gradient.clone() for _, _, gradient in parity_worker.pieces(engine))]
    differences = {}
    for kind in sorted(found.keys() - {"not"}):  # the same order on every process
        worst = max(
            float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))
            for a, b in zip(found[kind], found["not"], strict=False)
        )
        differences[kind] = max(parity_worker.distributed_worst({kind: worst}).values())
    return differences


def batched_messages(folder: Path) -> float:
    """The worst gradient of an interleaved pipeline whose messages were made batched behind the engine's back."""
    engine = engine_of(folder, "deep", (PIPELINE, False, False, INTERLEAVED))
    load_checkpoint(find_checkpoint(folder / "deep"), engine, resume=True)
    engine.core_config.overlap_p2p_comm, engine.core_config.batch_p2p_comm = False, True
    engine.compute_gradients(islice(engine.task.train_batches(16), 4), on_every_rank=True)
    worst = parity_worker.compare_gradients(engine, torch.load(folder / "deep" / "gradients.pt"))
    return max(distributed_worst for distributed_worst in parity_worker.distributed_worst(worst).values())


def evaluated(folder: Path) -> list[tuple[float, float]]:
    """The loss of an evaluation right after an update, with and without gathering behind the forward pass."""
    found = []
    for layout in ((DATA, False, True), (DATA, False, True, OVERLAP_BOTH, BUCKETS)):
        engine = engine_of(folder, "deep", layout)
        load_checkpoint(find_checkpoint(folder / "deep"), engine, resume=True)
        losses_of(engine, 2, 3)
        found.append(engine.evaluate(engine.task.valid_batches(), 1)[0])
    return found


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder = Path(sys.argv[1])
    results = {
        "cases": [run_layout(folder, model, layout) for model, layout in CASES],
        "checkpoints": [result for number, save in enumerate(SAVES) for result in save_and_load(folder, number, *save)],
        "recompute": {
            "tensor": recompute(folder, (TENSOR, False, False)),
            "sequence": recompute(folder, (SEQUENCE, True, False)),
        },
        "batched": batched_messages(folder),
        "evaluated": evaluated(folder),
    }
    if distributed.is_main():
        (folder / "layouts.json").write_text(json.dumps(results))
    distributed.stop()
