"""Models out of checkpoints, weights only, to generate with."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.folder import CONFIG
from megatron_music.checkpoints.state import read_state
from megatron_music.checkpoints.weights import load_average, load_weights
from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.load import read_run
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import ParallelConfig, Run
from megatron_music.models.build import build_flow_model
from megatron_music.models.gpt import build_gpt
from megatron_music.parallel import distributed

BYTES_PER_PARAMETER = 2  # at least: of bfloat16


def load_model_for_inference(checkpoint_dir: str | os.PathLike, tp: int = 1, pp: int = 1, *, own_layers: bool = False):
    """The model of the checkpoint that ``find_checkpoint`` finds, weights only, ready to generate.

    See ``load_model``.

    Raises:
        ValueError: no checkpoint, another vocabulary, or a ``tp`` or ``pp`` that does not divide the model.
    """
    return load_model(find_checkpoint(checkpoint_dir), tp, pp, own_layers=own_layers)


def load_model(checkpoint: Path, tp: int = 1, pp: int = 1, *, own_layers: bool = False):
    """The model of one checkpoint, weights only, ready to generate.

    Starts the processes' groups (one process needs no launcher) and, without CUDA, the CPU adapter;
    ``distributed.stop()`` ends both. The tokenizer lies in ``checkpoint / "tokenizer"``.

    Args:
        checkpoint: what ``find_checkpoint`` gave, saved in any layout.
        tp: tensor-parallel size.
        pp: pipeline-parallel size; the number of processes is tp x pp.
        own_layers: built of ``specs.gpt_layer``, also where Transformer Engine, which has other names, is installed.

    Returns:
        This process's part of a GPTModel in eval mode, and the RunConfig it was trained with.

    Raises:
        ValueError: another vocabulary, or a ``tp`` or ``pp`` that does not divide the model.
    """

    def build(config, dtype):
        if not isinstance(config, RunConfig):
            raise ConfigError(f"{checkpoint} is of a {config.model.kind}, not of a GPT; name a run that writes MIDI")
        model = replace(config.model, attention_backend="auto")  # a choice for training, perhaps on another machine
        return build_gpt(model, config.parallel, dtype=dtype, explicit_attention_mask=own_layers)

    model, config, _ = _load_for_inference(checkpoint, tp, pp, build)
    return model, config


def load_flow_model(checkpoint: Path, tp: int = 1, *, averaged: bool = True):
    """The text-to-music model of one checkpoint, ready to sample from; see ``load_model``.

    Args:
        averaged: with the average of its weights, where the run kept one; else with the last ones.

    Returns:
        This process's part of a Text2MuQ or ConditionedDiT in eval mode, and the FlowRunConfig it was trained with.

    Raises:
        ValueError: a GPT's checkpoint, or a ``tp`` that does not divide the model.
    """

    def build(config, dtype):
        if not isinstance(config, FlowRunConfig):
            raise ConfigError(f"{checkpoint} is of a GPT; `megatron-music generate midi` writes its music")
        return build_flow_model(config, dtype)

    model, config, facts = _load_for_inference(checkpoint, tp, 1, build)
    if averaged and "average_step" in facts:
        load_average(model, checkpoint)
    return model, config


def _load_for_inference(checkpoint: Path, tp: int, pp: int, build: Callable) -> tuple:
    facts = read_state(checkpoint)
    config = read_run(checkpoint / CONFIG)
    _check_held(config, checkpoint)
    config = replace(config, parallel=ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp))
    distributed.start(config.parallel)
    distributed.seed_for_building(config.train.seed)
    is_half = config.train.bf16 and torch.cuda.is_available()
    model = build(config, torch.bfloat16 if is_half else torch.float32)
    if torch.cuda.is_available():
        model = model.cuda(torch.cuda.current_device())
    load_weights([model], checkpoint)
    return model.eval(), config, facts


def _check_held(config: Run, checkpoint: Path) -> None:
    """Refuse a model that the checkpoint's tensors are too small for, before any of it is built."""
    parameters = config.model.parameter_count if isinstance(config, RunConfig) else config.model.shape.parameter_count
    held = sum(path.stat().st_size for path in checkpoint.glob("*.distcp"))
    refuse_unless(
        parameters * BYTES_PER_PARAMETER <= held,
        f"{checkpoint / CONFIG} describes a model of {parameters:,} parameters, and the tensors beside it have "
        f"{held:,} bytes; "
        "name another checkpoint",
    )
