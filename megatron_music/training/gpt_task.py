"""The task of training a GPT."""

from collections.abc import Iterator
from functools import partial
from itertools import repeat

import torch
from megatron.core import parallel_state

from megatron_music.config.errors import refuse_unless
from megatron_music.config.run import RunConfig
from megatron_music.data.batches import build_datasets, micro_batches
from megatron_music.data.folders import (
    DATA_RECORD,
    num_tokens,
    record_bytes,
    record_of,
    tokenizer_files,
)
from megatron_music.models.build import build_gpt_model
from megatron_music.parallel import distributed
from megatron_music.profiling.flops import step_flops
from megatron_music.training import gpt_step
from megatron_music.training.task import FORMULA, Task, Work, without_valid


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
        build_model=partial(build_gpt_model, config),
        forward_step=gpt_step.forward_step,
        train_batches=lambda consumed_samples: batches(train_set, consumed_samples),
        valid_batches=(lambda: batches(valid_set, 0)) if has_valid else None,
        files=distributed.on_main(
            lambda: tokenizer_files(config.data) | {DATA_RECORD: record_bytes(record_of(config.data))}
        ),
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
    tokens_BS = torch.randint(
        config.model.vocab_size, shape, generator=torch.Generator().manual_seed(config.train.seed)
    )
    batch = {
        "tokens": tokens_BS,
        "labels": tokens_BS.roll(-1, dims=1),
        "loss_mask": torch.ones(shape),
        "position_ids": torch.arange(shape[1]).expand(shape),
    }
    return Task(
        build_model=partial(build_gpt_model, config),
        forward_step=gpt_step.forward_step,
        train_batches=lambda consumed_samples: repeat(batch),
        valid_batches=None,
        files={},
        seq_length=config.model.seq_length,
        work=_work_of_gpt(config, config.train.global_batch_size * config.model.seq_length),
    )


def _work_of_gpt(config: RunConfig, train_tokens: int) -> Work:
    return Work(
        config.model.seq_length,
        train_tokens,
        step_flops(config.model, config.train.global_batch_size, formula=FORMULA).model,
        f"{FORMULA} (attention causal, vocabulary {config.model.vocab_size}, {config.model.seq_length} tokens)",
    )
