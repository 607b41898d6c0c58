"""``.bin/.idx`` on disk, read by megatron-core itself; ``index_file`` writes them."""

import os
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import (
    IndexedDataset,
    get_bin_path,
    get_idx_path,
)

from megatron_music.config.sections import SPLITS
from megatron_music.data.index_file import check_index
from megatron_music.tokens import vocabulary
from megatron_music.tokens.density import NUM_IDS


def open_split(folder: str | os.PathLike, split: str) -> IndexedDataset:
    """The documents of one split: ``len()``, and ``[k]`` as uint16 ids.

    The ids lie in a file mapping that ends with the dataset: copy what must outlive it.

    Raises:
        ValueError: there is none; the sentence names the folder.
    """
    prefix = str(Path(folder, split))
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; use one of {', '.join(SPLITS)}")
    for path in (get_bin_path(prefix), get_idx_path(prefix)):
        if not os.path.exists(path):
            raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens`")
    check_index(prefix)
    if not os.path.getsize(get_bin_path(prefix)):
        raise ValueError(f"{prefix}.bin is empty: no file of this dataset went to {split}; choose another split")
    try:
        return IndexedDataset(prefix)
    except (AssertionError, ValueError, OSError) as error:
        raise ValueError(f"{prefix}.idx is damaged ({error}); build the dataset again") from None


def unigram_counts(dataset: IndexedDataset) -> np.ndarray:
    """How often each id occurs (int64, [vocabulary size, or more where there are merged tokens])."""
    counts = np.zeros(NUM_IDS, np.int64)
    for document in range(len(dataset)):
        found = np.bincount(dataset[document])
        counts[: len(found)] += found
    return counts[: max(vocabulary.SIZE, int(np.flatnonzero(counts)[-1]) + 1)]
