"""Samples of a flow model: embeddings of music from words (stage 1), latents of sound from conditions (stage 2).

Takes models, and conditions as tensors. Shapes: B samples, E
embedding, C channels, T frames. Noise of sample i depends on the seed and i alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_music.config.flow_sizes import DiTSize
from megatron_music.flow.guidance import Condition, Guided
from megatron_music.flow.noise import sample_noise
from megatron_music.flow.path import interpolate
from megatron_music.flow.solver import SOLVERS, solve, solve_adaptive

ADAPTIVE = "dopri5"
V_SOLVER = "v-dpmsolver++"  # of models that learned the v objective, and of no others
# Stage 2's share of free memory that a batch may take: what else is there, the allocator's losses, is not counted.
_SHARE_OF_MEMORY = 0.5


@dataclass(frozen=True)
class FlowSampler:
    """How an equation is solved and how far it leans on its condition.

    Args:
        num_steps: of fixed length; dopri5 chooses its own.
        solver: euler, midpoint, heun, rk4 or dopri5.
        guidance_scale, guidance_interval, guidance_rescale: see ``flow.guidance.Guided``.
        shift: see ``flow.path.shift_sigma``; 1 is steps of one length.
        tolerance: of dopri5.
        noise_scale: deviation of the noise; 0 for a model that learned by regression, see ``as_trained``.

    Raises:
        ValueError: one sentence.
    """

    num_steps: int = 50
    solver: str = "euler"
    guidance_scale: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    shift: float = 1.0
    tolerance: float = 1e-5
    noise_scale: float = 1.0

    def __post_init__(self):
        if self.solver not in (*SOLVERS, ADAPTIVE, V_SOLVER):
            raise ValueError(f"the solver is {self.solver!r}; use one of {', '.join((*SOLVERS, ADAPTIVE))}")
        if self.num_steps < 1:
            raise ValueError(f"the number of steps is {self.num_steps}; use 1 or more, such as 50")
        if not math.isfinite(self.guidance_scale):
            raise ValueError(f"the guidance scale is {self.guidance_scale}; use a number, such as 3, or 1 for none")

    def as_trained(self, objective: str) -> "FlowSampler":
        """This, by the solver of ``v``; or for ``regression`` one step from no noise, which gives the mean that was
        learned.
        """
        if objective == "regression":
            return FlowSampler(num_steps=1, guidance_scale=1.0, noise_scale=0.0)
        return replace(self, solver=V_SOLVER) if objective == "v" else self

    @property
    def evaluations(self) -> int | None:
        """Calls of the model for a sample, guided ones counted once; None where the solver decides."""
        if self.solver == V_SOLVER:
            return self.num_steps
        return None if self.solver == ADAPTIVE else self.num_steps * SOLVERS[self.solver].evaluations


class Embeddings(NamedTuple):
    """What stage 1 gives."""

    embeddings_BE: Tensor  # of length 1, float32
    lengths_B: (
        Tensor  # as they were before; far from 1, that of the data, the model was asked for what it does not know
    )


@torch.no_grad()
def sample_embeddings(
    model, words: Condition, null: Condition, seed: int, indices: Sequence[int], sampler: FlowSampler
) -> Embeddings:
    """Embeddings of music for words.

    What the layers make of the words is computed once, not in each step.

    Args:
        model: Text2MuQ, in eval mode, whole on this pipeline stage.
        words: ``context_BLC`` and ``keeps_BL``, on the model's device.
        null: the same of the empty caption or of a negative prompt; of one row, or B.
        indices: of the samples, one a row.
    """
    device = words["context_BLC"].device
    prepared = [
        {"prepared_BNLK": model.prepare(each["context_BLC"]), "keeps_BL": each["keeps_BL"]} for each in (words, null)
    ]
    noise = sample_noise((model.size.embedding_size,), seed, indices, "noise of an embedding").to(device)
    noise = sampler.noise_scale * noise

    def velocity(noisy_BE: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        return model(noisy_BE, sigma_B=sigma_B, **condition).float()

    found = _solve(_guided(velocity, *prepared, sampler), noise, sampler)
    lengths_B = found.norm(dim=1)
    return Embeddings(found / lengths_B.clamp(min=1e-12)[:, None], lengths_B / model.size.embedding_size**0.5)


@torch.no_grad()
def sample_latents(
    model,
    condition: Condition,
    null: Condition,
    frames: int,
    seed: int,
    indices: Sequence[int],
    sampler: FlowSampler,
    *,
    given: Tensor | None = None,
    known_T: Tensor | None = None,
    start: float = 1.0,
) -> Tensor:
    """Latents of sound [B, C, T], float32.

    Args:
        model: ConditionedDiT, in eval mode, whole on this pipeline stage.
        condition, null: of AudioConditions, by name; null of one row, or B.
        frames: T.
        given: latents [C, T] or [B, C, T] to keep something of.
        known_T: bool: these frames stay as they are given (continuation, inpainting). The rest fits itself to them.
        start: without ``known_T``: how much noise is put over the given latents, 1 all, near 0 hardly any (variation).

    Raises:
        ValueError: given latents of another shape, or a start outside (0, 1].
    """
    device = next(iter(condition.values())).device
    noise = sampler.noise_scale * sample_noise((model.size.latent_channels, frames), seed, indices).to(device)
    if given is not None:
        if given.shape[-2:] != noise.shape[-2:]:
            raise ValueError(f"the given latents are {list(given.shape[-2:])}, where {list(noise.shape[-2:])} are made")
        if sampler.solver == V_SOLVER:
            raise ValueError(
                "a model of the v objective makes sounds from noise alone; give it no sound to keep something of"
            )
        given = given.to(noise).expand_as(noise)

    def velocity(noisy_BCT: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        return model(noisy_BCT, sigma_B=sigma_B, **condition).float()

    guided = _guided(velocity, condition, null, sampler)
    if known_T is None:
        if given is None:
            return _solve(guided, noise, sampler)
        noisy, _ = interpolate(given, noise, torch.full((len(noise),), float(start), device=device))
        return _solve(guided, noisy, sampler, start)
    known_T = known_T.to(device)

    def around_known(noisy_BCT: Tensor, sigma_B: Tensor) -> Tensor:
        # What is known has a straight way from its noise to itself, which every solver follows.
        return torch.where(known_T, noise - given, guided(noisy_BCT, sigma_B))

    found = _solve(around_known, noise, sampler)
    return torch.where(known_T, given, found)  # without the solver's rounding


def _guided(velocity: Callable, condition: Condition, null: Condition, sampler: FlowSampler) -> Guided:
    return Guided(
        velocity, condition, null, sampler.guidance_scale, sampler.guidance_interval, sampler.guidance_rescale
    )


def _solve(velocity: Callable, noisy: Tensor, sampler: FlowSampler, start: float = 1.0) -> Tensor:
    if sampler.solver == V_SOLVER:
        from megatron_music.generation.dpm_solver import solve_v

        return solve_v(velocity, noisy, sampler.num_steps)
    if sampler.solver == ADAPTIVE:
        return solve_adaptive(velocity, noisy, tolerance=sampler.tolerance, start=start).latents
    return solve(velocity, noisy, sampler.num_steps, kind=sampler.solver, shift=sampler.shift, start=start)


def between(first_E: Tensor, last_E: Tensor, share: float) -> Tensor:
    """The embedding a share of the way from one to another, along the sphere they lie on.

    Raises:
        ValueError: they are opposite: every way is as short.
    """
    first_E, last_E = (each / each.norm() for each in (first_E, last_E))
    angle = torch.atan2((first_E - last_E).norm(), (first_E + last_E).norm()) * 2
    if angle > math.pi - 1e-4:
        raise ValueError(
            "the two embeddings are opposite, so no way between them is the shortest; change one of the prompts"
        )
    if angle < 1e-6:
        return first_E
    return (torch.sin((1 - share) * angle) * first_E + torch.sin(share * angle) * last_E) / torch.sin(angle)


def batch_size_within(
    free_bytes: int, size: DiTSize, frames: int, tokens: int, *, guided: bool, bytes_per_number: int
) -> int:
    """How many samples stage 2 makes at a time, from an estimate of what one takes beside the weights; at least 1."""
    return max(1, int(_SHARE_OF_MEMORY * free_bytes) // sample_bytes(size, frames, tokens, guided, bytes_per_number))


def sample_bytes(
    size: DiTSize, frames: int, tokens: int, guided: bool, bytes_per_number: int, *, scores: bool = True
) -> int:
    """The most memory that one sample of stage 2 takes at a time, beside the weights: in its feed-forward layer or
    attention.

    Per position: the residual stream, its norm, and there the gate, the value, their product and the output; or
    queries, keys, values, and the scores of attention, where no fused kernel spares them (``scores=False``: where one
    does).
    """
    positions = frames + size.num_extra_positions
    stream = 3 * size.hidden_size
    feed_forward = 4 * size.ffn_hidden_size
    attention = 5 * size.hidden_size + scores * 2 * size.num_attention_heads * max(positions, tokens)
    per_position = (stream + max(feed_forward, attention)) * bytes_per_number
    state = 8 * size.latent_channels * 4  # the solver's, in float32
    return (1 + guided) * positions * (per_position + state)
