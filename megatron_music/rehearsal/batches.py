"""The task of a rehearsal: the run's own model and loss, and made-up batches of the shapes that its data have."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import repeat

import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import Run
from megatron_music.models.build import build_flow_model, build_gpt_model
from megatron_music.models.flow_transformer import padded_length
from megatron_music.training import flow_step
from megatron_music.training.gpt_task import made_up_task
from megatron_music.training.task import Task

WORDS = 128  # states of a caption, of a run whose data are not at hand


def rehearsed_task(config: Run, *, words: int = WORDS) -> Task:
    """The task of a run, without its data. The groups must exist.

    Args:
        words: states of a caption, of a text-to-music model.
    """
    if isinstance(config, RunConfig):
        config = _with_own_layers(config)
        without_mask = replace(config, data=replace(config.data, reset_attention_mask=False))
        task = made_up_task(without_mask)
        task = replace(task, build_model=partial(build_gpt_model, config))
        return replace(task, train_batches=lambda consumed_samples: repeat(_gpt_batch(config)))
    return _flow_task(config, words)


def _with_own_layers(config: RunConfig) -> RunConfig:
    """The run without Transformer Engine's layers, installed or not: their kernels read data."""
    if config.parallel.context_parallel_size > 1:
        return config
    return replace(config, model=replace(config.model, attention_backend="local"))


def counted(task: Task, around: Callable[[], AbstractContextManager]) -> Task:
    """The task with each micro batch's forward pass within ``around()``."""

    def forward_step(batches: Iterator, model):
        with around():
            return task.forward_step(batches, model)

    return replace(task, forward_step=forward_step)


def _gpt_batch(config: RunConfig) -> dict[str, Tensor]:
    """What ``data.batches.micro_batches`` gives a rank of this pipeline stage."""
    is_edge = parallel_state.is_pipeline_first_stage() or parallel_state.is_pipeline_last_stage()
    if not is_edge and not config.data.reset_attention_mask:
        return {}
    shape = (config.train.micro_batch_size, config.model.seq_length)
    tokens_BS = torch.zeros(shape, dtype=torch.int64)
    batch = {"tokens": tokens_BS, "labels": tokens_BS, "loss_mask": torch.ones(shape), "position_ids": tokens_BS}
    if config.data.reset_attention_mask:
        batch["attention_mask"] = torch.zeros((shape[0], 1, shape[1], shape[1]), dtype=torch.bool)
    return batch


def _flow_task(config: FlowRunConfig, words: int) -> Task:
    shape, model, size = config.model.shape, config.model, config.train.micro_batch_size
    is_dit, hears_music = model.kind == "dit", model.kind == "dit" and model.conditions == "music"
    if is_dit and hears_music and model.embedding_size is None:
        config = replace(config, model=replace(model, embedding_size=512))
    positions = (shape.latent_length if is_dit else 1) + shape.num_extra_positions
    noisy = torch.zeros((size, shape.latent_channels, shape.latent_length) if is_dit else (size, shape.embedding_size))
    batch = {
        "noisy": noisy,
        "velocity": noisy,
        "sigma_B": torch.zeros(size),
        "keeps_BL": torch.ones((size, words), dtype=torch.bool),
    }
    if is_dit:
        batch |= {
            "text_BLC": torch.zeros((size, words, shape.context_input_size)),
            "seconds_start_B": torch.zeros(size),
            "seconds_total_B": torch.zeros(size),
        }
        if hears_music:
            batch["music_BE"] = torch.zeros((size, config.model.embedding_size))
    else:
        batch["context_BLC"] = torch.zeros((size, words, shape.context_size))
    return Task(
        build_model=partial(build_flow_model, config),
        forward_step=flow_step.forward_step,
        train_batches=lambda consumed_samples: repeat(dict(batch)),
        valid_batches=None,
        files={},
        seq_length=padded_length(positions, config.parallel),
    )
