"""Samples of a model that learned the v objective, as the published Stable Audio Open 1.0 did, by diffusers' scheduler.

Its path is the circle from data to noise, not the straight line: see ``flow.path.interpolate_v``. Takes a velocity
function, and depends on no model and no condition.
"""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers names what of torch and of itself it finds old
    from diffusers import EDMDPMSolverMultistepScheduler

# Noise over data where it begins, as in Stable Audio's pipeline, and where it makes its last step. There that is 0.3,
# with noise added on the way; without such noise a last step from 0.3 leaves out what is finer.
SIGMA_MAX, SIGMA_MIN = 500.0, 0.03


def solve_v(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, num_steps: int) -> Tensor:
    """DPM-Solver++ of second order in ``num_steps`` steps from noise [B, ...]; every step is common to the batch and
    fixed.

    Args:
        velocity: noisy [B, ...] and the share of the quarter circle [B], 1 noise, to v [B, ...].

    Source: Lu et al. 2022, arXiv:2211.01095; the path, Salimans and Ho 2022, arXiv:2202.00512.
    """
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    scheduler.set_timesteps(num_steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    for step, time in enumerate(scheduler.timesteps):
        share = torch.atan(scheduler.sigmas[step]) * 2 / torch.pi
        noisy = scheduler.scale_model_input(latents, time)
        found = velocity(noisy, share.to(noise.device).expand(len(noise)).float())
        latents = scheduler.step(found, time, latents).prev_sample
    return latents
