"""The v objective: its path beside diffusers', and samples of a model whose v is known."""

import pytest
import torch
from diffusers import DDIMScheduler

from megatron_music.flow.noise import sample_noise
from megatron_music.flow.path import interpolate, interpolate_v
from megatron_music.generation.dpm_solver import solve_v
from megatron_music.generation.flow_sampling import V_SOLVER, FlowSampler

MEAN, DEVIATION = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.5])


def best_v(noisy: torch.Tensor, share_B: torch.Tensor) -> torch.Tensor:
    """The expected v at a point of data that are normal with ``MEAN`` and ``DEVIATION``."""
    cos, sin = (function(share_B * torch.pi / 2)[:, None] for function in (torch.cos, torch.sin))
    variance = cos**2 * DEVIATION**2 + sin**2
    centred = noisy - cos * MEAN
    latents, noise = MEAN + cos * DEVIATION**2 / variance * centred, sin / variance * centred
    return cos * noise - sin * latents


def test_the_path_is_that_of_diffusers_v_prediction():
    scheduler = DDIMScheduler(prediction_type="v_prediction")
    latents, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([10, 500, 980])
    share = torch.acos(scheduler.alphas_cumprod[times].sqrt()) * 2 / torch.pi
    noisy, v = interpolate_v(latents, noise, share)
    torch.testing.assert_close(noisy, scheduler.add_noise(latents, noise, times), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(v, scheduler.get_velocity(latents, noise, times), atol=1e-5, rtol=1e-5)


def test_the_expected_v_is_what_least_squares_finds():
    random = torch.Generator().manual_seed(1)
    latents = MEAN + DEVIATION * torch.randn(200_000, 2, generator=random)
    noisy, v = interpolate_v(latents, torch.randn(200_000, 2, generator=random), torch.full((200_000,), 0.6))
    error = (v - best_v(noisy, torch.full((200_000,), 0.6))).square().mean()
    shifted = (v - best_v(noisy, torch.full((200_000,), 0.5))).square().mean()
    assert error < shifted
    assert ((v - best_v(noisy, torch.full((200_000,), 0.6))) * noisy).mean(0).abs().max() < 0.02, (
        "nothing is left to learn"
    )


def test_samples_have_the_data_s_mean_and_deviation():
    found = solve_v(best_v, sample_noise((2,), 0, range(8000)), 100)
    torch.testing.assert_close(found.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(found.std(0), DEVIATION, atol=0.06, rtol=0)
    alone = solve_v(best_v, sample_noise((2,), 0, [5]), 100)
    assert (found[5] - alone[0]).abs().max() < 1e-5


def test_the_straight_path_s_velocity_is_another():
    latents, noise = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    half = torch.full((3,), 0.5)
    assert not torch.allclose(interpolate(latents, noise, half)[1], interpolate_v(latents, noise, half)[1])


@pytest.mark.parametrize(
    ("objective", "solver", "steps"), [("flow", "heun", 7), ("v", V_SOLVER, 7), ("regression", "euler", 1)]
)
def test_a_sampler_follows_what_was_trained(objective, solver, steps):
    found = FlowSampler(7, "heun").as_trained(objective)
    assert (found.solver, found.num_steps) == (solver, steps)
    assert found.noise_scale == (0.0 if objective == "regression" else 1.0)
