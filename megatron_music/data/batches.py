"""Micro batches from ``.bin/.idx``, through megatron-core's own GPTDataset and blending.

Which samples a micro batch holds is arithmetic on ``consumed_samples``, so a resumed run needs that one number.

Shapes: B sequences of a micro batch, S tokens of a sequence.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import megatron.core
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import (
    BlendedMegatronDatasetBuilder,
)
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from torch import Tensor

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.sections import SPLITS, DataConfig
from megatron_music.data.folders import (
    cache_folder,
    cache_key,
    check_folders,
    has_tokens,
)
from megatron_music.data.index_cache import IndexCache, Indexed
from megatron_music.data.index_file import check_ids, check_index
from megatron_music.tokens.tokenizer import MusicTokenizer


def build_datasets(
    data: DataConfig,
    *,
    seq_length: int,
    seed: int,
    num_samples: tuple[int, int, int],
    is_needed: bool = True,
    run_folder: str | os.PathLike | None = None,
    on_main: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> tuple:
    """The train, valid and test datasets of a run.

    Every process must call this, in the same order. The main process verifies the index cache, or builds it, and all
    read it.

    Args:
        seq_length: S; a sample holds S inputs and S labels.
        seed: of the shuffling.
        num_samples: of each split; 0 leaves a split out.
        is_needed: False on processes that read no batches; they get None.
        run_folder: keeps the index cache, where ``data.cache_path`` names no place for it; the caller keeps other runs
            out of it.
        on_main: does some work on the main process alone; every process gets what it returned, or raises what it
            raised.

    Returns:
        One dataset a split. None for a split that was left out, that is no part of every folder, or that holds no
        token. An item is a dict of tokens, labels, loss_mask and position_ids (S), and attention_mask (1, S, S; True
        hides) where ``data.reset_attention_mask`` asks for it.

    Raises:
        ValueError: a folder is missing, holds no training tokens, or was made with another vocabulary or grid, or the
            samples are more than this machine could hold an index of.
        OSError: the index cache cannot be written; the message is a sentence.
    """
    on_main(lambda: check_folders(data) and None)
    blends, sizes = [], []
    for split, size in zip(SPLITS, num_samples, strict=True):
        if size and has_tokens(data, split):
            prefixes = [str(folder / split) for folder in data.folders]
            blends.append((prefixes, data.weights if len(prefixes) > 1 else None))
            sizes.append(size)
        else:
            blends.append(None)
            sizes.append(0)
    if num_samples[0] and blends[0] is None:
        raise ConfigError(
            f"{' '.join(map(str, data.folders))}: train.bin holds no tokens; build it with `megatron-music build "
            f"tokens`"
        )
    if not any(blends):
        # megatron-core would make up random data.
        return None, None, None
    tokenizer = MusicTokenizer(str(data.folders[0] / "tokenizer"))

    def build(cache: Path, is_needed: Callable[[], bool]) -> tuple:
        config = GPTDatasetConfig(
            random_seed=seed,
            sequence_length=seq_length,
            blend_per_split=blends,
            path_to_cache=str(cache),
            tokenizer=tokenizer,
            reset_position_ids=data.reset_position_ids,
            reset_attention_mask=data.reset_attention_mask,
            eod_mask_loss=data.eod_mask_loss,
            # Attention is causal by itself; only document ends need a mask in memory.
            create_attention_mask=data.reset_attention_mask,
        )
        return tuple(BlendedMegatronDatasetBuilder(GPTDataset, sizes, is_needed, config).build())

    key = cache_key(data, megatron.core.__version__, tokenizer.unique_description, seq_length, seed, sizes)
    cache = IndexCache(
        on_main(lambda: cache_folder(data, run_folder)) / key,
        Indexed({split: blend[0] for split, blend in zip(SPLITS, blends, strict=True) if blend}, seq_length, seed),
        is_held=run_folder is not None and not data.cache_path,
    )
    built = on_main(lambda: None if cache.is_whole() else _begin(cache, data, sizes, seq_length))
    if built is not None:
        try:
            with cache.naming_failures():
                build(built, _is_main)
            on_main(lambda: cache.publish(built))
        finally:
            if _is_main():
                cache.discard(built)
    return build(cache.folder, lambda: is_needed)


def _is_main() -> bool:
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def _begin(cache: IndexCache, data: DataConfig, sizes: list[int], seq_length: int) -> Path:
    """A folder for a new index, if there is memory and room on the disk for it."""
    room = 0
    for split, size in zip(SPLITS, sizes, strict=True):
        if size:
            documents, samples = _index_size(data, split, size, seq_length)
            _check_memory(16 * documents + 12 * samples, split, size)
            room += 4 * documents + 12 * samples + (10 * size if len(data.folders) > 1 else 0)
    return cache.begin(room)


def _index_size(data: DataConfig, split: str, num_samples: int, seq_length: int) -> tuple[int, int]:
    """The documents, once an epoch, and samples of an index: of whole epochs of each folder."""
    total, weights = sum(data.weights or [1.0]), data.weights or [1.0]
    documents = samples = 0
    for folder, weight in zip(data.folders, weights, strict=True):
        tokens = max(os.path.getsize(folder / f"{split}.bin") // 2, 1)
        epochs = math.ceil((num_samples * weight / total * seq_length + 1) / tokens)
        documents += epochs * check_index(folder / split)
        samples += epochs * tokens // seq_length + 1
    return documents, samples


def _check_memory(needed: float, split: str, num_samples: int) -> None:
    """Refuse more samples than this machine could hold an index of: megatron-core would count their epochs for hours.

    An index takes 16 bytes for each document of each epoch, while it is made, and 12 for each sample.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    steps = "train.train_iters" if split == "train" else "train.eval_iters"
    refuse_unless(
        needed <= memory,
        f"{steps} x train.global_batch_size is {num_samples:,} samples of {split}, whose index takes "
        f"{needed / 2**30:,.0f} GiB, and this "
        f"machine has {memory / 2**30:,.0f} GiB of memory; lower {steps} or train.global_batch_size",
    )


def micro_batches(
    dataset,
    *,
    consumed_samples: int,
    micro_batch_size: int,
    data_parallel_rank: int,
    data_parallel_size: int,
    vocab_size: int | None = None,
) -> Iterator[dict[str, Tensor]]:
    """The micro batches of one data-parallel rank, one after another, without end.

    The samples of a global batch are consecutive and do not depend on the layout: micro batch m of rank r starts at
    ``consumed_samples + (m * data_parallel_size + r) * micro_batch_size``.

    Args:
        vocab_size: ids must be below it; None: they are not looked at.

    Yields:
        tokens, labels, position_ids (int64) and loss_mask (float32), each [B, S]; attention_mask [B, 1, S, S] where
        the dataset makes one.

    Raises:
        OSError: an id is outside the vocabulary; the message is a sentence with the file.
    """
    start = consumed_samples + data_parallel_rank * micro_batch_size
    while True:
        samples = [dataset[index] for index in range(start, start + micro_batch_size)]
        # A blend's samples also say which dataset they are of, as a number of numpy's.
        tensors = [key for key, value in samples[0].items() if isinstance(value, Tensor)]
        batch = {key: torch.stack([sample[key] for sample in samples]) for key in tensors}
        if vocab_size is not None and any(_is_outside(batch[key], vocab_size) for key in ("tokens", "labels")):
            _tell_outside(dataset, vocab_size)
        yield batch
        start += data_parallel_size * micro_batch_size


def _is_outside(ids_BS: Tensor, vocab_size: int) -> bool:
    least, most = torch.aminmax(ids_BS)
    return int(least) < 0 or int(most) >= vocab_size


def _tell_outside(dataset, vocab_size: int) -> None:
    """Name the file and the id of a batch that would be an index error in the model, or worse on a GPU."""
    try:
        for part in getattr(dataset, "datasets", [dataset]):
            check_ids(part.dataset_path, vocab_size, whole=True)
    except ValueError as error:
        raise OSError(str(error)) from None  # on this rank alone, which therefore has to tell it
    raise OSError(
        f"a sample has an id outside the vocabulary of {vocab_size}, and its file has none; the files were changed "
        f"while they were read"
    )
