"""The processes of test_bridge.py: both forms of the model in every layout of two processes.

torchrun --nproc_per_node 2 tests/latest/bridge_worker.py RESULTS
"""

import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from bridge_import import seed_bridge  # noqa: E402

seed_bridge()
from megatron.bridge.training.config import DistributedDataParallelConfig  # noqa: E402
from megatron.core.distributed import finalize_model_grads  # noqa: E402
from megatron.core.pipeline_parallel import get_forward_backward_func  # noqa: E402
from megatron.core.process_groups_config import ProcessGroupCollection  # noqa: E402
from megatron.core.utils import get_model_config  # noqa: E402

from megatron_music.config.sections import ModelConfig, ParallelConfig  # noqa: E402
from megatron_music.hosts import bridge  # noqa: E402
from megatron_music.models.gpt import build_gpt  # noqa: E402
from megatron_music.parallel import distributed  # noqa: E402
from megatron_music.training.gpt_step import forward_step  # noqa: E402

MODEL = ModelConfig(size="tiny", num_query_groups=2)
LAYOUTS = {  # tensor, pipeline, sequence parallel
    "TP1": (1, 1, False),
    "TP2": (2, 1, False),
    "TP2 SP": (2, 1, True),
    "PP2": (1, 2, False),
}


def build(form: str, parallel: ParallelConfig):
    """One rank's part, wrapped for data parallelism: by Bridge, or by our own function and Bridge's wrapping."""
    ddp_config = DistributedDataParallelConfig(grad_reduce_in_fp32=True, average_in_collective=False)
    if form == "builder":
        config = bridge.model_config_of(MODEL, parallel)
        config.finalize()
        groups = ProcessGroupCollection.use_mpu_process_groups()
        return config.get_builder_cls()(config).build_distributed_models(groups, ddp_config=ddp_config)[0]
    provider = bridge.provider_of(MODEL, parallel)
    if form == "ours":
        provider.provide = lambda pre_process, post_process, vp_stage=None: build_gpt(
            MODEL, parallel, pre_process=pre_process, post_process=post_process
        )
    provider.finalize()
    return provider.provide_distributed_model(ddp_config=ddp_config, use_cpu_initialization=True)[0]


def pieces(model):
    """The key of each parameter in a checkpoint, the place of this rank's piece, and the parameter."""
    for item in model.module.sharded_state_dict().values():
        if isinstance(getattr(item, "data", None), torch.nn.Parameter):
            yield item.key, item.global_slice(), item.global_shape, item.data


def whole_tensors(model, read) -> dict:
    """What ``read`` gives of each parameter, layers stacked as in a checkpoint."""
    found: dict = {}
    for key, place, shape, data in pieces(model):
        found.setdefault(key, torch.full(shape, torch.nan))[place] = read(data)
    return found


def run(form: str, layout: tuple, whole: dict) -> dict:
    tensor, pipeline, sequence_parallel = layout
    parallel = ParallelConfig(
        tensor_model_parallel_size=tensor, pipeline_model_parallel_size=pipeline, sequence_parallel=sequence_parallel
    )
    distributed.start(parallel)
    distributed.seed_for_building(7)
    model = build(form, parallel)
    config = get_model_config(model)
    config.finalize_model_grads_func = finalize_model_grads
    is_first = "weights" not in whole
    if is_first:
        whole["weights"] = whole_tensors(model, torch.Tensor.detach)
    with torch.no_grad():
        for key, place, _, data in pieces(model):
            data.copy_(whole["weights"][key][place].view_as(data))

    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, MODEL.vocab_size, (2, MODEL.seq_length + 1), generator=random)
    batch = {"tokens": ids[:, :-1], "labels": ids[:, 1:], "loss_mask": torch.ones_like(ids[:, 1:], dtype=torch.float32)}
    batch["position_ids"] = torch.arange(MODEL.seq_length).expand(2, -1)
    model.zero_grad_buffer()
    reports = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iter([batch, batch]),
        model=model,
        num_microbatches=2,
        seq_length=MODEL.seq_length,
        micro_batch_size=2,
        forward_only=False,
    )
    if is_first:
        whole["gradients"] = whole_tensors(model, lambda data: data.main_grad)
    worst = 0.0
    for key, place, _, data in pieces(model):
        expected = whole["gradients"][key][place].view_as(data)
        worst = max(worst, float((data.main_grad - expected).abs().max() / expected.abs().max()))
    loss = float(reports[0]["loss"][0] / reports[0]["loss"][1]) if reports else None
    return {"form": form, "loss": loss, "gradients": worst, "keys": sorted({key for key, *_ in pieces(model)})}


if __name__ == "__main__":
    whole: dict = {}
    results = {}
    for form in ("ours", "provider", "builder"):
        for name, layout in LAYOUTS.items():
            if form == "ours" and name != "TP1":
                continue  # tests/training/test_parity.py has those
            mine = run(form, layout, whole)
            ranks = [None, None]
            torch.distributed.all_gather_object(ranks, mine)
            results[f"{form} {name}"] = ranks
    if distributed.is_main():
        Path(sys.argv[1]).write_text(json.dumps(results))
    distributed.stop()
