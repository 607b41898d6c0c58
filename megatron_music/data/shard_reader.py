"""A finished shard, read back: its record checked, its documents in pieces that fit in memory.

Knows nothing about splits: it is told which run of documents belongs to which group.
"""

import hashlib
import json
from collections.abc import Iterator

import numpy as np

from megatron_music.data.plan import Plan
from megatron_music.data.shard import PARTS, RECORD, shard_path

PIECE_TOKENS = 1 << 18  # half a MiB: what is read stays in the processor's cache while it is counted and written
REMEDY = "delete the shard's .json and run the build again: it makes that shard anew"


Piece = tuple[int, np.ndarray, np.ndarray]  # group, ids (uint16), tokens in each document (int32)


class DamagedShard(ValueError):
    """A shard is not what its completion record says."""


def read_record(plan: Plan, number: int) -> dict:
    """The completion record of a shard, after a look at the sizes of what it speaks of.

    Raises:
        DamagedShard: there is no such finished shard.
    """
    path = shard_path(plan.building, number, RECORD)
    first, files, _, _ = plan.shards[number]
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        entries = [file["entry"] for file in record["files"]]
        sizes = {part: record[part]["bytes"] for part in PARTS}
        is_ours = record["fingerprint"] == plan.fingerprint and entries == list(range(first, first + files))
    except FileNotFoundError:
        raise DamagedShard(f"{path} is missing: the shard is not finished; run `megatron-music build shard` again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedShard(f"{path} is no completion record ({error!r}); {REMEDY}") from None
    if not is_ours:
        raise DamagedShard(f"{path} is of other files or options than the plan; {REMEDY}")
    for part, wanted in sizes.items():
        path = shard_path(plan.building, number, part)
        size = path.stat().st_size if path.exists() else 0
        if size != wanted:
            raise DamagedShard(f"{path} has {size:,} bytes where its record says {wanted:,}; {REMEDY}")
    return record


class ShardReader:
    """The documents of one shard.

    Args:
        plan: of the build.
        number: of the shard.
        record: what ``read_record`` gave.

    Attributes:
        files: which of the plan's input files it holds.
    """

    def __init__(self, plan: Plan, number: int, record: dict):
        first, files, _, _ = plan.shards[number]
        self.files = slice(first, first + files)
        self._paths = {part: shard_path(plan.building, number, part) for part in PARTS}
        self._hashes = {part: record[part]["sha256"] for part in PARTS}

    def _check_hash(self, part: str, found: str) -> None:
        if found != self._hashes[part]:
            raise DamagedShard(f"{self._paths[part]} was changed since it was written: its SHA-256 is another; {REMEDY}")

    def pieces(self, groups: np.ndarray, documents: np.ndarray, check: bool = False) -> Iterator[Piece]:
        """Runs of whole documents, at most about PIECE_TOKENS tokens at a time unless one document is longer.

        Args:
            groups: int [runs]; runs of a negative group are passed over.
            documents: int [runs], the documents in each run; together all of the shard's.
            check: whether every byte is read, and compared with the record's SHA-256 at the end.

        Yields:
            The group, ids (uint16), and the tokens in each document (int32).

        Raises:
            DamagedShard: at the end of a checked reading.
        """
        lengths = np.fromfile(self._paths["lengths"], "<i4")
        ends = np.cumsum(lengths, dtype=np.int64)
        if check:
            self._check_hash("lengths", hashlib.sha256(lengths).hexdigest())
            assert len(lengths) == documents.sum()
        hasher = hashlib.sha256()
        with open(self._paths["bin"], "rb") as file:
            for group, first, last in _merged(groups, documents):
                if group < 0 and not check:
                    continue
                while first < last:
                    start = int(ends[first - 1]) if first else 0
                    stop = max(first + 1, min(last, int(np.searchsorted(ends, start + PIECE_TOKENS, side="right"))))
                    ids = _read_ids(file, start, int(ends[stop - 1]))
                    if check:
                        hasher.update(ids)
                    if group >= 0:
                        yield group, ids, lengths[first:stop]
                    first = stop
        if check:
            self._check_hash("bin", hasher.hexdigest())

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """The ids at some places (uint16)."""
        if not len(places):
            return np.empty(0, np.uint16)
        return np.memmap(self._paths["bin"], "<u2", "r")[places]


def _merged(groups: np.ndarray, documents: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Neighbouring runs of one group as one: the group, the first document and the one after the last."""
    groups, documents = groups[documents > 0], documents[documents > 0]
    ends = np.cumsum(documents)
    is_last = np.ones(len(groups), bool)
    is_last[:-1] = groups[1:] != groups[:-1]
    first = 0
    for group, end in zip(groups[is_last].tolist(), ends[is_last].tolist(), strict=True):
        yield group, first, end
        first = end


def _read_ids(file, start: int, stop: int) -> np.ndarray:
    """Tokens ``start`` to ``stop`` of a ``.bin``."""
    file.seek(2 * start)
    ids = np.frombuffer(file.read(2 * (stop - start)), "<u2")
    if len(ids) < stop - start:
        raise DamagedShard(f"{file.name} became shorter while it was read; {REMEDY}")
    return ids
