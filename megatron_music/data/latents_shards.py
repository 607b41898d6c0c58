"""Shards of latents in the making: files decoded, encoded and written, with a completion record each."""

import ctypes
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from megatron_music.audio.autoencoder import Autoencoder
from megatron_music.config.errors import counted
from megatron_music.corpora.captioned import Captioned
from megatron_music.data.crops import Crops
from megatron_music.data.latents import LatentItem, write_samples
from megatron_music.data.latents_encoders import Encoders, latent_frames
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.storage.reading import hash_of_file, read_bytes, reason_of
from megatron_music.storage.sealed import parse_sealed, sealed
from megatron_music.storage.writing import write_whole

RECORDS = "records"
_M_MMAP_THRESHOLD = -3  # of mallopt
_BATCH = 8  # crops of one sound on a CPU
_CUDA_BATCH = 32  # crops of several sounds on a GPU; halved where its memory is too small


class Shard(NamedTuple):
    """One shard."""

    split: str
    number: int
    files: list[Captioned]

    def path(self, building: Path) -> Path:
        """Where its samples lie."""
        return building / "out" / self.split / f"{self.number:05}.safetensors"

    def record(self, building: Path) -> Path:
        """Where it stands that the shard is whole, and what became of its sounds."""
        return building / RECORDS / f"{self.split}-{self.number:05}.json"

    def read_record(self, building: Path) -> dict:
        """The record, once its hash and that of the samples were compared.

        Raises:
            ValueError: one of them was changed; names it.
        """
        path, samples = self.record(building), self.path(building)
        remedy = f"delete {path} and run the same command again: it makes that shard anew"
        try:
            record = parse_sealed(read_bytes(path))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no completion record ({error}); {remedy}") from None
        if record["shard"]:
            try:
                found = hash_of_file(samples)
            except (OSError, ValueError) as error:
                raise ValueError(f"{samples} cannot be read ({reason_of(error)}); {remedy}") from None
            if found != record["shard"]["sha256"]:
                raise ValueError(f"{samples} was changed since it was written: its SHA-256 is another; {remedy}")
        return record


def encode_shards(
    building: Path,
    shards: Sequence[Shard],
    texts: Sequence[str],
    crops: Crops,
    encoders: Encoders,
    options: LatentsOptions,
    device: torch.device | str,
    progress: Callable[[Iterable, int], Iterable],
    say: Callable[[str], None],
) -> None:
    """Encode those of the shards that are not whole yet.

    Args:
        texts: all captions; a sample has the numbers of its own.
        progress: wraps the sounds.
        say: receives a line when the work begins.
    """
    _return_freed_memory()
    (building / RECORDS).mkdir(exist_ok=True)
    numbers = {text: number for number, text in enumerate(texts)}
    missing = [shard for shard in shards if not shard.record(building).exists()]
    total = sum(len(shard.files) for shard in missing)
    where = "" if torch.device(device).type == "cpu" else f" on {torch.cuda.get_device_name(device)}"
    say(f"encoding {counted(total, 'sound')} in {len(missing):,} of {counted(len(shards), 'shard')}{where}")
    done = iter(progress(range(total), total))
    for shard in missing:
        path = shard.path(building)
        found = _encode_shard(path, shard.files, numbers, crops, encoders, options, device, lambda: next(done, None))
        write_whole(shard.record(building), sealed(json.dumps(found) + "\n"))
    next(done, None)  # which ends a bar


def _return_freed_memory() -> None:
    """Have blocks of 1 MiB and more returned to the system when they are freed.

    glibc puts them on its heap once some were freed, between the latents that are kept: six hours of audio took 1.4 GiB
    more.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)


def _encode_shard(
    path: Path,
    files: Sequence[Captioned],
    numbers: dict[str, int],
    crops: Crops,
    encoders: Encoders,
    options: LatentsOptions,
    device: torch.device | str,
    tick: Callable[[], object],
) -> dict:
    """Write the samples of some sounds, and tell what became of them."""
    autoencoder = encoders.autoencoder
    length = latent_frames(options, autoencoder) * autoencoder.downsampling
    on_cpu = torch.device(device).type == "cpu"
    items: list[LatentItem] = []  # without their latents until ``_fill_in``
    waiting: list[np.ndarray] = []  # the audio of the last of them
    spans: list[tuple[Captioned, slice]] = []  # the items of each file
    left_out, first = [], 0
    for read in crops.read(files, autoencoder.sample_rate, autoencoder.channels, length, options.crops_per_file):
        sound = files[read.number]
        if read.is_first or read.left_out:
            waiting = waiting[: max(len(waiting) - (len(items) - first), 0)]
            del items[first:]
        if read.crops:
            captions = tuple(numbers[encoders.text.cut(caption)] for caption in sound.captions)
            embeddings = encoders.music.embed_audio([crop.waveform for crop in read.crops])
            for crop, embedding in zip(read.crops, embeddings, strict=True):
                items.append(LatentItem(None, embedding, captions, crop.seconds_start, crop.seconds_total))
                waiting.append(crop.waveform.samples)
                if len(waiting) == (_BATCH if on_cpu else _CUDA_BATCH):
                    _fill_in(items, waiting, autoencoder, device)
                    waiting = []
        if read.ends:
            tick()
            # On a CPU a sound's crops are a batch, so that its latents depend on no other sound.
            if on_cpu:
                _fill_in(items, waiting, autoencoder, device)
                waiting = []
            if read.left_out:
                left_out.append({"path": sound.path, "kind": read.left_out.kind, "reason": str(read.left_out)})
            else:
                spans.append((sound, slice(first, len(items))))
            first = len(items)
    _fill_in(items, waiting, autoencoder, device)
    items, odd = _finite(items, spans)
    path.parent.mkdir(exist_ok=True)
    return {"shard": write_samples(path, items) if items else None, "left_out": [*left_out, *odd]}


def _finite(items: list[LatentItem], spans: list[tuple[Captioned, slice]]) -> tuple[list[LatentItem], list[dict]]:
    """The items of files whose latents and embeddings are finite, and why the others are left out."""
    kept, left_out = [], []
    for sound, span in spans:
        of_file = items[span]
        if all(np.isfinite(item.latents).all() and np.isfinite(item.embedding).all() for item in of_file):
            kept += of_file
        else:
            reason = f"{sound.path} gives latents or an embedding that are not finite; repair it or remove it"
            left_out.append({"path": sound.path, "kind": "unreadable", "reason": reason})
    return kept, left_out


def _fill_in(
    items: list[LatentItem], samples: list[np.ndarray], autoencoder: Autoencoder, device: torch.device | str
) -> None:
    """Give the last items the latents of their audio [channels, N] each, in batches that the device's memory holds."""
    batch_size = _BATCH if torch.device(device).type == "cpu" else _CUDA_BATCH
    first = 0
    while first < len(samples):
        part = torch.from_numpy(np.stack(samples[first : first + batch_size])).to(device)
        try:
            latents_BCT = autoencoder.encode(part).cpu().numpy()
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
            continue
        for place, latents_CT in enumerate(latents_BCT, start=len(items) - len(samples) + first):
            items[place] = items[place]._replace(latents=latents_CT)
        first += len(part)
