"""The batches and the forward step of both text-to-music models, and their loss.

What a sample draws (noise, sigma, which of its captions, whether it keeps them) depends on the seed and on its number
in the
run alone: not on the layout, nor on where a run was stopped. Shapes: B samples, L words.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from megatron_music.config.flow_sections import FlowConfig
from megatron_music.config.sections import TrainConfig
from megatron_music.data.latents import LatentDataset
from megatron_music.flow.guidance import Condition, without_some
from megatron_music.flow.noise import (
    generator_of,
    sample_keeps,
    sample_noise,
    sample_sigma,
)
from megatron_music.flow.path import interpolate, interpolate_v, loss_per_sample
from megatron_music.models.text2muq import to_unit_variance
from megatron_music.parallel import distributed


def flow_batches(
    dataset: LatentDataset,
    kind: str,
    flow: FlowConfig,
    train: TrainConfig,
    *,
    consumed_samples: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    shuffles: bool = True,
    hears_music: bool = True,
) -> Iterator[dict[str, Tensor]]:
    """The micro batches of one data-parallel rank, one after another, without end.

    The samples of a global batch are consecutive: micro batch m of rank r starts at
    ``consumed_samples + (m * data_parallel_size + r) * micro_batch_size``.

    Args:
        kind: text2muq or dit.
        shuffles: each epoch in an order of its own; else always the data's, where everything drawn is of another seed,
            and no condition is dropped.
        hears_music: stage 2 is told an embedding of music.

    Yields:
        ``noisy``, ``velocity`` and ``sigma_B`` with the condition, by the names of the model's arguments; all float32
        but ``keeps_BL``.
    """
    size = train.micro_batch_size
    start = consumed_samples + data_parallel_rank * size
    null = null_condition(dataset, kind, hears_music)
    while True:
        numbers = range(start, start + size)
        places = [place_of(number, len(dataset), train.seed if shuffles else None) for number in numbers]
        seed = train.seed if shuffles else train.seed + 1
        yield _batch(dataset, kind, flow, seed, numbers, places, null if shuffles else None, hears_music)
        start += data_parallel_size * size


def place_of(number: int, length: int, seed: int | None) -> int:
    """Which item of a dataset is sample ``number`` of a run: in each epoch every item once, in an order of its own.

    Args:
        seed: of the orders; None: the data's own.
    """
    epoch, place = divmod(number, length)
    return place if seed is None else int(_order(epoch, length, seed)[place])


_orders: dict[tuple[int, int, int], np.ndarray] = {}  # of late


def _order(epoch: int, length: int, seed: int) -> np.ndarray:
    key = epoch, length, seed
    if key not in _orders:
        while len(_orders) >= 2:  # a batch may reach into the next epoch
            _orders.pop(next(iter(_orders)))
        _orders[key] = np.random.default_rng([seed, epoch]).permutation(length)
    return _orders[key]


def _batch(
    dataset: LatentDataset,
    kind: str,
    flow: FlowConfig,
    seed: int,
    numbers: Sequence[int],
    places: Sequence[int],
    null: Condition | None,
    hears_music: bool,
) -> dict[str, Tensor]:
    items = [dataset[place] for place in places]
    texts = [
        item.captions[int(torch.randint(len(item.captions), (), generator=generator_of(seed, number, "caption")))]
        for item, number in zip(items, numbers, strict=True)
    ]
    condition = text_condition(dataset, kind, texts)
    target = torch.from_numpy(np.stack([item.latents if kind == "dit" else item.embedding for item in items])).float()
    if kind == "text2muq":
        target = to_unit_variance(target)
    else:
        condition |= {
            "seconds_start_B": torch.tensor([item.seconds_start for item in items], dtype=torch.float32),
            "seconds_total_B": torch.tensor([item.seconds_total for item in items], dtype=torch.float32),
        }
        if hears_music:
            condition["music_BE"] = torch.from_numpy(np.stack([item.embedding for item in items])).float()
    if null is not None:
        condition = without_some(condition, null, sample_keeps(seed, numbers, flow.condition_dropout))
    if flow.objective == "regression":
        # What is learned from sigma = 1 alone, without noise, is the mean of the data under a condition.
        noise, sigma_B = torch.zeros_like(target), torch.ones(len(items))
    else:
        noise = sample_noise(target.shape[1:], seed, numbers)
        sigma_B = sample_sigma(
            seed, numbers, kind=flow.sigma, uniform_share=flow.sigma_uniform_share, shift=flow.sigma_shift
        )
    noisy, velocity = (interpolate_v if flow.objective == "v" else interpolate)(target, noise, sigma_B)
    return {"noisy": noisy, "velocity": velocity, "sigma_B": sigma_B, **condition}


def text_condition(dataset: LatentDataset, kind: str, texts: Sequence[int]) -> Condition:
    """What a model is told of captions, by their numbers."""
    states, lengths = zip(*(dataset.text(text) for text in texts), strict=True)
    states_BLC = torch.from_numpy(np.stack(states)).float()
    keeps_BL = torch.arange(states_BLC.size(1)) < torch.tensor(lengths)[:, None]
    return {"text_BLC" if kind == "dit" else "context_BLC": states_BLC, "keeps_BL": keeps_BL}


def null_condition(dataset: LatentDataset, kind: str, hears_music: bool = True) -> Condition:
    """The condition's absence, of one row, with seconds as a whole sample has them.

    It is the empty caption, and no embedding; or, of the published model, no words at all.
    """
    null = text_condition(dataset, kind, [0])
    if kind == "dit":
        seconds = dataset.info.latent_length * dataset.info.downsampling / dataset.info.sample_rate
        null |= {
            "seconds_start_B": torch.zeros(1),
            "seconds_total_B": torch.full((1,), float(seconds)),
        }
        if hears_music:
            null["music_BE"] = torch.zeros(1, dataset.info.embedding_size)
        else:
            null["keeps_BL"] = torch.zeros_like(null["keeps_BL"])
    return null


def forward_step(batches: Iterator[dict[str, Tensor]], model) -> tuple[Tensor, partial]:
    """The forward step that megatron-core's schedules call: the model's output, and the loss function for it."""
    batch = distributed.to_device(next(batches))
    noisy, velocity = batch.pop("noisy"), batch.pop("velocity")
    return model(noisy, **batch), partial(sum_loss, velocity)


def sum_loss(velocity: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The summed loss of the samples, for ``calculate_per_token_loss``.

    Returns:
        The sum, the number of samples (int32), and for the report ``loss`` = [sum, samples].
    """
    losses = loss_per_sample(predicted, velocity)
    total, number = losses.sum(), torch.tensor(len(losses), device=losses.device)
    return total, number.to(torch.int32), {"loss": torch.stack([total.detach(), number.float()])}
