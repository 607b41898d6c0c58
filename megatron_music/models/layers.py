"""Our own core attention, linear layers and norm, for machines without Transformer Engine.

Shapes: S sequence, B batch, N attention heads of this rank, G query groups of this rank, D head size, H hidden.
specs.py puts these into megatron-core's layer.

megatron-core adds keyword arguments from version to version. Every class that it instantiates takes those it does not
know: subclasses of megatron-core's classes pass them on to the base class, which judges them; the others ignore them.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class SDPACoreAttention(MegatronModule):
    """Core attention through ``torch.nn.functional.scaled_dot_product_attention``.

    A drop-in for megatron-core's DotProductAttention that never writes the S x S scores. A mask that is given is
    used; without one a causal layer stays causal in training, in prefill, in chunked prefill on a key-value cache
    and in single-token decoding, whatever mask type a call declares: megatron-core declares ``no_mask`` for every
    call after the first on a cache, which is right for one query and wrong for several.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection=None,
        **unused,
    ):
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "context parallelism needs Transformer Engine"
        self.causal = attn_mask_type == AttnMaskType.causal
        self.softmax_scale = softmax_scale or 1 / math.sqrt(config.kv_channels)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params=None,
        **unused,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, N, D].
            key, value: [S of keys, B, G, D].
            attention_mask: bool, broadcast to [B, N, S, S of keys], True where a key is hidden (Megatron's sense),
                or None.

        Returns:
            [S, B, N * D].
        """
        assert attention_bias is None and packed_seq_params is None, (
            "biases and packed sequences need Transformer Engine"
        )
        query_BNSD, key_BGSD, value_BGSD = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        num_queries, num_keys = query.size(0), key.size(0)
        visible, is_causal = None, False
        if attention_mask is not None:
            visible = ~attention_mask
        elif self.causal and num_queries == num_keys:
            is_causal = num_queries > 1
        elif self.causal and num_queries > 1:
            # The queries are the last of the keys' positions.
            visible = torch.ones(num_queries, num_keys, dtype=torch.bool, device=query.device)
            visible = visible.tril(num_keys - num_queries)

        def attend() -> Tensor:
            return F.scaled_dot_product_attention(
                query_BNSD,
                key_BGSD,
                value_BGSD,
                attn_mask=visible,
                dropout_p=self.dropout if self.training else 0.0,
                is_causal=is_causal,
                scale=self.softmax_scale,
                enable_gqa=query.size(2) != key.size(2),
            )

        # Heads differ between tensor-parallel ranks, so their dropout must; under sequence parallelism the whole
        # layer already runs in that generator.
        if self.dropout and self.training and not self.config.sequence_parallel:
            with tensor_parallel.get_cuda_rng_tracker().fork():
                context_BNSD = attend()
        else:
            context_BNSD = attend()
        return context_BNSD.permute(2, 0, 1, 3).reshape(num_queries, query.size(1), -1)


class _LinearIntoMainGrad(torch.autograd.Function):
    """A linear layer whose weight gradient is added to ``main_grad`` within the matrix product that makes it.

    What apex's ``gradient_accumulation_fusion`` does on CUDA. DistributedDataParallel leaves a gradient alone that
    says it was added already; the empty one that is returned only sets off its hook.
    """

    @staticmethod
    def forward(ctx, input_SBH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_SBH, weight)
        ctx.has_bias = bias is not None
        return F.linear(input_SBH, weight, bias)

    @staticmethod
    def backward(ctx, gradient_SBH: Tensor):
        input_SBH, weight = ctx.saved_tensors
        gradient, inputs = gradient_SBH.flatten(0, 1), input_SBH.flatten(0, 1)
        weight.main_grad.addmm_(gradient.t(), inputs)
        weight.grad_added_to_main_grad = True
        return gradient_SBH.matmul(weight), torch.empty_like(weight), gradient.sum(0) if ctx.has_bias else None


def _linear(input_SBH: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    main_grad = getattr(weight, "main_grad", None)
    if (
        torch.is_grad_enabled()
        and weight.requires_grad
        and main_grad is not None
        and main_grad.dtype == input_SBH.dtype
    ):
        return _LinearIntoMainGrad.apply(input_SBH, weight, bias)
    return F.linear(input_SBH, weight, bias)


class ColumnLinear(ColumnParallelLinear):
    """megatron-core's layer with fewer passes over memory, where no tensor parallelism needs them apart.

    megatron-core adds biases, and gradients to ``main_grad``, in passes of their own, for kernels of apex to fuse.
    Without those each pass costs its memory traffic.
    """

    def forward(
        self, input_: Tensor, weight: Tensor | None = None, runtime_gather_output: bool | None = None, **options
    ):
        """Map [S, B, H] to [S, B, outputs of this rank], and the bias that is still to be added, or None."""
        if options or weight is not None or self.tp_group.size() > 1:
            return super().forward(input_, weight, runtime_gather_output, **options)
        return _linear(input_, self.weight, self.bias), None


class RowLinear(RowParallelLinear):
    """As ColumnLinear, for the layer whose inputs are split."""

    def forward(self, input_: Tensor, **options):
        """Map [S, B, inputs of this rank] to [S, B, H], and the bias that is still to be added, or None."""
        if options or self.tp_group.size() > 1:
            return super().forward(input_, **options)
        return _linear(input_, self.weight, self.bias), None


class SequenceParallelNorm(torch.nn.Module):
    """LayerNorm or RMSNorm whose parameters say that their gradient is a sum over tensor-parallel ranks.

    Under sequence parallelism each rank normalizes its own part of the sequence; ``finalize_model_grads`` adds up
    the gradients of the parameters marked ``sequence_parallel``. megatron-core's WrappedTorchNorm refuses that case.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **unused):
        super().__init__()
        self.hidden_size, self.eps = hidden_size, eps
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        options = {"dtype": config.params_dtype, "device": device}
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, **options))
        has_bias = config.normalization == "LayerNorm"
        self.bias = torch.nn.Parameter(torch.zeros(hidden_size, **options)) if has_bias else None
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel

    def forward(self, hidden_SBH: Tensor, **unused) -> Tensor:
        """Normalize over H; same shape and dtype."""
        if self.bias is None:
            return F.rms_norm(hidden_SBH, (self.hidden_size,), self.weight, self.eps)
        return F.layer_norm(hidden_SBH, (self.hidden_size,), self.weight, self.bias, self.eps)


_SUBMODULES = MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear)
# megatron-core's MLP of these layers. From 0.18 on a layer wants a callable, and warns once per layer of a ModuleSpec.
feed_forward = (
    partial(MLP.as_mlp_submodule, submodules=_SUBMODULES)
    if hasattr(MLP, "as_mlp_submodule")
    else ModuleSpec(module=MLP, submodules=_SUBMODULES)
)
