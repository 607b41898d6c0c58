"""From noise to data along a velocity: an ordinary differential equation in sigma, from 1 down to 0.

Fixed steps cost a known number of evaluations and can be captured in a graph; ``solve_adaptive`` chooses its steps for
each sample by itself.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_music.flow.path import expand, shift_sigma

# Noisy latents [B, ...] and sigma [B] to the velocity [B, ...].
Velocity = Callable[[Tensor, Tensor], Tensor]


def sigma_schedule(num_steps: int, *, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """Where steps begin and end, [num_steps + 1] in float64, from ``start`` down to 0.

    Args:
        shift: see ``path.shift_sigma``: above 1, smaller steps near noise. 1: steps of one length.
        start: below 1, to go on from noisy latents that hold something of given ones.

    Raises:
        ValueError: fewer steps than one, or a start outside (0, 1].
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, where 1 or more are needed; 50 are usual with euler")
    if not 0 < start <= 1:
        raise ValueError(f"start is {start}, where a sigma above 0 and at most 1, noise, is needed")
    return start * shift_sigma(torch.linspace(1, 0, num_steps + 1, dtype=torch.float64), shift)


def _euler(velocity: Velocity, latents: Tensor, sigma: float, step: float) -> Tensor:
    return latents + step * velocity(latents, _at(sigma, latents))


def _midpoint(velocity: Velocity, latents: Tensor, sigma: float, step: float) -> Tensor:
    middle = _euler(velocity, latents, sigma, step / 2)
    return latents + step * velocity(middle, _at(sigma + step / 2, latents))


def _heun(velocity: Velocity, latents: Tensor, sigma: float, step: float) -> Tensor:
    first = velocity(latents, _at(sigma, latents))
    last = velocity(latents + step * first, _at(sigma + step, latents))
    return latents + step / 2 * (first + last)


def _rk4(velocity: Velocity, latents: Tensor, sigma: float, step: float) -> Tensor:
    middle_sigma = _at(sigma + step / 2, latents)
    first = velocity(latents, _at(sigma, latents))
    second = velocity(latents + step / 2 * first, middle_sigma)
    third = velocity(latents + step / 2 * second, middle_sigma)
    last = velocity(latents + step * third, _at(sigma + step, latents))
    return latents + step / 6 * (first + 2 * second + 2 * third + last)


class Solver(NamedTuple):
    """One step of a method, and what it costs."""

    step: Callable[[Velocity, Tensor, float, float], Tensor]
    evaluations: int  # of the velocity, in a step
    order: int  # the error falls with this power of the step


SOLVERS = {
    "euler": Solver(_euler, 1, 1),
    "midpoint": Solver(_midpoint, 2, 2),
    "heun": Solver(_heun, 2, 2),
    "rk4": Solver(_rk4, 4, 4),
}


def solve(
    velocity: Velocity, noise: Tensor, num_steps: int, *, kind: str = "euler", shift: float = 1.0, start: float = 1.0
) -> Tensor:
    """Latents from noise, in ``num_steps`` fixed steps.

    A sample's steps do not depend on the others in its batch.

    Args:
        noise: [B, ...], at sigma = ``start``.
        kind: euler, midpoint, heun or rk4.
        shift, start: see ``sigma_schedule``.

    Returns:
        Latents at sigma = 0, of noise's shape and dtype.

    Raises:
        ValueError: an unknown kind, or what ``sigma_schedule`` refuses.
    """
    if kind not in SOLVERS:
        raise ValueError(f"the solver is {kind!r}; use one of {', '.join(SOLVERS)}")
    sigmas = sigma_schedule(num_steps, shift=shift, start=start).tolist()
    latents = noise
    for sigma, next_sigma in itertools.pairwise(sigmas):
        latents = SOLVERS[kind].step(velocity, latents, sigma, next_sigma - sigma)
    return latents.to(noise.dtype)


# Dormand and Prince 1980, "A family of embedded Runge-Kutta formulae", table 2: RK5(4)7M. The last row is also the
# step.
_PLACES = (0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
_WEIGHTS = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class Adaptive(NamedTuple):
    """What ``solve_adaptive`` found, and at what cost."""

    latents: Tensor  # [B, ...]
    evaluations: int  # of the velocity, over the whole batch
    steps_B: Tensor  # those accepted


def solve_adaptive(
    velocity: Velocity, noise: Tensor, *, tolerance: float = 1e-5, start: float = 1.0, max_evaluations: int = 10_000
) -> Adaptive:
    """Latents from noise by Dormand and Prince's method (dopri5), with steps chosen from the error it makes.

    Each sample has steps of its own, which its neighbours in the batch do not change; the batch goes on until the last
    of them has arrived. (Where a library takes one step for the whole batch, as torchdiffeq does, a sample changes with
    its neighbours by far more than rounding.)

    Args:
        noise: [B, ...], at sigma = ``start``.
        tolerance: of the error of a step, both relative and absolute; below about 1e-6 float32 has no more to give.
        max_evaluations: of the velocity, before giving up.

    Raises:
        ValueError: a tolerance that is none, or one that asks for too many evaluations.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"the tolerance is {tolerance}, where a number between 0 and 1 is needed; 1e-5 is usual")
    latents, dtype = noise, noise.dtype
    sigma_B = torch.full((len(noise),), float(start), dtype=torch.float64, device=noise.device)
    step_B = torch.full_like(sigma_B, 0.05 * start)  # a length: sigma falls
    steps_B = torch.zeros(len(noise), dtype=torch.long, device=noise.device)
    first, evaluations = velocity(latents, sigma_B.float()), 1
    while bool((sigma_B > 0).any()):
        if evaluations + 6 > max_evaluations:
            raise ValueError(
                f"a tolerance of {tolerance:g} needs more than {max_evaluations} evaluations of the velocity; raise "
                f"it, or "
                "take fixed steps"
            )
        step_B = torch.minimum(step_B, sigma_B)
        step = expand(step_B.to(dtype), latents)
        slopes = [first]
        for place, weights in zip(_PLACES[1:], _WEIGHTS, strict=True):
            latents_there = latents - step * _weighted(weights, slopes)
            slopes.append(velocity(latents_there, (sigma_B - place * step_B).float()))
        evaluations += 6
        scale = tolerance * (1 + torch.maximum(latents.abs(), latents_there.abs()))
        error_B = (step * _weighted(_ERROR, slopes) / scale).flatten(1).double().square().mean(1).sqrt()
        accepted_B = (error_B <= 1) & (step_B > 0)
        if not bool(error_B.isfinite().all()):
            raise ValueError("the velocity is not a number at some sample; look at the model that gives it")
        sigma_B = torch.where(accepted_B, sigma_B - step_B, sigma_B)
        latents = torch.where(expand(accepted_B, latents), latents_there, latents)
        first = torch.where(expand(accepted_B, first), slopes[-1], first)
        steps_B += accepted_B
        # The error falls with the fifth power of the step; ten times longer or five times shorter at most, a tenth to
        # spare.
        step_B = torch.where(step_B > 0, step_B, 1.0) * (0.9 * error_B.clamp(min=1e-10) ** -0.2).clamp(0.2, 10)
    return Adaptive(latents, evaluations, steps_B)


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight)


def _at(sigma: float, latents: Tensor) -> Tensor:
    return torch.full((len(latents),), sigma, dtype=torch.float32, device=latents.device)
