"""Layer specs for megatron-core: which module fills which place of a transformer layer.

``gpt_layer`` is a module-level value, so that ``--spec megatron_music.models.specs gpt_layer`` finds it in Megatron-LM.
"""

from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnBackend, AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import (
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    TransformerLayer,
    TransformerLayerSubmodules,
)

from megatron_music.models.layers import (
    ColumnLinear,
    RowLinear,
    SDPACoreAttention,
    SequenceParallelNorm,
    feed_forward,
)
from megatron_music.parallel.backends import why_no_transformer_engine

gpt_layer = ModuleSpec(
    module=TransformerLayer,
    submodules=TransformerLayerSubmodules(
        input_layernorm=SequenceParallelNorm,
        self_attention=ModuleSpec(
            module=SelfAttention,
            params={"attn_mask_type": AttnMaskType.causal},
            submodules=SelfAttentionSubmodules(
                linear_qkv=ColumnLinear,
                core_attention=SDPACoreAttention,
                linear_proj=RowLinear,
                q_layernorm=IdentityOp,
                k_layernorm=IdentityOp,
            ),
        ),
        self_attn_bda=get_bias_dropout_add,
        pre_mlp_layernorm=SequenceParallelNorm,
        mlp=feed_forward,
        mlp_bda=get_bias_dropout_add,
        # Transformer Engine fuses the norm into the linear layer behind it. Under its names, one checkpoint loads
        # with and without Transformer Engine.
        sharded_state_dict_keys_map={
            "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
            "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
        },
    ),
)


def why_own_layers(config: TransformerConfig, explicit_attention_mask: bool) -> str | None:
    """The reason why the GPT takes ``gpt_layer``, for a sentence; None where it takes Transformer Engine's layer.

    Raises:
        ConfigError: Transformer Engine is installed and cannot be imported.
    """
    if explicit_attention_mask:
        return "attention masks are given, which Transformer Engine's causal attention ignores"
    if config.attention_backend == AttnBackend.local:
        return "model.attention_backend is local"
    return why_no_transformer_engine()


def gpt_block(
    config: TransformerConfig,
    *,
    explicit_attention_mask: bool = False,
    vp_stage: int | None = None,
    pp_rank: int | None = None,
) -> TransformerBlockSubmodules:
    """The layers of this pipeline stage and the final norm: Transformer Engine's, unless ``why_own_layers`` names a
    reason.

    Args:
        config: with ``attention_backend`` local, the layers are ours on every machine.
        explicit_attention_mask: the model will be given attention masks.
        pp_rank: the pipeline stage; omitted: that of megatron-core's own groups.

    Raises:
        ConfigError: Transformer Engine is installed and cannot be imported.
    """
    layer, norm = gpt_layer, SequenceParallelNorm
    if why_own_layers(config, explicit_attention_mask) is None:
        from megatron.core.extensions.transformer_engine import TENorm
        from megatron.core.models.gpt.gpt_layer_specs import (
            get_gpt_layer_with_transformer_engine_spec,
        )

        layer, norm = get_gpt_layer_with_transformer_engine_spec(), TENorm
    return TransformerBlockSubmodules(
        layer_specs=[layer] * get_num_layers_to_build(config, vp_stage=vp_stage, pp_rank=pp_rank), layer_norm=norm
    )
