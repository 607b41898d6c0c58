"""The straight path between data and noise, what is learned on it, and the loss. The one home of the sign convention.

sigma = 1 is noise, sigma = 0 is data, and ``velocity = noise - latents``, as in Megatron-Bridge, FLUX, SD3 and
diffusers. Other conventions are converted at the border, by ``from_rising_time``. Tensors are [B, ...]; sigma is [B]
and float32: in bfloat16 it has 256 values in each octave.
"""

import torch
from torch import Tensor


def interpolate(latents: Tensor, noise: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """The point at sigma on the straight line between data and noise, and the velocity there.

    Args:
        latents: data, [B, ...].
        noise: standard normal, of the same shape.
        sigma_B: place on the line, in [0, 1].

    Returns:
        ``(1 - sigma) latents + sigma noise`` and ``noise - latents``, both [B, ...].

    Source: Lipman et al. 2023, arXiv:2210.02747, optimal-transport path; Liu et al. 2023, arXiv:2209.03003.
    """
    sigma = expand(sigma_B, latents)
    return (1 - sigma) * latents + sigma * noise, noise - latents


def interpolate_v(latents: Tensor, noise: Tensor, sigma_B: Tensor) -> tuple[Tensor, Tensor]:
    """The point at sigma of a quarter circle from data to noise, and v there: the other path, of the v objective.

    No change of sign or time makes one path of the other; a model of one is not a model of the other.

    Args:
        sigma_B: share of the quarter circle, in [0, 1].

    Returns:
        ``cos latents + sin noise`` and ``cos noise - sin latents``, both [B, ...].

    Source: Salimans and Ho 2022, arXiv:2202.00512; what Stable Audio Open 1.0 was trained by.
    """
    angle = expand(sigma_B, latents) * (torch.pi / 2)
    return angle.cos() * latents + angle.sin() * noise, angle.cos() * noise - angle.sin() * latents


def latents_of(noisy: Tensor, velocity: Tensor, sigma_B: Tensor) -> Tensor:
    """The data end of the line through ``noisy`` along ``velocity``, [B, ...]."""
    return noisy - expand(sigma_B, noisy) * velocity


def noise_of(noisy: Tensor, velocity: Tensor, sigma_B: Tensor) -> Tensor:
    """The noise end of the line through ``noisy`` along ``velocity``, [B, ...]."""
    return noisy + (1 - expand(sigma_B, noisy)) * velocity


def from_rising_time(time_B: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Time and velocity of the other convention in ours; applied twice, it gives back what it was given.

    There time runs from 0, noise, to 1, data, and the velocity is data - noise: torchcfm, flow_matching, SiT, NeMo's
    ConditionalFlow.

    Returns:
        sigma [B] and our velocity [B, ...].
    """
    return 1 - time_B, -velocity


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Move sigma towards noise: 1/2 becomes shift / (shift + 1), and 0 and 1 stay.

    Long sequences keep their shape under more noise than short ones, hence need more of their steps near sigma = 1.

    Args:
        sigma: in [0, 1], any shape.
        shift: 1 changes nothing; its inverse undoes it.

    Raises:
        ValueError: shift is not above 0.

    Source: Esser et al. 2024, arXiv:2403.03206, equation 23.
    """
    if not 0 < shift < float("inf"):
        raise ValueError(f"shift is {shift}, where a number above 0 is needed; 1 moves nothing")
    return shift * sigma / (1 + (shift - 1) * sigma)


def loss_per_sample(predicted: Tensor, velocity: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample over what its mask keeps, in float32.

    A sample counts the same however long it is: sum or average these, never elements over the whole batch.

    Args:
        predicted: the model's velocity, [B, ...].
        velocity: ``noise - latents``, of the same shape.
        mask: bool, True where it counts; broadcast to the shape of ``velocity``. What it hides may be anything, NaN
            too.

    Returns:
        [B]; 0 for a sample of which the mask keeps nothing.

    Raises:
        ValueError: the shapes differ, so that subtracting would broadcast.
    """
    if predicted.shape != velocity.shape:
        raise ValueError(
            f"the model's velocity is {list(predicted.shape)} and the path's is {list(velocity.shape)}; "
            "they must be the same"
        )
    error = predicted.float() - velocity.float()
    if mask is None:
        return error.square().flatten(1).mean(1)
    mask = mask.expand_as(error)
    # Chosen, not multiplied: NaN times 0 is NaN.
    error = torch.where(mask, error, 0.0)
    return error.square().flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)


def flow_loss(predicted: Tensor, velocity: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of ``loss_per_sample``, a scalar."""
    return loss_per_sample(predicted, velocity, mask).mean()


def expand(sigma_B: Tensor, like: Tensor) -> Tensor:
    """sigma as [B, 1, ...], to stand beside ``like``."""
    return sigma_B.view(-1, *[1] * (like.dim() - 1))
