"""Sampling of both stages: seeds, batches, guidance, what is given, and the memory that it takes."""

from dataclasses import replace

import pytest
import torch
from tiny_flow import SIZE, conditioned_batch, text2muq_batch
from torch.profiler import ProfilerActivity, profile

from megatron_music.config.flow_sizes import TEXT2MUQ_SIZES
from megatron_music.config.sections import ParallelConfig
from megatron_music.flow.guidance import Guided
from megatron_music.flow.noise import sample_noise
from megatron_music.flow.solver import solve
from megatron_music.generation.flow_sampling import (
    FlowSampler,
    batch_size_within,
    between,
    sample_bytes,
    sample_embeddings,
    sample_latents,
)
from megatron_music.models.conditioners import build_conditioned_dit
from megatron_music.models.text2muq import build_text2muq
from megatron_music.parallel import distributed

FRAMES = 12
FEW = FlowSampler(num_steps=6)


@pytest.fixture(scope="module")
def models():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    pair = [
        build_text2muq(TEXT2MUQ_SIZES["tiny"], ParallelConfig()).eval(),
        build_conditioned_dit(SIZE, ParallelConfig()).eval(),
    ]
    with torch.no_grad():
        for model in pair:  # layers that do more than hand their input on
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
    yield pair
    distributed.stop()


def words() -> tuple[dict, dict]:
    given = text2muq_batch()
    whole = {name: given[name] for name in ("context_BLC", "keeps_BL")}
    return whole, {"context_BLC": torch.zeros_like(whole["context_BLC"][:1]), "keeps_BL": whole["keeps_BL"][:1]}


def conditions() -> tuple[dict, dict]:
    given = conditioned_batch()
    for name in ("noisy", "velocity", "sigma_B"):
        del given[name]
    null = {name: value[:1].clone().zero_() for name, value in given.items()}
    return given, null


def rows(condition: dict, places: list[int]) -> dict:
    return {name: value[places] for name, value in condition.items()}


def test_an_embedding_does_not_depend_on_its_batch(models):
    whole, null = words()
    together = sample_embeddings(models[0], whole, null, 7, [0, 1, 2, 3], FEW)
    again = sample_embeddings(models[0], whole, null, 7, [0, 1, 2, 3], FEW)
    assert torch.equal(together.embeddings_BE, again.embeddings_BE)
    for place in range(4):
        alone = sample_embeddings(models[0], rows(whole, [place]), null, 7, [place], FEW)
        assert (alone.embeddings_BE[0] - together.embeddings_BE[place]).abs().max() < 1e-5
    torch.testing.assert_close(together.embeddings_BE.norm(dim=1), torch.ones(4))
    assert (together.lengths_B - 1).abs().max() > 1e-3, "the length before is told as it was"
    other = sample_embeddings(models[0], whole, null, 8, [0, 1, 2, 3], FEW)
    assert (other.embeddings_BE - together.embeddings_BE).abs().max() > 1e-2


def test_words_are_prepared_once_and_mean_the_same(models):
    whole, null = words()
    calls = []
    layer = models[0].decoder.layers[0].cross_attention
    hook = layer.linear_kv.register_forward_hook(lambda *_: calls.append(1))
    found = sample_embeddings(models[0], whole, null, 7, range(4), FEW)
    hook.remove()
    assert len(calls) == 2, "once for the words and once for their absence, in however many steps"
    noise = sample_noise((models[0].size.embedding_size,), 7, range(4), "noise of an embedding")
    plain = Guided(lambda noisy, sigma_B, given: models[0](noisy, sigma_B=sigma_B, **given), whole, null, 3.0)
    with torch.no_grad():
        wanted = solve(plain, noise, 6)
    torch.testing.assert_close(found.embeddings_BE, wanted / wanted.norm(dim=1)[:, None], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "sampler", [FEW, replace(FEW, solver="heun"), FlowSampler(solver="dopri5", tolerance=1e-3)], ids=str
)
def test_latents_do_not_depend_on_their_batch(models, sampler):
    whole, null = conditions()
    together = sample_latents(models[1], whole, null, FRAMES, 7, range(4), sampler)
    assert together.shape == (4, SIZE.latent_channels, FRAMES) and together.dtype == torch.float32
    assert torch.equal(together, sample_latents(models[1], whole, null, FRAMES, 7, range(4), sampler))
    alone = sample_latents(models[1], rows(whole, [2]), null, FRAMES, 7, [2], sampler)
    scale = together.abs().max()
    assert (alone[0] - together[2]).abs().max() < 1e-5 * max(scale, 1) * (100 if sampler.solver == "dopri5" else 1)


def test_known_frames_stay_and_the_others_follow_them(models):
    whole, null = conditions()
    given = torch.randn(SIZE.latent_channels, FRAMES, generator=torch.Generator().manual_seed(1))
    known_T = torch.arange(FRAMES) < 5
    found = sample_latents(models[1], whole, null, FRAMES, 7, range(4), FEW, given=given, known_T=known_T)
    assert torch.equal(found[..., :5], given[:, :5].expand(4, -1, -1))
    other = sample_latents(models[1], whole, null, FRAMES, 7, range(4), FEW, given=given + 1, known_T=known_T)
    assert (other[..., 5:] - found[..., 5:]).abs().max() > 1e-4, "what is made anew hears what is known"


def test_a_variation_is_the_nearer_the_less_noise_it_gets(models):
    whole, null = conditions()
    given = torch.randn(SIZE.latent_channels, FRAMES, generator=torch.Generator().manual_seed(1))
    distances = [
        (sample_latents(models[1], whole, null, FRAMES, 7, range(4), FEW, given=given, start=start) - given)
        .abs()
        .mean()
        for start in (0.02, 0.3, 1.0)
    ]
    assert distances[0] < 0.1 < distances[1] < distances[2]
    with pytest.raises(ValueError, match="where a sigma above 0"):
        sample_latents(models[1], whole, null, FRAMES, 7, range(4), FEW, given=given, start=0.0)
    with pytest.raises(ValueError, match=r"the given latents are \[8, 11\], where \[8, 12\] are made"):
        sample_latents(models[1], whole, null, FRAMES, 7, range(4), FEW, given=given[:, 1:])


def test_between_two_embeddings():
    random = torch.Generator().manual_seed(0)
    first, last = torch.nn.functional.normalize(torch.randn(2, 512, generator=random))
    torch.testing.assert_close(between(first, last, 0.0), first)
    torch.testing.assert_close(between(first, last, 1.0), last)
    middle = between(first, 5 * last, 0.5)
    assert float(middle.norm()) == pytest.approx(1, abs=1e-5)
    assert float(middle @ first) == pytest.approx(float(middle @ last), abs=1e-5)
    torch.testing.assert_close(between(first, first, 0.3), first)
    with pytest.raises(ValueError, match="are opposite"):
        between(first, -first, 0.5)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"num_steps": 0}, "the number of steps is 0; use 1 or more"),
        ({"guidance_scale": float("nan")}, "the guidance scale is nan; use a number"),
        ({"solver": "leapfrog"}, "the solver is 'leapfrog'; use one of euler"),
    ],
)
def test_samplers_that_cannot_be(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        FlowSampler(**wrong)


def test_the_estimate_of_memory_holds_what_is_taken(models):
    """What the CPU's allocator gives out above the weights, for one sample and for four."""
    frames, (whole, null) = 256, conditions()
    tokens = whole["text_BLC"].shape[1] + 3
    for count in (1, 4):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            sample_latents(
                models[1], rows(whole, list(range(count))), null, frames, 7, range(count), FlowSampler(num_steps=1)
            )
        held, most = 0, 0
        for event in found.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                most = max(most, held)
        estimate = count * sample_bytes(SIZE, frames, tokens, True, 4)
        assert most <= estimate <= 4 * most, f"{most:,} taken, {estimate:,} foreseen for {count}"


def test_a_batch_is_as_large_as_memory_allows():
    one = sample_bytes(SIZE, 1024, 131, True, 2)
    assert batch_size_within(20 * one, SIZE, 1024, 131, guided=True, bytes_per_number=2) == 10
    assert batch_size_within(20 * one, SIZE, 1024, 131, guided=False, bytes_per_number=2) == 20
    assert batch_size_within(0, SIZE, 1024, 131, guided=True, bytes_per_number=2) == 1
