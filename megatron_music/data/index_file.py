"""megatron-core's ``.idx``: written in bounded memory, and checked against its ``.bin``; reading documents is
megatron-core's.

Layout of megatron-core 0.16.1 (``IndexedDataset``), little-endian; n sequences, each of them a document::

    b"MMIDIDX\\0\\0"  uint64 version = 1  uint8 dtype = 8 (uint16)  uint64 n  uint64 n + 1
    int32 [n]      tokens of each sequence
    int64 [n]      byte offset of each sequence in the .bin
    int64 [n + 1]  first sequence of each document, and n
"""

import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_music.storage.reading import open_regular
from megatron_music.storage.writing import sync_file

HEADER = b"MMIDIDX\0\0"
VERSION = 1
UINT16 = 8
HEADER_BYTES = len(HEADER) + struct.calcsize("<QBQQ")
TOKEN_TYPES = {
    1: "u1",
    2: "i1",
    3: "<i2",
    4: "<i4",
    5: "<i8",
    6: "<f8",
    7: "<f4",
    8: "<u2",
}  # by megatron-core's code of a dtype
REMEDY = "build the dataset again, or copy it again whole"
_AT_ONCE = 1 << 20  # rows of a table
_PIECES, _PIECE_BYTES, _WHOLE_BYTES = 16, 64 << 10, 8 << 20
_READ_WHOLE_BYTES = 1 << 30


class IndexWriter:
    """An ``.idx`` in the making. Its three tables grow side by side, so nothing is kept in memory.

    Args:
        path: the file, which must not exist.
        documents: how many there will be; it decides where the tables begin.
    """

    def __init__(self, path: str | os.PathLike, documents: int):
        self._documents = documents
        self._written = 0
        self._offset = 0  # bytes in the .bin so far
        self._file = open(path, "xb")  # noqa: SIM115 (closed by finish or close)
        self._file.write(HEADER + struct.pack("<QBQQ", VERSION, UINT16, documents, documents + 1))

    def add(self, lengths: np.ndarray) -> None:
        """Add documents, given the tokens of each (int32)."""
        ends = self._offset + 2 * np.cumsum(lengths, dtype=np.int64)
        self._table(0, 4, lengths.astype("<i4"))
        self._table(4 * self._documents, 8, (ends - 2 * lengths).astype("<i8"))
        self._table(12 * self._documents, 8, np.arange(self._written, self._written + len(lengths), dtype="<i8"))
        self._written += len(lengths)
        self._offset = int(ends[-1]) if len(ends) else self._offset

    def _table(self, start: int, item_bytes: int, values: np.ndarray) -> None:
        self._file.seek(HEADER_BYTES + start + item_bytes * self._written)
        self._file.write(values.data)

    def finish(self) -> None:
        """Write the end, and wait until all is on the disk."""
        assert self._written == self._documents, f"{self._written} documents of {self._documents}"
        self._table(12 * self._documents, 8, np.array([self._documents], "<i8"))
        self._file.flush()
        sync_file(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let go of the file of a merge that failed."""
        self._file.close()


class DamagedIndex(ValueError):
    """A ``.bin`` and its ``.idx`` do not belong together, or one of them was cut short."""


def check_index(prefix: str | os.PathLike) -> int:
    """Compare every row of ``PREFIX.idx`` with the layout above, and its tokens with the size of ``PREFIX.bin``.

    The tables are read once a process, in portions; 1 million sequences take about 20 ms. The tokens are not read.

    Returns:
        The number of sequences.

    Raises:
        DamagedIndex: a file is missing, cut short or altered, or they are not of one dataset. The sentence names the
            file.
    """
    index, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        stats = [path.stat() for path in (index, tokens)]
        sequences, end = _read_tables(index, (stats[0].st_ino, stats[0].st_size, stats[0].st_mtime_ns))
    except OSError as error:
        raise DamagedIndex(f"{error.filename or index} cannot be read ({error.strerror}); {REMEDY}") from None
    if (size := stats[1].st_size) != end:
        how = "shorter" if size < end else "longer"
        raise DamagedIndex(f"{index} is damaged ({tokens.name} is {how} than it says); {REMEDY}")
    return sequences


def read_lengths(prefix: str | os.PathLike) -> np.ndarray:
    """The tokens of each sequence (int32, [n]) of a split that ``check_index`` has found whole."""
    return np.fromfile(f"{prefix}.idx", "<i4", check_index(prefix), offset=HEADER_BYTES)


def _opened(path: str | os.PathLike) -> BinaryIO:
    try:
        return open_regular(path)
    except ValueError as error:
        raise DamagedIndex(f"{path} cannot be read ({error}); {REMEDY}") from None


@functools.lru_cache(maxsize=256)
def _read_tables(index: Path, state: tuple[int, int, int]) -> tuple[int, int]:
    """The sequences of an ``.idx`` and the bytes of their tokens; ``state`` is what tells two files of one path
    apart.
    """

    def refuse(reason: str):
        raise DamagedIndex(f"{index} is damaged ({reason}); {REMEDY}")

    with _opened(index) as file:
        head = file.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(HEADER):
            refuse("it does not begin as an index of megatron-core does")
        version, dtype, sequences, documents = struct.unpack("<QBQQ", head[len(HEADER) :])
        if version != VERSION:
            refuse(f"its version is {version} where {VERSION} is due")
        if dtype not in TOKEN_TYPES:
            refuse(f"its tokens have the unknown type {dtype}")
        wanted = HEADER_BYTES + 12 * sequences + 8 * documents
        if (size := os.fstat(file.fileno()).st_size) != wanted:
            refuse(f"it has {size:,} bytes where {wanted:,} are due")
        if not documents:
            refuse("it has no table of documents")

        def rows(kind: str, start: int, first: int, count: int) -> np.ndarray:
            item = np.dtype(kind)
            return np.frombuffer(
                os.pread(file.fileno(), item.itemsize * count, HEADER_BYTES + start + item.itemsize * first), item
            )

        item_bytes, end = np.dtype(TOKEN_TYPES[dtype]).itemsize, 0
        for first in range(0, sequences, _AT_ONCE):
            count = min(_AT_ONCE, sequences - first)
            lengths, offsets = rows("<i4", 0, first, count), rows("<i8", 4 * sequences, first, count)
            if lengths.min() < 0:
                worst = int(np.argmax(lengths < 0))
                refuse(f"sequence {first + worst} has {lengths[worst]} tokens")
            ends = end + item_bytes * np.cumsum(lengths, dtype=np.int64)
            wrong = offsets != ends - item_bytes * lengths.astype(np.int64)
            if wrong.any():
                worst = int(np.argmax(wrong))
                due = int(ends[worst]) - item_bytes * int(lengths[worst])
                refuse(f"sequence {first + worst} begins at byte {offsets[worst]} where {due} is due")
            end = int(ends[-1])
        before = 0
        for first in range(0, documents, _AT_ONCE):
            begins = rows("<i8", 12 * sequences, first, min(_AT_ONCE, documents - first))
            wrong = np.diff(begins, prepend=before) < 0
            wrong[0] |= first == 0 and begins[0] != 0
            if wrong.any():
                worst = int(np.argmax(wrong))
                refuse(f"document {first + worst} begins with sequence {begins[worst]}, out of order")
            before = int(begins[-1])
        if before != sequences:
            refuse(f"its documents end at sequence {before} where there are {sequences}")
    return sequences, end


def pieces(tokens: str | os.PathLike, *, whole: bool = False) -> Iterator[tuple[int, bytes]]:
    """Bytes of a ``.bin`` and where they begin: 16 pieces of 64 KiB, evenly from its first byte to its last, or all of
    it.
    """
    with _opened(tokens) as file:
        size = os.fstat(file.fileno()).st_size
        last = max(size - _PIECE_BYTES, 0)
        starts = (
            range(0, size, _WHOLE_BYTES) if whole else [last * number // (_PIECES - 1) for number in range(_PIECES)]
        )
        for start in starts:
            yield start, os.pread(file.fileno(), _WHOLE_BYTES if whole else _PIECE_BYTES, start)


def check_ids(prefix: str | os.PathLike, vocab_size: int, *, whole: bool = False) -> None:
    """Refuse a ``PREFIX.bin`` with ids outside a vocabulary.

    A file of at most 1 GiB is read whole, once a process: 10 GiB per second from memory. Of a larger one a sample is
    read, or all of it where ``whole``.

    Raises:
        DamagedIndex: a file is missing or damaged, or an id is outside. The sentence names the file and the first such
            id.
    """
    check_index(prefix)
    tokens = Path(f"{prefix}.bin")
    try:
        with _opened(f"{prefix}.idx") as file:
            kind = TOKEN_TYPES[file.read(HEADER_BYTES)[len(HEADER) + 8]]
        found = tokens.stat()
        whole = whole or found.st_size <= _READ_WHOLE_BYTES
        outside = _first_outside(tokens, kind, vocab_size, whole, (found.st_ino, found.st_size, found.st_mtime_ns))
    except OSError as error:
        raise DamagedIndex(f"{error.filename or tokens} cannot be read ({error.strerror}); {REMEDY}") from None
    if outside is not None:
        raise DamagedIndex(
            f"{tokens} is damaged (token {outside[0]} is {outside[1]}, and its tokenizer's ids are below "
            f"{vocab_size}); {REMEDY}"
        )


@functools.lru_cache(maxsize=256)
def _first_outside(
    tokens: Path, kind: str, vocab_size: int, whole: bool, state: tuple[int, int, int]
) -> tuple[int, int] | None:
    """The place and value of the first id outside a vocabulary; ``state`` is what tells two files of one path apart."""
    size = np.dtype(kind).itemsize
    for start, piece in pieces(tokens, whole=whole):
        shift = -start % size
        ids = np.frombuffer(piece[shift : len(piece) - (len(piece) - shift) % size], kind)
        if ids.size and (ids.max() >= vocab_size or ids.min() < 0):
            worst = int(np.argmax((ids < 0) | (ids >= vocab_size)))
            return (start + shift) // size + worst, ids[worst].item()
    return None
