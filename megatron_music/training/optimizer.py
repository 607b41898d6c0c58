"""megatron-core's optimizer and schedule, and the state that this process keeps of the optimizer, by model
parameter.
"""

from collections.abc import Iterator
from typing import NamedTuple

import megatron.core.optimizer.clip_grads as megatron_clipping
import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor
from torch.nn import Parameter

from megatron_music.config.sections import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN_PARAMETER = "fp32_param"


def build_optimizer(
    config: OptimizerConfig, chunks: list, dtype: torch.dtype, *, overlap_param_gather: bool = False
) -> MegatronOptimizer:
    """AdamW over a model's chunks (each wrapped in DistributedDataParallel), without decay on biases and norms."""
    _measure_gradients_at_once()
    optimizer = get_megatron_optimizer(
        MegatronOptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            min_lr=config.min_lr,
            weight_decay=config.weight_decay,
            adam_beta1=config.adam_beta1,
            adam_beta2=config.adam_beta2,
            clip_grad=config.clip_grad,
            bf16=dtype == torch.bfloat16,
            params_dtype=dtype,
            use_distributed_optimizer=config.use_distributed_optimizer,
            overlap_param_gather=overlap_param_gather,
        ),
        chunks,
        use_gloo_process_groups=False,
    )
    for inner in _inner_optimizers(optimizer):
        if isinstance(inner.optimizer, torch.optim.AdamW):
            # One pass over the parameters instead of ten, on the CPU as on the GPU; megatron-core does not ask for
            # it where apex and Transformer Engine are missing.
            for group in inner.optimizer.param_groups:
                group.update(fused=True, foreach=False)
    return optimizer


def build_schedule(config: OptimizerConfig, optimizer: MegatronOptimizer, train_iters: int) -> OptimizerParamScheduler:
    """Linear warm-up from 0, then cosine down to ``min_lr`` at ``train_iters``, or constant. Counts iterations."""
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.lr_warmup_iters,
        # A run may be cut short of its own warm-up.
        lr_decay_steps=max(train_iters, config.lr_warmup_iters + 1),
        lr_decay_style=config.lr_decay_style,
        start_wd=config.weight_decay,
        end_wd=config.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
        # The configuration decides, also when a run goes on under another one.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


def get_step(optimizer: MegatronOptimizer) -> int:
    """Updates done so far, as Adam counts them for its bias correction."""
    for inner in _inner_optimizers(optimizer):
        for group in inner.optimizer.param_groups:
            for parameter in group["params"]:
                if "step" in inner.optimizer.state.get(parameter, {}):
                    return int(inner.optimizer.state[parameter]["step"])
            if "step" in group:
                return int(group["step"])
    return 0


class Part(NamedTuple):
    """What this process keeps of the optimizer's state of one model parameter.

    Attributes:
        start: the first element, in the flattened parameter.
        tensors: of one axis each, float32, in the optimizer's own memory: ``exp_avg`` and ``exp_avg_sq``, and
            ``fp32_param`` where the optimizer keeps a float32 copy of the parameter.
        is_replicated: whether all data-parallel processes keep the same; else each keeps another range.
    """

    start: int
    tensors: dict[str, Tensor]
    is_replicated: bool


def own_state(optimizer: MegatronOptimizer) -> dict[Parameter, Part]:
    """This process's part of the optimizer's state, by model parameter. Nothing is copied."""
    state = {}
    for inner in _inner_optimizers(optimizer):
        _allocate(inner)
        is_sharded = isinstance(inner, DistributedOptimizer)
        for parameter, main, start in _shards(inner) if is_sharded else _pairs(inner):
            tensors = {name: inner.optimizer.state[main][name].view(-1) for name in MOMENTS}
            if parameter.dtype != torch.float32:
                tensors[MAIN_PARAMETER] = main.detach().view(-1)
            state[parameter] = Part(start, tensors, is_replicated=not is_sharded)
    return state


def set_step(optimizer: MegatronOptimizer, step: int) -> None:
    """Put back what ``get_step`` gave."""
    for inner in _inner_optimizers(optimizer):
        _allocate(inner)
        for state in inner.optimizer.state.values():
            if "step" in state:
                state["step"].fill_(step)
        if not isinstance(inner.optimizer, torch.optim.AdamW):
            for group in inner.optimizer.param_groups:
                group["step"] = step


def l2_norm(chunk_size, noop_flag, tensor_lists: list[list[Tensor]], per_tensor: bool) -> tuple[Tensor, None]:
    """The norm of all tensors together, [1], in the form of apex's ``multi_tensor_l2norm``; does not wait for a GPU."""
    return torch.nn.utils.get_total_norm([tensor for tensors in tensor_lists for tensor in tensors]).view(1), None


def _measure_gradients_at_once() -> None:
    """Replace megatron-core's fallback without apex and Transformer Engine, which waits for the GPU once per
    parameter.
    """
    if megatron_clipping.l2_norm_impl is getattr(megatron_clipping, "local_multi_tensor_l2_norm", None):
        megatron_clipping.l2_norm_impl = l2_norm


def _inner_optimizers(optimizer: MegatronOptimizer) -> list[MegatronOptimizer]:
    return getattr(optimizer, "chained_optimizers", [optimizer])


def _allocate(inner: MegatronOptimizer) -> None:
    """Give an optimizer that has never stepped the state it would have after no steps."""
    for group in inner.optimizer.param_groups:
        for main in group["params"]:
            if not inner.optimizer.state.get(main):
                inner.optimizer.state[main] = {name: torch.zeros_like(main.data) for name in MOMENTS}
                if isinstance(inner.optimizer, torch.optim.AdamW):
                    # Its own for every parameter: a shared one would count every parameter's update.
                    inner.optimizer.state[main]["step"] = torch.zeros((), dtype=torch.float32, device=main.device)


def _pairs(inner: MegatronOptimizer) -> Iterator[tuple[Parameter, Tensor, int]]:
    """Model parameters, the float32 tensors that Adam updates for them (themselves where there is no copy), and 0."""
    if isinstance(inner, Float16OptimizerWithFloat16Params):
        for models, mains in zip(inner.float16_groups, inner.fp32_from_float16_groups, strict=True):
            yield from ((model, main, 0) for model, main in zip(models, mains, strict=True))
        groups = inner.fp32_from_fp32_groups
    else:
        groups = [group["params"] for group in inner.optimizer.param_groups]
    yield from ((parameter, parameter, 0) for group in groups for parameter in group)


def _shards(inner: DistributedOptimizer) -> Iterator[tuple[Parameter, Tensor, int]]:
    """Model parameters of which this rank updates a part, that part, and its place in the flattened parameter."""
    for parameter in inner.model_param_gbuf_map:
        group, order = inner.model_param_group_index_map[parameter]
        part = inner._get_model_param_range_map(parameter)["param"]
        yield parameter, inner.optimizer.param_groups[group]["params"][order], part.start
