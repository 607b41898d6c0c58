"""The names of stable-audio-tools to those of diffusers and back, for the DiT and for what embeds its seconds.

A whole checkpoint of theirs holds the DiT under ``model.model.``, and beside it the autoencoder (``pretransform.``) and
the conditioners; the text encoder is not in it. Tensors are cut and joined, never computed with. Knows names and shapes
alone.
"""

import torch
from torch import Tensor

from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sizes import DiTSize
from megatron_music.models.diffusers_weights import dit_shapes

DIT, AUTOENCODER, CONDITIONERS = "model.model.", "pretransform.", "conditioner."
_SECONDS = "conditioner.conditioners.{name}.embedder.embedding."
_ENDS = {
    "timestep_features.weight": "time_proj.weight",
    **{
        f"to_timestep_embed.{place}.{kind}": f"timestep_proj.{place}.{kind}"
        for place in (0, 2)
        for kind in ("weight", "bias")
    },
    **{f"to_global_embed.{place}.weight": f"global_proj.{place}.weight" for place in (0, 2)},
    **{f"to_cond_embed.{place}.weight": f"cross_attention_proj.{place}.weight" for place in (0, 2)},
    "preprocess_conv.weight": "preprocess_conv.weight",
    "postprocess_conv.weight": "postprocess_conv.weight",
    "transformer.project_in.weight": "proj_in.weight",
    "transformer.project_out.weight": "proj_out.weight",
}
# Within a layer; several of diffusers' in one of theirs. A norm's beta is a buffer of zeros there.
_IN_LAYER = {
    **{
        f"{theirs}.{kind}": (f"{diffusers}.{same}",)
        for theirs, diffusers in (("pre_norm", "norm1"), ("cross_attend_norm", "norm2"), ("ff_norm", "norm3"))
        for kind, same in (("gamma", "weight"), ("beta", "bias"))
    },
    "self_attn.to_qkv.weight": ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"),
    "self_attn.to_out.weight": ("attn1.to_out.0.weight",),
    "cross_attn.to_q.weight": ("attn2.to_q.weight",),
    "cross_attn.to_kv.weight": ("attn2.to_k.weight", "attn2.to_v.weight"),
    "cross_attn.to_out.weight": ("attn2.to_out.0.weight",),
    **{f"ff.ff.0.proj.{kind}": (f"ff.net.0.proj.{kind}",) for kind in ("weight", "bias")},
    **{f"ff.ff.2.{kind}": (f"ff.net.2.{kind}",) for kind in ("weight", "bias")},
}
_ROTARY = "transformer.rotary_pos_emb.inv_freq"  # follows from the size


def dit_of_checkpoint(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The DiT's part of a whole checkpoint, under its own names.

    Raises:
        ConfigError: it has none, or parts that are unknown.
    """
    unknown = [name for name in sorted(tensors) if not name.startswith((DIT, AUTOENCODER, CONDITIONERS))]
    found = {name.removeprefix(DIT): value for name, value in tensors.items() if name.startswith(DIT)}
    if unknown or not found:
        what = f"the unknown part {unknown[0]}" if unknown else f"nothing under {DIT}"
        raise ConfigError(f"the checkpoint has {what}; use one of stable-audio-tools for Stable Audio Open 1.0")
    return found


def seconds_of_checkpoint(size: DiTSize, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What embeds seconds, under the names of our ``AudioConditions``.

    Raises:
        ConfigError: it is missing or has another shape.
    """
    found = {}
    for name in ("seconds_start", "seconds_total"):
        for theirs, ours in (("0.weights", "frequencies"), ("1.weight", "layer.weight"), ("1.bias", "layer.bias")):
            key = _SECONDS.format(name=name) + theirs
            tensor = tensors.get(key)
            if tensor is None or (ours != "frequencies" and tensor.shape[0] != size.context_input_size):
                what = (
                    "is missing"
                    if tensor is None
                    else f"is {list(tensor.shape)}, for tokens of {size.context_input_size}"
                )
                raise ConfigError(f"{key} {what}; use the checkpoint of a DiT of this size")
            found[f"{name}.{ours}"] = tensor
    return found


def to_diffusers_names(size: DiTSize, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The DiT's tensors as ``convert_dit.from_diffusers`` takes them.

    Raises:
        ConfigError: a tensor is missing, is one too many, or has another shape.
    """
    shapes, found, known = dit_shapes(size), {}, {_ROTARY}
    for theirs, names in _names(size):
        known.add(theirs)
        if theirs not in tensors:
            raise ConfigError(f"{theirs} is missing; use the weights of a DiT of this size")
        rows = [shapes[name][0] for name in names]
        tensor = tensors[theirs]
        tensor = tensor[:, 0] if theirs == "timestep_features.weight" and tensor.dim() == 2 else tensor
        if tuple(tensor.shape) != (sum(rows), *shapes[names[0]][1:]):
            raise ConfigError(
                f"{theirs} is {list(tensors[theirs].shape)}, which no DiT of this size has; use another size"
            )
        found |= {name: part.contiguous() for name, part in zip(names, tensor.split(rows), strict=True)}
    extra = sorted(tensors.keys() - known)
    if extra:
        raise ConfigError(
            f"{len(extra)} tensors are unknown, first {extra[0]}; use the weights of Stable Audio Open 1.0"
        )
    return found


def from_diffusers_names(size: DiTSize, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The way back, bit for bit, with the rotary frequencies that stable-audio-tools keeps."""
    found = {}
    for theirs, names in _names(size):
        found[theirs] = torch.cat([tensors[name] for name in names])
    found["timestep_features.weight"] = found["timestep_features.weight"][:, None]
    rotated = int(size.hidden_size // size.num_attention_heads * size.rotary_percent)
    found[_ROTARY] = 1 / 10_000 ** (torch.arange(0, rotated, 2).float() / rotated)
    return found


def _names(size: DiTSize):
    for theirs, name in _ENDS.items():
        yield theirs, (name,)
    for layer in range(size.num_layers):
        for theirs, names in _IN_LAYER.items():
            yield f"transformer.layers.{layer}.{theirs}", tuple(f"transformer_blocks.{layer}.{name}" for name in names)
