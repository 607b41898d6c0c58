"""Builds a folder of latents from captioned audio: ``build latents``.

Everything is made in ``OUT.building/out``, shard by shard, and gets its name in one rename when it is whole. Stopped at
any moment, the same command goes on. Several processes may share the shards: each encodes ``shards[rank::world_size]``,
and the one that finishes last puts the dataset together.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from megatron_music.audio.music_encoder import SIZE as EMBEDDING_SIZE
from megatron_music.audio.text_encoder import TextEncoder
from megatron_music.config.errors import counted
from megatron_music.config.sections import SPLITS
from megatron_music.corpora.captioned import (
    Captioned,
    read_captioned,
    state_of,
    with_names_on_disk,
)
from megatron_music.data.building import building_folder, check_sources, held
from megatron_music.data.crops import Crops
from megatron_music.data.latents import write_texts
from megatron_music.data.latents_encoders import (
    ENCODER_HASHES,
    Encoders,
    close,
    encoders_of,
    keep_hashes,
    latent_frames,
)
from megatron_music.data.latents_index import ENCODERS, LatentsInfo, write_index
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.data.latents_shards import RECORDS, Shard, encode_shards
from megatron_music.data.splits import KEY_BYTES, assign_splits
from megatron_music.storage.holding import hold
from megatron_music.storage.reading import read_bytes, read_json_object
from megatron_music.storage.sealed import parse_sealed, sealed
from megatron_music.storage.writing import is_temporary, sync, sync_tree, write_whole

PLAN, REPORT, QUARANTINE = "plan.json", "report.json", "quarantine.jsonl"
_FIT, _MERGE = "encoders.lock", "merge.lock"
_RECORD = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.json")
_LOCKS = re.compile(r"(lock|encoders\.lock|merge\.lock|rank-\d+-of-\d+\.lock)(\.[0-9a-f]{16})?")


Progress = Callable[[Iterable, int], Iterable]


def build_latents(
    audio_dir: str | os.PathLike,
    out: str | os.PathLike,
    options: LatentsOptions,
    progress: Progress = lambda items, total: items,
    say: Callable[[str], None] = lambda line: None,
    *,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
) -> dict | None:
    """Encode all captioned sounds of a folder. A folder that is there already, of the same sounds and options, stays.

    Args:
        progress: wraps the sounds of this rank.
        say: receives a line on each part of the work as it begins.
        rank, world_size: this process, from 0, of those that share the work in one ``OUT.building``. Any of them may
            start at any time; one that was stopped is started again.
        device: of the autoencoder and of the text encoder.

    Returns:
        The report, as in ``report.json``; None where another rank puts the dataset together.

    Raises:
        ValueError: no captions, no sound for training, another build in the same folder, one of other options, or a
            file that changed meanwhile.
    """
    folder, out = Path(audio_dir), Path(os.path.realpath(out))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size}; use 0 to {max(world_size - 1, 0)}")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name one of sounds with captions")
    sounds = with_names_on_disk(folder, read_captioned(folder))
    states = {sound.path: state_of(folder / sound.path) for sound in sounds}
    fingerprint = _fingerprint(folder, sounds, states, options)
    building = building_folder(out)
    check_sources(building, [folder])
    if out.exists():
        report = _finished(out, fingerprint)
        if building.is_dir():  # a process was killed before it removed it; or another rank is in it still
            with suppress(ValueError), held(building):
                _clear(building)
        return report
    if not out.parent.is_dir():
        raise ValueError(f"{out.parent} does not exist; make the folder first")
    with _shared(building, rank, world_size), Crops(folder, options, states) as crops, ExitStack() as at_end:
        with _locked(building / _FIT):
            if out.exists():  # other ranks were quicker
                return None
            _check_plan(building, fingerprint)
            made = building / "out"
            made.mkdir(exist_ok=True)
            splits = _splits(sounds, options)
            encoders = encoders_of(made / ENCODERS, [sounds[n] for n in splits["train"]], crops, options, say, device)
            at_end.callback(close, encoders.music)
            keep_hashes(building, made / ENCODERS)
        shards = [
            Shard(split, number, [sounds[n] for n in files[first : first + options.files_per_shard]])
            for split, files in splits.items()
            for number, first in enumerate(range(0, len(files), options.files_per_shard))
        ]
        texts = ["", *dict.fromkeys(encoders.text.cut(caption) for sound in sounds for caption in sound.captions)]
        encode_shards(building, shards[rank::world_size], texts, crops, encoders, options, device, progress, say)
        with _locked(building / _MERGE):
            if out.exists() or not all(shard.record(building).exists() for shard in shards):
                return None
            report = _merge(building, sounds, shards, texts, folder, encoders, options, fingerprint, say)
            os.rename(made, out)
            sync(out.parent)
            _clear(building)
    if world_size > 1:
        with (
            suppress(ValueError),
            held(building),
        ):  # which removes what holds nothing but its lock; another rank may be in it still
            pass
    return report


def _clear(building: Path) -> None:
    """Remove by name what a build that is over leaves in its working folder; ``held`` removes the folder where nothing
    stays.
    """
    records = building / RECORDS
    for path in records.iterdir() if records.is_dir() and not records.is_symlink() else ():
        if _RECORD.fullmatch(path.name) or is_temporary(path.name):
            path.unlink()
    with suppress(OSError):  # something else is in it, or it went before
        records.rmdir()
    for name in (ENCODER_HASHES, PLAN):
        (building / name).unlink(missing_ok=True)
    for path in building.glob("*.lock"):  # of ranks that were killed; those alive let go of theirs themselves
        with suppress(ValueError), _locked(path, waits=False):
            pass


@contextmanager
def _shared(building: Path, rank: int, world_size: int) -> Iterator[None]:
    """Hold ``OUT.building``: alone, or as one rank of several, of which no two have the same number."""
    if world_size == 1:
        with held(building):
            yield
        return
    building.mkdir(parents=True, exist_ok=True)
    with held(building, shared=True), _locked(building / f"rank-{rank}-of-{world_size}.lock", waits=False):
        yield


def _locked(path: Path, waits: bool = True) -> AbstractContextManager:
    """Hold a lock file, which is let go when the process dies.

    Raises:
        ValueError: another process holds it, where ``waits`` is False.
    """
    return hold(
        path, f"another process works as {path.stem} of {path.parent}{{owner}}; give each its own --rank", waits=waits
    )


def _fingerprint(
    folder: Path, sounds: Sequence[Captioned], states: Mapping[str, list[int] | None], options: LatentsOptions
) -> str:
    found = hashlib.sha256(json.dumps([str(folder.resolve()), asdict(options)]).encode())
    for sound in sounds:
        found.update(json.dumps([*sound, states[sound.path]]).encode())
    return found.hexdigest()


def _finished(out: Path, fingerprint: str) -> dict:
    try:
        report = read_json_object(out / REPORT)
        if report["fingerprint"] == fingerprint:
            return report
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{out} is there already, and not of these sounds and options; remove it or name another folder")


def _check_plan(building: Path, fingerprint: str) -> None:
    path = building / PLAN
    if path.exists():
        try:
            found = parse_sealed(read_bytes(path)).get("fingerprint")
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be used ({error}); remove {building} and build again") from None
        if found != fingerprint:
            raise ValueError(f"{building} was begun with other sounds or options; go on with those, or remove it")
    elif foreign := [
        file.name for file in building.iterdir() if not _LOCKS.fullmatch(file.name) and not is_temporary(file.name)
    ]:
        raise ValueError(
            f"{building} is the working folder of this build and holds {min(foreign)}, which is not of a build; move "
            f"it away, or name "
            "another output"
        )
    write_whole(path, sealed(json.dumps({"fingerprint": fingerprint}) + "\n"))


def _splits(sounds: Sequence[Captioned], options: LatentsOptions) -> dict[str, list[int]]:
    digests = [hashlib.sha256(sound.group.encode()).digest()[:KEY_BYTES] for sound in sounds]
    keys = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, KEY_BYTES)
    fractions = (1 - options.valid_fraction - options.test_fraction, options.valid_fraction, options.test_fraction)
    found = assign_splits(keys, keys, options.seed, fractions).splits
    return {name: np.flatnonzero(found == number).tolist() for number, name in enumerate(SPLITS)}


def _merge(
    building: Path,
    sounds: Sequence[Captioned],
    shards_made: Sequence[Shard],
    texts: Sequence[str],
    folder: Path,
    encoders: Encoders,
    options: LatentsOptions,
    fingerprint: str,
    say: Callable,
) -> dict:
    """Encode the captions and write what is of the dataset as a whole, the index last."""
    made = building / "out"
    for path in made.rglob(".*.tmp"):  # of processes that were killed; the others have written theirs
        if is_temporary(path.name):
            path.unlink()
    found = {(shard.split, shard.number): shard.read_record(building) for shard in shards_made}
    shards = {
        split: [record["shard"] for (of, _), record in found.items() if of == split and record["shard"]]
        for split in SPLITS
    }
    left_out = [entry for record in found.values() for entry in record["left_out"]]
    if not shards["train"]:
        why = left_out[0]["reason"] if left_out else "there is none"
        raise ValueError(f"no sound of {folder} can be trained on ({why}); mend the folder and remove {building}")
    say(f"encoding {counted(len(texts) - 1, 'caption')}")
    states, keeps = zip(
        *(encoders.text.encode(texts[first : first + 256]) for first in range(0, len(texts), 256)), strict=True
    )
    lengths = torch.cat(keeps).sum(1).cpu().numpy()
    files = write_texts(made, texts, torch.cat([part.cpu() for part in states]).numpy(), lengths)
    info = LatentsInfo(
        latent_channels=encoders.autoencoder.latent_channels,
        latent_length=latent_frames(options, encoders.autoencoder),
        sample_rate=encoders.autoencoder.sample_rate,
        channels=encoders.autoencoder.channels,
        downsampling=encoders.autoencoder.downsampling,
        embedding_size=EMBEDDING_SIZE,
        text_length=encoders.text.length,
        text_size=encoders.text.size,
    )
    hashes = keep_hashes(building, made / ENCODERS)
    written = {name: {"name": getattr(encoders, name).name, "sha256": digest} for name, digest in hashes.items()}
    write_whole(made / QUARANTINE, "".join(json.dumps(entry) + "\n" for entry in left_out).encode())
    report = {
        "fingerprint": fingerprint,
        "options": asdict(options),
        "sounds": {"listed": len(sounds), "left_out": len(left_out)},
        "left_out": dict(Counter(entry["kind"] for entry in left_out)),
        "samples": {split: sum(shard["count"] for shard in shards[split]) for split in SPLITS},
        "captions": len(texts) - 1,
        "captions_of_unknown_words": _unreadable(texts[1:], encoders.text),
        "seconds_a_sample": info.seconds,
        "encoders": written,
    }
    write_whole(made / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    write_index(made, info, shards, written, files)
    sync_tree(made)
    return report


def _unreadable(captions: Sequence[str], encoder: TextEncoder) -> dict:
    """How many captions hold no word that the text encoder knows, and the first of them."""
    found = [caption for caption in captions if not encoder.reads(caption).known]
    return {"count": len(found), "first": found[0] if found else None}
