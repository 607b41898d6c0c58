"""Watches every operator of a step: memory, operations, messages, mixed devices, and which part of the step it belongs
to.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_music.rehearsal.collectives import Message, answer, messages_of
from megatron_music.rehearsal.ledger import Holding, Ledger
from megatron_music.rehearsal.operators import counts, flops_of, is_attention
from megatron_music.rehearsal.speed import Speed
from megatron_music.rehearsal.waits import Wait, where

# Operators that take tensors of the CPU beside those of a GPU, as PyTorch lets them.
_MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::set_"}
_COPIES = {
    f"aten::{name}"
    for name in (
        "copy_",
        "_to_copy",
        "cat",
        "clone",
        "fill_",
        "zero_",
        "zeros",
        "empty_like",
        "zeros_like",
        "ones_like",
    )
}
# What a storage is for that an operator makes in this part of a step.
_CATEGORY = {
    "build": "other state",
    "forward": "activations",
    "recomputation": "activations",
    "backward": "backward",
    "reduction": "reduction",
    "update": "update",
}


class Sent(NamedTuple):
    """A message with when it was started."""

    message: Message
    part: str  # of the step
    start: float  # seconds
    seconds: float  # that it takes at the least


class Span(NamedTuple):
    """A named stretch of the step, in seconds."""

    name: str
    start: float
    end: float


@dataclass
class Segment:
    """What happened from one micro batch's start to the next one's."""

    start: float = 0.0  # seconds
    operators: int = 0
    flops: Counter = field(default_factory=Counter)  # by part of the step and kind: products, attention
    moved: Counter = field(default_factory=Counter)  # bytes read and written by other operators, by part of the step
    messages: list[Sent] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)

    def same_work(self, other: "Segment") -> bool:
        own, others = ([sent[:2] for sent in segment.messages] for segment in (self, other))
        return (self.operators, self.flops, own) == (other.operators, other.flops, others)


class Recorder(TorchDispatchMode):
    """The mode. Messages are answered at once where ``alone``; on real processes they are sent.

    Args:
        alone: nobody is at the other end.
        speed: of the GPU and what joins it, for times.

    Attributes:
        segments: the first is what comes before the first micro batch.
        mixed: operators that took tensors of two devices, with the line that called them.
    """

    def __init__(self, *, alone: bool = True, speed: Speed | None = None):
        super().__init__()
        self.alone, self.speed = alone, speed
        self.seconds = 0.0
        self.seconds_at: list[float] = []  # after each operator
        self.kernels: list[Span] = []  # neighbours of one kind in one layer are one
        self.ledger = Ledger()
        self.groups: dict[str, str] = {}
        self.segments = [Segment()]
        self.part = "build"
        self.mixed: Counter = Counter()
        self.names: dict[int, str] = {}  # of modules, by id
        self._stack: list[str] = []
        self._facts: dict[object, Facts] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        segment = self.segments[-1]
        if function.namespace == "c10d":
            return self._send(segment, function, args, kwargs)
        segment.operators += 1
        self.ledger.clock += 1
        with torch._C.DisableTorchFunction():
            facts = self._facts.get(function)
            if facts is None:
                facts = self._facts[function] = facts_of(function)
            if self.alone and not facts.may_mix:
                self._check_devices(function, args)
            if self.alone and function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
                segment.waits.append(Wait("wait", "a number of the GPU", where(), args[0].element_size()))
                return 1.0 if args[0].is_floating_point() else 1
            result = function(*args, **kwargs)
            flops = 0.0
            if facts.has_flops:
                flops = flops_of(function, args, kwargs, result)
                segment.flops[self._part(), "attention" if facts.kind == "attention" else "products"] += flops
            moved = 0
            if facts.makes or facts.changes:
                moved = sum(tensor.nbytes for tensor in _tensors(args)) + (
                    sum(tensor.nbytes for tensor in _tensors((result,))) if facts.makes else 0
                )
                if not flops:
                    segment.moved[self._part()] += moved
            if facts.makes:
                self._follow(function, result)
            if self.speed is not None:
                self._pass_time(facts.kind, self.speed.operator_seconds(flops, moved))
        return result

    def note(self, wait: Wait) -> None:
        """A wait or a copy, as the stand-in saw it."""
        self.segments[-1].waits.append(wait)

    def micro_batch(self) -> contextlib.AbstractContextManager:
        """A micro batch's forward pass begins: a new segment, and a span of it."""
        self.segments.append(Segment(start=self.seconds))
        return self.during("forward", f"forward {len(self.segments) - 1}")

    def begin_step(self) -> None:
        """Forget what was seen so far, but for the memory that is held."""
        self.ledger.begin()
        self.segments, self.part = [Segment()], "forward"
        self.mixed.clear()
        self.seconds, self.seconds_at, self.kernels = 0.0, [], []

    @contextlib.contextmanager
    def during(self, part: str, name: str | None = None) -> Iterator[None]:
        """A part of the step; it is a span of the timeline where it has a name."""
        before, start = self.part, self.seconds
        self.part = part
        try:
            yield
        finally:
            self.part = before
            self.segments[-1].spans.append(Span(name or part, start, self.seconds))

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
        hooks = [
            torch_module.register_module_forward_pre_hook(self._enter),
            torch_module.register_module_forward_hook(self._leave, always_call=True),
        ]
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

    def _pass_time(self, kind: str, seconds: float) -> None:
        start = self.seconds
        self.seconds += seconds
        self.seconds_at.append(self.seconds)
        if not seconds:
            return
        name = f"{kind} ({self._stack[-1] if self._stack else self.part})"
        if self.kernels and self.kernels[-1].name == name:
            self.kernels[-1] = self.kernels[-1]._replace(end=self.seconds)
        else:
            self.kernels.append(Span(name, start, self.seconds))

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
            messages, ranks = messages_of(function, args, self.groups)
            for message in messages:
                seconds = self.speed.message_seconds(message, ranks) if self.speed else 0.0
                segment.messages.append(Sent(message, self._part(), self.seconds, seconds))
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


class Facts(NamedTuple):
    """What is known of an operator by its schema."""

    makes: bool  # new storages
    changes: bool  # one of its arguments
    has_flops: bool
    may_mix: bool  # devices
    kind: str  # as ``profiling.kernel_kinds`` reads it


def facts_of(function) -> Facts:
    """What an operator does, as far as its schema says."""
    results = function._schema.returns
    makes = any("Tensor" in str(result.type) and result.alias_info is None for result in results)
    changes = any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in function._schema.arguments
    )
    has_flops, name = counts(function), function._schema.name
    kind = (
        "attention" if is_attention(function) else "gemm" if has_flops else "copy" if name in _COPIES else "elementwise"
    )
    return Facts(makes, changes, has_flops, name in _MAY_MIX, kind)


def _tensors(args) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
