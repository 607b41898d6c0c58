"""The GPT's weights under the names and in the shapes of three models of Hugging Face's transformers, and back.

A form is such a model: GPT-2, GPT-NeoX or Llama. Which of them a ModelConfig has follows from its fields; tensors are
cut, joined and turned, never computed with, so that the way there and back changes no bit. Knows names and shapes
alone: neither files nor transformers.

megatron-core keeps the rows of ``linear_qkv`` group by group: the queries of a group, its key, its value; and those of
a gated ``linear_fc1`` as the gate's, then the others'. These are the weights of one process, without tensor
parallelism.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_music.config.errors import ConfigError, either
from megatron_music.config.sections import ModelConfig

_QKV, _FC1 = "self_attention.linear_qkv", "mlp.linear_fc1"
_LINEAR = (_QKV, "self_attention.linear_proj", _FC1, "mlp.linear_fc2")
_NORMS = ("input_layernorm", "pre_mlp_layernorm")
_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)\.(weight|bias)")


@dataclass(frozen=True)
class Form:
    """A model of transformers.

    Args:
        class_name: with its head, e.g. ``LlamaForCausalLM``.
        model_type: as config.json has it.
        needs: our fields that must be so.
        has_groups: fewer heads for keys and values than for queries are possible.
        layers: the name of a layer, before its number.
        names: ours to theirs; within a layer, or else whole. Several where theirs are apart.
        is_turned: linear weights are [inputs, outputs].
        is_grouped: queries, keys and values lie as megatron-core's do.
    """

    class_name: str
    model_type: str
    needs: dict
    has_groups: bool
    layers: str
    names: dict[str, tuple[str, ...]] = field(repr=False)
    is_turned: bool = False
    is_grouped: bool = False

    @property
    def embedding_name(self) -> str:
        """The weight of the embedding of tokens."""
        return f"{self.names['embedding.word_embeddings'][0]}.weight"

    @property
    def output_name(self) -> str:
        """The weight of the output layer."""
        return f"{self.names['output_layer'][0]}.weight"


FORMS = (
    Form(
        class_name="GPT2LMHeadModel",
        model_type="gpt2",
        needs={
            "position_embedding_type": "learned_absolute",
            "normalization": "LayerNorm",
            "swiglu": False,
            "add_bias_linear": True,
        },
        has_groups=False,
        is_turned=True,
        layers="transformer.h",
        names={
            "embedding.word_embeddings": ("transformer.wte",),
            "embedding.position_embeddings": ("transformer.wpe",),
            "decoder.final_layernorm": ("transformer.ln_f",),
            "output_layer": ("lm_head",),
            "input_layernorm": ("ln_1",),
            "self_attention.linear_qkv": ("attn.c_attn",),
            "self_attention.linear_proj": ("attn.c_proj",),
            "pre_mlp_layernorm": ("ln_2",),
            "mlp.linear_fc1": ("mlp.c_fc",),
            "mlp.linear_fc2": ("mlp.c_proj",),
        },
    ),
    Form(
        class_name="GPTNeoXForCausalLM",
        model_type="gpt_neox",
        needs={
            "position_embedding_type": "rope",
            "normalization": "LayerNorm",
            "swiglu": False,
            "add_bias_linear": True,
        },
        has_groups=False,
        is_grouped=True,
        layers="gpt_neox.layers",
        names={
            "embedding.word_embeddings": ("gpt_neox.embed_in",),
            "decoder.final_layernorm": ("gpt_neox.final_layer_norm",),
            "output_layer": ("embed_out",),
            "input_layernorm": ("input_layernorm",),
            "self_attention.linear_qkv": ("attention.query_key_value",),
            "self_attention.linear_proj": ("attention.dense",),
            "pre_mlp_layernorm": ("post_attention_layernorm",),
            "mlp.linear_fc1": ("mlp.dense_h_to_4h",),
            "mlp.linear_fc2": ("mlp.dense_4h_to_h",),
        },
    ),
    Form(
        class_name="LlamaForCausalLM",
        model_type="llama",
        needs={"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True},
        has_groups=True,
        layers="model.layers",
        names={
            "embedding.word_embeddings": ("model.embed_tokens",),
            "decoder.final_layernorm": ("model.norm",),
            "output_layer": ("lm_head",),
            "input_layernorm": ("input_layernorm",),
            "self_attention.linear_qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attention.linear_proj": ("self_attn.o_proj",),
            "pre_mlp_layernorm": ("post_attention_layernorm",),
            "mlp.linear_fc1": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.linear_fc2": ("mlp.down_proj",),
        },
    ),
)


def form_of(model: ModelConfig) -> Form:
    """The form that computes what this model computes.

    Raises:
        ConfigError: there is none; the sentence names the nearest and what it needs.
    """
    nearest = min(FORMS, key=lambda form: len(_against(model, form)))
    against = _against(model, nearest)
    if against:
        found = " and ".join(f"model.{name}={_word(getattr(model, name))}" for name in against)
        wanted = " ".join(f"model.{name}={_word(value)}" for name, value in against.items())
        raise ConfigError(
            f"a model with {found} has no form in transformers; the nearest is {nearest.class_name}, for which train "
            f"one "
            f"with {wanted}"
        )
    return nearest


def form_named(model_type: str, where: str) -> Form:
    """The form of a ``model_type`` of config.json.

    Raises:
        ConfigError: another kind of model.
    """
    for form in FORMS:
        if form.model_type == model_type:
            return form
    raise ConfigError(
        f"{where} is a model of the type {model_type!r}; use {either([form.model_type for form in FORMS])}"
    )


def to_huggingface(model: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of our model as its form has them.

    Args:
        weights: by the names of GPTModel with ``specs.gpt_layer``; all of them.

    Returns:
        By the form's names, contiguous; without an output layer where it is the embedding.

    Raises:
        ConfigError: the model has no form.
    """
    form, found = form_of(model), {}
    for name in _names(model):
        theirs = _their_names(form, name)
        parts = _cut(weights[name], name, model, form)
        if len(theirs) == 1:
            parts = [torch.cat(parts)] if len(parts) > 1 else parts
        for their_name, part in zip(theirs, parts, strict=True):
            part = (part.t() if _turns(form, name) else part).contiguous()
            # safetensors takes no view of a part of another tensor.
            is_view = part.untyped_storage().nbytes() != part.nbytes
            found[their_name] = part.clone() if is_view else part
    return found


def from_huggingface(model: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``to_huggingface`` gave, back under our names. The tensors must be those of the form, in number and
    shape.
    """
    form, found = form_of(model), {}
    for name in _names(model):
        parts = [tensors[their_name] for their_name in _their_names(form, name)]
        if _turns(form, name):
            parts = [part.t() for part in parts]
        found[name] = _join(parts, name, model, form).contiguous()
    return found


def _against(model: ModelConfig, form: Form) -> dict:
    """Our fields that the form cannot have, with what it needs instead."""
    against = {name: value for name, value in form.needs.items() if getattr(model, name) != value}
    if not form.has_groups and model.num_query_groups != model.num_attention_heads:
        against["num_query_groups"] = model.num_attention_heads
    return against


def _word(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _names(model: ModelConfig) -> Iterator[str]:
    """Every parameter of our model."""
    norm = ("weight", "bias") if model.normalization == "LayerNorm" else ("weight",)
    linear = ("weight", "bias") if model.add_bias_linear else ("weight",)
    yield "embedding.word_embeddings.weight"
    if model.position_embedding_type == "learned_absolute":
        yield "embedding.position_embeddings.weight"
    for layer in range(model.num_layers):
        for places, kinds in ((_NORMS, norm), (_LINEAR, linear)):
            yield from (f"decoder.layers.{layer}.{place}.{kind}" for place in places for kind in kinds)
    yield from (f"decoder.final_layernorm.{kind}" for kind in norm)
    if not model.share_embeddings_and_output_weights:
        yield "output_layer.weight"


def _their_names(form: Form, name: str) -> list[str]:
    inside = _IN_LAYER.fullmatch(name)
    if inside:
        layer, place, kind = inside.groups()
        return [f"{form.layers}.{layer}.{their_place}.{kind}" for their_place in form.names[place]]
    place, _, kind = name.rpartition(".")
    return [f"{their_place}.{kind}" for their_place in form.names[place]]


def _turns(form: Form, name: str) -> bool:
    return form.is_turned and name.endswith(tuple(f"{place}.weight" for place in _LINEAR))


def _cut(tensor: Tensor, name: str, model: ModelConfig, form: Form) -> list[Tensor]:
    """Into queries, keys and values, or gate and rest; else whole."""
    if _QKV in name and not form.is_grouped:
        per_group = model.num_attention_heads // model.num_query_groups
        groups = tensor.unflatten(0, (model.num_query_groups, per_group + 2, -1))
        parts = groups[:, :per_group], groups[:, per_group : per_group + 1], groups[:, per_group + 1 :]
        return [part.flatten(0, 2) for part in parts]
    if _FC1 in name and model.swiglu:
        return list(tensor.chunk(2))
    return [tensor]


def _join(parts: list[Tensor], name: str, model: ModelConfig, form: Form) -> Tensor:
    if _QKV in name and not form.is_grouped:
        if len(parts) == 1:
            parts = parts[0].chunk(3)
        head_size = model.hidden_size // model.num_attention_heads
        return torch.cat([part.unflatten(0, (model.num_query_groups, -1, head_size)) for part in parts], dim=1).flatten(
            0, 2
        )
    return torch.cat(parts) if len(parts) > 1 else parts[0]
