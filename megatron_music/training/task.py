"""What a kind of run gives the training loop: data, model, forward step, and the work of a step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import Run
from megatron_music.data.folders import without_tokens
from megatron_music.data.latents import LatentDataset

FORMULA = "mcore"


class Work(NamedTuple):
    """What a step is counted in."""

    tokens_per_sample: int  # positions of one sample, without filling
    train_tokens: int  # in the whole training data
    flops: float  # of one step of all processes
    formula: str  # in words, with what it is counted for


@dataclass(frozen=True)
class Task:
    """What is trained."""

    build_model: Callable  # dtype, virtual pipeline stage or None -> this rank's part of the model
    forward_step: Callable  # (micro batches, model) -> output and loss function, for megatron-core's schedules
    train_batches: Callable[[int], Iterator]  # consumed samples -> micro batches of this rank
    valid_batches: Callable[[], Iterator] | None  # always the same ones; None: there is nothing to evaluate on
    files: dict[str, bytes]  # by path below a checkpoint, which holds them wherever the data goes meanwhile
    seq_length: int  # positions that are sent from stage to stage
    work: Work | None = None  # the loop needs it


def without_valid(config: Run) -> list[Path]:
    """The folders of a run's data that have no validation split; evaluation takes one of every folder."""
    if isinstance(config, FlowRunConfig):
        folder = Path(config.data.path)
        return [] if len(LatentDataset(folder, "valid")) else [folder]
    return without_tokens(config.data, "valid")
