"""One split of a dataset in the making: ``.bin`` and ``.idx``, ``.txt``, and the figures that are known on the way."""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_music.data.index_file import IndexWriter
from megatron_music.storage.write_behind import WriteOut

BUFFER_BYTES = 1 << 18  # for runs of a few documents; what is longer passes it by


class SplitWriter:
    """Writes documents in their order; nothing that grows with their number is kept.

    Args:
        folder: gets ``train.bin`` and so on.
        split: its name.
        documents: how many there will be.
        formats: any of ``megatron`` and ``text``.
    """

    def __init__(self, folder: Path, split: str, documents: int, formats: tuple[str, ...]):
        self._bin = open(folder / f"{split}.bin", "xb", BUFFER_BYTES) if "megatron" in formats else None  # noqa: SIM115
        self._index = IndexWriter(folder / f"{split}.idx", documents) if "megatron" in formats else None
        self._text = open(folder / f"{split}.txt", "xb") if "text" in formats else None  # noqa: SIM115
        self._ways = {file: WriteOut(file) for file in (self._bin, self._text) if file}
        self._hashers = {file: hashlib.sha256() for file in self._ways}
        self.tokens = 0
        self.bin_bytes = 0
        self.text_bytes = 0
        self.documents_of_length = np.zeros(1, np.int64)  # how many documents have 0, 1, 2, ... tokens

    @property
    def wants_text(self) -> bool:
        return self._text is not None

    def add(self, ids: np.ndarray) -> None:
        """Add documents: ids one after another (uint16)."""
        self.tokens += len(ids)
        if self._bin is not None:
            self.bin_bytes += self._bin.write(ids.data)
            self._wrote(self._bin, ids.data)

    def add_lengths(self, lengths: np.ndarray) -> None:
        """Say the tokens in each document (int32): of many at a time, before ``finish``."""
        counts = np.bincount(lengths, minlength=len(self.documents_of_length))
        counts[: len(self.documents_of_length)] += self.documents_of_length
        self.documents_of_length = counts
        if self._index is not None:
            self._index.add(lengths)

    def add_text(self, text: bytes) -> None:
        """Add whole lines."""
        self.text_bytes += len(text)
        self._text.write(text)
        self._wrote(self._text, text)

    def _wrote(self, file: BinaryIO, content: bytes | memoryview) -> None:
        self._hashers[file].update(content)
        self._ways[file].wrote(memoryview(content).nbytes)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of what was written, by the name of the file; an ``.idx``, not written from front to back,
        has none.
        """
        return {Path(file.name).name: hasher.hexdigest() for file, hasher in self._hashers.items()}

    def finish(self) -> None:
        """Wait until all is on the disk."""
        if self._index is not None:
            self._index.finish()
        for file, way in self._ways.items():
            way.finish()
            file.close()

    def close(self) -> None:
        """Let go of the files of a merge that failed."""
        for way in self._ways.values():
            way.stop()
        for file in filter(None, (self._bin, self._index, self._text)):
            with suppress(OSError):  # what could not be written cannot be written now either
                file.close()
