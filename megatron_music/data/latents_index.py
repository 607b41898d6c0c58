"""``index.json`` of a dataset of latents: what it may hold, and the hashes of its encoders compared with what lies
there.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from megatron_music.config.sections import SPLITS
from megatron_music.storage.reading import (
    hash_of_file,
    open_regular,
    read_json_object,
    reason_of,
)
from megatron_music.storage.writing import write_whole

FORMAT = 1
INDEX, ENCODERS = "index.json", "encoders"

PARTS = ("autoencoder", "music", "text")  # the encoders
_MOST = 1 << 31  # of any number in an index but bytes
_HASH, _SHARD = re.compile("[0-9a-f]{64}"), re.compile(r"[0-9]+\.safetensors")
_MAY_BE_0 = ("embedding_size",)  # of a model without an encoder of music


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


class DamagedLatents(ValueError):
    """A dataset is not what its index says."""


def read_index(folder: str | os.PathLike) -> dict:
    """``index.json`` of a dataset or of a checkpoint, every value of the kind it must be.

    Raises:
        DamagedLatents: it is missing or no such file.
    """
    path = Path(folder) / INDEX
    try:
        index = read_json_object(path)
        if index.get("format") != FORMAT:
            raise ValueError(f"its format is {index.get('format')!r}, where this version reads {FORMAT}")
        for item in fields(LatentsInfo):
            _check_number(index.get(item.name), item.name, 0 if item.name in _MAY_BE_0 else 1, _MOST)
        _check_encoders(index.get("encoders"))
        _check_splits(index.get("splits"))
        _check_files(index.get("files", {}))
        return index
    except FileNotFoundError:
        if (Path(folder) / "train.idx").is_file():
            what = (
                "a dataset of tokens, of a GPT; a text-to-music model is trained on one of `megatron-music build "
                "latents`"
            )
            raise DamagedLatents(f"{folder} is {what}") from None
        raise DamagedLatents(
            f"{folder} holds no {INDEX}; make it with `megatron-music build latents AUDIO_DIR -o {folder}`"
        ) from None
    except (OSError, ValueError) as error:
        raise DamagedLatents(f"{path} is no index of latents ({error}); build the dataset again") from None


def write_index(
    folder: Path,
    info: LatentsInfo,
    splits: dict[str, list[dict]],
    encoders: dict[str, dict],
    files: dict[str, dict] | None = None,
) -> None:
    """Write the index, last of all: a folder without it is no dataset.

    Args:
        splits: of each, what ``write_samples`` returned.
        encoders: ``text``, ``music`` and ``autoencoder``, each with its ``name`` and ``sha256``.
        files: what ``write_texts`` returned.
    """
    index = {"format": FORMAT, **asdict(info), "encoders": encoders, "files": files or {}, "splits": splits}
    write_whole(Path(folder) / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def encoder_hash(folder: str | os.PathLike) -> str:
    """SHA-256 of all files of an encoder's folder, by name.

    Raises:
        OSError, ValueError: it has a link or anything but files, or one cannot be read.
    """
    return _hash_of({path.name: hash_of_file(path, follow_links=False) for path in sorted(Path(folder).iterdir())})


def _hash_of(files: dict[str, str]) -> str:
    found = hashlib.sha256()
    for name, digest in files.items():
        found.update(name.encode() + b"\0" + bytes.fromhex(digest))
    return found.hexdigest()


def check_encoders(folder: str | os.PathLike) -> None:
    """Compare the encoders of a dataset or of a checkpoint with the hashes of its index.

    Raises:
        DamagedLatents: the first that is missing or differs, with what to do.
    """
    for _ in encoder_files(folder, keeps=False):
        pass


def encoder_files(folder: str | os.PathLike, *, keeps: bool = True) -> Iterator[tuple[str, bytes]]:
    """The files of the encoders that the index names, by their path below the folder: the bytes that were compared.

    What lies beside them under ``encoders`` is not given.

    Args:
        keeps: False gives no bytes, for files that are larger than memory.

    Raises:
        DamagedLatents: an encoder is missing or is not the one that the index names.
    """
    folder = Path(folder)
    for name, wanted in sorted(read_index(folder)["encoders"].items()):
        where = folder / ENCODERS / name
        try:
            contents, hashes = {}, {}
            for path in sorted(where.iterdir()):
                if keeps:
                    with open_regular(path, follow_links=False) as file:
                        contents[path.name] = file.read()
                    hashes[path.name] = hashlib.sha256(contents[path.name]).hexdigest()
                else:
                    hashes[path.name] = hash_of_file(path, follow_links=False)
        except (OSError, ValueError) as error:
            raise DamagedLatents(
                f"{where} cannot be read ({reason_of(error)}); copy the folder again, or build the dataset again"
            ) from None
        if _hash_of(hashes) != wanted["sha256"]:
            raise DamagedLatents(
                f"{where} is not the encoder that {folder / INDEX} names: its SHA-256 is another; copy the folder "
                f"again, or build "
                "the dataset again"
            )
        yield from ((f"{ENCODERS}/{name}/{file}", content) for file, content in contents.items())


def _check_number(value, name: str, least: int, most: int) -> None:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"its {name} is {value!r:.40}, where a whole number from {least} on is wanted")


def _check_hash(value, name: str) -> None:
    if not isinstance(value, str) or not _HASH.fullmatch(value):
        raise ValueError(f"its sha256 of {name} is {value!r:.40}, where 64 hexadecimal digits are wanted")


def _check_encoders(encoders) -> None:
    if not isinstance(encoders, dict) or not encoders.keys() <= set(PARTS):
        raise ValueError(f"its encoders are not an object of {', '.join(PARTS)}")
    for name, found in encoders.items():
        if not isinstance(found, dict) or not isinstance(found.get("name"), str):
            raise ValueError(f"its encoder {name} has no name")
        _check_hash(found.get("sha256"), f"the encoder {name}")


def _check_splits(splits) -> None:
    if not isinstance(splits, dict) or not splits.keys() <= set(SPLITS):
        raise ValueError(f"its splits are not an object of {', '.join(SPLITS)}")
    for split, shards in splits.items():
        if not isinstance(shards, list) or not all(isinstance(shard, dict) for shard in shards):
            raise ValueError(f"its split {split} is not a list of shards")
        for shard in shards:
            name = shard.get("name")
            if not isinstance(name, str) or not _SHARD.fullmatch(name):
                raise ValueError(f"a shard of {split} is named {name!r:.40}, where a number and .safetensors is wanted")
            _check_number(shard.get("count"), f"count of {split}/{name}", 1, _MOST)
            _check_number(shard.get("bytes"), f"bytes of {split}/{name}", 1, 1 << 62)
            _check_hash(shard.get("sha256"), f"{split}/{name}")


def _check_files(files) -> None:
    if not isinstance(files, dict) or not all(
        isinstance(found, dict) and re.fullmatch(r"\w+\.\w+", name) for name, found in files.items()
    ):
        raise ValueError("its files are not an object of names")
    for name, found in files.items():
        _check_number(found.get("bytes"), f"bytes of {name}", 1, 1 << 62)
        _check_hash(found.get("sha256"), name)
