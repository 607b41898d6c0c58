"""What is drawn at random: noise, sigma, and whether a sample keeps its condition.

Each sample has generators of its own, on the CPU: what it draws depends on the seed and its index alone, never on the
batch it is in, on the number of processes, or on the machine.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_music.flow.path import shift_sigma

_WORD = 0xFFFFFFFF
KINDS = ("uniform", "logit_normal")


def generator_of(seed: int, index: int, purpose: str) -> torch.Generator:
    """The generator of one sample for one purpose; of another index, seed or purpose it gives other numbers.

    Args:
        seed: of the run.
        index: of the sample, from 0; up to 2 ** 32 of them differ from each other for certain.
        purpose: what is drawn, e.g. ``noise``.
    """
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=4).digest()
    # torch seeds its CPU generator with 32 bits. A one-to-one scramble of them (Murmur3's) keeps all indices apart,
    # where a digest of seed and index would make two of 77,000 samples equal as often as not.
    word = (int.from_bytes(digest, "little") + index) & _WORD
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        word = (word ^ (word >> shift)) * factor & _WORD
    return torch.Generator("cpu").manual_seed(word)


def sample_noise(shape: Sequence[int], seed: int, indices: Sequence[int], purpose: str = "noise") -> Tensor:
    """Standard normal noise [B, *shape], float32 on the CPU: one sample for each index."""
    return torch.stack([torch.randn(*shape, generator=generator_of(seed, index, purpose)) for index in indices])


def sample_sigma(
    seed: int,
    indices: Sequence[int],
    *,
    kind: str = "uniform",
    mean: float = 0.0,
    deviation: float = 1.0,
    uniform_share: float = 0.0,
    shift: float = 1.0,
) -> Tensor:
    """sigma [B] in (0, 1), float32 on the CPU: one for each index.

    Args:
        kind: ``uniform``, or ``logit_normal``: the sigmoid of a normal number, mostly in the middle of the path.
        mean, deviation: of the normal number.
        uniform_share: this part of the samples is uniform all the same, so that the ends of the path are learned too.
        shift: see ``shift_sigma``; applied last.

    Raises:
        ValueError: an unknown kind, or a share outside [0, 1].

    Source: Esser et al. 2024, arXiv:2403.03206, section 3.1.
    """
    if kind not in KINDS:
        raise ValueError(f"sigma's kind is {kind!r}; use {' or '.join(KINDS)}")
    if not 0 <= uniform_share <= 1:
        raise ValueError(f"uniform_share is {uniform_share}, where a part of the samples, 0 to 1, is needed")
    sigmas = []
    for index in indices:
        generator = generator_of(seed, index, "sigma")
        chance, place = torch.rand(2, generator=generator)
        normal = mean + deviation * torch.randn((), generator=generator)
        is_uniform = kind == "uniform" or chance < uniform_share
        sigmas.append(place if is_uniform else normal.sigmoid())
    # What float32 rounds to an end of the path would have noise, or data, for all its input.
    tiny = 2.0**-24
    return shift_sigma(torch.stack(sigmas).clamp(tiny, 1 - tiny), shift)


def sample_keeps(seed: int, indices: Sequence[int], drop_chance: float) -> Tensor:
    """Whether each sample keeps its condition in training, bool [B] on the CPU.

    Each sample is asked for itself: with one answer for a batch, small batches would see no condition at all.

    Raises:
        ValueError: drop_chance is outside [0, 1].
    """
    if not 0 <= drop_chance <= 1:
        raise ValueError(f"drop_chance is {drop_chance}, where a chance, 0 to 1, is needed; 0.1 is usual")
    return torch.stack(
        [torch.rand((), generator=generator_of(seed, index, "keep")) >= drop_chance for index in indices]
    )
