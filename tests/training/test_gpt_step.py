"""The parts of a sequence that context-parallel ranks read, beside megatron-core's own cutting."""

import inspect

import pytest
import torch
import torch.distributed as dist
from megatron.core.utils import get_batch_on_this_cp_rank
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_music.training.gpt_step import own_parts


def cut_by_megatron_core(whole: torch.Tensor, rank: int, size: int) -> list:
    # An argument without a default since 0.18.
    options = (
        {"is_hybrid_cp": False} if "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters else {}
    )
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    try:
        return get_batch_on_this_cp_rank({"tokens": whole}, cp_group=dist.group.WORLD, **options)["tokens"].tolist()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_read_what_megatron_core_gives_them(size):
    whole = torch.arange(2 * 12 * size).view(2, 12 * size)
    read = [own_parts(whole, rank, size) for rank in range(size)]
    for rank, mine in enumerate(read):
        assert mine.tolist() == cut_by_megatron_core(whole, rank, size)
    assert torch.cat(read, dim=1).sort(dim=1).values.tolist() == whole.tolist()  # each token once
