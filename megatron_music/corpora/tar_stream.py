"""The bytes of a tar, packed or not, read forward, with bounds that no archive can lift.

tarfile reads the headers of a member, among them long names and pax records, into memory whole, however large the
archive says they are, and follows them wherever they lead. Here their size is bounded, and they lead forward.
"""

import bz2
import gzip
import io
import lzma
import tarfile
import time
from collections.abc import Callable

from megatron_music.storage.reading import open_regular

HEADER_BYTES = 1 << 20  # of one member: its header and all that stands before its data
XZ_MEMORY_BYTES = 256 << 20  # `xz -9` needs 65 MiB; its format allows 4 GiB
_PIECE_BYTES = 1 << 20
_BEAT_SECONDS = 0.1


class TarStream:
    """What ``tarfile.TarFile`` reads from.

    Args:
        path: a tar, as it is or packed by gzip, bzip2 or xz.
        beat: called while bytes are passed over, which can take minutes.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not a regular file.
    """

    def __init__(self, path: str, beat: Callable[[], None] = lambda: None):
        self._file = open_regular(path)
        magic = self._file.peek(6)[:6]
        if magic.startswith(b"\x1f\x8b"):
            self._content = gzip.GzipFile(fileobj=self._file)
        elif magic.startswith(b"BZh"):
            self._content = bz2.BZ2File(self._file)
        elif magic == b"\xfd7zXZ\0" or magic.startswith(b"]\0\0"):
            self._content = io.BufferedReader(_Unxz(self._file), _PIECE_BYTES)
        else:
            self._content = self._file
        self._beat = beat
        self._at = 0
        self._header_bytes: int | None = (
            HEADER_BYTES  # that may still be read; None: of the data of a member, as many as are asked for
        )

    @property
    def is_plain(self) -> bool:
        """Whether offsets here are offsets in the file."""
        return self._content is self._file

    def close(self) -> None:
        self._content.close()
        self._file.close()

    def tell(self) -> int:
        return self._at

    def read(self, size: int) -> bytes:
        """
        Raises:
            tarfile.ReadError: the headers of one member have more than 1 MiB.
        """
        if self._header_bytes is not None:
            self._header_bytes -= size
            if self._header_bytes < 0:
                raise tarfile.ReadError(f"the headers of a member have more than {HEADER_BYTES:,} bytes")
        content = self._content.read(size)
        self._at += len(content)
        return content

    def seek(self, position: int) -> None:
        """Go forward; where the archive ends before, to its end.

        Raises:
            tarfile.ReadError: the place is behind.
        """
        if position < self._at:
            raise tarfile.ReadError("a header leads back to what was read already")
        if self.is_plain:
            self._at = self._file.seek(position)
            return
        told = time.monotonic()
        while self._at < position:
            piece = len(self._content.read(min(position - self._at, _PIECE_BYTES)))
            if not piece:
                return
            self._at += piece
            if time.monotonic() - told > _BEAT_SECONDS:
                self._beat()
                told = time.monotonic()

    def next_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        """The next member of a tar that reads from here; None at its end.

        Raises:
            tarfile.ReadError: its headers are larger than any honest ones.
        """
        self._header_bytes = HEADER_BYTES
        member = tar.next()
        self._header_bytes = None
        if sum(len(key) + len(str(value)) for key, value in tar.pax_headers.items()) > HEADER_BYTES:
            raise tarfile.ReadError(f"its global headers have more than {HEADER_BYTES:,} characters")
        tar.members.clear()  # else it grows with the archive
        return member


class _Unxz(io.RawIOBase):
    """What an xz file holds, as ``lzma.LZMAFile`` reads it, with a bound on the memory that the file asks for."""

    def __init__(self, file: io.BufferedIOBase):
        self._file, self._rest = file, b""
        self._unpack = self._begin()

    @staticmethod
    def _begin() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while True:
            if self._unpack.eof:
                rest = self._unpack.unused_data
                while not (rest := rest.lstrip(b"\0")):  # padding between streams and behind the last
                    rest = self._file.read(_PIECE_BYTES)
                    if not rest:
                        return 0
                self._rest, self._unpack = rest, self._begin()
            elif self._unpack.needs_input:
                self._rest = self._file.read(_PIECE_BYTES)
                if not self._rest:
                    raise EOFError("it ends before the end of its stream")
            content = self._unpack.decompress(self._rest, len(buffer))
            self._rest = b""
            if content:
                buffer[: len(content)] = content
                return len(content)
