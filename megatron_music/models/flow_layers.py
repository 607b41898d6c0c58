"""The layer of both text-to-music models: self-attention, attention to a context, feed-forward.

Shapes: B samples, S positions, T tokens of the context, C their width.
"""

import copy
from dataclasses import dataclass

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.mappings import copy_to_tensor_model_parallel_region
from megatron.core.transformer.attention import (
    Attention,
    CrossAttentionSubmodules,
    SelfAttention,
    SelfAttentionSubmodules,
)
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)
from torch import Tensor

from megatron_music.config.flow_sizes import MODULATIONS
from megatron_music.models.layers import (
    ColumnLinear,
    RowLinear,
    SDPACoreAttention,
    SequenceParallelNorm,
    feed_forward,
)


@dataclass
class FlowTransformerConfig(TransformerConfig):
    """megatron-core's description of a model, and what it has no words for."""

    context_size: int = 0  # of the tokens that the layers attend to
    num_context_groups: int = 0  # heads for their keys and values
    attention_bias: bool = True
    # Tells finalize_model_grads to add up the gradients of the stages' copies of what embeds the context.
    has_cond_embedder: bool = True


def _of_attention(config: FlowTransformerConfig) -> FlowTransformerConfig:
    config = copy.copy(config)
    config.add_bias_linear = config.attention_bias
    return config


class OwnAttention(SelfAttention):
    """megatron-core's self-attention, with or without biases whatever the feed-forward layer has."""

    def __init__(self, config: FlowTransformerConfig, **options):
        super().__init__(config=_of_attention(config), **options)


class ContextAttention(Attention):
    """Attention to a context [T, B, C] of another width, with as many heads for its keys and values as it has room for.

    megatron-core's CrossAttention takes neither. The context lies whole on every tensor-parallel rank, also under
    sequence parallelism, so its length need not be divisible; its gradient is complete on each of them.
    """

    def __init__(
        self,
        config: FlowTransformerConfig,
        submodules: CrossAttentionSubmodules,
        layer_number: int,
        attn_mask_type: AttnMaskType = AttnMaskType.padding,
        **options,
    ):
        config = _of_attention(config)
        config.num_query_groups = config.num_context_groups
        super().__init__(
            config=config,
            submodules=submodules,
            layer_number=layer_number,
            attn_mask_type=attn_mask_type,
            attention_type="cross",
            **options,
        )
        self.place_in_stage = 0  # FlowTransformer says which
        whole = copy.copy(config)
        whole.sequence_parallel = False
        linear_options = {
            "init_method": config.init_method,
            "gather_output": False,
            "bias": config.add_bias_linear,
            "skip_bias_add": False,
            "is_expert": False,
            "tp_group": self.pg_collection.tp,
        }
        self.linear_q = submodules.linear_q(
            config.hidden_size, self.query_projection_size, config=config, **linear_options
        )
        self.linear_kv = submodules.linear_kv(
            config.context_size, 2 * self.kv_projection_size, config=whole, **linear_options
        )

    def key_values(self, context_TBC: Tensor) -> Tensor:
        """Keys and values of the context, [T, B, both of each head of this rank]."""
        return self.linear_kv(context_TBC)[0]

    def get_query_key_value_tensors(
        self, hidden_states: Tensor, key_value_states: Tensor, **unused
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the positions, keys and values of the context: [S or T, B, heads of this rank, head size].

        Args:
            key_value_states: the context [T, B, C]; or, with one dimension more, what ``key_values`` made of it in each
                layer of this stage.
        """
        size = self.hidden_size_per_attention_head
        query = self.linear_q(hidden_states)[0]
        if key_value_states.dim() == 4:
            key_value = key_value_states[self.place_in_stage]
        else:
            key_value = self.key_values(key_value_states)
        key, value = key_value.unflatten(-1, (self.num_query_groups_per_partition, 2 * size)).chunk(2, dim=-1)
        return query.unflatten(-1, (self.num_attention_heads_per_partition, size)), key, value


class Modulation(torch.nn.Module):
    """A layer's own part of what scales, shifts and gates it, which adds to the part that all layers share."""

    def __init__(self, config: FlowTransformerConfig):
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        size = MODULATIONS * config.hidden_size
        self.weight = torch.nn.Parameter(torch.zeros(size, dtype=config.params_dtype, device=device))
        self.is_cut = config.sequence_parallel

    def forward(self, shared_BM: Tensor) -> tuple[Tensor, ...]:
        """Scale, shift and gate of attention, then of the feed-forward layer, each [B, H]."""
        found_BM = self.weight + shared_BM
        if self.is_cut:  # each rank has some of the positions, and its gradient is a part
            found_BM = copy_to_tensor_model_parallel_region(found_BM)
        return found_BM.chunk(MODULATIONS, dim=-1)


class ModulatedNorm(SequenceParallelNorm):
    """A norm whose output is scaled and shifted, sample by sample."""

    scale_BH = shift_BH = None  # ModulatedLayer says which

    def forward(self, hidden_SBH: Tensor, **unused) -> Tensor:
        return super().forward(hidden_SBH) * (1 + self.scale_BH) + self.shift_BH


class GatedAdd(torch.nn.Module):
    """The sum of a branch with what went into it, the branch times sigmoid(1 - gate); in the place of
    ``get_bias_dropout_add``.
    """

    gate_BH = None  # ModulatedLayer says which

    def forward(self, training: bool, fused: bool):
        def add(branch_and_bias: tuple[Tensor, Tensor | None], before_SBH: Tensor, dropout: float) -> Tensor:
            branch_SBH, bias_H = branch_and_bias
            branch_SBH = branch_SBH if bias_H is None else branch_SBH + bias_H
            return before_SBH + branch_SBH * torch.sigmoid(1 - self.gate_BH)

        return add


class ModulatedLayer(TransformerLayer):
    """The layer with adaptive norms.

    What modulates all layers comes with the context, behind its tokens, in as many further ones as it fills: that is
    the one input besides positions which recomputation and the schedules of the pipeline hand on with its gradient.
    """

    def __init__(self, config: FlowTransformerConfig, submodules: TransformerLayerSubmodules, **options):
        super().__init__(config=config, submodules=submodules, **options)
        self.modulation = Modulation(config)

    def forward(self, hidden_states: Tensor, *, context: Tensor, **options):
        """See TransformerLayer; context [T + ``modulation_tokens``, B, C]."""
        context_TBC, shared_NBC = context.tensor_split([len(context) - modulation_tokens(self.config)])
        scales = self.modulation(shared_NBC.transpose(0, 1).flatten(1))
        self.input_layernorm.scale_BH, self.input_layernorm.shift_BH, self.self_attn_bda.gate_BH = scales[:3]
        self.pre_mlp_layernorm.scale_BH, self.pre_mlp_layernorm.shift_BH, self.mlp_bda.gate_BH = scales[3:]
        hidden_SBH, _ = super().forward(hidden_states, context=context_TBC, **options)
        return hidden_SBH, context  # the next layer's, whole


def modulation_tokens(config: FlowTransformerConfig) -> int:
    """How many tokens of the context what modulates the layers is as long as."""
    return MODULATIONS * config.hidden_size // config.context_size


def flow_layer(has_self_attention: bool, is_modulated: bool) -> ModuleSpec:
    """The layer: self-attention if asked for, attention to the context, feed-forward; with adaptive norms if
    asked for.
    """
    norm, add = (ModulatedNorm, GatedAdd) if is_modulated else (SequenceParallelNorm, get_bias_dropout_add)
    own = {
        "input_layernorm": norm,
        "self_attention": ModuleSpec(
            module=OwnAttention,
            params={"attn_mask_type": AttnMaskType.no_mask},
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnLinear,
                core_attention=SDPACoreAttention,
                linear_proj=RowLinear,
                q_layernorm=IdentityOp,
                k_layernorm=IdentityOp,
            ),
        ),
        "self_attn_bda": add,
    }
    return ModuleSpec(
        module=ModulatedLayer if is_modulated else TransformerLayer,
        submodules=TransformerLayerSubmodules(
            **(own if has_self_attention else {}),
            pre_cross_attn_layernorm=SequenceParallelNorm,
            cross_attention=ModuleSpec(
                module=ContextAttention,
                submodules=CrossAttentionSubmodules(
                    linear_q=ColumnLinear,
                    linear_kv=ColumnLinear,
                    core_attention=SDPACoreAttention,
                    linear_proj=RowLinear,
                ),
            ),
            cross_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=norm,
            mlp=feed_forward,
            mlp_bda=add,
        ),
    )
