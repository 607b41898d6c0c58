"""The names of stable-audio-tools, as the published checkpoint has them, to diffusers' and back."""

import pytest
import torch
from tiny_flow import SIZE, oracle

from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sizes import DIT_SIZES
from megatron_music.config.sections import ParallelConfig
from megatron_music.models.conditioners import AudioConditions
from megatron_music.models.diffusers_weights import dit_shapes
from megatron_music.models.flow_transformer import flow_config
from megatron_music.models.stable_audio_tools_weights import (
    dit_of_checkpoint,
    from_diffusers_names,
    seconds_of_checkpoint,
    to_diffusers_names,
)
from megatron_music.parallel import distributed

# Of the published model_config.json: 24 layers of 1536, 64 channels, tokens of 768, a global vector of 1536.
PUBLISHED = {
    "timestep_features.weight": (128, 1),
    "to_timestep_embed.0.weight": (1536, 256),
    "to_cond_embed.2.weight": (768, 768),
    "to_global_embed.0.weight": (1536, 1536),
    "preprocess_conv.weight": (64, 64, 1),
    "transformer.project_in.weight": (1536, 64),
    "transformer.project_out.weight": (64, 1536),
    "transformer.rotary_pos_emb.inv_freq": (16,),
    "transformer.layers.23.pre_norm.gamma": (1536,),
    "transformer.layers.0.self_attn.to_qkv.weight": (4608, 1536),
    "transformer.layers.0.cross_attn.to_kv.weight": (1536, 768),
    "transformer.layers.0.ff.ff.0.proj.weight": (12288, 1536),
    "transformer.layers.0.ff.ff.2.bias": (1536,),
}


def test_the_published_shape():
    size = DIT_SIZES["stable-audio-open"]
    shapes = dit_shapes(size)
    with torch.device("meta"):
        theirs = from_diffusers_names(size, {name: torch.empty(shape) for name, shape in shapes.items()})
    assert {name: tuple(theirs[name].shape) for name in PUBLISHED} == PUBLISHED
    assert sum(value.numel() for value in theirs.values()) == 1_056_939_136 + 16
    back = to_diffusers_names(size, theirs)
    assert {name: tuple(value.shape) for name, value in back.items()} == shapes


def test_there_and_back_changes_no_bit():
    state = oracle().state_dict()
    theirs = from_diffusers_names(SIZE, state)
    assert torch.equal(
        theirs["transformer.layers.1.self_attn.to_qkv.weight"][64:128], state["transformer_blocks.1.attn1.to_k.weight"]
    )
    back = to_diffusers_names(SIZE, theirs)
    assert back.keys() == state.keys() and all(torch.equal(back[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("transformer.project_in.weight"), "project_in.weight is missing"),
        (
            lambda state: state.update({"transformer.layers.0.self_attn.q_norm.weight": torch.zeros(1)}),
            "1 tensors are unknown, first",
        ),
        (
            lambda state: state.update({"transformer.layers.0.cross_attn.to_kv.weight": torch.zeros(2, 2)}),
            "which no DiT of this size has",
        ),
    ],
)
def test_others_are_refused(damage, sentence):
    theirs = from_diffusers_names(SIZE, oracle().state_dict())
    damage(theirs)
    with pytest.raises(ConfigError, match=sentence):
        to_diffusers_names(SIZE, theirs)


def test_a_whole_checkpoint_has_its_parts():
    theirs = from_diffusers_names(SIZE, oracle().state_dict())
    whole = {f"model.model.{name}": value for name, value in theirs.items()}
    for name in ("seconds_start", "seconds_total"):
        place = f"conditioner.conditioners.{name}.embedder.embedding"
        width = SIZE.context_input_size
        whole |= {
            f"{place}.0.weights": torch.randn(128),
            f"{place}.1.weight": torch.randn(width, 257),
            f"{place}.1.bias": torch.randn(width),
        }
    whole["pretransform.model.encoder.layers.0.bias"] = torch.zeros(3)
    assert dit_of_checkpoint(whole).keys() == theirs.keys()
    seconds = seconds_of_checkpoint(SIZE, whole)
    distributed.start(ParallelConfig())
    try:
        ours = AudioConditions(flow_config(SIZE, ParallelConfig(), torch.float32, None), SIZE)
    finally:
        distributed.stop()
    missing, unexpected = ours.load_state_dict(seconds, strict=False)
    assert not unexpected and all(name.startswith("music.") for name in missing)
    with pytest.raises(ConfigError, match=r"the unknown part other.weight"):
        dit_of_checkpoint(whole | {"other.weight": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"nothing under model\.model\."):
        dit_of_checkpoint({})
    del whole["conditioner.conditioners.seconds_total.embedder.embedding.1.bias"]
    with pytest.raises(ConfigError, match=r"1\.bias is missing"):
        seconds_of_checkpoint(SIZE, whole)
