"""The one place that joins a recipe's model, its data and its loss.

A task is all that the loop knows of what is trained: it builds the model, makes batches and runs a forward step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import torch
from megatron.core import parallel_state

from megatron_music.config import Run, RunConfig
from megatron_music.counted import counted
from megatron_music.data.batches import build_datasets, micro_batches
from megatron_music.data.folders import (
    DATA_RECORD,
    differences,
    num_tokens,
    record_bytes,
    record_of,
    tokenizer_files,
    without_tokens,
)
from megatron_music.data.latents import LatentDataset, check_before_training
from megatron_music.data.latents_index import INDEX, encoder_files
from megatron_music.errors import refuse_unless
from megatron_music.flow_run import FlowRunConfig
from megatron_music.models.conditions import build_conditioned_dit
from megatron_music.models.flow_transformer import padded_length
from megatron_music.models.gpt import build_gpt
from megatron_music.models.text2muq import build_text2muq
from megatron_music.profiling import flow_flops
from megatron_music.profiling.flops import step_flops
from megatron_music.training import distributed, flow_step, gpt_step

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


def task_of(config: Run) -> Task:
    """The task of a run. Every process must call this; the groups must exist."""
    return flow_task(config) if isinstance(config, FlowRunConfig) else gpt_task(config)


def gpt_task(config: RunConfig) -> Task:
    """Next-token prediction on a folder of ``build tokens``. Every process must call this; the groups must exist."""
    train, global_batch_size = config.train, config.train.global_batch_size
    is_edge = parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()
    # A middle stage reads hidden states alone, unless it has to hide documents from each other.
    is_needed = is_edge or config.data.reset_attention_mask
    train_set, valid_set, _ = build_datasets(
        config.data,
        seq_length=config.model.seq_length,
        seed=train.seed,
        num_samples=(train.train_iters * global_batch_size, train.eval_iters * global_batch_size, 0),
        is_needed=is_needed,
        run_folder=config.checkpoint.save,
        on_main=distributed.on_main,
    )
    has_valid = train.eval_iters > 0 and not without_valid(config)

    def batches(dataset, consumed_samples: int) -> Iterator:
        if dataset is None:
            return repeat({})
        return micro_batches(
            dataset,
            consumed_samples=consumed_samples,
            micro_batch_size=train.micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            vocab_size=config.model.vocab_size,
        )

    return Task(
        build_model=partial(_build_gpt, config),
        forward_step=gpt_step.forward_step,
        train_batches=lambda consumed_samples: batches(train_set, consumed_samples),
        valid_batches=(lambda: batches(valid_set, 0)) if has_valid else None,
        files=distributed.on_main(lambda: tokenizer_files(config.data) | {DATA_RECORD: record_bytes(record_of(config.data))}),
        seq_length=config.model.seq_length,
        work=_work_of_gpt(config, num_tokens(config.data, "train")),
    )


def made_up_task(config: RunConfig) -> Task:
    """Next-token prediction on one micro batch of ids drawn at random, again and again: for speed and memory alone.

    Raises:
        ConfigError: the run asks for a mask, which documents alone give.
    """
    refuse_unless(
        not config.data.reset_attention_mask,
        "data.reset_attention_mask is true and data.path is not set; name a dataset, whose documents the mask is of",
    )
    shape = (config.train.micro_batch_size, config.model.seq_length)
    tokens_BS = torch.randint(config.model.vocab_size, shape, generator=torch.Generator().manual_seed(config.train.seed))
    batch = {
        "tokens": tokens_BS,
        "labels": tokens_BS.roll(-1, dims=1),
        "loss_mask": torch.ones(shape),
        "position_ids": torch.arange(shape[1]).expand(shape),
    }
    return Task(
        build_model=partial(_build_gpt, config),
        forward_step=gpt_step.forward_step,
        train_batches=lambda consumed_samples: repeat(batch),
        valid_batches=None,
        files={},
        seq_length=config.model.seq_length,
        work=_work_of_gpt(config, config.train.global_batch_size * config.model.seq_length),
    )


def _build_gpt(config: RunConfig, dtype: torch.dtype, vp_stage: int | None = None):
    return build_gpt(
        config.model,
        config.parallel,
        dtype=dtype,
        explicit_attention_mask=config.data.reset_attention_mask,
        train=config.train,
        vp_stage=vp_stage,
    )


def _work_of_gpt(config: RunConfig, train_tokens: int) -> Work:
    return Work(
        config.model.seq_length,
        train_tokens,
        step_flops(config.model, config.train.global_batch_size, formula=FORMULA).model,
        f"{FORMULA} (attention causal, vocabulary {config.model.vocab_size}, {config.model.seq_length} tokens)",
    )


def flow_task(config: FlowRunConfig) -> Task:
    """The velocity of cached embeddings or latents, of a folder of ``build latents``."""
    kind, shape, train, folder = config.model.kind, config.model.shape, config.train, Path(config.data.path)
    train_set, valid_set = LatentDataset(folder, "train"), LatentDataset(folder, "valid")
    hears_music = config.model.conditions == "music"
    positions = (shape.latent_length if kind == "dit" else 1) + shape.num_extra_positions

    def batches(dataset: LatentDataset, consumed_samples: int, shuffles: bool = True) -> Iterator:
        return flow_step.flow_batches(
            dataset,
            kind,
            config.flow,
            train,
            consumed_samples=consumed_samples,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
            shuffles=shuffles,
            hears_music=hears_music,
        )

    return Task(
        build_model=partial(build_flow_model, config),
        forward_step=flow_step.forward_step,
        train_batches=lambda consumed_samples: batches(train_set, consumed_samples),
        valid_batches=(lambda: batches(valid_set, 0, shuffles=False)) if train.eval_iters and len(valid_set) else None,
        files=_files_of_latents(folder),
        seq_length=padded_length(positions, config.parallel),
        work=Work(
            positions,
            positions * len(train_set),
            flow_flops.step_flops(
                shape,
                train.global_batch_size,
                frames=positions - shape.num_extra_positions,
                words=train_set.info.text_length,
                music_size=train_set.info.embedding_size if hears_music else None,
            ).model,
            f"{flow_flops.FORMULA} (all attention, {counted(positions, 'position')}, {counted(train_set.info.text_length, 'word')})",
        ),
    )


def _files_of_latents(folder: Path) -> dict[str, bytes]:
    """What a checkpoint takes from a dataset of latents, whose hashes were compared."""
    distributed.on_main(lambda: check_before_training(folder))
    return dict(encoder_files(folder)) | {INDEX: (folder / INDEX).read_bytes()}


def build_flow_model(config: FlowRunConfig, dtype: torch.dtype = torch.float32, vp_stage: int | None = None):
    """This rank's part of the model of a run whose data's facts are known."""
    options = {"dtype": dtype, "train": config.train, "vp_stage": vp_stage}
    if config.model.kind == "dit":
        music_size = config.model.embedding_size if config.model.conditions == "music" else None
        return build_conditioned_dit(config.model.shape, config.parallel, music_size=music_size, **options)
    return build_text2muq(config.model.shape, config.parallel, **options)


def without_valid(config: Run) -> list[Path]:
    """The folders of a run's data that have no validation split; evaluation takes one of every folder."""
    if isinstance(config, FlowRunConfig):
        folder = Path(config.data.path)
        return [] if len(LatentDataset(folder, "valid")) else [folder]
    return without_tokens(config.data, "valid")


def facts_to_tell(config: Run) -> list[str]:
    """What a person should hear of a run's data before its first step, each in a sentence."""
    if isinstance(config, FlowRunConfig):
        return []
    said = differences(config.data)
    return [said] if said else []
