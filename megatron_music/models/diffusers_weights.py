"""The DiT's weights from and to those of diffusers' StableAudioDiTModel, and into any parallel layout.

Tensors are cut, joined and turned, never computed with. Knows names and shapes alone: neither files nor diffusers.

Of our tensors ``linear_qkv`` has the query, key and value of one head after another, ``linear_kv`` the key and value,
and ``linear_fc1`` the gate before what it gates; theirs lie apart, and the gate after.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch import Tensor
from torch.nn import Parameter

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.flow_sizes import DiTSize

# Ours to theirs, outside the layers.
_ENDS = {
    "time_frequencies": "time_proj.weight",
    **{
        f"{ours}.{place}.{kind}": f"{theirs}.{place}.{kind}"
        for ours, theirs, kinds in (
            ("time_embedder", "timestep_proj", ("weight", "bias")),
            ("global_embedder", "global_proj", ("weight",)),
            ("context_embedder", "cross_attention_proj", ("weight",)),
        )
        for place in (0, 2)
        for kind in kinds
    },
    "input_mixer.weight": "preprocess_conv.weight",
    "input_layer.weight": "proj_in.weight",
    "output_layer.weight": "proj_out.weight",
    "output_mixer.weight": "postprocess_conv.weight",
}
# Within a layer; several of theirs in one of ours.
_IN_LAYER = {
    **{
        f"{ours}.{kind}": (f"{theirs}.{kind}",)
        for ours, theirs in (
            ("input_layernorm", "norm1"),
            ("pre_cross_attn_layernorm", "norm2"),
            ("pre_mlp_layernorm", "norm3"),
            ("mlp.linear_fc1", "ff.net.0.proj"),
            ("mlp.linear_fc2", "ff.net.2"),
        )
        for kind in ("weight", "bias")
    },
    "self_attention.linear_qkv.weight": ("attn1.to_q.weight", "attn1.to_k.weight", "attn1.to_v.weight"),
    "self_attention.linear_proj.weight": ("attn1.to_out.0.weight",),
    "cross_attention.linear_q.weight": ("attn2.to_q.weight",),
    "cross_attention.linear_kv.weight": ("attn2.to_k.weight", "attn2.to_v.weight"),
    "cross_attention.linear_proj.weight": ("attn2.to_out.0.weight",),
}


def dit_shapes(size: DiTSize) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of diffusers' model of this size."""
    width, channels, context, inner = size.hidden_size, size.latent_channels, size.context_size, size.ffn_hidden_size
    shapes = {
        "time_proj.weight": (size.time_features // 2,),
        "timestep_proj.0.weight": (width, size.time_features),
        "timestep_proj.0.bias": (width,),
        "timestep_proj.2.weight": (width, width),
        "timestep_proj.2.bias": (width,),
        "global_proj.0.weight": (width, size.global_size),
        "global_proj.2.weight": (width, width),
        "cross_attention_proj.0.weight": (context, size.context_input_size),
        "cross_attention_proj.2.weight": (context, context),
        "preprocess_conv.weight": (channels, channels, 1),
        "proj_in.weight": (width, channels),
        "proj_out.weight": (channels, width),
        "postprocess_conv.weight": (channels, channels, 1),
    }
    layer = {f"norm{number}.{kind}": (width,) for number in (1, 2, 3) for kind in ("weight", "bias")}
    layer |= {f"attn1.{name}.weight": (width, width) for name in ("to_q", "to_k", "to_v", "to_out.0")}
    layer |= {f"attn2.{name}.weight": (width, width) for name in ("to_q", "to_out.0")}
    layer |= {f"attn2.{name}.weight": (context, context) for name in ("to_k", "to_v")}
    layer |= {"ff.net.0.proj.weight": (2 * inner, width), "ff.net.0.proj.bias": (2 * inner,)}
    layer |= {"ff.net.2.weight": (width, inner), "ff.net.2.bias": (width,)}
    for number in range(size.num_layers):
        shapes |= {f"transformer_blocks.{number}.{name}": shape for name, shape in layer.items()}
    return shapes


def from_diffusers(size: DiTSize, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Diffusers' tensors under our names, as one process holds them.

    Args:
        tensors: weights, or anything that lies as they do, such as their gradients.

    Raises:
        ConfigError: a tensor is missing, is one too many, or has another shape.
    """
    refuse_unless(
        not size.is_modulated, "diffusers' StableAudioDiTModel has no adaptive norms; use global_conditioning=prepend"
    )
    _check(size, tensors)
    found = {}
    for name, theirs in _names(size):
        parts = [tensors[their_name] for their_name in theirs]
        if len(parts) > 1:
            head_size = size.hidden_size // size.num_attention_heads
            parts = [part.unflatten(0, (-1, head_size)) for part in parts]
            tensor = torch.stack(parts, dim=1).flatten(0, 2)
        elif "linear_fc1" in name:
            tensor = _gate_swapped(parts[0])
        else:
            tensor = parts[0].squeeze(-1) if theirs[0].endswith("conv.weight") else parts[0]
        found[name] = tensor.contiguous()
    return found


def to_diffusers(size: DiTSize, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What ``from_diffusers`` gave, back under their names, bit for bit.

    Raises:
        ConfigError: a tensor is missing, is one too many, or has another shape.
    """
    names = dict(_names(size))
    _compare(set(names), set(tensors), "our DiT of this size")
    found = {}
    for name, theirs in names.items():
        tensor = tensors[name]
        if len(theirs) > 1:
            head_size = size.hidden_size // size.num_attention_heads
            tensor = tensor.unflatten(0, (-1, len(theirs), head_size))
            parts = [tensor[:, place].flatten(0, 1) for place in range(len(theirs))]
        elif "linear_fc1" in name:
            parts = [_gate_swapped(tensor)]
        else:
            parts = [tensor.unsqueeze(-1) if theirs[0].endswith("conv.weight") else tensor]
        found |= {their_name: part.contiguous() for their_name, part in zip(theirs, parts, strict=True)}
    _check(size, found)
    return found


def pieces(
    module, of: Callable[[Parameter], Tensor] = lambda parameter: parameter
) -> Iterator[tuple[str, tuple, Tensor]]:
    """What this rank holds of a model: each parameter's whole name, the slices of the whole tensor, and this piece of
    it.

    Args:
        module: a model of megatron-core; ``module.sharded_state_dict`` says which piece of what this rank has.
        of: what lies as a parameter does and is to be cut in its place, such as its gradient.

    Yields:
        The piece is a view: what is written into it changes the parameter.
    """
    for item in module.sharded_state_dict(metadata={"singleton_local_shards": False}).values():
        parameter = getattr(item, "data", None)
        if not isinstance(parameter, Parameter):
            continue
        item = replace(item, data=of(parameter))
        # Gate and the rest lie in one parameter, and apart in the whole.
        for part in item.build() if isinstance(item, ShardedTensorFactory) else [item]:
            name, slices = part.key, part.global_slice()
            if part.prepend_axis_num:  # the layer
                name = name.replace("layers.", f"layers.{part.global_offset[0]}.", 1)
                slices = slices[part.prepend_axis_num :]
            yield name, slices, part.data


@torch.no_grad()
def load_weights(module, weights: dict[str, Tensor]) -> None:
    """Put this rank's pieces of whole weights into a model.

    Raises:
        ConfigError: the model has another tensor, or one of another shape.
    """
    for name, slices, piece in pieces(module):
        whole = weights.get(name)
        if whole is None or whole[slices].shape != piece.shape:
            found = "nothing" if whole is None else f"{list(whole.shape)}"
            raise ConfigError(
                f"for {name}, of which this rank has {list(piece.shape)}, the weights have {found}; use others"
            )
        piece.copy_(whole[slices])


def _names(size: DiTSize) -> Iterator[tuple[str, tuple[str, ...]]]:
    for ours, theirs in _ENDS.items():
        yield ours, (theirs,)
    for layer in range(size.num_layers):
        for ours, theirs in _IN_LAYER.items():
            yield f"decoder.layers.{layer}.{ours}", tuple(f"transformer_blocks.{layer}.{name}" for name in theirs)


def _gate_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2)[::-1])


def _check(size: DiTSize, tensors: dict[str, Tensor]) -> None:
    shapes = dit_shapes(size)
    _compare(set(shapes), set(tensors), "StableAudioDiTModel of this size")
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape)
        if found != shape:
            raise ConfigError(
                f"{name} is {list(found)}, and in a model of this size it is {list(shape)}; use another size"
            )


def _compare(expected: set[str], found: set[str], model: str) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        kinds = ((missing, "missing"), (extra, "too many"))
        parts = [f"{len(names)} {word}, first {names[0]}" for names, word in kinds if names]
        raise ConfigError(
            f"the tensors are not those of {model}: {' and '.join(parts)}; use the weights of such a model"
        )
