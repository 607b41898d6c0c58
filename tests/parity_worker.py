"""The processes of test_parity.py: every layout of one world size in one launch of torchrun.

    torchrun --nproc_per_node N tests/parity_worker.py FOLDER

FOLDER holds ``data`` and, from ``run_all`` in one process, ``start`` (a checkpoint saved by one process after two
steps, that every layout starts from) and ``gradients.pt`` (the whole gradients of the first step from there).
"""

import gc
import json
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

from megatron_music.config.checks import check_world_size

sys.path.insert(0, str(Path(__file__).parent))
from tiny_gpt import tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.gpt_task import gpt_task
from megatron_music.training.state import Progress, load_checkpoint, save_checkpoint

INTERLEAVED = "parallel.virtual_pipeline_model_parallel_size=2"
OVERLAP = "parallel.overlap_grad_reduce=true"
OVERLAP_BOTH = "parallel.overlap_param_gather=true"
FULL, SELECTIVE = "train.recompute_granularity=full", "train.recompute_granularity=selective"
BLOCK = ("train.recompute_granularity=full", "train.recompute_method=block", "train.recompute_num_layers=1")

# World size: model, ((tensor, pipeline, data), sequence parallel, distributed optimizer, other overrides)
LAYOUTS = {
    1: [
        ("rope", ((1, 1, 1), False, False)),
        ("rope", ((1, 1, 1), False, True)),
        ("other", ((1, 1, 1), False, False)),
        ("deep", ((1, 1, 1), False, False)),
        ("deep", ((1, 1, 1), False, False, FULL)),
        ("deep", ((1, 1, 1), False, False, SELECTIVE)),
        ("deep", ((1, 1, 1), False, False, *BLOCK)),
        ("llama", ((1, 1, 1), False, False)),
    ],
    2: [
        ("rope", ((2, 1, 1), False, False)),
        ("rope", ((2, 1, 1), False, True)),
        ("rope", ((2, 1, 1), True, False)),
        ("rope", ((2, 1, 1), True, True)),
        ("rope", ((1, 2, 1), False, False)),
        ("rope", ((1, 2, 1), False, True)),
        ("rope", ((1, 1, 2), False, False)),
        ("rope", ((1, 1, 2), False, True)),
        ("other", ((2, 1, 1), True, False)),
        ("other", ((1, 2, 1), False, False)),
        ("other", ((1, 1, 2), False, True)),
        ("deep", ((1, 2, 1), False, False, INTERLEAVED)),
        ("deep", ((1, 2, 1), False, True, INTERLEAVED, SELECTIVE)),
        ("deep", ((1, 1, 2), False, False, OVERLAP)),
        ("deep", ((1, 1, 2), False, True, OVERLAP_BOTH)),
        ("deep", ((2, 1, 1), True, False, FULL)),
        ("llama", ((2, 1, 1), True, False)),
        ("llama", ((1, 2, 1), False, False, INTERLEAVED)),
    ],
    4: [
        ("rope", ((2, 2, 1), False, False)),
        ("rope", ((2, 2, 1), False, True)),
        ("rope", ((2, 2, 1), True, False)),
        ("rope", ((2, 2, 1), True, True)),
        ("rope", ((2, 1, 2), True, True)),
        ("other", ((2, 2, 1), True, False)),
        ("deep", ((1, 4, 1), False, False)),
        ("deep", ((1, 2, 2), False, True, INTERLEAVED, OVERLAP_BOTH)),
        ("llama", ((2, 2, 1), True, True, INTERLEAVED)),
        ("llama", ((4, 1, 1), True, False)),
        ("llama", ((1, 1, 4), False, True, OVERLAP)),
    ],
}
STEPS = 4
MODELS = {
    "rope": (),
    # Everything that takes another road: positions, norm without bias, grouped queries, an output layer of its own,
    # documents hidden from each other.
    "other": (
        "model.position_embedding_type=learned_absolute",
        "model.normalization=RMSNorm",
        "model.num_query_groups=2",
        "model.share_embeddings_and_output_weights=false",
        "data.reset_attention_mask=true",
        "data.reset_position_ids=true",
    ),
    # Layers for four pipeline stages, or for two of two chunks each.
    "deep": ("model.num_layers=4",),
    # LlamaForCausalLM's.
    "llama": (
        "model.num_layers=4",
        "model.normalization=RMSNorm",
        "model.swiglu=true",
        "model.add_bias_linear=false",
        "model.share_embeddings_and_output_weights=false",
    ),
}
# For test_layouts.py.
MODELS["half"] = (*MODELS["llama"], "train.bf16=true")
MODELS["half tied"] = (*MODELS["deep"], "train.bf16=true")
MODELS["other deep"] = (*MODELS["other"], "model.num_layers=4")


def run_of(folder: Path, model: str, layout=((1, 1, 1), False, False)):
    (tensor, pipeline, _), sequence_parallel, distributed_optimizer, *others = layout
    return tiny_run(
        folder / "data",
        f"parallel.tensor_model_parallel_size={tensor}",
        f"parallel.pipeline_model_parallel_size={pipeline}",
        f"parallel.sequence_parallel={sequence_parallel}",
        f"optimizer.use_distributed_optimizer={distributed_optimizer}",
        "train.train_iters=8",
        *MODELS[model],
        *others,
    )


def make_start(folder: Path, model: str) -> None:
    """Two steps on one process, so that the checkpoint holds moments that are not zero."""
    config = run_of(folder, model)
    distributed.start(config.parallel)
    engine = Engine(config, task := gpt_task(config))
    batches = task.train_batches(0)
    for _ in range(2):
        engine.step(batches)
    (folder / model).mkdir()
    save_checkpoint(folder / model, engine, Progress(2, 16))


def run_layout(folder: Path, model: str, layout) -> dict:
    """Four steps from the common start; the gradients of the first compared with those of one process."""
    config = run_of(folder, model, layout)
    check_world_size(config, distributed.launched_size())
    distributed.start(config.parallel)
    engine = Engine(config, task := gpt_task(config))
    progress = load_checkpoint(find_checkpoint(folder / model), engine, resume=True)
    num_microbatches = config.num_microbatches(distributed.launched_size())
    batches = task.train_batches(progress.consumed_samples)
    first = list(islice(batches, num_microbatches))

    engine.compute_gradients(iter(first), on_every_rank=True)
    reference = folder / model / "gradients.pt"
    if not reference.exists():
        torch.save(whole_gradients(engine), reference)
    worst = compare_gradients(engine, torch.load(reference))

    results = [engine.step(iter(first)), *(engine.step(batches) for _ in range(STEPS - 1))]
    return {
        "model": model,
        "layout": str(layout),
        "loss": [result.loss for result in results],
        "grad_norm": [result.grad_norm for result in results],
        "gradients": distributed_worst(worst),
    }


def pieces(engine):
    """The key of each parameter in a checkpoint, the place of this rank's piece of it, and the piece's gradient."""
    for module in engine.modules:
        for name, item in module.sharded_state_dict(metadata={"singleton_local_shards": False}).items():
            if not isinstance(getattr(item, "data", None), torch.nn.Parameter):
                continue
            if isinstance(
                item, ShardedTensorFactory
            ):  # gate and input of SwiGLU lie in one parameter, and apart on disk
                for part in replace(item, data=item.data.main_grad).build():
                    yield name, part, part.data
            else:
                yield name, item, item.data.main_grad


def whole_gradients(engine) -> dict[str, torch.Tensor]:
    whole = {}
    for _, item, gradient in pieces(engine):
        whole.setdefault(item.key, torch.full(item.global_shape, torch.nan))[item.global_slice()] = gradient
    assert not any(gradient.isnan().any() for gradient in whole.values())
    return whole


def compare_gradients(engine, reference: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest error of each gradient on this rank, relative to the largest entry of the piece compared."""
    worst = {}
    for _, item, gradient in pieces(engine):
        expected = reference[item.key][item.global_slice()].view_as(gradient)
        scale = expected.abs().max().clamp(min=1e-12)
        error = float((gradient - expected).abs().max() / scale)
        worst[item.key] = max(worst.get(item.key, 0.0), error)
    return worst


def distributed_worst(worst: dict[str, float]) -> dict[str, float]:
    ranks = [None] * distributed.launched_size()
    torch.distributed.all_gather_object(ranks, worst)
    return {key: max(rank.get(key, 0.0) for rank in ranks) for rank in ranks for key in rank}


def run_all(folder: Path, world_size: int) -> list[dict]:
    """Every layout of a world size; the starts that all sizes share are made by one process."""
    if world_size == 1:
        for model in dict(LAYOUTS[1]):
            make_start(folder, model)
    return [run_layout(folder, model, layout) for model, layout in LAYOUTS[world_size]]


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder, world_size = Path(sys.argv[1]), distributed.launched_size()
    results = run_all(folder, world_size)
    if distributed.is_main():
        (folder / f"results-{world_size}.json").write_text(json.dumps(results))
    distributed.stop()
