"""Shards: runs of input files encoded to ``.bin`` and ``.lengths``, with a completion record written last.

``encode_shard`` is what every scheduler calls; ``write_shard`` is what a worker process does. Their bytes depend on
the plan alone.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path

import numpy as np

from megatron_music.corpora.archives import Entry, EntryError
from megatron_music.corpora.midi_files import ChangedSource, Reader
from megatron_music.data.building import (
    LOCK_FILE,
    SHARDS_FOLDER,
    held,
    sweep_shards,
    temporary_shard,
)
from megatron_music.data.encode import NOTE_COLUMNS, EncodedFile, fastest_engine
from megatron_music.data.plan import Plan, read_plan
from megatron_music.data.token_counts import as_json
from megatron_music.data.worker_pool import run_shards
from megatron_music.storage.holding import token_of
from megatron_music.storage.reading import TABLE_BYTES, read_bytes
from megatron_music.storage.sealed import parse_sealed, sealed
from megatron_music.storage.write_behind import WriteOut
from megatron_music.storage.writing import create, naming, sync
from megatron_music.tokens.density import NUM_IDS

RECORD = "json"
PARTS = {"bin": np.dtype("<u2"), "lengths": np.dtype("<i4")}
_BLOCK_BYTES = 256 << 10  # written at a time: many calls for a few bytes each cost more than the bytes


def encode_shard(
    manifest: str | os.PathLike,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 1,
    progress: Callable[[Iterable, int], Iterable] = lambda items, total: items,
) -> dict[str, int]:
    """Encode the shards ``rank``, ``rank + world_size``, ... of a planned build that are not finished yet.

    Ranks need nothing of each other but the folder, and may run at once, on several machines. For a Slurm array without
    more ado: ``megatron-music build shard OUT --rank $SLURM_ARRAY_TASK_ID --world-size $SLURM_ARRAY_TASK_COUNT``.

    Args:
        manifest: the dataset's name, as ``plan_build`` was given it, or its ``OUT.building``.
        workers: processes that parse and encode, each within 1 GiB.
        progress: wraps the iteration over files, given their number.

    Returns:
        ``shards`` of this rank, ``found`` finished among them, and ``files`` encoded now.

    Raises:
        ValueError: there is no plan, a build works there alone, or a file or the labels are not those that were
            planned.
        OSError: the disk is full, or workers cannot live. Finished shards stay, and the same call goes on.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size}; use 0 to {max(world_size - 1, 0)}")
    if workers < 1:
        raise ValueError(f"workers is {workers}; use 1 or more")
    building = read_plan(manifest).building
    with held(building, shared=True):
        plan = read_plan(building)
        plan.check_labels()
        owner = token_of(building / LOCK_FILE)
        sweep_shards(building)
        numbers = range(len(plan.shards))[rank::world_size]
        waiting = [number for number in numbers if not is_finished(plan, number)]
        files = sum(plan.shards[number].files for number in waiting)
        try:
            with closing(run_shards(plan, waiting, workers, owner=owner)) as running:
                for _ in progress(running, files):
                    pass
        finally:
            sweep_shards(building, own=owner)  # after workers that were stopped, or were still dying at the start
    return {"shards": len(numbers), "found": len(numbers) - len(waiting), "files": files}


def shard_path(building: Path, number: int, part: str) -> Path:
    """``part`` is bin, lengths or json."""
    return building / SHARDS_FOLDER / f"{number:05}.{part}"


def is_finished(plan: Plan, number: int) -> bool:
    """Whether a shard has its completion record, and parts of the sizes it says; hashes are compared by the merge."""
    try:
        record = parse_sealed(read_bytes(shard_path(plan.building, number, RECORD), TABLE_BYTES))
        return record["fingerprint"] == plan.fingerprint and all(
            shard_path(plan.building, number, part).stat().st_size == record[part]["bytes"] for part in PARTS
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_shard(
    plan: Plan,
    number: int,
    reader: Reader,
    encode: Callable[[Entry, bytes], EncodedFile],
    skip: Mapping[int, str],
    tell: Callable[[int | None], None],
    owner: str = "",
) -> None:
    """Encode one shard and write its files, under temporary names first; holds the ids of a few input files at a time.

    Args:
        skip: entries not to touch, and why: they go to quarantine.
        tell: called with the number of each entry before it is touched, and with None after the last.
        owner: by what the hold of the folder is known (``storage.holding.token_of``): others remove the temporary files
            of those that are dead.

    Raises:
        ChangedSource: a file is not the one that was planned.
        OSError: the disk is full or not writable. Nothing is left behind.
    """
    records, notes, density, onset_error = [], [], np.zeros(128, np.int64), np.zeros(10, np.int64)
    owner = owner or token_of(plan.building / LOCK_FILE)
    with _Part(plan.building, number, "bin", owner) as ids, _Part(plan.building, number, "lengths", owner) as lengths:
        for entry_number, entry in enumerate(plan.read_entries(number), start=plan.shards[number].first):
            tell(entry_number)
            if entry_number in skip:
                file = EncodedFile("", damage=skip[entry_number])
            else:
                try:
                    file = _encoded(entry, reader, encode)
                except ChangedSource as error:
                    raise ChangedSource(f"{error}; remove {plan.building} and plan again") from None
            ids.write(file.ids)
            lengths.write(file.lengths)
            density += file.density
            onset_error += file.onset_error
            records.append(_file_record(file))
            if file.notes:
                notes.append(file.notes)
        tell(None)
        record = {
            "fingerprint": plan.fingerprint,
            "first": plan.shards[number].first,
            **{part.name: part.finish() for part in (ids, lengths)},
            "ids": as_json(ids.counts),
            "density": density.tolist(),
            "onset_error": onset_error.tolist(),
            "notes": {name: [row[name] for row in notes] for name in NOTE_COLUMNS},
            "files": records,
        }
    with _Part(plan.building, number, RECORD, owner) as part:
        part.write(np.frombuffer(sealed(json.dumps(record, default=lambda value: value.item()) + "\n"), np.uint8))
        part.finish()
    sync(plan.building / SHARDS_FOLDER)


def _encoded(entry: Entry, reader: Reader, encode: Callable[[Entry, bytes], EncodedFile]) -> EncodedFile:
    """The encoded file; whatever goes wrong costs this file, never the shard."""
    content = b""
    try:
        content = reader.read(entry)
        return encode(entry, content)
    except EntryError as error:
        damage = str(error)
    except (OSError, ChangedSource):
        raise
    except MemoryError:
        damage = "needs more memory than a worker may use"
    except Exception as error:  # a fault of ours or of a parser
        damage = f"cannot be encoded ({type(error).__name__}: {error})"
    return EncodedFile(hashlib.sha256(content).hexdigest() if content else "", damage=damage)


def _file_record(file: EncodedFile) -> dict:
    """What a merge needs to know of a file; what is empty is left out, as merges read millions of these."""
    if len(file.copies) <= 1:
        tokens = [len(file.ids)] * len(file.copies)
    else:
        totals = np.concatenate([[0], np.cumsum(file.lengths, dtype=np.int64)])
        tokens = np.diff(totals[np.cumsum((0, *file.copies))]).tolist()
    record = {
        "digest": file.digest,
        "content": file.content,
        "documents": list(file.copies),
        "tokens": tokens,
        "damage": file.damage,
        "left_out": file.left_out,
        "rescued": file.rescued,
        "windows_left_out": file.windows_left_out,
        "unheld": file.unheld,
        "meter": file.meters.longest if file.meters else "",
        "meter_changes": bool(file.meters and file.meters.changes),
        "meter_undeclared": bool(file.meters and file.meters.is_undeclared),
    }
    return {name: value for name, value in record.items() if value}


class _Part:
    """One file of a shard in the making: hashed as it is written, under the name of its owner: a sweep takes those of
    the dead only.

    Attributes:
        counts: how often each id occurs in what is written (int64, [NUM_IDS]); of ``.bin`` alone, and complete when
            finished.
    """

    def __init__(self, building: Path, number: int, name: str, owner: str):
        self.name = name
        self._path = shard_path(building, number, name)
        self._temporary = temporary_shard(self._path, owner)
        with naming(self._temporary):
            self._file = create(self._temporary)
        self._hasher, self._bytes = hashlib.sha256(), 0
        self._way = WriteOut(self._file)
        self._block: list[np.ndarray] = []
        self._block_bytes = 0
        self.counts = np.zeros(NUM_IDS if name == "bin" else 0, np.int64)

    def write(self, values: np.ndarray) -> None:
        """Add an array, in little-endian order; it must stay as it is."""
        self._block.append(values)
        self._block_bytes += values.nbytes
        if self._block_bytes >= _BLOCK_BYTES:
            self._write_block()

    def _write_block(self) -> None:
        values = np.concatenate(self._block) if self._block else np.empty(0, np.uint8)
        self._block, self._block_bytes = [], 0
        view = memoryview(np.ascontiguousarray(values, PARTS.get(self.name, values.dtype))).cast("B")
        self._hasher.update(view)
        self._bytes += len(view)
        if len(self.counts) and len(values):
            fastest_engine().count_ids(values, self.counts)
        with naming(self._temporary):
            self._file.write(view)
        self._way.wrote(len(view))

    def finish(self) -> dict:
        """Give it its name once all is on the disk; its size and hash."""
        self._write_block()
        with naming(self._temporary):
            self._way.finish()
            os.replace(self._temporary, self._path)
        return {"bytes": self._bytes, "sha256": self._hasher.hexdigest()}

    def __enter__(self) -> "_Part":
        return self

    def __exit__(self, *_) -> None:
        self._way.stop()
        self._temporary.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk was said already, and close tries to write what is left
            self._file.close()
