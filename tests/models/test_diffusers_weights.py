"""Our DiT beside diffusers' StableAudioDiTModel: the same output and gradients, names and shapes held strictly."""

import pytest
import torch
from tiny_flow import SIZE, batch, oracle, oracle_gradients, oracle_velocity

from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sizes import DIT_SIZES
from megatron_music.config.sections import ParallelConfig
from megatron_music.flow.path import flow_loss
from megatron_music.models.diffusers_weights import (
    dit_shapes,
    from_diffusers,
    load_weights,
    pieces,
    to_diffusers,
)
from megatron_music.models.dit import build_dit
from megatron_music.parallel import distributed


@pytest.fixture
def ours():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    model = build_dit(SIZE, ParallelConfig())
    load_weights(model, from_diffusers(SIZE, oracle().state_dict()))
    yield model
    distributed.stop()


@pytest.mark.parametrize("with_mask", [False, True])
@torch.no_grad()
def test_the_output_is_diffusers_own(ours, with_mask):
    given = batch()
    expected = oracle_velocity(oracle(), given, with_mask)
    names = ("sigma_B", "context_BLC", "global_BG", *(["keeps_BL"] if with_mask else []))
    found = ours(given["noisy"], **{name: given[name] for name in names})
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_every_gradient_is_diffusers_own(ours):
    given = batch()
    expected = from_diffusers(SIZE, oracle_gradients(oracle(), given))
    velocity = given.pop("velocity")
    flow_loss(ours(given.pop("noisy"), **given), velocity).backward()
    compared = 0
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            error = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max()
            assert error < 1e-5, (name, error)
            compared += 1
    assert compared == 12 + 2 * 15 and len(list(ours.parameters())) == compared + 1  # the frequencies are fixed


def test_there_and_back_changes_no_bit():
    state = oracle().state_dict()
    back = to_diffusers(SIZE, from_diffusers(SIZE, state))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], value) for name, value in state.items())


def test_the_pieces_of_one_process_are_the_whole(ours):
    weights = from_diffusers(SIZE, oracle().state_dict())
    found = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    for name, slices, piece in pieces(ours):
        found[name][slices] = piece.detach()
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_the_published_shape_has_as_many_weights_by_their_names():
    size = DIT_SIZES["stable-audio-open"]
    assert sum(torch.Size(shape).numel() for shape in dit_shapes(size).values()) == 1_056_939_136


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda state: state.pop("proj_in.weight"), "1 missing, first proj_in.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 too many, first extra"),
        (
            lambda state: state.update({"norm_q.weight": torch.zeros(1)}) or state.pop("proj_out.weight"),
            "1 missing, first proj_out.weight and 1 too many, first norm_q.weight",
        ),
        (
            lambda state: state.update({"transformer_blocks.1.attn2.to_k.weight": torch.zeros(32, 64)}),
            r"transformer_blocks.1.attn2.to_k.weight is \[32, 64\], and in a model of this size it is \[32, 32\]",
        ),
    ],
)
def test_other_weights_are_refused(damage, sentence):
    state = dict(oracle().state_dict())
    damage(state)
    with pytest.raises(ConfigError, match=sentence):
        from_diffusers(SIZE, state)


def test_a_model_refuses_weights_of_another(ours):
    weights = from_diffusers(SIZE, oracle().state_dict())
    with pytest.raises(ConfigError, match=r"for input_layer.weight, of which .* \[64, 8\], the weights have nothing"):
        load_weights(ours, {name: value for name, value in weights.items() if name != "input_layer.weight"})
    with pytest.raises(ConfigError, match=r"too many, first decoder.layers.2"):
        to_diffusers(SIZE, weights | {"decoder.layers.2.mlp.linear_fc2.bias": torch.zeros(64)})
