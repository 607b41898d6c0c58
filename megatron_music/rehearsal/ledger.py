"""Memory of a device over the course of a step: every storage from its birth to its end, and what made it."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

AT_REST = ("weights", "gradients", "optimizer", "other state")
CATEGORIES = (*AT_REST, "activations", "backward", "reduction", "update")


class Holding(NamedTuple):
    """Who holds memory: a category, and within it a layer and an operator."""

    category: str
    what: str


class Peak(NamedTuple):
    """The fullest moment of a step."""

    num_bytes: int
    clock: int  # operators before it
    by_category: dict[str, int]
    by_holder: list[tuple[str, str, int]]  # category, what, bytes; the most first


class Ledger:
    """Counts the bytes of storages while they are alive.

    Storages are followed by weak references, so that what autograd frees is seen at the moment that it is freed.
    """

    def __init__(self):
        self.clock = 0
        self.live = 0
        self._owners: dict[int, tuple[weakref.ref, int, Holding]] = {}
        self._events: list[tuple[int, int, Holding]] = []  # clock, bytes (negative: freed), who

    def add(self, tensor: Tensor, holding: Holding) -> None:
        """Follow a tensor's storage, unless it is followed already. Call it where no function mode is active."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if not size or key in self._owners:
            return
        self._owners[key] = (weakref.ref(storage, self._remover(key)), size, holding)
        self.live += size
        self._events.append((self.clock, size, holding))

    def claim(self, tensors: Iterable[Tensor], holding: Holding) -> None:
        """Say who holds storages, whoever made them."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._owners:
                reference, size, _ = self._owners[key]
                self._owners[key] = (reference, size, holding)
            else:
                self.add(tensor, holding)

    def begin(self) -> None:
        """Forget the past, but for what is alive: a step begins."""
        self._events = [(0, size, holding) for _, size, holding in self._owners.values()]
        self.clock = 0

    def alive(self) -> dict[Holding, int]:
        """Bytes by holder now."""
        found: dict[Holding, int] = defaultdict(int)
        for _, size, holding in self._owners.values():
            found[holding] += size
        return dict(found)

    def peak(self) -> Peak:
        """The fullest moment since ``begin``."""
        total = most = 0
        place = 0
        for number, (_, size, _) in enumerate(self._events):
            total += size
            if total > most:
                most, place = total, number
        holders: dict[Holding, int] = defaultdict(int)
        for _, size, holding in self._events[: place + 1]:
            holders[holding] += size
        categories: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
        for holding, size in holders.items():
            categories[holding.category] += size
        ranked = sorted(((*holding, size) for holding, size in holders.items() if size), key=lambda row: -row[2])
        return Peak(most, self._events[place][0] if self._events else 0, categories, ranked)

    def largest(self, category: str) -> int:
        """The most bytes that a category had at any moment since ``begin``."""
        total = most = 0
        for _, size, holding in self._events:
            if holding.category == category:
                total += size
                most = max(most, total)
        return most

    def curve(self, points: int = 400) -> list[dict]:
        """Bytes by category over the step, the fullest moment of each of at most ``points`` stretches."""
        if not self._events:
            return []
        last = max(self._events[-1][0], self.clock, 1)
        now = dict.fromkeys(CATEGORIES, 0)
        total = best = 0
        rows: dict[int, dict] = {}
        for clock, size, holding in self._events:
            now[holding.category] += size
            total += size
            place = min(clock * points // last, points - 1)
            if place not in rows or total > best:
                best = total
                rows[place] = {"operator": clock, **now}
        return [rows[place] for place in sorted(rows)]

    def _remover(self, key: int) -> Callable:
        def remove(_reference) -> None:
            _, size, holding = self._owners.pop(key)
            self.live -= size
            self._events.append((self.clock, -size, holding))

        return remove


def storages_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each once."""
    with torch._C.DisableTorchFunction():
        found = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(found.values())
