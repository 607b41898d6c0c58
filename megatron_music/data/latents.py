"""A dataset of captioned sound as training reads it: embeddings of music, latents of the autoencoder, states of the captions.

``OUT/index.json`` says what they are and of which encoders; ``texts.safetensors`` has the states of each caption once, row 0
those of the empty one; ``train``, ``valid`` and ``test`` hold shards of samples. Nothing is decoded or encoded here, and shards
are read where they lie on the disk. Shapes: C channels, T frames, L words, E embedding.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.storage.reading import read_json_object
from megatron_music.storage.writing import write_whole

FORMAT = 1
INDEX, TEXTS, CAPTIONS, ENCODERS = "index.json", "texts.safetensors", "texts.jsonl", "encoders"
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class LatentsInfo:
    """What all samples have in common.

    Args:
        latent_channels, latent_length: C and T.
        sample_rate, channels, downsampling: of the sound, and how many of its frames are one of T.
        embedding_size: E.
        text_length, text_size: L, and the size of each word's state.
    """

    latent_channels: int
    latent_length: int
    sample_rate: int
    channels: int
    downsampling: int
    embedding_size: int
    text_length: int
    text_size: int

    @property
    def seconds(self) -> float:
        """Of a sample."""
        return self.latent_length * self.downsampling / self.sample_rate


class LatentItem(NamedTuple):
    """One sample."""

    latents: np.ndarray  # float32 [C, T]
    embedding: np.ndarray  # float32 [E], of length 1
    captions: tuple[int, ...]  # numbers of texts, any of which is true of it
    seconds_start: float  # where in its file it begins
    seconds_total: float  # of its file


class DamagedLatents(ValueError):
    """A dataset is not what its index says."""


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
                raise DamagedLatents(
                    f"{path} is missing or has another size than {self.folder / INDEX} says; build the dataset again"
                )

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

    def check(self) -> None:
        """Compare every byte with the hashes of the index.

        Raises:
            DamagedLatents: the first file that differs.
        """
        for shard in self._shards:
            path = self.folder / self.split / shard["name"]
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard["sha256"]:
                    raise DamagedLatents(f"{path} was changed since it was written; build the dataset again")

    def _open(self, shard: int):
        if shard not in self._files:
            self._files[shard] = _opened(self.folder / self.split / self._shards[shard]["name"])
        return self._files[shard]

    @cached_property
    def _texts(self):
        return _opened(self.folder / TEXTS)

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self._texts.get_tensor("lengths")

    @cached_property
    def _captions(self) -> list[str]:
        return [json.loads(line) for line in (self.folder / CAPTIONS).read_text(encoding="utf-8").splitlines()]


def verify(folder: str | os.PathLike, progress: Callable[[Iterable, int], Iterable] = lambda items, total: items) -> int:
    """Compare the shards of a dataset with the hashes of its index.

    Args:
        progress: wraps the iteration over splits, given their number.

    Returns:
        How many files were compared.

    Raises:
        DamagedLatents: the first that is missing or differs, by name, with what to do.
    """
    splits = read_index(Path(folder))["splits"]
    for split in progress(SPLITS, len(SPLITS)):
        LatentDataset(folder, split).check()
    return sum(len(splits.get(split, ())) for split in SPLITS)


def _opened(path: Path):
    from safetensors import SafetensorError, safe_open  # here, not at the top: a GPT trains without the extra `audio`

    try:
        return safe_open(path, "numpy")
    except (OSError, SafetensorError) as error:
        raise DamagedLatents(f"{path} cannot be read ({str(error).splitlines()[0]}); build the dataset again") from None


def read_index(folder: Path) -> dict:
    """``index.json`` of a dataset.

    Raises:
        DamagedLatents: it is missing or no such file.
    """
    path = folder / INDEX
    try:
        index = read_json_object(path)
        known = {item.name for item in fields(LatentsInfo)}
        if index["format"] != FORMAT or not known <= index.keys() or not isinstance(index["splits"], dict):
            raise ValueError(f"its format is {index['format']}, where this version reads {FORMAT}")
        return index
    except FileNotFoundError:
        raise DamagedLatents(f"{folder} holds no {INDEX}; make it with `megatron-music build latents AUDIO_DIR -o {folder}`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedLatents(f"{path} is no index of latents ({error}); build the dataset again") from None


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
    write_whole(path, content)
    return {
        "name": path.name,
        "count": len(items),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def write_texts(folder: Path, captions: Sequence[str], states: np.ndarray, lengths: np.ndarray) -> None:
    """Write the captions and their states [U, L, size]; the first is the empty one.

    Raises:
        ValueError: it is not, or one has no word at all: attention needs something to attend to.
    """
    from safetensors.numpy import save

    if not captions or captions[0] != "" or int(lengths.min()) < 1:
        raise ValueError("caption 0 must be the empty one, and every caption needs at least one state")
    content = save({"states": np.ascontiguousarray(states, np.float32), "lengths": np.ascontiguousarray(lengths, np.int32)})
    write_whole(folder / TEXTS, content)
    write_whole(folder / CAPTIONS, "".join(json.dumps(caption) + "\n" for caption in captions).encode())


def write_index(folder: Path, info: LatentsInfo, splits: dict[str, list[dict]], encoders: dict[str, dict]) -> None:
    """Write the index, last of all: a folder without it is no dataset.

    Args:
        splits: of each, what ``write_samples`` returned.
        encoders: ``text``, ``music`` and ``autoencoder``, each with its ``name`` and ``sha256``.
    """
    index = {"format": FORMAT, **asdict(info), "encoders": encoders, "splits": splits}
    write_whole(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
