"""The parts of a sequence that context-parallel ranks read, beside megatron-core's own cutting."""

import pytest
import torch
from megatron.core import parallel_state
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_music.training.gpt_step import own_parts


@pytest.mark.parametrize("size", [2, 3, 4])
def test_ranks_read_what_megatron_core_gives_them(monkeypatch, size):
    whole = torch.arange(2 * 12 * size).view(2, 12 * size)
    read = [own_parts(whole, rank, size) for rank in range(size)]
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: size)
    for rank, mine in enumerate(read):
        monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda rank=rank: rank)
        assert mine.tolist() == get_batch_on_this_cp_rank({"tokens": whole})["tokens"].tolist()
    assert torch.cat(read, dim=1).sort(dim=1).values.tolist() == whole.tolist()  # each token once
