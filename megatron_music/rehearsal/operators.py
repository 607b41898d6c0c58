"""Operators on a GPU that is not there: the attention kernel that PyTorch would choose, and floating-point operations.

Counted are matrix products, convolutions and attention, a multiplication and an addition as two. Of causal attention
half of the scores count, and its backward pass as twice its forward pass, as in the formula mcore of
``profiling.flops``.
"""

import math

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# The place of the query among the arguments, and how many forward passes a call is worth.
_ATTENTION = {
    getattr(aten, f"_scaled_dot_product_{kernel}{suffix}").default: (place, passes)
    for kernel in ("flash_attention", "efficient_attention", "cudnn_attention", "flash_attention_for_cpu")
    for suffix, place, passes in (("", 0, 1), ("_backward", 1, 2))
}


def is_attention(function) -> bool:
    return function in _ATTENTION


def counts(function) -> bool:
    """Whether an operator has operations that are counted."""
    return function in _ATTENTION or function is aten.addmm_.default or function._overloadpacket in flop_registry


def flops_of(function, args: tuple, kwargs: dict, result) -> float:
    """Operations of one call."""
    if function in _ATTENTION:
        place, passes = _ATTENTION[function]
        query, key, value = args[place : place + 3]
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return (
            passes
            * 2.0
            * scores
            * (query.shape[-1] + value.shape[-1])
            * (0.5 if _is_causal(function, args, kwargs) else 1.0)
        )
    packet = aten.addmm if function is aten.addmm_.default else function._overloadpacket
    return float(flop_registry[packet](*args, **kwargs, out_val=result))


def _is_causal(function, args: tuple, kwargs: dict) -> bool:
    names = [argument.name for argument in function._schema.arguments]
    place = names.index("is_causal")
    return bool(args[place] if place < len(args) else kwargs.get("is_causal", False))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` with the kernel that PyTorch takes on Hopper: flash, cuDNN's, efficient or none.

    Args:
        query: [B, N, S, D]; key and value: [B, G, S of keys, D]; all without data.
    """
    needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    is_half = query.dtype in (torch.bfloat16, torch.float16)
    if is_half and attn_mask is None and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if is_half and query.shape[-1] <= 128:
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        return aten._scaled_dot_product_cudnn_attention(
            query, key, value, bias, needs_gradient, dropout_p, is_causal, False, scale=scale
        )[0]
    if not enable_gqa or query.shape[1] == key.shape[1]:
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, needs_gradient, dropout_p, is_causal, scale=scale
        )[0]
    return _written_out(query, key, value, attn_mask, dropout_p, is_causal, scale)


def attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The same with PyTorch's kernel for CPUs, which takes no dropout."""
    if dropout_p:
        return _written_out(query, key, value, attn_mask, dropout_p, is_causal, scale)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


class FusedRmsNorm(torch.autograd.Function):
    """PyTorch's RMSNorm on a GPU, from 2.9 on one kernel: its input and a number for each row wait for the backward
    pass.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor) -> Tensor:
        scale = torch.empty((*hidden.shape[:-1], 1), dtype=torch.float32, device=hidden.device)
        ctx.save_for_backward(hidden, weight, scale)
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight, _ = ctx.saved_tensors
        return torch.empty_like(hidden), torch.empty_like(weight)


def has_fused_rms_norm() -> bool:
    return hasattr(aten, "_fused_rms_norm")


def _repeated(tensor: Tensor, heads: int) -> Tensor:
    batch, groups, length, size = tensor.shape
    return tensor[:, :, None].expand(batch, groups, heads // groups, length, size).reshape(batch, heads, length, size)


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask of booleans as numbers to add, which the kernels read."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype)
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _written_out(query, key, value, attn_mask, dropout_p, is_causal, scale) -> Tensor:
    """Without a kernel: the scores are written, as PyTorch does in float32 with fewer heads for keys."""
    key, value = (_repeated(tensor, query.shape[1]) for tensor in (key, value))
    scores = torch.matmul(query * (scale or 1 / math.sqrt(query.shape[-1])), key.transpose(-1, -2))
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1)
    if dropout_p:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return torch.matmul(weights, value)
