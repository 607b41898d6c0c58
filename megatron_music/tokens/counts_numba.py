"""Counts over all notes and all ids as compiled loops: the same as ``music.fingerprint`` and ``data.token_counts``,
faster.
"""

import numpy as np

from megatron_music.music.fingerprint import SEEDS
from megatron_music.music.numba_jit import compiled

_SEED, _OTHER_SEED = SEEDS  # plain integers, which compiled code takes as constants


@compiled
def note_sums(columns, is_drum, ticks_per_quarter):
    """``music.fingerprint.note_sums``."""
    first, lowest = 1 << 40, 127
    for note in range(columns.shape[1]):
        first = min(first, int((8 * columns[1, note] + ticks_per_quarter) / (2.0 * ticks_per_quarter)))
        if not is_drum[columns[0, note]]:
            lowest = min(lowest, columns[3, note])
    one, other = np.uint64(0), np.uint64(0)
    for note in range(columns.shape[1]):
        step = int((8 * columns[1, note] + ticks_per_quarter) / (2.0 * ticks_per_quarter)) - first
        height = columns[3, note] + 128 if is_drum[columns[0, note]] else columns[3, note] - lowest
        key = np.uint64(step << 8 | height)
        one += _mixed(key ^ np.uint64(_SEED))
        other += _mixed(key ^ np.uint64(_OTHER_SEED))
    return one, other


@compiled
def count_ids(ids, counts):
    """``data.token_counts.count_ids``."""
    for place in range(len(ids)):
        counts[ids[place]] += 1


@compiled
def _mixed(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
