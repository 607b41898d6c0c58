"""Micro batches from ``.bin/.idx``, through megatron-core's own GPTDataset and blending.

Which samples a micro batch holds is arithmetic on ``consumed_samples``, so a resumed run needs that one number.
Knows nothing about models or training; asks torch.distributed only so that one process builds the index cache.

Shapes: B sequences of a micro batch, S tokens of a sequence.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from torch import Tensor

from megatron_music.config import ConfigError, DataConfig
from megatron_music.data.report import SPLITS
from megatron_music.tokens.tokenizer import MusicTokenizer
from megatron_music.tokens.wording import read_wording


def build_datasets(
    data: DataConfig, *, seq_length: int, seed: int, num_samples: tuple[int, int, int], is_needed: bool = True
) -> tuple:
    """The train, valid and test datasets of a run.

    Every process must call this, in the same order: the first one builds the index cache, the others read it.

    Args:
        seq_length: S; a sample holds S inputs and S labels.
        seed: of the shuffling.
        num_samples: of each split; 0 leaves a split out.
        is_needed: False on processes that read no batches; they get None.

    Returns:
        One dataset a split. None for a split that was left out, that is no part of every folder, or that holds no
        token. An item is a dict of tokens, labels, loss_mask and position_ids (S), and attention_mask (1, S, S; True
        hides) where ``data.reset_attention_mask`` asks for it.

    Raises:
        ValueError: a folder is missing, holds no training tokens, or was made with another vocabulary or grid.
    """
    check_folders(data)
    blends, sizes = [], []
    for split, size in zip(SPLITS, num_samples):
        if size and has_tokens(data, split):
            prefixes = [str(folder / split) for folder in data.folders]
            blends.append((prefixes, data.weights if len(prefixes) > 1 else None))
            sizes.append(size)
        else:
            blends.append(None)
            sizes.append(0)
    if num_samples[0] and blends[0] is None:
        raise ConfigError(
            f"{' '.join(map(str, data.folders))}: train.bin holds no tokens; build it with `megatron-music build tokens`"
        )
    if not any(blends):
        # megatron-core would make up random data.
        return None, None, None
    dataset_config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=seq_length,
        blend_per_split=blends,
        path_to_cache=str(_cache_folder(data)),
        tokenizer=MusicTokenizer(str(data.folders[0] / "tokenizer")),
        reset_position_ids=data.reset_position_ids,
        reset_attention_mask=data.reset_attention_mask,
        eod_mask_loss=data.eod_mask_loss,
        # Attention is causal by itself; only document ends need a mask in memory.
        create_attention_mask=data.reset_attention_mask,
    )
    return tuple(BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: is_needed, dataset_config).build())


def _cache_folder(data: DataConfig) -> Path:
    """Where the index cache of these very files lies: megatron-core's own key knows their paths, not their contents."""
    hasher = hashlib.sha256()
    for folder in data.folders:
        for split in SPLITS:
            status = (folder / f"{split}.idx").stat() if (folder / f"{split}.idx").is_file() else None
            hasher.update(f"{folder}\0{split}\0{status and (status.st_size, status.st_mtime_ns)}\n".encode())
    return Path(data.cache_path or data.folders[0] / "cache", hasher.hexdigest()[:16])


def check_folders(data: DataConfig) -> None:
    """Refuse folders that cannot be trained on together.

    Raises:
        ValueError: one sentence with the folder and what to do.
    """
    if data.path is None:
        raise ConfigError("data.path is not set; name the folder made by `megatron-music build tokens`, as in data.path=OUT")
    encodings, merges = {}, {}
    for folder in data.folders:
        if not IndexedDataset.exists(str(folder / "train")):
            raise ConfigError(f"{folder} holds no train.bin and train.idx; make it with `megatron-music build tokens MIDI_DIR -o {folder}`")
        encodings[folder], merges[folder], _ = read_wording(folder / "tokenizer")
    grids = {encoding.steps_per_quarter: folder for folder, encoding in encodings.items()}
    if len(grids) > 1:
        listed = " and ".join(f"{folder} ({steps})" for steps, folder in grids.items())
        raise ConfigError(f"{listed} differ in steps a quarter; build them again with the same one")
    first = data.folders[0]
    for folder, encoding in encodings.items():
        if merges[folder] != merges[first]:
            raise ConfigError(
                f"{first} ({encodings[first].bpe}) and {folder} ({encoding.bpe}) differ in merged tokens; build them as one "
                "dataset, or without --bpe"
            )
        if encoding.labels and encodings[first].labels and encoding.labels != encodings[first].labels:
            raise ConfigError(
                f"{first} and {folder} differ in the names of labels; build them as one dataset with one --labels file"
            )


def micro_batches(
    dataset, *, consumed_samples: int, micro_batch_size: int, data_parallel_rank: int, data_parallel_size: int
) -> Iterator[dict[str, Tensor]]:
    """The micro batches of one data-parallel rank, one after another, without end.

    The samples of a global batch are consecutive and do not depend on the layout: micro batch m of rank r starts at
    ``consumed_samples + (m * data_parallel_size + r) * micro_batch_size``.

    Yields:
        tokens, labels, position_ids (int64) and loss_mask (float32), each [B, S]; attention_mask [B, 1, S, S] where
        the dataset makes one.
    """
    start = consumed_samples + data_parallel_rank * micro_batch_size
    while True:
        samples = [dataset[index] for index in range(start, start + micro_batch_size)]
        yield {key: torch.stack([sample[key] for sample in samples]) for key in samples[0]}
        start += data_parallel_size * micro_batch_size


def num_tokens(data: DataConfig, split: str) -> int:
    """Tokens of a split in all folders together; ids take two bytes."""
    return sum(os.path.getsize(folder / f"{split}.bin") for folder in data.folders) // 2


def has_tokens(data: DataConfig, split: str) -> bool:
    """Whether every folder has something in a split; GPTDataset would look for samples in an empty one for ever."""
    prefixes = [str(folder / split) for folder in data.folders]
    return all(IndexedDataset.exists(prefix) and os.path.getsize(prefix + ".bin") > 0 for prefix in prefixes)
