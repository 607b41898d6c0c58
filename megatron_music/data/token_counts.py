"""How often each id occurs: counted by who writes a shard, so that a merge need not look at every token."""

import numpy as np

from megatron_music.tokens.density import NUM_IDS

_AT_ONCE = 1 << 16  # ids; numpy counts 64-bit integers fastest, and so many of them stay in the processor's cache


class IdCounter:
    """Counts ids, some tens of thousands at a time: runs can be short, and calls cost more than ids do."""

    def __init__(self):
        self._counts = np.zeros(NUM_IDS, np.int64)
        self._waiting = np.empty(_AT_ONCE, np.intp)
        self._tokens = 0

    def add(self, ids: np.ndarray) -> None:
        """Count ids (uint16); they are not kept."""
        while len(ids):
            taken = ids[: _AT_ONCE - self._tokens]
            self._waiting[self._tokens : self._tokens + len(taken)] = taken
            self._tokens += len(taken)
            if self._tokens == _AT_ONCE:
                self._count()
            ids = ids[len(taken) :]

    def _count(self) -> None:
        count_ids(self._waiting[: self._tokens], self._counts)
        self._tokens = 0

    def counts(self) -> np.ndarray:
        """How often each id has come (int64, [NUM_IDS])."""
        self._count()
        return self._counts


def count_ids(ids: np.ndarray, counts: np.ndarray) -> None:
    """Add to ``counts`` (int64, [NUM_IDS]) how often each id (uint16) occurs."""
    found = np.bincount(ids)
    counts[: len(found)] += found


def as_json(counts: np.ndarray) -> list[list[int]]:
    """The ids that occur, and how often each does."""
    ids = np.flatnonzero(counts)
    return [ids.tolist(), counts[ids].tolist()]


def add_json(counts: np.ndarray, value: list[list[int]]) -> None:
    """Add to ``counts`` what ``as_json`` gave."""
    ids, times = np.array(value, np.int64)
    counts[ids] += times
