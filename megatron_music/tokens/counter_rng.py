"""Chance without a state: a draw depends on what it is for, never on what was drawn before it.

Workers, the order of files and killed builds can therefore not change what a window is given.
"""

import hashlib
from functools import cache

import numpy as np

from megatron_music.music.fingerprint import mixed

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: the step of splitmix64
_WHOLE = (1 << 64) - 1


@cache
def _purpose(purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(purpose.encode("utf-8")).digest()[:8], "little")


def draw(key: int, windows: np.ndarray, copy: int, purpose: str, count: int) -> np.ndarray:
    """``count`` random numbers for each window: uint64 ``[len(windows), count]``.

    Args:
        key: 64 bits of (seed, file).
        windows: integers ``[windows]``, numbers of windows within the file.
        copy: number of the copy of the file (0 is the file itself).
        purpose: what is decided, such as ``"bars to fill"``; each purpose draws for itself.
        count: numbers for each window; the first ones are the same for every ``count``.
    """
    start = np.array([key & _WHOLE, _purpose(purpose), copy & _WHOLE], dtype=np.uint64)
    state = np.zeros(1, dtype=np.uint64)
    for part in start:
        state = mixed((state ^ part) + _GOLDEN)
    rows = mixed((state ^ np.asarray(windows).astype(np.uint64)) + _GOLDEN)
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return mixed(rows[:, None] + steps[None, :])


def below(draws: np.ndarray, n: int | np.ndarray) -> np.ndarray:
    """Draws as int64 numbers from 0 to n - 1, by their upper 32 bits; ``n`` < 2**31, one for all or one for each."""
    return (((draws >> np.uint64(32)) * np.asarray(n).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
