"""Sharded tensors of a model's weights, and of float32 state that lies beside them, whole or in part.

A distributed optimizer keeps a contiguous range of each flattened parameter, which is no rectangle of it. Such a range
is
cut into rectangular blocks: the rest of a row, whole rows, the beginning of a row. On disk the tensor then has the
parameter's shape whatever wrote it, and any process reads the blocks it needs.
"""

from dataclasses import dataclass, replace
from math import prod

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory
from torch import Tensor

Block = tuple[tuple[int, ...], tuple[int, ...]]  # offsets and sizes, by axis


@dataclass(frozen=True)
class ShardedWeight:
    """One tensor of a model as this process holds it.

    Attributes:
        tensor: the parameter or buffer.
        pieces: views of it, in order, each with its place in a global tensor: one, or two where a gate lies in the same
            parameter as what it gates.
    """

    tensor: Tensor
    pieces: list[ShardedTensor]

    def beside(self, prefix: str, flat: Tensor, start: int = 0, *, is_replicated: bool) -> list[ShardedTensor]:
        """The same places for other values, such as a moment of the optimizer.

        Args:
            prefix: before the names on disk.
            flat: values for elements ``start`` and following of the flattened weight; one axis.
            is_replicated: whether the data-parallel processes hold the same values; else each holds others.

        Returns:
            Blocks that share the memory of ``flat``: what is loaded into them lands there.
        """
        end, found, first = start + flat.numel(), [], 0
        for piece in self.pieces:
            last = first + prod(piece.local_shape)
            begin, stop = max(start, first) - first, min(end, last) - first
            place = first + begin - start
            for offsets, sizes in blocks_of_range(piece.local_shape, begin, stop):
                values = flat[place : place + prod(sizes)]
                place += prod(sizes)
                found.append(_block(piece, f"{prefix}.{piece.key}", values, offsets, sizes, is_replicated))
            first = last
        return found


def sharded_weights(modules: list) -> dict[str, ShardedWeight]:
    """A model's chunks, by chunk and name, without the states that only FP8 fills.

    The names stay in this process: on disk a layer goes by its number in the whole model.
    """
    return {
        f"{chunk}.{name}": ShardedWeight(item.data, item.build() if isinstance(item, ShardedTensorFactory) else [item])
        for chunk, module in enumerate(modules)
        for name, item in module.sharded_state_dict(metadata={"singleton_local_shards": False}).items()
        if not name.endswith("_extra_state")
    }


def blocks_of_range(shape: tuple[int, ...], start: int, end: int) -> list[Block]:
    """Cut elements ``start`` to ``end`` of a flattened tensor into blocks of the tensor, in the order of the elements.

    Returns:
        At most one block for a tensor of one axis, and two more for each further axis; together they are the range.
    """
    if start >= end:
        return []
    if not shape:
        return [((), ())]
    if len(shape) == 1:
        return [((start,), (end - start,))]
    row = prod(shape[1:])
    first, last = -(-start // row), end // row  # whole rows
    if first > last:  # within one row
        return _in_row(shape, last, start - last * row, end - last * row)
    found = _in_row(shape, first - 1, start - (first - 1) * row, row) if start % row else []
    if first < last:
        found.append(((first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])))
    return found + _in_row(shape, last, 0, end - last * row)


def share_out(shards: list[ShardedTensor]) -> None:
    """Divide what every data-parallel process holds alike among them for writing; in place.

    Each counts for itself and comes to the same, since all have the same tensors in the same order.
    """
    rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    written = [0] * parallel_state.get_data_parallel_world_size(with_context_parallel=True)
    for shard in shards:
        writer = written.index(min(written))
        written[writer] += shard.data.nbytes
        shard.replica_id = (*shard.replica_id[:-1], (rank - writer) % len(written))


def _in_row(shape: tuple[int, ...], row: int, start: int, end: int) -> list[Block]:
    return [((row, *offsets), (1, *sizes)) for offsets, sizes in blocks_of_range(shape[1:], start, end)]


@torch.no_grad()
def _block(
    piece: ShardedTensor, key: str, values: Tensor, offsets: tuple, sizes: tuple, is_replicated: bool
) -> ShardedTensor:
    shape = (*[1] * piece.prepend_axis_num, *sizes)
    shifts = (*[0] * piece.prepend_axis_num, *offsets)
    return replace(
        piece,
        key=key,
        data=values.view(shape),
        dtype=values.dtype,
        local_shape=shape,
        global_offset=tuple(a + b for a, b in zip(piece.global_offset, shifts, strict=True)),
        axis_fragmentations=None,  # blocks of different sizes
        replica_id=piece.replica_id if is_replicated else (*piece.replica_id[:-1], 0),
        prepend_axis_num=0,
    )
