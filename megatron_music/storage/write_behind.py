"""What is written to a file goes to its disk while more is written, so that at the end there is little to wait for."""

import os
from threading import Thread
from typing import BinaryIO

from megatron_music.storage.writing import HAS_NO_FSYNC, sync_file

BYTES_AT_A_TIME = 4 << 20


class WriteOut:
    """The way of one file's bytes to the disk.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO):
        self._file = file
        self._waiting = 0
        self._thread: Thread | None = None
        self._failure: OSError | None = None

    def wrote(self, count: int) -> None:
        """Say that so many bytes more were written."""
        self._waiting += count
        if self._waiting > BYTES_AT_A_TIME and not (self._thread and self._thread.is_alive()):
            self._waiting = 0
            self._thread = Thread(target=self._take, daemon=True)
            self._thread.start()

    def _take(self) -> None:
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            self._failure = None if error.errno in HAS_NO_FSYNC else error

    def finish(self) -> None:
        """Wait until all is on the disk.

        Raises:
            OSError: the disk is full or broken; the system tells of a failed write once, maybe not to the last to ask.
        """
        self._file.flush()
        self.stop()
        if self._failure:
            raise self._failure
        sync_file(self._file.fileno())

    def stop(self) -> None:
        """Wait for what is under way: the file can be closed then."""
        if self._thread:
            self._thread.join()
