"""A finished shard, read back: its record checked, its documents in pieces that fit in memory.

The caller says which run of documents belongs to which group.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from megatron_music.data.plan import Plan
from megatron_music.data.shard import PARTS, RECORD, shard_path
from megatron_music.storage.reading import TABLE_BYTES, read_bytes
from megatron_music.storage.sealed import parse_sealed

PIECE_TOKENS = 1 << 18  # half a MiB: what is read stays in the processor's cache while it is written
CHECKED_AHEAD = 2  # shards, a thread each: hashing is slower than copying
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
    first, files = plan.shards[number][:2]
    try:
        record = parse_sealed(read_bytes(path, TABLE_BYTES))
        sizes = {part: record[part]["bytes"] for part in PARTS}
        if not all(type(size) is int for size in sizes.values()):
            raise ValueError("the size of a file in it is not a number")
        [record[part]["sha256"] for part in PARTS]
        if not all(isinstance(file, dict) for file in record["files"]):
            raise ValueError("a file in it is not an object")
        record["notes"], record["density"], record["onset_error"], record["ids"]
        is_ours = record["fingerprint"] == plan.fingerprint and (record["first"], len(record["files"])) == (
            first,
            files,
        )
    except FileNotFoundError:
        raise DamagedShard(
            f"{path} is missing: the shard is not finished; run `megatron-music build shard` again"
        ) from None
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
        first, files = plan.shards[number][:2]
        self.files = slice(first, first + files)
        self._paths = {part: shard_path(plan.building, number, part) for part in PARTS}
        self._hashes = {part: record[part]["sha256"] for part in PARTS}

    def check(self) -> None:
        """Compare every byte of the ``.bin`` with the record's SHA-256; threads may do so.

        Raises:
            DamagedShard: it is another.
        """
        with open(self._paths["bin"], "rb") as file:
            self._compare("bin", hashlib.file_digest(file, "sha256").hexdigest())

    def _compare(self, part: str, found: str) -> None:
        if found != self._hashes[part]:
            raise DamagedShard(
                f"{self._paths[part]} was changed since it was written: its SHA-256 is another; {REMEDY}"
            )

    def pieces(self, groups: np.ndarray, documents: np.ndarray) -> Iterator[Piece]:
        """Runs of whole documents, at most PIECE_TOKENS tokens at a time unless one document is longer.

        Args:
            groups: int [runs]; runs of a negative group are passed over.
            documents: int [runs], the documents in each run; together all of the shard's.

        Yields:
            The group, ids (uint16) that stay so until the next piece, and the tokens in each document (int32).

        Raises:
            DamagedShard: the ``.lengths`` was changed; for the ``.bin`` there is ``check``.
        """
        lengths = np.fromfile(self._paths["lengths"], "<i4")
        self._compare("lengths", hashlib.sha256(lengths).hexdigest())
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        if (
            len(lengths) != documents.sum()
            or (lengths < 0).any()
            or 2 * starts[-1] != self._paths["bin"].stat().st_size
        ):
            raise DamagedShard(f"{self._paths['lengths']} does not fit its .bin and its record; {REMEDY}")
        room = np.empty(PIECE_TOKENS, "<u2")
        with open(self._paths["bin"], "rb") as file:
            for group, first, last in _merged(groups, documents):
                while first < last and group >= 0:
                    start, stop = int(starts[first]), last
                    if starts[stop] > start + PIECE_TOKENS:
                        stop = max(first + 1, int(np.searchsorted(starts, start + PIECE_TOKENS, side="right")) - 1)
                    tokens = int(starts[stop]) - start
                    if tokens > len(room):
                        room = np.empty(tokens, "<u2")
                    ids = room[:tokens]
                    if os.preadv(file.fileno(), [ids], 2 * start) < ids.nbytes:
                        raise DamagedShard(f"{file.name} became shorter while it was read; {REMEDY}")
                    yield group, ids, lengths[first:stop]
                    first = stop

    def ids_at(self, places: np.ndarray) -> np.ndarray:
        """The ids at some places (uint16)."""
        if not len(places):
            return np.empty(0, np.uint16)
        return np.memmap(self._paths["bin"], "<u2", "r")[places]


def checked(readers: list[ShardReader]) -> Iterator[ShardReader]:
    """The shards, each once its bytes are known to be those that were written; the next ones are checked meanwhile.

    Raises:
        DamagedShard: they are not.
    """
    with ThreadPoolExecutor(CHECKED_AHEAD) as threads:
        checks = deque(threads.submit(reader.check) for reader in readers[:CHECKED_AHEAD])
        for number, reader in enumerate(readers, start=CHECKED_AHEAD):
            checks.popleft().result()
            if number < len(readers):
                checks.append(threads.submit(readers[number].check))
            yield reader


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
