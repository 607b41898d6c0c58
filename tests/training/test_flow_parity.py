"""The headline test of text to music: the same outputs and gradients however a model is split, and diffusers' own.

Right for the DiT are the gradients of diffusers' StableAudioDiTModel under the same weights; for stage 1 and for what
embeds conditions, which nobody else has, those of plain autograd on one process. Each layout goes through the engine
that trains GPTs, on megatron-core's schedules.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_1d_rotary_pos_embed
from flow_worker import DEEP, LAYOUTS, MODELS, ONE, run_layout
from tiny_flow import SIZE, batch, oracle, oracle_gradients, oracle_velocity
from tiny_gpt import launch

from megatron_music.config.sections import ParallelConfig
from megatron_music.flow.path import flow_loss
from megatron_music.models.diffusers_weights import from_diffusers
from megatron_music.parallel import distributed

WORKER = Path(__file__).parents[1] / "flow_worker.py"


def right_dit(size) -> dict:
    model = oracle(size)
    weights = from_diffusers(size, model.state_dict())
    gradients = from_diffusers(size, oracle_gradients(model, batch()))
    with torch.no_grad():
        return {"weights": weights, "gradients": gradients, "outputs": oracle_velocity(model, batch())}


def right_adaln() -> dict:
    """Of diffusers' modules, put together with adaptive norms by hand, as stable-audio-tools has them."""
    model = oracle()
    torch.manual_seed(6)
    width = SIZE.hidden_size
    layers = torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, 6 * width))
    own = [torch.nn.Parameter(0.3 * torch.randn(6 * width)) for _ in range(SIZE.num_layers)]
    found = adaln_velocity(model, layers, own, batch())
    flow_loss(found, batch()["velocity"]).backward()

    def all_of(tensors: dict, of) -> dict:
        tensors = from_diffusers(SIZE, tensors)
        moved = {
            f"modulator.{name}" if name.startswith(("time", "global")) else name: value
            for name, value in tensors.items()
        }
        moved |= {f"modulator.layers.{name}": of(value) for name, value in layers.named_parameters()}
        return moved | {f"decoder.layers.{number}.modulation.weight": of(value) for number, value in enumerate(own)}

    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in model.named_parameters()
    }
    weights = all_of(model.state_dict(), lambda value: value.detach())
    return {"weights": weights, "gradients": all_of(gradients, lambda value: value.grad), "outputs": found.detach()}


def adaln_velocity(model, layers, own, given) -> torch.Tensor:
    rotary = get_1d_rotary_pos_embed(
        model.config.attention_head_dim // 2, given["noisy"].size(2), use_real=True, repeat_interleave_real=False
    )
    context = model.cross_attention_proj(given["context_BLC"])
    first = model.global_proj(given["global_BG"]) + model.timestep_proj(model.time_proj(given["sigma_B"]))
    shared = layers(first)
    hidden = model.proj_in((model.preprocess_conv(given["noisy"]) + given["noisy"]).transpose(1, 2))
    for block, vector in zip(model.transformer_blocks, own, strict=True):
        scale, shift, gate, other_scale, other_shift, other_gate = (shared + vector)[:, None].chunk(6, dim=-1)
        normed = block.norm1(hidden) * (1 + scale) + shift
        hidden = hidden + block.attn1(normed, rotary_emb=rotary) * torch.sigmoid(1 - gate)
        normed = block.norm2(hidden)
        mask = given["keeps_BL"]
        hidden = hidden + block.attn2(normed, encoder_hidden_states=context, attention_mask=mask)
        normed = block.norm3(hidden) * (1 + other_scale) + other_shift
        hidden = hidden + block.ff(normed) * torch.sigmoid(1 - other_gate)
    found = model.proj_out(hidden).transpose(1, 2)
    return model.postprocess_conv(found) + found


def right_own(name: str) -> dict:
    build, size, _, inputs = MODELS[name]
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    model, given = build(size, ParallelConfig()), inputs()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(scale * torch.randn_like(parameter) + (parameter if parameter.dim() == 1 else 0))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    velocity = given.pop("velocity")
    found = model(given.pop("noisy"), **given)
    flow_loss(found, velocity).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {"weights": weights, "gradients": gradients, "outputs": found.detach()}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("flow")
    torch.save(right_dit(SIZE), folder / "dit.pt")
    torch.save(right_dit(DEEP), folder / "deep.pt")
    torch.save(right_adaln(), folder / "adaln.pt")
    for name in ("conditioned", "text2muq"):
        torch.save(right_own(name), folder / f"{name}.pt")
    found = [run_layout(folder, *case) for case in LAYOUTS[1]]
    distributed.stop()
    for world_size in (2, 4):
        launch(world_size, WORKER, folder)
        found += json.loads((folder / f"results-{world_size}.json").read_text())
    norms = {}
    for model in MODELS:
        gradients = torch.load(folder / f"{model}.pt")["gradients"].values()
        norms[model] = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    return {(result["model"], result["layout"]): result for result in found} | {"norms": norms}


CASES = [(model, str(layout)) for layouts in LAYOUTS.values() for model, layout in layouts]


# Of trained parameters: outside the layers and in each.
NUMBERS = {
    "dit": 12 + 2 * 15,
    "deep": 12 + 4 * 15,
    "adaln": 16 + 2 * 16,
    "conditioned": 12 + 8 + 2 * 15,
    "text2muq": 8 + 2 * 20,
}


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_has_the_right_output_and_gradients(results, model, layout):
    found = results[model, layout]
    assert found["output"] < 1e-5
    assert {name: error for name, error in found["gradients"].items() if not error < 1e-5} == {}
    assert len(found["gradients"]) == NUMBERS[model]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_trains_the_same(results, model, layout):
    found, expected = results[model, layout], results[model, str(ONE)]
    assert found["grad_norm"][0] == pytest.approx(results["norms"][model], rel=1e-5)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-4)
    assert len(set(found["loss"])) == 3


@pytest.mark.parametrize(("model", "layout"), [case for case in CASES if case[0] != "text2muq"])
def test_stages_copies_stay_alike(results, model, layout):
    copies = results[model, layout]["copies"]
    assert len(copies) == {"adaln": 13, "conditioned": 10}.get(model, 2)
    assert all(len(digests) == 1 for digests in copies.values()), copies
