"""The solvers on equations whose solution is known, and guidance round them."""

import math
from itertools import pairwise

import pytest
import torch

from megatron_music.flow.guidance import Guided, without_some
from megatron_music.flow.path import interpolate
from megatron_music.flow.solver import SOLVERS, sigma_schedule, solve, solve_adaptive


def curve(latents, sigma_B):
    """x' = 3 sigma^2 x + cos(5 sigma), of which ``end`` is a solution."""
    sigma = sigma_B.to(latents.dtype).view(-1, 1)
    return 3 * sigma**2 * latents + torch.cos(5 * sigma)


def end_of(noise):
    """x(0) = (x(1) - integral) / e, with the integrating factor exp(-sigma^3), by Simpson's rule on 20,000 pieces."""
    places = torch.linspace(0, 1, 20001, dtype=torch.float64)
    values = torch.exp(-(places**3)) * torch.cos(5 * places)
    weights = torch.ones_like(places)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return noise / math.e - (weights * values).sum() / 3 / 20000


def counted(velocity):
    def call(*arguments):
        call.count += 1
        return velocity(*arguments)

    call.count = 0
    return call


NOISE = torch.linspace(-2, 2, 6, dtype=torch.float64).view(3, 2)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_error_falls_with_the_order_of_the_method(kind, shift):
    errors = []
    # sigma is float32: its rounding ends the convergence of rk4 with many more steps.
    for num_steps in (8, 16, 32):
        velocity = counted(curve)
        found = solve(velocity, NOISE, num_steps, kind=kind, shift=shift)
        assert velocity.count == num_steps * SOLVERS[kind].evaluations
        errors.append(float((found - end_of(NOISE)).abs().max()))
    orders = [math.log2(before / after) for before, after in pairwise(errors)]
    assert orders[-1] == pytest.approx(SOLVERS[kind].order, abs=0.35), (errors, orders)


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_straight_path_takes_one_step(kind):
    latents, noise = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = solve(lambda noisy, sigma: interpolate(latents, noise, sigma)[1], noise, 1, kind=kind)
    torch.testing.assert_close(found, latents, rtol=0, atol=1e-12)


def test_a_start_below_noise_goes_the_rest_of_the_way():
    assert sigma_schedule(4, start=0.5).tolist() == [0.5, 0.375, 0.25, 0.125, 0]
    latents, noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noisy, velocity = interpolate(latents, noise, torch.full((4,), 0.5))
    torch.testing.assert_close(solve(lambda *_: velocity, noisy, 3, start=0.5), latents)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5])
def test_adaptive_steps_keep_to_the_tolerance(tolerance):
    velocity = counted(curve)
    found = solve_adaptive(velocity, NOISE, tolerance=tolerance)
    assert float((found.latents - end_of(NOISE)).abs().max()) < 5 * tolerance
    assert found.evaluations == velocity.count < 200
    assert found.latents.dtype == NOISE.dtype


def test_a_smaller_tolerance_costs_more_and_finds_more():
    rough, fine = (solve_adaptive(curve, NOISE, tolerance=tolerance) for tolerance in (1e-2, 1e-6))
    errors = [float((found.latents - end_of(NOISE)).abs().max()) for found in (rough, fine)]
    assert errors[1] < errors[0] / 10 and fine.evaluations > rough.evaluations
    assert (fine.steps_B > rough.steps_B).all()


def wavy(latents, sigma_B):
    """Ever faster with the sample's first number, which stays as it is."""
    sigma = sigma_B.view(-1, 1).to(latents.dtype)
    speed = latents[:, :1]
    return torch.cat([torch.zeros_like(speed), torch.cos(speed * sigma), latents[:, 1:2]], dim=1)


def test_a_sample_s_adaptive_steps_are_its_own():
    noise = torch.tensor([[1.0, 0.3, -1.0], [60.0, 0.1, 0.5], [9.0, -2.0, 1.0]])
    together = solve_adaptive(wavy, noise, tolerance=1e-4)
    assert together.steps_B[1] > 2 * together.steps_B[0]
    for row in range(3):
        alone = solve_adaptive(wavy, noise[row : row + 1], tolerance=1e-4)
        assert alone.steps_B[0] == together.steps_B[row]
        torch.testing.assert_close(alone.latents[0], together.latents[row], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda: solve(curve, NOISE, 0), "num_steps is 0, where 1 or more are needed"),
        (lambda: solve(curve, NOISE, 5, kind="rk5"), "use one of euler, midpoint, heun, rk4"),
        (lambda: solve(curve, NOISE, 5, start=0.0), "start is 0.0, where a sigma above 0"),
        (lambda: solve(curve, NOISE, 5, shift=0.0), "shift is 0.0"),
        (lambda: solve_adaptive(curve, NOISE, tolerance=0.0), "the tolerance is 0.0"),
        (lambda: solve_adaptive(curve, NOISE, tolerance=1e-9, max_evaluations=20), "more than 20 evaluations"),
        (lambda: solve_adaptive(lambda x, _: x / 0, NOISE), "the velocity is not a number"),
    ],
)
def test_wrong_wishes_are_refused(ask, sentence):
    with pytest.raises(ValueError, match=sentence):
        ask()


# Guidance. The model says its condition, and how many rows it was asked for.


def model(noisy, sigma_B, condition):
    model.rows.append(len(noisy))
    return condition["text"] + 0.1 * noisy * sigma_B.view(-1, 1)


@pytest.fixture(autouse=True)
def rows():
    model.rows = []
    return model.rows


CONDITION = {"text": torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0]])}
NULL = {"text": torch.tensor([[0.2, -0.3]])}
NOISY, SIGMA = torch.randn(3, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([0.2, 0.5, 0.9])


def test_a_scale_of_one_is_the_condition_alone(rows):
    assert torch.equal(Guided(model, CONDITION, NULL)(NOISY, SIGMA), model(NOISY, SIGMA, CONDITION))
    assert rows == [3, 3]


def test_guidance_leans_away_from_the_null_in_one_forward_pass(rows):
    found = Guided(model, CONDITION, NULL, scale=3.0)(NOISY, SIGMA)
    assert rows == [6]
    with_text, without = (model(NOISY, SIGMA, condition) for condition in (CONDITION, NULL))
    torch.testing.assert_close(found, without + 3 * (with_text - without))
    assert torch.equal(Guided(model, CONDITION, NULL, scale=0.0)(NOISY, SIGMA), without)


def test_guidance_keeps_to_its_interval_sample_by_sample(rows):
    plain = model(NOISY, SIGMA, CONDITION)
    everywhere = Guided(model, CONDITION, NULL, scale=3.0)(NOISY, SIGMA)
    middle = Guided(model, CONDITION, NULL, scale=3.0, interval=(0.3, 0.5))
    found = middle(NOISY, SIGMA)
    assert torch.equal(found[[0, 2]], plain[[0, 2]]) and torch.equal(found[1], everywhere[1])
    rows.clear()
    assert torch.equal(middle(NOISY, torch.full((3,), 0.7)), model(NOISY, torch.full((3,), 0.7), CONDITION))
    assert rows == [3, 3]  # half the cost where none is inside


def test_rescaled_guidance_has_the_deviation_of_the_condition():
    plain = model(NOISY, SIGMA, CONDITION).std(1)
    guided, half, whole = (
        Guided(model, CONDITION, NULL, scale=5.0, rescale=rescale)(NOISY, SIGMA) for rescale in (0.0, 0.5, 1.0)
    )
    torch.testing.assert_close(whole.std(1), plain)
    torch.testing.assert_close(half, (guided + whole) / 2)
    assert (guided.std(1) - plain).abs().max() > 0.5


def test_conditions_are_replaced_where_they_are_not_kept():
    keeps = torch.tensor([True, False, True])
    found = without_some(CONDITION, NULL, keeps)["text"]
    assert torch.equal(found[keeps], CONDITION["text"][keeps]) and torch.equal(found[1], NULL["text"][0])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": float("nan")}, "the guidance scale is nan"),
        ({"interval": (0.8, 0.2)}, "is no interval"),
        ({"interval": (-1.0, 0.2)}, "is no interval"),
        ({"rescale": 2.0}, "rescale is 2.0"),
        ({"null": {}}, r"the condition has \['text'\] and its absence has \[\]"),
    ],
    ids=str,
)
def test_wrong_guidance_is_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        Guided(**{"velocity": model, "condition": CONDITION, "null": NULL, **changes})
