"""Which ranks of a job do different work, and what they are called."""

from typing import NamedTuple

from megatron_music.config.errors import refuse_unless
from megatron_music.config.sections import ParallelConfig


class Role(NamedTuple):
    """A rank with its coordinates, each from 0."""

    rank: int
    tensor: int
    context: int
    data: int
    pipeline: int

    def __str__(self) -> str:
        context = f", context {self.context}" if self.context else ""
        return f"rank {self.rank} (pipeline {self.pipeline}, tensor {self.tensor}{context}, data {self.data})"


def role_of(rank: int, parallel: ParallelConfig, num_gpus: int) -> Role:
    """The coordinates of a rank in megatron-core's order: tensor, context, data, pipeline.

    Raises:
        ConfigError: there is no such rank.
    """
    refuse_unless(0 <= rank < num_gpus, f"rank {rank} is outside 0..{num_gpus - 1}; name a rank of the {num_gpus} GPUs")
    rest, found = rank, []
    data = parallel.data_parallel_size(num_gpus)
    for size in (
        parallel.tensor_model_parallel_size,
        parallel.context_parallel_size,
        data,
        parallel.pipeline_model_parallel_size,
    ):
        found.append(rest % size)
        rest //= size
    return Role(rank, *found)


def rank_at(
    parallel: ParallelConfig, num_gpus: int, *, tensor: int = 0, context: int = 0, data: int = 0, pipeline: int = 0
) -> int:
    """The rank at these coordinates."""
    size = parallel.data_parallel_size(num_gpus)
    rank = pipeline * size + data
    rank = rank * parallel.context_parallel_size + context
    return rank * parallel.tensor_model_parallel_size + tensor


def distinct_roles(parallel: ParallelConfig, num_gpus: int) -> list[Role]:
    """One rank of each pipeline stage, and of the outer stages also the last tensor-parallel and the last data-parallel
    rank.

    Ranks between the edges run the same operators on the same shapes as one of these.
    """
    last_stage = parallel.pipeline_model_parallel_size - 1
    last_tensor, last_data = parallel.tensor_model_parallel_size - 1, parallel.data_parallel_size(num_gpus) - 1
    last_context = parallel.context_parallel_size - 1
    ranks = {rank_at(parallel, num_gpus, pipeline=stage) for stage in range(last_stage + 1)}
    for stage in (0, last_stage):
        ranks.add(rank_at(parallel, num_gpus, pipeline=stage, tensor=last_tensor))
        ranks.add(rank_at(parallel, num_gpus, pipeline=stage, data=last_data, context=last_context))
    return [role_of(rank, parallel, num_gpus) for rank in sorted(ranks)]
