"""The one place that joins a recipe's model, its data and its loss.

A task is all that the loop knows of what is trained: it builds the model, makes batches and runs a forward step.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat

from megatron.core import parallel_state

from megatron_music.config import RunConfig
from megatron_music.data.batches import build_datasets, has_tokens, micro_batches
from megatron_music.models.gpt import build_gpt
from megatron_music.training.gpt_step import forward_step


@dataclass(frozen=True)
class Task:
    """What is trained."""

    build_model: Callable  # dtype, virtual pipeline stage or None -> this rank's part of the model
    forward_step: Callable  # (micro batches, model) -> output and loss function, for megatron-core's schedules
    train_batches: Callable[[int], Iterator]  # consumed samples -> micro batches of this rank
    valid_batches: Callable[[], Iterator] | None  # always the same ones; None: there is nothing to evaluate on
    tokenizer_files: dict[str, bytes]  # by name; every checkpoint holds them, wherever the data goes meanwhile
    seq_length: int


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
    )
    has_valid = train.eval_iters > 0 and has_tokens(config.data, "valid")

    def batches(dataset, consumed_samples: int) -> Iterator:
        if dataset is None:
            return repeat({})
        return micro_batches(
            dataset,
            consumed_samples=consumed_samples,
            micro_batch_size=train.micro_batch_size,
            data_parallel_rank=parallel_state.get_data_parallel_rank(),
            data_parallel_size=parallel_state.get_data_parallel_world_size(),
        )

    def build_model(dtype, vp_stage=None):
        return build_gpt(
            config.model,
            config.parallel,
            dtype=dtype,
            explicit_attention_mask=config.data.reset_attention_mask,
            train=train,
            vp_stage=vp_stage,
        )

    return Task(
        build_model=build_model,
        forward_step=forward_step,
        train_batches=lambda consumed_samples: batches(train_set, consumed_samples),
        valid_batches=(lambda: batches(valid_set, 0)) if has_valid else None,
        tokenizer_files={
            path.name: path.read_bytes() for path in (config.data.folders[0] / "tokenizer").iterdir() if path.is_file()
        },
        seq_length=config.model.seq_length,
    )
