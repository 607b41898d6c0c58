"""The path and its conventions, the loss, and what is drawn for each sample."""

import pytest
import torch

from megatron_music.flow.noise import (
    generator_of,
    sample_keeps,
    sample_noise,
    sample_sigma,
)
from megatron_music.flow.path import (
    flow_loss,
    from_rising_time,
    interpolate,
    latents_of,
    loss_per_sample,
    noise_of,
    shift_sigma,
)


def point():
    random = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 5, 3, 8, generator=random, dtype=torch.float64)
    return latents, noise, torch.rand(5, generator=random, dtype=torch.float64)


def test_the_ends_of_the_path_are_data_and_noise():
    latents, noise, _ = point()
    assert torch.equal(interpolate(latents, noise, torch.zeros(5))[0], latents)
    assert torch.equal(interpolate(latents, noise, torch.ones(5))[0], noise)


def test_the_velocity_is_the_derivative_of_the_path():
    latents, noise, sigma = point()
    _, velocity = interpolate(latents, noise, sigma)
    before, after = (interpolate(latents, noise, sigma + step)[0] for step in (-1e-6, 1e-6))
    torch.testing.assert_close((after - before) / 2e-6, velocity, rtol=1e-6, atol=1e-8)


def test_both_ends_are_found_again_from_a_point_and_its_velocity():
    latents, noise, sigma = point()
    noisy, velocity = interpolate(latents, noise, sigma)
    torch.testing.assert_close(latents_of(noisy, velocity, sigma), latents)
    torch.testing.assert_close(noise_of(noisy, velocity, sigma), noise)


def test_the_convention_of_rising_time_is_ours_turned_round():
    latents, noise, time = point()
    # torchcfm's and flow_matching's: x_t = t x_1 + (1 - t) x_0 with noise x_0 and data x_1, and the target x_1 - x_0.
    their_point = time.view(-1, 1, 1) * latents + (1 - time.view(-1, 1, 1)) * noise
    sigma, velocity = from_rising_time(time, latents - noise)
    ours = interpolate(latents, noise, sigma)
    torch.testing.assert_close(ours, (their_point, velocity))
    again = from_rising_time(sigma, velocity)
    torch.testing.assert_close(again, (time, latents - noise))


def test_timesteps_of_a_thousand_are_sigma():
    # diffusers' FlowMatchEulerDiscreteScheduler counts sigma in thousandths; scale_noise is its path.
    from diffusers.schedulers import FlowMatchEulerDiscreteScheduler

    latents, noise, _ = (value.float() for value in point())
    scheduler = FlowMatchEulerDiscreteScheduler()
    timesteps = scheduler.timesteps[[0, 137, 500, 803, 999]]
    theirs = scheduler.scale_noise(latents, timesteps, noise)
    torch.testing.assert_close(interpolate(latents, noise, timesteps / 1000)[0], theirs)


def test_shift():
    sigma = torch.linspace(0, 1, 11, dtype=torch.float64)
    shifted = shift_sigma(sigma, 3.0)
    assert (shifted[0], shifted[5], shifted[-1]) == (0, 0.75, 1)
    assert (shifted.diff() > 0).all()
    torch.testing.assert_close(shift_sigma(shifted, 1 / 3), sigma)
    assert torch.equal(shift_sigma(sigma, 1.0), sigma)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="a number above 0 is needed"):
            shift_sigma(sigma, wrong)


def test_a_sample_counts_the_same_however_long_it_is():
    predicted, velocity = torch.zeros(2, 3, 8), torch.ones(2, 3, 8)
    velocity[1] = 3.0
    mask = torch.ones(2, 1, 8, dtype=torch.bool)
    mask[1, :, 2:] = False
    assert loss_per_sample(predicted, velocity, mask).tolist() == [1.0, 9.0]
    assert flow_loss(predicted, velocity, mask) == 5.0


def test_what_the_mask_hides_may_be_anything():
    predicted, velocity = torch.zeros(2, 3, 8, requires_grad=True), torch.ones(2, 3, 8)
    velocity[:, :, 5:] = float("nan")
    mask = torch.arange(8).expand(2, 1, 8) < 5
    loss = flow_loss(predicted, velocity, mask)
    loss.backward()
    assert loss == 1 and predicted.grad.isfinite().all()
    assert (predicted.grad[:, :, 5:] == 0).all() and (predicted.grad[:, :, :5] != 0).all()
    assert loss_per_sample(predicted, velocity, torch.zeros(2, 1, 8, dtype=torch.bool)).tolist() == [0, 0]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"velocity is \[2, 1, 8\] and the path's is \[2, 3, 8\]"):
        flow_loss(torch.zeros(2, 1, 8), torch.zeros(2, 3, 8))


def test_a_sample_draws_the_same_in_any_batch():
    indices = [3, 7, 2**31, 8]
    drawn = [
        lambda chosen: sample_noise((2, 6), 11, chosen),
        lambda chosen: sample_sigma(11, chosen, kind="logit_normal", uniform_share=0.5),
        lambda chosen: sample_keeps(11, chosen, 0.5),
    ]
    for draw in drawn:
        together = draw(indices)
        assert all(torch.equal(together[row], draw([index])[0]) for row, index in enumerate(indices))
        assert torch.equal(draw(indices[::-1]), together.flip(0))


def test_other_samples_seeds_and_purposes_draw_other_numbers():
    places = [(seed, index, purpose) for seed in (0, 1) for index in range(500) for purpose in ("noise", "sigma")]
    first = {float(torch.randn(8, generator=generator_of(*place)).sum()) for place in places}
    assert len(first) == len(places)


def test_noise_is_normal_across_samples():
    # The first number of each sample's own generator: neighbouring indices must not be like each other.
    first = sample_noise((2,), 0, range(4000))
    assert first.mean(0).abs().max() < 0.06 and (first.std(0) - 1).abs().max() < 0.05
    neighbours = torch.corrcoef(torch.stack([first[:-1, 0], first[1:, 0], first[:-1, 1]]))
    assert (neighbours - torch.eye(3)).abs().max() < 0.06


@pytest.mark.parametrize(
    ("options", "quartiles"),
    [
        ({}, (0.25, 0.5, 0.75)),
        ({"shift": 3.0}, (0.5, 0.75, 0.9)),
        # sigmoid of the normal distribution's quartiles, -0.6745, 0 and 0.6745.
        ({"kind": "logit_normal"}, (0.3375, 0.5, 0.6625)),
        ({"kind": "logit_normal", "mean": 1.0, "deviation": 0.5}, (0.6598, 0.7311, 0.7920)),
        ({"kind": "logit_normal", "uniform_share": 1.0}, (0.25, 0.5, 0.75)),
    ],
    ids=str,
)
def test_sigma_s_quartiles(options, quartiles):
    sigma = sample_sigma(5, range(4000), **options)
    found = sigma.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert found == pytest.approx(quartiles, abs=0.03)
    assert sigma.min() > 0 and sigma.max() < 1


def test_conditions_are_dropped_sample_by_sample():
    keeps = sample_keeps(0, range(4000), 0.1)
    assert 0.08 < 1 - keeps.float().mean() < 0.12
    batches = keeps.view(-1, 16).sum(1)
    assert len(set(batches.tolist())) > 3  # a batch is not of one mind
    assert sample_keeps(0, range(100), 0.0).all() and not sample_keeps(0, range(100), 1.0).any()


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: sample_sigma(0, [0], kind="cosine"), "use uniform or logit_normal"),
        (lambda: sample_sigma(0, [0], uniform_share=1.5), "a part of the samples, 0 to 1"),
        (lambda: sample_keeps(0, [0], -0.1), "a chance, 0 to 1"),
    ],
)
def test_wrong_draws_are_refused(draw, sentence):
    with pytest.raises(ValueError, match=sentence):
        draw()
