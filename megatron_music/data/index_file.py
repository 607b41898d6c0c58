"""megatron-core's ``.idx``: written in bounded memory, and checked against its ``.bin``; reading documents is megatron-core's.

Layout of megatron-core 0.16.1 (``IndexedDataset``), little-endian; n sequences, each of them a document::

    b"MMIDIDX\\0\\0"  uint64 version = 1  uint8 dtype = 8 (uint16)  uint64 n  uint64 n + 1
    int32 [n]      tokens of each sequence
    int64 [n]      byte offset of each sequence in the .bin
    int64 [n + 1]  first sequence of each document, and n
"""

import os
import struct
from pathlib import Path

import numpy as np

HEADER = b"MMIDIDX\0\0"
VERSION = 1
UINT16 = 8
HEADER_BYTES = len(HEADER) + struct.calcsize("<QBQQ")
ITEM_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}  # of a token, by megatron-core's code of its dtype
REMEDY = "build the dataset again, or copy it again whole"


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
        os.fsync(self._file.fileno())
        self._file.close()

    def close(self) -> None:
        """Let go of the file of a merge that failed."""
        self._file.close()


class DamagedIndex(ValueError):
    """A ``.bin`` and its ``.idx`` do not belong together, or one of them was cut short."""


def check_index(prefix: str | os.PathLike) -> int:
    """Compare the sizes of ``PREFIX.idx`` and ``PREFIX.bin`` with what the index says; only its ends are read.

    Returns:
        The number of sequences.

    Raises:
        DamagedIndex: a file is missing or cut short, or they are not of one dataset. The sentence names the file.
    """
    index, tokens = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    try:
        with open(index, "rb") as file:
            head = file.read(HEADER_BYTES)
            if len(head) < HEADER_BYTES or not head.startswith(HEADER):
                raise DamagedIndex(f"{index} is damaged (it does not begin as an index of megatron-core does); {REMEDY}")
            _, dtype, sequences, documents = struct.unpack("<QBQQ", head[len(HEADER) :])
            wanted = HEADER_BYTES + 12 * sequences + 8 * documents
            if (size := os.fstat(file.fileno()).st_size) != wanted:
                raise DamagedIndex(f"{index} is damaged (it has {size:,} bytes where {wanted:,} are due); {REMEDY}")
            end = 0
            if sequences:
                (length,) = struct.unpack("<i", os.pread(file.fileno(), 4, HEADER_BYTES + 4 * (sequences - 1)))
                (offset,) = struct.unpack("<q", os.pread(file.fileno(), 8, HEADER_BYTES + 4 * sequences + 8 * (sequences - 1)))
                end = offset + length * ITEM_BYTES.get(dtype, 2)
        if (size := tokens.stat().st_size) != end:
            how = "shorter" if size < end else "longer"
            raise DamagedIndex(f"{index} is damaged ({tokens.name} is {how} than it says); {REMEDY}")
    except OSError as error:
        raise DamagedIndex(f"{error.filename or index} cannot be read ({error.strerror}); {REMEDY}") from None
    return sequences
