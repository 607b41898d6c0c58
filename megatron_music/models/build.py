"""The model of a run on this rank, from its configuration."""

import torch

from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.models.conditioners import build_conditioned_dit
from megatron_music.models.gpt import build_gpt
from megatron_music.models.text2muq import build_text2muq


def build_gpt_model(config: RunConfig, dtype: torch.dtype, vp_stage: int | None = None):
    """This rank's part of a GPT; ``vp_stage`` is the virtual pipeline stage."""
    return build_gpt(
        config.model,
        config.parallel,
        dtype=dtype,
        explicit_attention_mask=config.data.reset_attention_mask,
        train=config.train,
        vp_stage=vp_stage,
    )


def build_flow_model(config: FlowRunConfig, dtype: torch.dtype = torch.float32, vp_stage: int | None = None):
    """This rank's part of the model of a run whose data's facts are known."""
    options = {"dtype": dtype, "train": config.train, "vp_stage": vp_stage}
    if config.model.kind == "dit":
        music_size = config.model.embedding_size if config.model.conditions == "music" else None
        return build_conditioned_dit(config.model.shape, config.parallel, music_size=music_size, **options)
    return build_text2muq(config.model.shape, config.parallel, **options)
