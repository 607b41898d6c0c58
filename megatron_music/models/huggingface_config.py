"""What transformers' config.json says of our models, and which of its models are ours: a ModelConfig there and back.

Names and values alone: knows neither files nor transformers, whose configurations are any objects with attributes here.
"""

from megatron_music.config.errors import refuse_unless
from megatron_music.config.sections import ModelConfig
from megatron_music.models.huggingface_weights import Form

_EPSILON = 1e-5  # megatron-core's, of both norms

# What must be so for our layers to compute the same.
_FIXED = {
    "gpt2": {
        "activation_function": "gelu",
        "layer_norm_epsilon": _EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "gpt_neox": {
        "hidden_act": "gelu",
        "layer_norm_eps": _EPSILON,
        "use_parallel_residual": False,
        "attention_bias": True,
    },
    "llama": {"hidden_act": "silu", "rms_norm_eps": _EPSILON},
}


def config_fields(model: ModelConfig, form: Form) -> tuple[dict, dict]:
    """The fields of the form's configuration, and those that versions of transformers before 5 read instead."""
    fields = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "max_position_embeddings": model.seq_length,
        "tie_word_embeddings": model.share_embeddings_and_output_weights,
        **_FIXED[form.model_type],
    }
    base, dropout = float(model.rotary_base), model.hidden_dropout
    rope = {"rope_type": "default", "rope_theta": base}
    if form.model_type == "gpt2":
        fields |= {"n_inner": model.ffn_hidden_size, "attn_pdrop": model.attention_dropout}
        return fields | {"resid_pdrop": dropout, "embd_pdrop": dropout}, {}
    fields |= {"intermediate_size": model.ffn_hidden_size, "attention_dropout": model.attention_dropout}
    if form.model_type == "gpt_neox":
        fields |= {"hidden_dropout": dropout, "rope_parameters": rope | {"partial_rotary_factor": 1.0}}
        return fields, {"rotary_pct": 1.0, "rotary_emb_base": base}
    fields |= {"num_key_value_heads": model.num_query_groups, "rope_parameters": rope}
    return fields | {"attention_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear}, {"rope_theta": base}


def model_of(config, form: Form, where: str) -> ModelConfig:
    """Our model of the form's configuration.

    Args:
        config: its attributes are as transformers 5 has them.
        where: its place, for the sentence.

    Raises:
        ConfigError: it says something that our layers do not compute.
    """
    wanted = dict(_FIXED[form.model_type])
    found = {name: getattr(config, name) for name in wanted}
    model = {
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "seq_length": config.max_position_embeddings,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "vocab_size": config.vocab_size,
        **form.needs,
    }
    if form.model_type == "gpt2":
        model |= {"ffn_hidden_size": config.n_inner or 4 * config.hidden_size}
        model |= {"attention_dropout": float(config.attn_pdrop), "hidden_dropout": float(config.resid_pdrop)}
    else:
        rope = config.rope_parameters
        wanted |= {"rope_type": "default", "partial_rotary_factor": 1.0}
        found |= {"rope_type": rope.get("rope_type"), "partial_rotary_factor": rope.get("partial_rotary_factor", 1.0)}
        base = float(rope["rope_theta"])
        refuse_unless(
            base.is_integer(), f"{where} has rope_theta={base}, where ours is a whole number; train a model with one"
        )
        model |= {"rotary_base": int(base), "ffn_hidden_size": config.intermediate_size}
        model |= {"attention_dropout": float(config.attention_dropout)}
    if form.model_type == "gpt_neox":
        model |= {"hidden_dropout": float(config.hidden_dropout)}
    if form.model_type == "llama":
        model |= {"num_query_groups": config.num_key_value_heads, "add_bias_linear": config.attention_bias}
        wanted |= {"mlp_bias": config.attention_bias, "head_dim": config.hidden_size // config.num_attention_heads}
        found |= {"mlp_bias": config.mlp_bias, "head_dim": config.head_dim}
    for name, value in wanted.items():
        refuse_unless(
            found[name] == value,
            f"{where} has {name}={found[name]!r}, where our layers have {value!r}; train a model with {name}={value!r}",
        )
    return ModelConfig(**model)
