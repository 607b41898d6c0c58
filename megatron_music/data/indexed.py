"""``.bin/.idx`` on disk, written and read by megatron-core itself."""

import os
from pathlib import Path

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder, get_bin_path, get_idx_path

from megatron_music.data.report import SPLITS
from megatron_music.tokens import vocabulary


class SplitWriter:
    """The three splits of a dataset in the making, each an ``IndexedDatasetBuilder`` of uint16.

    Args:
        folder: gets ``train.bin`` and so on.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._builders = {
            split: IndexedDatasetBuilder(get_bin_path(str(folder / split)), dtype=np.uint16) for split in SPLITS
        }

    def write(self, split: str, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Add documents: ids one after another (uint16), and the tokens in each."""
        for document in np.split(ids, np.cumsum(lengths)[:-1]):
            self._builders[split].add_document(document, [len(document)])

    def finish(self) -> None:
        """Write the indices, and wait until all is on the disk."""
        for split, builder in self._builders.items():
            builder.finalize(get_idx_path(str(self._folder / split)))
            for path in (get_bin_path(str(self._folder / split)), get_idx_path(str(self._folder / split))):
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Let go of the files of a build that failed."""
        for builder in self._builders.values():
            builder.data_file.close()


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
    if not os.path.getsize(get_bin_path(prefix)):
        raise ValueError(f"{prefix}.bin is empty: no file of this dataset went to {split}; choose another split")
    try:
        return IndexedDataset(prefix)
    except (AssertionError, ValueError, OSError) as error:
        raise ValueError(f"{prefix}.idx is damaged ({error}); build the dataset again") from None


def unigram_counts(dataset: IndexedDataset) -> np.ndarray:
    """How often each id occurs (int64, [vocabulary size])."""
    counts = np.zeros(vocabulary.SIZE, np.int64)
    for document in range(len(dataset)):
        counts += np.bincount(dataset[document], minlength=vocabulary.SIZE)
    return counts
