"""megatron-core's optimizer and schedule, and the optimizer's state as tensors shaped like the parameters.

The state in that form is the same whether or not the optimizer is distributed, so a checkpoint of one loads into the
other. Knows nothing about files or models.
"""

import torch
from megatron.core.optimizer import MegatronOptimizer, get_megatron_optimizer
from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor
from torch.nn import Parameter

from megatron_music.config import OptimizerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN_PARAMETER = "fp32_param"


def build_optimizer(
    config: OptimizerConfig, chunks: list, dtype: torch.dtype, *, overlap_param_gather: bool = False
) -> MegatronOptimizer:
    """AdamW over a model's chunks (each wrapped in DistributedDataParallel), without decay on biases and norms."""
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


def get_state(optimizer: MegatronOptimizer) -> dict[Parameter, dict[str, Tensor]]:
    """The optimizer's tensors by model parameter, each in the parameter's shape, in float32.

    With the distributed optimizer this gathers them over the data-parallel ranks: every rank must call it.

    Returns:
        ``exp_avg`` and ``exp_avg_sq``, and ``fp32_param`` where the optimizer keeps a float32 copy of the parameter.
    """
    state = {}
    for inner in _inner_optimizers(optimizer):
        _allocate(inner)
        if isinstance(inner, DistributedOptimizer):
            state.update(_gather(inner))
        else:
            for parameter, main in _pairs(inner):
                state[parameter] = {name: inner.optimizer.state[main][name] for name in MOMENTS}
                if main is not parameter:
                    state[parameter][MAIN_PARAMETER] = main
    return state


def set_state(optimizer: MegatronOptimizer, state: dict[Parameter, dict[str, Tensor]], step: int) -> None:
    """Put back what ``get_state`` and ``get_step`` gave; a missing ``fp32_param`` is taken from the parameter."""
    optimizer.reload_model_params()
    for inner in _inner_optimizers(optimizer):
        _allocate(inner)
        if isinstance(inner, DistributedOptimizer):
            places = [(parameter, *_shard(inner, parameter)) for parameter in inner.model_param_gbuf_map]
        else:
            places = [(parameter, main, slice(None)) for parameter, main in _pairs(inner)]
        for parameter, main, part in places:
            targets = {name: inner.optimizer.state[main][name] for name in MOMENTS}
            if MAIN_PARAMETER in state[parameter]:
                targets[MAIN_PARAMETER] = main.data
            for name, target in targets.items():
                target.copy_(state[parameter][name].flatten()[part].view_as(target))
            if "step" in inner.optimizer.state[main]:
                inner.optimizer.state[main]["step"].fill_(step)
        if not isinstance(inner.optimizer, torch.optim.AdamW):
            for group in inner.optimizer.param_groups:
                group["step"] = step


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


def _pairs(inner: MegatronOptimizer) -> list[tuple[Parameter, Tensor]]:
    """Model parameters beside the float32 parameters that Adam updates; the same object where there is no copy."""
    if isinstance(inner, Float16OptimizerWithFloat16Params):
        halves = zip(inner.float16_groups, inner.fp32_from_float16_groups)
        pairs = [pair for models, mains in halves for pair in zip(models, mains)]
        return pairs + [(parameter, parameter) for group in inner.fp32_from_fp32_groups for parameter in group]
    return [(parameter, parameter) for group in inner.optimizer.param_groups for parameter in group["params"]]


def _shard(inner: DistributedOptimizer, parameter: Parameter) -> tuple[Tensor, slice]:
    """This rank's part of a parameter, and its place in the flattened parameter."""
    group, order = inner.model_param_group_index_map[parameter]
    part = inner._get_model_param_range_map(parameter)["param"]
    return inner.optimizer.param_groups[group]["params"][order], slice(part.start, part.end)


def _gather(inner: DistributedOptimizer) -> dict[Parameter, dict[str, Tensor]]:
    whole = inner.get_parameter_state_dp_zero(use_gloo_comm=False, return_on_all_ranks=True)
    state = {}
    for index, buffer in enumerate(inner.buffers):
        (tensors,) = (value for key, value in whole[index].items() if isinstance(value, dict))
        # In the buffer every bucket is padded at its end; what was gathered has the buckets without that.
        sizes = [bucket.numel_unpadded for bucket in buffer.buckets]
        shifts = [sum(sizes[:number]) - bucket.offset for number, bucket in enumerate(buffer.buckets)]
        for parameter, (start, end, bucket) in buffer.param_index_map.items():
            start, end = start + shifts[bucket], end + shifts[bucket]
            names = {name: name for name in MOMENTS}
            if parameter.dtype != torch.float32:
                names[MAIN_PARAMETER] = "param"
            state[parameter] = {name: tensors[key][start:end].view(parameter.shape) for name, key in names.items()}
    return state
