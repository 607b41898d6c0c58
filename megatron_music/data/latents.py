"""A dataset of captioned sound as training reads it: embeddings of music, latents of the autoencoder, states of the
captions.

``OUT/index.json`` says what they are and of which encoders; ``texts.safetensors`` has the states of each caption once,
row 0 those of the empty one; ``train``, ``valid`` and ``test`` hold shards of samples. Nothing is decoded or encoded
here, and shards are read where they lie on the disk. Shapes: C channels, T frames, L words, E embedding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.config.sections import SPLITS
from megatron_music.data.latents_index import ENCODERS as ENCODERS
from megatron_music.data.latents_index import (
    INDEX,
    DamagedLatents,
    LatentsInfo,
    check_encoders,
    read_index,
)
from megatron_music.data.latents_index import write_index as write_index
from megatron_music.storage.reading import (
    TABLE_BYTES,
    hash_of_file,
    parse_json,
    read_text,
    reason_of,
    regular,
)
from megatron_music.storage.writing import write_whole

TEXTS, CAPTIONS = "texts.safetensors", "texts.jsonl"
CHECKED_BYTES = 1 << 30  # of shards: up to there a run compares their hashes before its first step, in about a second
REMEDY = "copy the dataset again, or build it again"


class LatentItem(NamedTuple):
    """One sample."""

    latents: np.ndarray  # float32 [C, T]
    embedding: np.ndarray  # float32 [E], of length 1
    captions: tuple[int, ...]  # numbers of texts, any of which is true of it
    seconds_start: float  # where in its file it begins
    seconds_total: float  # of its file


class LatentDataset:
    """One split, read where it lies.

    Args:
        folder: a folder of `build latents`.
        split: train, valid or test.

    Raises:
        DamagedLatents: there is no such dataset, or its files have other sizes than its index says.
    """

    def __init__(self, folder: str | os.PathLike, split: str):
        self.folder, self.split = Path(folder), split
        index = read_index(self.folder)
        self.info = LatentsInfo(**{item.name: index[item.name] for item in fields(LatentsInfo)})
        self._shards = index["splits"].get(split, [])
        self._limits = np.cumsum([0, *(shard["count"] for shard in self._shards)])
        self._files: dict[int, object] = {}
        for shard in self._shards:
            path = self.folder / split / shard["name"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise DamagedLatents(f"{path} is missing or has another size than {self.folder / INDEX} says; {REMEDY}")

    def __len__(self) -> int:
        return int(self._limits[-1])

    def __getitem__(self, number: int) -> LatentItem:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shard = int(self._limits.searchsorted(number, side="right")) - 1
        place = number - int(self._limits[shard])
        file = self._open(shard)
        first, last = file.get_slice("caption_starts")[place : place + 2]
        return LatentItem(
            file.get_slice("latents")[place],
            file.get_slice("embeddings")[place],
            tuple(file.get_slice("caption_numbers")[first:last].tolist()),
            float(file.get_slice("seconds_start")[place]),
            float(file.get_slice("seconds_total")[place]),
        )

    def text(self, number: int) -> tuple[np.ndarray, int]:
        """The states of a caption (float32 [L, size]) and how many of them are words; 0 is the empty caption."""
        return self._texts.get_slice("states")[number], int(self._lengths[number])

    def caption(self, number: int) -> str:
        """A caption as it was written."""
        return self._captions[number]

    @property
    def num_bytes(self) -> int:
        """Of its shards."""
        return sum(shard["bytes"] for shard in self._shards)

    def check(self) -> None:
        """Compare every byte with the hashes of the index.

        Raises:
            DamagedLatents: the first file that differs.
        """
        for _ in self.files_checked():
            pass

    def files_checked(self) -> Iterator[Path]:
        """The shards, each once its bytes are those that the index has a hash of. Raises as ``check``."""
        for shard in self._shards:
            path = self.folder / self.split / shard["name"]
            _check_file(path, shard["sha256"])
            yield path

    def _open(self, shard: int):
        if shard not in self._files:
            path, count, info = (
                self.folder / self.split / self._shards[shard]["name"],
                self._shards[shard]["count"],
                self.info,
            )
            file = _opened(
                path,
                {
                    "latents": ("F32", (count, info.latent_channels, info.latent_length)),
                    "embeddings": ("F32", (count, info.embedding_size)),
                    "seconds_start": ("F32", (count,)),
                    "seconds_total": ("F32", (count,)),
                    "caption_starts": ("I64", (count + 1,)),
                    "caption_numbers": ("I64", (None,)),
                },
            )
            starts, numbers = file.get_tensor("caption_starts"), file.get_tensor("caption_numbers")
            is_sorted = starts[0] == 0 and starts[-1] == len(numbers) and (np.diff(starts) > 0).all()
            if not is_sorted or not ((numbers >= 0) & (numbers < len(self._lengths))).all():
                raise DamagedLatents(f"{path} names captions that {self.folder / TEXTS} does not have; {REMEDY}")
            self._files[shard] = file
        return self._files[shard]

    @cached_property
    def _texts(self):
        info = self.info
        wanted = {"states": ("F32", (None, info.text_length, info.text_size)), "lengths": ("I32", (None,))}
        return _opened(self.folder / TEXTS, wanted)

    @cached_property
    def _lengths(self) -> np.ndarray:
        lengths = self._texts.get_tensor("lengths")
        count = self._texts.get_slice("states").get_shape()[0]
        if len(lengths) != count or not ((lengths >= 1) & (lengths <= self.info.text_length)).all():
            raise DamagedLatents(f"{self.folder / TEXTS} has lengths of captions that cannot be; {REMEDY}")
        return lengths

    @cached_property
    def _captions(self) -> list[str]:
        path = self.folder / CAPTIONS
        try:
            found = [parse_json(line) for line in read_text(path, TABLE_BYTES).splitlines()]
            if len(found) != len(self._lengths):
                raise ValueError(f"it has {len(found)} captions, and {TEXTS} those of {len(self._lengths)}")
            return found
        except (OSError, ValueError) as error:
            raise DamagedLatents(f"{path} cannot be read ({reason_of(error)}); {REMEDY}") from None


def check_before_training(folder: str | os.PathLike) -> None:
    """Compare the encoders with the hashes of the index, and the shards too where they have 1 GiB or less.

    Raises:
        DamagedLatents: the first file that differs.
    """
    check_encoders(folder)
    datasets = [LatentDataset(folder, split) for split in SPLITS]
    if sum(dataset.num_bytes for dataset in datasets) <= CHECKED_BYTES:
        for _ in _files_checked(Path(folder), datasets):
            pass


def verify(
    folder: str | os.PathLike, progress: Callable[[Iterable, int], Iterable] = lambda items, total: items
) -> int:
    """Compare every file of a dataset with the hashes of its index: encoders, captions and shards.

    Args:
        progress: wraps the iteration over files, given their number.

    Returns:
        How many files and encoders were compared.

    Raises:
        DamagedLatents: the first that is missing or differs, by name, with what to do.
    """
    folder, index = Path(folder), read_index(folder)
    check_encoders(folder)
    datasets = [LatentDataset(folder, split) for split in SPLITS]
    total = len(index.get("files", {})) + sum(len(index["splits"].get(split, ())) for split in SPLITS)
    for _ in progress(_files_checked(folder, datasets), total):
        pass
    return total + len(index["encoders"])


def _files_checked(folder: Path, datasets: Sequence[LatentDataset]) -> Iterator[Path]:
    """The files that were compared; of a dataset of a version that kept no hashes of its captions, the shards alone."""
    for name, wanted in read_index(folder).get("files", {}).items():
        _check_file(folder / name, wanted["sha256"])
        yield folder / name
    for dataset in datasets:
        yield from dataset.files_checked()


def _check_file(path: Path, wanted: str) -> None:
    try:
        found = hash_of_file(path)
    except (OSError, ValueError) as error:
        raise DamagedLatents(f"{path} cannot be read ({reason_of(error)}); {REMEDY}") from None
    if found != wanted:
        raise DamagedLatents(f"{path} was changed since it was written: its SHA-256 is another; {REMEDY}")


def _opened(path: Path, tensors: dict[str, tuple[str, tuple]]):
    """A safetensors file that has these tensors.

    Args:
        tensors: type and shape of each; None in a shape is any size.
    """
    from safetensors import (  # here, not at the top: a GPT trains without the extra `audio`
        SafetensorError,
        safe_open,
    )

    try:
        file = safe_open(regular(path, follow_links=True), "numpy")
        for name, (kind, shape) in tensors.items():
            part = file.get_slice(name)
            found = tuple(part.get_shape())
            is_it = len(found) == len(shape) and all(
                wanted in (None, size) for wanted, size in zip(shape, found, strict=True)
            )
            if part.get_dtype() != kind or not is_it:
                raise ValueError(
                    f"its tensor {name} is {part.get_dtype()} {list(found)}, where the index says {kind} {list(shape)}"
                )
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedLatents(f"{path} cannot be read ({str(error).splitlines()[0]}); {REMEDY}") from None
    return file


def write_samples(path: Path, items: Sequence[LatentItem]) -> dict:
    """Write one shard, under a temporary name first.

    Returns:
        What the index says of it.
    """
    from safetensors.numpy import save

    starts = np.cumsum([0, *(len(item.captions) for item in items)])
    content = save(
        {
            # Safetensors writes memory as it lies, and stacked transposes lie transposed.
            "latents": np.ascontiguousarray(np.stack([item.latents for item in items]), np.float32),
            "embeddings": np.ascontiguousarray(np.stack([item.embedding for item in items]), np.float32),
            "seconds_start": np.array([item.seconds_start for item in items], np.float32),
            "seconds_total": np.array([item.seconds_total for item in items], np.float32),
            "caption_starts": starts.astype(np.int64),
            "caption_numbers": np.array([number for item in items for number in item.captions], np.int64),
        }
    )
    write_whole(path, content, syncs_folder=True)  # before its completion record
    return {
        "name": path.name,
        "count": len(items),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def write_texts(folder: Path, captions: Sequence[str], states: np.ndarray, lengths: np.ndarray) -> dict[str, dict]:
    """Write the captions and their states [U, L, size]; the first is the empty one.

    Returns:
        What the index says of both files.

    Raises:
        ValueError: it is not, or one has no word at all: attention needs something to attend to.
    """
    from safetensors.numpy import save

    if not captions or captions[0] != "" or int(lengths.min()) < 1:
        raise ValueError("caption 0 must be the empty one, and every caption needs at least one state")
    files = {
        TEXTS: save(
            {"states": np.ascontiguousarray(states, np.float32), "lengths": np.ascontiguousarray(lengths, np.int32)}
        ),
        CAPTIONS: "".join(json.dumps(caption) + "\n" for caption in captions).encode(),
    }
    for name, content in files.items():
        write_whole(folder / name, content)
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
