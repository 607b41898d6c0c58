"""A GPT read token by token at speed: a megatron-core GPTModel's own parameters, a KV cache and few operations a layer.

megatron-core's modules serve training and every architecture, and cost more than the arithmetic when one token is read.
``Decoder`` makes the same numbers with a dozen operations a layer on buffers made once. ``reads`` says which models it
knows, and ``next_logits_of`` takes megatron-core's own way for all others.

Shapes: B pieces, S new tokens, H hidden, G query groups of this rank, R query heads a group, D head size, L tokens that
    are
looked back at, V vocabulary.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from megatron_music.generation.cuda_graphs import STRIDE, StepGraphs
from megatron_music.generation.sampling import CachedGPT, NextLogits

_LARGE = 1 << 20  # numbers in a matrix
# What megatron-core can build and this decoder has no arithmetic for, with the values it does know.
_KNOWN = {
    "num_moe_experts": (None,),
    "multi_latent_attention": (False,),
    "qk_layernorm": (False,),
    "qk_l2_norm": (False,),
    "attention_output_gate": (False,),
    "window_size": (None,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "apply_query_key_layer_scaling": (False,),
    "no_rope_freq": (None,),
    "rotary_interleaved": (False,),
    "fp32_residual_connection": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (0.0,),
    "heterogeneous_block_specs": (False,),
    "sequence_parallel": (False,),
    "context_parallel_size": (1,),
    "virtual_pipeline_model_parallel_size": (None,),
    "mtp_num_layers": (None,),
    "fp8": (None,),
    "fp4": (None,),
    "normalization": ("LayerNorm", "RMSNorm"),
}


def reads(model: torch.nn.Module) -> bool:
    """Whether ``Decoder`` knows every part of this GPTModel."""
    config = model.config
    known = all(getattr(config, name, allowed[0]) in allowed for name, allowed in _KNOWN.items())
    known = known and config.activation_func is (F.silu if config.gated_linear_unit else F.gelu)
    known = known and (config.gated_linear_unit or not config.bias_activation_fusion)  # which takes another GELU
    known = known and config.num_query_groups % config.tensor_model_parallel_size == 0
    known = known and model.position_embedding_type in ("rope", "learned_absolute")
    rotary = getattr(model, "rotary_pos_emb", None)
    known = known and (rotary is None or 2 * len(rotary.inv_freq) == config.kv_channels)
    known = known and getattr(rotary, "seq_len_interpolation_factor", None) is None
    names = dict(model.named_parameters())
    parts = ("linear_qkv.weight", "linear_proj.weight", "linear_fc1.weight", "linear_fc2.weight")
    return known and all(sum(name.endswith(part) for name in names) == len(model.decoder.layers) for part in parts)


def next_logits_of(model: torch.nn.Module, batch_size: int, max_tokens: int) -> NextLogits:
    """The fastest reader of a GPTModel: ``Decoder``, or ``CachedGPT`` for a model with parts that it does not know.

    Raises:
        ValueError: such a model on several pipeline stages.
    """
    if reads(model):
        return Decoder(model, batch_size, max_tokens)
    if not (model.pre_process and model.post_process):
        raise ValueError("a model of such parts is read on one pipeline stage alone; split it by tensor parallelism")
    return CachedGPT(model, batch_size, max_tokens)


class Decoder:
    """A GPTModel as ``NextLogits``, with a KV cache.

    Under tensor parallelism every rank of the group makes the same calls; under pipeline parallelism every stage does,
    and hidden states go from stage to stage. All ranks get the same logits. The model must not change meanwhile.

    On CUDA the reading of one token is captured as a CUDA graph and replayed; elsewhere the same function runs as it
    is.

    Args:
        model: this rank's GPTModel, in eval mode, that it ``reads``.
        batch_size: B of the first call.
        max_tokens: the longest sequence that will be fed.
    """

    def __init__(self, model: torch.nn.Module, batch_size: int, max_tokens: int):
        config, weight = model.config, next(model.parameters())
        self._device, self._dtype = weight.device, weight.dtype
        self._is_first, self._is_last = model.pre_process, model.post_process
        self._hidden_size, self._vocab_size = config.hidden_size, model.vocab_size
        self._eps, self._is_gated = config.layernorm_epsilon, config.gated_linear_unit
        self._tensor_group = parallel_state.get_tensor_model_parallel_group()
        self._ranks = self._tensor_group.size()
        self._groups = config.num_query_groups // self._ranks
        self._heads_per_group = config.num_attention_heads // config.num_query_groups
        self._position, self._max_tokens = 0, max_tokens
        # The CPU adapter answers what megatron-core asks of CUDA, at a cost a call; nothing in here asks.
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            self._layers = [self._read_layer(layer, batch_size) for layer in model.decoder.layers]
            self._words = self._places = self._rotation = self._final_norm = self._output = None
            if self._is_first:
                self._words = self._gathered(model.embedding.word_embeddings.weight.detach(), 0)
                if model.position_embedding_type == "learned_absolute":
                    self._places = model.embedding.position_embeddings.weight.detach()
            if self._is_last:
                tied = model.share_embeddings_and_output_weights
                output = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
                self._final_norm = _norm(model.decoder.final_layernorm)
                self._output = _linear(output.detach(), None, batch_size)
            if model.position_embedding_type == "rope":
                self._rotation = _rotation(model.rotary_pos_emb.inv_freq, max_tokens, self._dtype)
            shape = (len(self._layers), batch_size, self._groups, 2, max_tokens, config.kv_channels)
            # What is masked must be numbers; where nothing is masked, memory that is never needed is never touched.
            make = torch.zeros if self._device.type == "cuda" else torch.empty
            self._cache = make(shape, dtype=self._dtype, device=self._device)
        self._graphs = StepGraphs(self._stage) if self._device.type == "cuda" else None

    def __call__(self, ids_BS: Tensor) -> Tensor:
        """Read new ids; returns the logits of the token after them, [B, V]."""
        batch, length = ids_BS.shape
        start, self._position = self._position, self._position + length
        if self._position > self._max_tokens:
            raise ValueError(f"{self._position} tokens are fed where {self._max_tokens} were announced; announce more")
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            positions_S = torch.arange(start, self._position, device=self._device)
            entering = ids_BS.to(self._device)
            if not self._is_first:
                entering = torch.empty(batch, length, self._hidden_size, dtype=self._dtype, device=self._device)
                dist.recv(entering, parallel_state.get_pipeline_model_parallel_prev_rank())
            if self._graphs and length == 1:
                limit = min(-(-self._position // STRIDE) * STRIDE, self._max_tokens)
                leaving = self._graphs.run(entering, positions_S, limit)
            else:
                leaving = self._stage(entering, positions_S, self._position)
            if self._is_first and self._is_last:
                return leaving
            if not self._is_last:
                dist.send(leaving, parallel_state.get_pipeline_model_parallel_next_rank())
                leaving = torch.empty(batch, self._vocab_size, dtype=self._dtype, device=self._device)
            stages = parallel_state.get_pipeline_model_parallel_group()
            dist.broadcast(leaving, parallel_state.get_pipeline_model_parallel_last_rank(), stages)
            return leaving

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone, in this order."""
        with torch.inference_mode(), torch._C.DisableTorchFunction():
            # Within the same buffer, which the graphs know.
            past = self._cache[..., : self._position, :]
            past[:, : len(rows)] = past[:, torch.tensor(rows, device=self._device)]

    def _stage(self, entering: Tensor, positions_S: Tensor, limit: int, is_exact: bool = True) -> Tensor:
        """This rank's layers: ids [B, S] or hidden states [B, S, H] in, hidden states or the last logits [B, V] out.

        Args:
            limit: how much of the cache is looked at.
            is_exact: the last of the positions is ``limit - 1``; else what lies behind it is masked.
        """
        hidden_BSH = entering
        if self._is_first:
            hidden_BSH = F.embedding(entering, self._words)
            if self._places is not None:
                hidden_BSH += self._places[positions_S]
        turn = visible = None
        if self._rotation is not None:
            turn = [table[positions_S][:, None, None] for table in self._rotation]  # [S, 1, 1, D]
        if not is_exact or 1 < len(positions_S) < limit:
            visible = torch.arange(limit, device=self._device) <= positions_S[:, None]  # [S, L]
        for layer, cache in zip(self._layers, self._cache, strict=True):
            qkv = layer.qkv(self._normalized(hidden_BSH, layer.attention_norm))
            context = self._attended(qkv, cache, positions_S, limit, is_exact, turn, visible)
            hidden_BSH += self._summed(layer.projection(context))
            wide = layer.up(self._normalized(hidden_BSH, layer.feed_forward_norm))
            if self._is_gated:
                gate, wide = wide.chunk(2, dim=-1)
                wide = F.silu(gate).mul_(wide)
            hidden_BSH += self._summed(layer.down(wide))
        if not self._is_last:
            return hidden_BSH
        return self._gathered(self._output(self._normalized(hidden_BSH[:, -1], self._final_norm)), -1)

    def _attended(
        self,
        qkv: Tensor,
        cache: Tensor,
        positions_S: Tensor,
        limit: int,
        is_exact: bool,
        turn: list[Tensor] | None,
        visible: Tensor | None,
    ) -> Tensor:
        """What the queries gather from the cache, [B, S, heads of this rank x D], once keys and values are in it."""
        batch, length, _ = qkv.shape
        heads = self._heads_per_group
        qkv_BSGRD = qkv.view(batch, length, self._groups, heads + 2, -1)  # of each group: its queries, a key, a value
        if turn is not None:
            turned = qkv_BSGRD[..., : heads + 1, :]
            halves_swapped = turned.roll(turned.shape[-1] // 2, -1)
            turned.mul_(turn[0]).addcmul_(halves_swapped, turn[1])
        cache, new = cache[:batch, :, :, :limit], qkv_BSGRD[..., heads:, :].permute(0, 2, 3, 1, 4)
        if is_exact:
            cache[:, :, :, limit - length :] = new
        else:
            cache.index_copy_(3, positions_S, new)  # where, only the device knows
        keys_BGLD, values_BGLD = cache.unbind(2)
        if length == 1:  # all heads of a group look at the same keys: as if they were several queries
            query_BGRD = qkv_BSGRD[:, 0, :, :heads]
            context = F.scaled_dot_product_attention(query_BGRD, keys_BGLD, values_BGLD, visible)
            return context.reshape(batch, 1, -1)
        query = qkv_BSGRD[..., :heads, :].flatten(2, 3).transpose(1, 2)
        context = F.scaled_dot_product_attention(
            query, keys_BGLD, values_BGLD, visible, is_causal=visible is None, enable_gqa=heads > 1
        )
        return context.transpose(1, 2).reshape(batch, length, -1)

    def _normalized(self, hidden: Tensor, norm: "_Norm") -> Tensor:
        if norm.bias is None:
            return torch.rms_norm(hidden, (self._hidden_size,), norm.weight, self._eps)
        return torch.layer_norm(hidden, (self._hidden_size,), norm.weight, norm.bias, self._eps)

    def _summed(self, part: Tensor) -> Tensor:
        """The sum over the tensor-parallel ranks, among which the inputs of a linear layer are split."""
        if self._ranks > 1:
            dist.all_reduce(part, group=self._tensor_group)
        return part

    def _gathered(self, part: Tensor, dim: int) -> Tensor:
        """The parts of all tensor-parallel ranks put together."""
        if self._ranks == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self._ranks)]
        dist.all_gather(parts, part.contiguous(), group=self._tensor_group)
        return torch.cat(parts, dim)

    def _read_layer(self, layer: torch.nn.Module, batch_size: int) -> "_Layer":
        attention, feed_forward = layer.self_attention, layer.mlp
        is_first_rank = self._tensor_group.rank() == 0

        def read(linear: torch.nn.Module, *, is_summed: bool = False, gelu: bool = False) -> Callable[[Tensor], Tensor]:
            # The bias of a layer whose outputs are summed over ranks is added on one of them.
            bias = _detached(linear.bias) if is_first_rank or not is_summed else None
            return _linear(linear.weight.detach(), bias, batch_size, gelu=gelu)

        return _Layer(
            _norm_before(layer.input_layernorm, attention.linear_qkv),
            read(attention.linear_qkv),
            read(attention.linear_proj, is_summed=True),
            _norm_before(layer.pre_mlp_layernorm, feed_forward.linear_fc1),
            read(feed_forward.linear_fc1, gelu=not self._is_gated),
            read(feed_forward.linear_fc2, is_summed=True),
        )


class _Norm(NamedTuple):
    """The parameters of a norm."""

    weight: Tensor
    bias: Tensor | None


class _Layer(NamedTuple):
    """One transformer layer on this rank."""

    attention_norm: _Norm
    qkv: Callable[[Tensor], Tensor]
    projection: Callable[[Tensor], Tensor]
    feed_forward_norm: _Norm
    up: Callable[[Tensor], Tensor]  # and its GELU, where it is not gated
    down: Callable[[Tensor], Tensor]


def _norm(norm: torch.nn.Module) -> _Norm:
    return _Norm(norm.weight.detach(), _detached(getattr(norm, "bias", None)))


def _norm_before(norm: torch.nn.Module, linear: torch.nn.Module) -> _Norm:
    """A norm of its own, or Transformer Engine's within the linear layer behind it."""
    if getattr(linear, "layer_norm_weight", None) is not None:
        return _Norm(linear.layer_norm_weight.detach(), _detached(getattr(linear, "layer_norm_bias", None)))
    return _norm(norm)


def _linear(weight: Tensor, bias: Tensor | None, batch_size: int, gelu: bool = False) -> Callable[[Tensor], Tensor]:
    """A linear layer by what multiplies ``batch_size`` rows fastest on this device, and GELU behind it if wanted."""
    grows = weight.shape[0] >= weight.shape[1]
    if weight.device.type != "cpu":
        return (lambda x: F.gelu(F.linear(x, weight, bias))) if gelu else (lambda x: F.linear(x, weight, bias))
    # Of one row oneDNN is faster only in a large matrix that has more inputs than outputs, or a GELU behind it.
    can_pack = weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if can_pack and (batch_size > 1 or (weight.numel() >= _LARGE and (gelu or not grows))):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, batch_size)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu" if gelu else "none", [], "none")
    if batch_size > 1 or grows:
        weight = weight.t().contiguous().t()  # in the memory order in which the BLAS multiplies so few rows fastest
    return (lambda x: F.gelu(F.linear(x, weight, bias))) if gelu else (lambda x: F.linear(x, weight, bias))


def _detached(tensor: Tensor | None) -> Tensor | None:
    # Transformer Engine has an empty tensor where there is no bias.
    return None if tensor is None or not tensor.numel() else tensor.detach()


def _rotation(inv_freq: Tensor, max_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines, and sines with the sign for swapped halves, of rotary positions, [max_tokens, D] each."""
    angles = torch.outer(torch.arange(max_tokens, dtype=inv_freq.dtype, device=inv_freq.device), inv_freq)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], 1).to(dtype), torch.cat([-sin, sin], 1).to(dtype)
