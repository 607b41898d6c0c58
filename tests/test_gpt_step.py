"""The parts of a sequence that context-parallel ranks read, beside megatron-core's own cutting."""

import inspect

import pytest
import torch
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_music.training.gpt_step import own_parts


class Group:
    """As much of a process group as is asked here."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._size


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_read_what_megatron_core_gives_them(size):
    whole = torch.arange(2 * 12 * size).view(2, 12 * size)
    others = {"is_hybrid_cp": False} if "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters else {}
    read = [own_parts(whole, rank, size) for rank in range(size)]
    for rank, mine in enumerate(read):
        theirs = get_batch_on_this_cp_rank({"tokens": whole}, cp_group=Group(rank, size), **others)["tokens"]
        assert mine.tolist() == theirs.tolist()
    assert torch.cat(read, dim=1).sort(dim=1).values.tolist() == whole.tolist()  # each token once
