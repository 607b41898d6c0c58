"""Watches every operator of a step: memory, operations, messages, mixed devices, and which part of the step it belongs to."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_music.rehearsal.collectives import Message, answer, messages_of
from megatron_music.rehearsal.ledger import Holding, Ledger
from megatron_music.rehearsal.operators import counts, flops_of, is_attention
from megatron_music.rehearsal.standin import Wait, where

# Operators that take tensors of the CPU beside those of a GPU, as PyTorch lets them.
_MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::set_"}
# What a storage is for that an operator makes in this part of a step.
_CATEGORY = {"build": "other state", "forward": "activations", "recomputation": "activations", "backward": "backward", "reduction": "reduction",
             "update": "update"}  # fmt: skip


@dataclass
class Segment:
    """What happened from one micro batch's start to the next one's."""

    start: int = 0  # operators before it
    operators: int = 0
    flops: Counter = field(default_factory=Counter)  # by part of the step and kind: products, attention
    messages: list[tuple[Message, str]] = field(default_factory=list)  # each with the part of the step
    waits: list[Wait] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # name, first and last operator

    def same_work(self, other: "Segment") -> bool:
        return (self.operators, self.flops, self.messages) == (other.operators, other.flops, other.messages)


class Recorder(TorchDispatchMode):
    """The mode. Messages are answered at once where ``alone``; on real processes they are sent.

    Args:
        alone: nobody is at the other end.

    Attributes:
        segments: the first is what comes before the first micro batch.
        mixed: operators that took tensors of two devices, with the line that called them.
    """

    def __init__(self, *, alone: bool = True):
        super().__init__()
        self.alone = alone
        self.ledger = Ledger()
        self.groups: dict[str, str] = {}
        self.segments = [Segment()]
        self.part = "build"
        self.mixed: Counter = Counter()
        self.names: dict[int, str] = {}  # of modules, by id
        self._stack: list[str] = []
        self._makes: dict[object, tuple[bool, bool, bool]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        segment = self.segments[-1]
        if function.namespace == "c10d":
            return self._send(segment, function, args, kwargs)
        segment.operators += 1
        self.ledger.clock += 1
        with torch._C.DisableTorchFunction():
            known = self._makes.get(function)
            if known is None:
                known = self._makes[function] = _facts(function)
            makes, has_flops, may_mix = known
            if self.alone and not may_mix:
                self._check_devices(function, args)
            if self.alone and function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
                segment.waits.append(Wait("wait", "a number of the GPU", where(), args[0].element_size()))
                return 1.0 if args[0].is_floating_point() else 1
            result = function(*args, **kwargs)
            if has_flops:
                kind = "attention" if is_attention(function) else "products"
                segment.flops[self._part(), kind] += flops_of(function, args, kwargs, result)
            if makes:
                self._follow(function, result)
        return result

    def note(self, wait: Wait) -> None:
        """A wait or a copy, as the stand-in saw it."""
        self.segments[-1].waits.append(wait)

    def begin_segment(self) -> None:
        """A micro batch's forward pass begins."""
        self.segments.append(Segment(start=self.ledger.clock))

    def begin_step(self) -> None:
        """Forget what was seen so far, but for the memory that is held."""
        self.ledger.begin()
        self.segments, self.part = [Segment()], "forward"
        self.mixed.clear()

    @contextlib.contextmanager
    def during(self, part: str, name: str | None = None) -> Iterator[None]:
        """A part of the step; it is a span of the timeline where it has a name."""
        before, start = self.part, self.ledger.clock
        self.part = part
        try:
            yield
        finally:
            self.part = before
            self.segments[-1].spans.append((name or part, start, self.ledger.clock))

    def within(self, part: str, function: Callable) -> Callable:
        """A function that is a part of the step when it is called."""
        def wrapped(*args, **kwargs):
            with self.during(part):
                return function(*args, **kwargs)

        return wrapped

    @contextlib.contextmanager
    def naming(self, modules: list[torch.nn.Module]) -> Iterator[None]:
        """Say of memory which layer made it; ``*`` stands for every number."""
        for module in modules:
            for name, inner in module.named_modules():
                self.names[id(inner)] = ".".join("*" if part.isdigit() else part for part in name.split("."))
        hooks = [torch_module.register_module_forward_pre_hook(self._enter), torch_module.register_module_forward_hook(self._leave, always_call=True)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _enter(self, module, _inputs) -> None:
        if name := self.names.get(id(module)):
            self._stack.append(name)

    def _leave(self, module, _inputs, _output) -> None:
        if self.names.get(id(module)):
            self._stack.pop()

    def _part(self) -> str:
        # Layers run within a backward pass where they are recomputed.
        return "recomputation" if self.part == "backward" and self._stack else self.part

    def _follow(self, function, result) -> None:
        part = self._part()
        name = self._stack[-1] if self._stack else part
        holding = Holding(_CATEGORY[part], f"{name}: {function._schema.name.removeprefix('aten::')}")
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and (tensor.is_meta or not self.alone):
                self.ledger.add(tensor, holding)

    def _send(self, segment: Segment, function, args, kwargs):
        with torch._C.DisableTorchFunction():
            part = self._part()
            segment.messages += [(message, part) for message in messages_of(function, args, self.groups)]
            return answer(function, args) if self.alone else function(*args, **kwargs)

    def _check_devices(self, function, args) -> None:
        found = {tensor.is_meta for tensor in _tensors(args) if tensor.is_meta or tensor.dim()}
        if len(found) > 1:
            place = where()
            self.mixed[f"{function._schema.name.removeprefix('aten::')} at {place}"] += 1
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({function._schema.name.removeprefix('aten::')} at {place})"
            )


def _facts(function) -> tuple[bool, bool, bool]:
    """Whether an operator makes storages, has operations that count, and may mix devices."""
    returns = function._schema.returns
    makes = any("Tensor" in str(found.type) and found.alias_info is None for found in returns)
    return makes, counts(function), function._schema.name in _MAY_MIX


def _tensors(args) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
