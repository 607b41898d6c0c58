"""Classifier-free guidance: conditions and their absence in one forward pass.

A condition is a dict of tensors [B, ...] by name.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_music.flow.path import expand

Condition = dict[str, Tensor]


def without_some(condition: Condition, null: Condition, keeps_B: Tensor) -> Condition:
    """The condition where a sample keeps it, else its absence: what training with ``sample_keeps`` feeds the model.

    Args:
        condition, null: of the same names and shapes; the null ones may have one row for all samples.
        keeps_B: bool.
    """
    _check_names(condition, null)
    return {name: torch.where(expand(keeps_B, value), value, null[name]) for name, value in condition.items()}


@dataclass(frozen=True, eq=False)
class Guided:
    """A velocity that leans away from what the model says without the condition.

    ``null + scale (conditional - null)``, from one forward pass over 2B samples: the conditional ones, then the others.

    Args:
        velocity: the model: noisy latents [N, ...], sigma [N] and a condition of N rows, to the velocity [N, ...].
        condition: of B rows.
        null: the condition's absence, or a negative prompt: of B rows, or of one for all.
        scale: 1 is the condition alone, and one forward pass over B samples; larger leans further.
        interval: guided where sigma is within, the ends included; elsewhere the condition alone, and where all samples
            are elsewhere, at half the cost (Kynkaanniemi et al. 2024, arXiv:2404.07724).
        rescale: how far the guided velocity gets back the deviation of the conditional one, 0 not at all to 1 wholly
            (Lin et al. 2023, arXiv:2305.08891, section 3.4).

    Raises:
        ValueError: a scale that is no number, an interval that is none, or conditions that do not match.

    Source: Ho and Salimans 2022, arXiv:2207.12598.
    """

    velocity: Callable[[Tensor, Tensor, Condition], Tensor]
    condition: Condition
    null: Condition
    scale: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    rescale: float = 0.0

    def __post_init__(self):
        low, high = self.interval
        if not math.isfinite(self.scale):
            raise ValueError(f"the guidance scale is {self.scale}, where a number is needed; 1 is the condition alone")
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance between sigma {low} and {high} is no interval within 0 and 1; give the lower end first"
            )
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"the guidance's rescale is {self.rescale}, where 0, not at all, to 1, wholly, is needed")
        _check_names(self.condition, self.null)
        both = {name: torch.cat([value, self.null[name].expand_as(value)]) for name, value in self.condition.items()}
        object.__setattr__(self, "_both", both)

    def __call__(self, noisy: Tensor, sigma_B: Tensor) -> Tensor:
        """The guided velocity [B, ...]."""
        if self.scale == 1:
            return self.velocity(noisy, sigma_B, self.condition)
        low, high = self.interval
        scale_B = torch.full_like(sigma_B, self.scale)
        if (low, high) != (0, 1):
            is_inside = (sigma_B >= low) & (sigma_B <= high)
            if not is_inside.any():
                return self.velocity(noisy, sigma_B, self.condition)
            scale_B = torch.where(is_inside, scale_B, 1.0)
        both = self.velocity(torch.cat([noisy, noisy]), torch.cat([sigma_B, sigma_B]), self._both)
        conditional, null = both.chunk(2)
        guided = null + expand(scale_B, null) * (conditional - null)
        if self.rescale:
            ratio_B = conditional.flatten(1).std(1) / guided.flatten(1).std(1).clamp(min=1e-12)
            guided = guided * expand(1 + self.rescale * (ratio_B - 1), guided)
        # Bitwise the condition alone, where rounding would let it differ.
        return torch.where(expand(scale_B, guided) == 1, conditional, guided)


def _check_names(condition: Condition, null: Condition) -> None:
    if condition.keys() != null.keys():
        raise ValueError(
            f"the condition has {sorted(condition)} and its absence has {sorted(null)}; give both the same tensors"
        )
