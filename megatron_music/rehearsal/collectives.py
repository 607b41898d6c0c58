"""Messages between processes as torch's dispatcher sees them: the same on NCCL, on gloo and on the stand-in."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup

# Operators of c10d by name: what people call them, and the argument whose tensors are the message.
_OPERATIONS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "gather_": ("gather", 1),
    "scatter_": ("scatter", 0),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "send": ("send", 0),
    "recv_": ("receive", 0),
    "barrier": ("barrier", None),
}
POINT_TO_POINT = ("send", "receive")
_PASSES = {"all_reduce": 2.0}  # of a ring over the bytes; the others take one


class Message(NamedTuple):
    """One collective, or one send or receive, as one process starts it."""

    group: str  # tensor, pipeline, data, ...
    operation: str
    shape: tuple[int, ...]  # of the whole tensor: what all_gather gives and what reduce_scatter takes
    dtype: str
    num_bytes: int
    peer: int | None = None  # global rank, of a send or a receive

    def ring_bytes(self, size: int) -> float:
        """Bytes that one rank sends where a ring of ``size`` ranks carries a collective."""
        return _PASSES.get(self.operation, 1.0) * (size - 1) / size * self.num_bytes


class Total(NamedTuple):
    """All messages of one kind and size."""

    group: str
    operation: str
    count: int
    message_bytes: int  # of one
    num_bytes: int  # of all


def totals(messages: Iterable[tuple[Message, int]]) -> list[Total]:
    """Messages by group, operation and size, the most bytes first.

    Args:
        messages: each with how often it occurs.
    """
    found: dict[tuple[str, str, int], int] = defaultdict(int)
    for message, times in messages:
        found[message.group, message.operation, message.num_bytes] += times
    rows = [Total(group, operation, count, size, size * count) for (group, operation, size), count in found.items()]
    return sorted(rows, key=lambda row: (-row.num_bytes, row.group, row.operation, row.message_bytes))


def group_names() -> dict[str, str]:
    """What each of megatron-core's groups is for, by torch's name of the group. Groups of one process are left out."""
    found = {dist.group.WORLD.group_name: "world"}
    for label, getter in (
        ("tensor", parallel_state.get_tensor_model_parallel_group),
        ("pipeline", parallel_state.get_pipeline_model_parallel_group),
        ("context", parallel_state.get_context_parallel_group),
        ("data", parallel_state.get_data_parallel_group),
        ("data", lambda: parallel_state.get_data_parallel_group(with_context_parallel=True)),
        ("model", parallel_state.get_model_parallel_group),
        ("embedding", lambda: parallel_state.get_embedding_group(check_initialized=False)),
        ("position embedding", lambda: parallel_state.get_position_embedding_group(check_initialized=False)),
        ("tensor and data", parallel_state.get_tensor_and_data_parallel_group),
    ):
        group = getter()
        if isinstance(group, ProcessGroup):
            found.setdefault(group.group_name, label)
    return found


def messages_of(function, args: Sequence, groups: dict[str, str]) -> tuple[list[Message], list[int]]:
    """The messages of one call of an operator of c10d, and the ranks of its group."""
    name = function._schema.name.removeprefix("c10d::")
    if name not in _OPERATIONS:
        return [], []
    operation, place = _OPERATIONS[name]
    group = next(
        ProcessGroup.unbox(value)
        for value in args
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type())
    )
    label = groups.get(group.group_name) or (
        "world" if group.size() == dist.get_world_size() else f"{group.size()} processes"
    )
    ranks = dist.get_process_group_ranks(group)
    if place is None:
        return [Message(label, operation, (), "", 0)], ranks
    peer = dist.get_global_rank(group, args[2]) if operation in POINT_TO_POINT else None
    tensors = _flat(args[place])
    if name == "allgather_":  # a list of outputs for one input
        tensors = tensors[: max(len(tensors) // group.size(), 1)]
        return [_message(label, operation, tensor, peer, parts=group.size()) for tensor in tensors], ranks
    return [_message(label, operation, tensor, peer) for tensor in tensors], ranks


def answer(function, args: Sequence):
    """What an operator of c10d returns when nobody is there: its first argument as it is, and work that is done."""
    work = FakeWork().boxed()
    return work if len(function._schema.returns) == 1 else (args[0], work)


def _message(label: str, operation: str, tensor: Tensor, peer: int | None, parts: int = 1) -> Message:
    shape = tuple(tensor.shape) if parts == 1 else (parts, *tensor.shape)
    return Message(
        label,
        operation,
        shape,
        str(tensor.dtype).removeprefix("torch."),
        tensor.numel() * tensor.element_size() * parts,
        peer,
    )


def _flat(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]
