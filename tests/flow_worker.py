"""The processes of test_flow_parity.py: every layout of one world size in one launch of torchrun.

    torchrun --nproc_per_node N tests/flow_worker.py FOLDER

FOLDER holds a file for each model of ``MODELS``: whole weights, and the gradients and outputs that are right.
"""

import gc
import json
import sys
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import torch
from megatron.core import parallel_state

from megatron_music.config.checks import check_world_size

sys.path.insert(0, str(Path(__file__).parent))
from tiny_flow import FRAMES, SIZE, batch, conditioned_batch, text2muq_batch
from tiny_gpt import tiny_run

from megatron_music.config.flow_sizes import TEXT2MUQ_SIZES
from megatron_music.flow.path import loss_per_sample
from megatron_music.models.conditioners import build_conditioned_dit
from megatron_music.models.diffusers_weights import load_weights, pieces
from megatron_music.models.dit import build_dit
from megatron_music.models.flow_transformer import padded_length
from megatron_music.models.text2muq import build_text2muq
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.task import Task

DEEP, ADALN = replace(SIZE, num_layers=4), replace(SIZE, global_conditioning="adaln")
# Name: what builds it, its size, the positions of a sample, its inputs.
MODELS = {
    "dit": (build_dit, SIZE, FRAMES + 1, batch),
    "deep": (build_dit, DEEP, FRAMES + 1, batch),
    "adaln": (build_dit, ADALN, FRAMES, batch),
    "conditioned": (build_conditioned_dit, SIZE, FRAMES + 1, conditioned_batch),
    "text2muq": (build_text2muq, TEXT2MUQ_SIZES["tiny"], 1, text2muq_batch),
}
FULL = "train.recompute_granularity=full"
INTERLEAVED = "parallel.virtual_pipeline_model_parallel_size=2"
OVERLAP = "parallel.overlap_grad_reduce=true"
ONE = ((1, 1), False, False)

# World size: model, ((tensor, pipeline), sequence parallel, distributed optimizer, other overrides)
LAYOUTS = {
    1: [("dit", ONE), ("deep", ONE), ("adaln", ONE), ("conditioned", ONE), ("text2muq", ONE)],
    2: [
        ("dit", ((2, 1), False, False)),
        ("dit", ((2, 1), True, False)),
        ("dit", ((2, 1), True, True, FULL)),
        ("dit", ((1, 2), False, False)),
        ("dit", ((1, 1), False, True, OVERLAP)),
        ("deep", ((1, 2), False, False, INTERLEAVED)),
        ("adaln", ((2, 1), False, False)),
        ("adaln", ((2, 1), True, True, FULL)),
        ("adaln", ((1, 2), False, False, FULL)),
        ("conditioned", ((2, 1), True, True)),
        ("conditioned", ((1, 2), False, False)),
        ("text2muq", ((2, 1), False, False)),
        ("text2muq", ((2, 1), True, False)),
        ("text2muq", ((1, 2), False, False)),
        ("text2muq", ((1, 1), False, True)),
    ],
    4: [
        ("dit", ((2, 2), True, False)),
        ("dit", ((1, 2), False, True)),
        ("dit", ((2, 1), True, True)),
        ("deep", ((1, 4), False, False)),
        ("deep", ((2, 2), True, True, INTERLEAVED)),
        ("adaln", ((2, 2), True, False)),
        ("conditioned", ((1, 2), False, True)),
        ("text2muq", ((2, 2), True, False)),
    ],
}


def forward_step(outputs: list, batches, model):
    given = dict(next(batches))
    velocity, noisy = given.pop("velocity"), given.pop("noisy")
    return model(noisy, **given), partial(sum_loss, outputs, velocity)


def sum_loss(outputs: list, velocity, predicted):
    outputs.append(predicted.detach().clone())
    losses = loss_per_sample(predicted, velocity)
    total, number = losses.sum(), torch.tensor(len(losses))
    return total, number.to(torch.int32), {"loss": torch.stack([total.detach(), number])}


def engine_of(folder: Path, model: str, layout) -> tuple[Engine, list, list]:
    """The model in this layout with the common weights, this rank's micro batches, and where its outputs go."""
    build, size, num_positions, inputs = MODELS[model]
    (tensor, pipeline), sequence_parallel, distributed_optimizer, *others = layout
    config = tiny_run(
        folder,
        f"parallel.tensor_model_parallel_size={tensor}",
        f"parallel.pipeline_model_parallel_size={pipeline}",
        f"parallel.sequence_parallel={sequence_parallel}",
        f"optimizer.use_distributed_optimizer={distributed_optimizer}",
        f"model.num_layers={size.num_layers}",
        "train.micro_batch_size=1",
        "train.global_batch_size=4",
        *others,
    )
    check_world_size(config, distributed.launched_size())
    distributed.start(config.parallel)
    outputs: list = []
    task = Task(
        build_model=lambda dtype, vp_stage: build(
            size, config.parallel, dtype=dtype, train=config.train, vp_stage=vp_stage
        ),
        forward_step=partial(forward_step, outputs),
        train_batches=None,
        valid_batches=None,
        files={},
        seq_length=padded_length(num_positions, config.parallel),
    )
    engine = Engine(config, task)
    weights = torch.load(folder / f"{model}.pt")["weights"]
    for module in engine.modules:
        load_weights(module, weights)
    engine.optimizer.reload_model_params()
    given = inputs()
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    micro_batches = [{name: value[row : row + 1] for name, value in given.items()} for row in range(rank, 4, size)]
    return engine, micro_batches, outputs


def run_layout(folder: Path, model: str, layout) -> dict:
    """The gradients of one step beside those that are right, then three steps."""
    engine, micro_batches, outputs = engine_of(folder, model, layout)
    right = torch.load(folder / f"{model}.pt")
    engine.compute_gradients(iter(micro_batches), on_every_rank=True)
    rank, size = parallel_state.get_data_parallel_rank(), parallel_state.get_data_parallel_world_size()
    errors = [
        float((found - right["outputs"][row : row + 1]).abs().max())
        for found, row in zip(outputs, range(rank, 4, size), strict=False)
    ]
    gradients: dict[str, float] = {}
    copies: dict[str, list] = {}
    for module in engine.modules:
        for name, slices, gradient in pieces(module, of=lambda parameter: getattr(parameter, "main_grad", parameter)):
            if name.endswith("time_frequencies"):
                continue  # never trained
            expected = right["gradients"][name][slices]
            error = float((gradient - expected).abs().max() / expected.abs().max().clamp(min=1e-12))
            gradients[name] = max(gradients.get(name, 0.0), error)
    results = [engine.step(iter(micro_batches)) for _ in range(3)]
    for module in engine.modules:
        for name, _, piece in pieces(module):
            if name.startswith(("context_embedder", "conditions", "modulator")):
                copies.setdefault(name, []).append(sha256(piece.detach().numpy().tobytes()).hexdigest())
    ranks: list = [None] * distributed.launched_size()
    torch.distributed.all_gather_object(ranks, (max(errors, default=0.0), gradients, copies))
    copies = {name: sorted({value for found in ranks for value in found[2].get(name, [])}) for name in copies}
    return {
        "model": model,
        "layout": str(layout),
        "output": max(found[0] for found in ranks),
        "gradients": {name: max(found[1].get(name, 0.0) for found in ranks) for found in ranks for name in found[1]},
        "copies": copies,
        "loss": [result.loss for result in results],
        "grad_norm": [result.grad_norm for result in results],
    }


if __name__ == "__main__":
    gc.freeze()  # what is imported stays: to leave a layout's groups is to collect what is left, and that is quick then
    folder, world_size = Path(sys.argv[1]), distributed.launched_size()
    found = [run_layout(folder, model, layout) for model, layout in LAYOUTS[world_size]]
    if distributed.is_main():
        (folder / f"results-{world_size}.json").write_text(json.dumps(found))
    distributed.stop()
