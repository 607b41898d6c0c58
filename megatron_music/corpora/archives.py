"""Input files as entries of a plan, and archives full of them, which are read where they lie and never unpacked."""

import lzma
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields

from megatron_music.corpora.tar_stream import TarStream
from megatron_music.storage.reading import open_regular

MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
ZIP_SUFFIX = ".zip"

MAX_MEMBERS = 10_000_000  # of one archive

# The last four: what tarfile makes of numbers that are none, and of a chain of headers that has no end.
_TAR_FAULTS = (
    tarfile.TarError,
    EOFError,
    OSError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
    LookupError,
    RecursionError,
)
_HEADER_BYTES = 512  # of a member of a tar; its data follow
_ZIP_HEADER_BYTES = 30  # before a zip member's name, extra field and data
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


class EntryError(ValueError):
    """An input file cannot be read; the text is the reason for its quarantine."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input file, and where it lies.

    Args:
        path: of the file or the archive, absolute. Bytes that are no UTF-8 are kept as ``os.fsdecode`` gives them.
        source: number of the source that named it first.
        member: name in the archive; empty for a file of its own.
        size: bytes of the file.
        number: place among all members of a tar, from 0.
        offset: where an uncompressed tar holds the data, and a zip the member's header.
        method: how a zip packed it; -1 if it is in no zip.
        packed: bytes it takes in the zip.
        crc: CRC-32 of the file, from the zip.
        damage: why it cannot be read, if that is known already.
        group: what ``--split-by`` finds for it; empty for nothing.
        mtime_ns: when the file or the archive was changed last, by which it is known again; 0 is not compared.
    """

    path: str
    source: int = 0
    member: str = ""
    size: int = 0
    number: int = -1
    offset: int = -1
    method: int = -1
    packed: int = 0
    crc: int = 0
    damage: str = ""
    group: str = ""
    mtime_ns: int = 0

    @property
    def name(self) -> str:
        """For reports: the path, and ``archive.zip!member`` in an archive."""
        return f"{self.path}!{self.member}" if self.member else self.path

    def as_json(self) -> dict:
        """A dict that ``json`` writes in ASCII, odd names too, and ``Entry(**...)`` reads."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {field.name for field in fields(self) if values[field.name] != field.default}
        return {name: value for name, value in values.items() if name in given or name == "source"}


class Archive:
    """An open archive; fastest when asked in rising order, as a compressed tar can only be read forward.

    Args:
        beat: called while members are passed over, which can take minutes.

    Raises:
        OSError: there is none.
        EntryError: it is not a regular file.
    """

    def __init__(self, path: str, beat: Callable[[], None]):
        self.path = path
        self._beat = beat
        try:
            self._file = open_regular(path)
        except ValueError as error:
            raise EntryError(f"cannot be read: {error}") from None
        self._stream: TarStream | None = None
        self._tar: tarfile.TarFile | None = None
        self._next = 0  # number of the compressed tar's member that comes next
        self._broken: EntryError | None = None  # what this tar gives from there on

    def close(self) -> None:
        """Let go of it."""
        self._rewind()
        self._file.close()

    def read(self, entry: Entry) -> bytes:
        """The content of a member.

        Raises:
            EntryError, OSError: it cannot be read.
        """
        if entry.method >= 0:
            return self._from_zip(entry)
        return self._from_plain_tar(entry) if entry.offset >= 0 else self._forward(entry)

    def _from_plain_tar(self, entry: Entry) -> bytes:
        block = os.pread(self._file.fileno(), _HEADER_BYTES + entry.size, entry.offset - _HEADER_BYTES)
        try:
            tarfile.TarInfo.frombuf(block[:_HEADER_BYTES], "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            raise EntryError("is not where the plan saw it: the archive was changed") from None
        if len(block) < _HEADER_BYTES + entry.size:
            raise EntryError("is cut short: the archive ends within it")
        return block[_HEADER_BYTES:]

    def _from_zip(self, entry: Entry) -> bytes:
        descriptor = self._file.fileno()
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, _ZIP_HEADER_BYTES, entry.offset) if 0 <= entry.offset < size else b""
        if header[:4] != b"PK\3\4" or len(header) < _ZIP_HEADER_BYTES:
            raise EntryError("is not where the plan saw it: the archive was changed")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:])
        start = entry.offset + len(header) + name_bytes + extra_bytes
        content = os.pread(descriptor, min(entry.packed, max(size - start, 0)), start)
        if entry.method == _DEFLATED:
            try:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.size + 1)
            except zlib.error as error:
                raise EntryError(f"is damaged in the archive ({error})") from None
        if len(content) != entry.size or zlib.crc32(content) != entry.crc:
            raise EntryError("is damaged in the archive (its checksum is another)")
        return content

    def _forward(self, entry: Entry) -> bytes:
        """The member of a compressed tar, passing over those before it."""
        if entry.number < self._next:
            self._rewind()
        if self._broken:
            raise self._broken
        try:
            if self._tar is None:
                self._stream = TarStream(self.path, self._beat)
                self._tar = _open_tar(self._stream)
            member = None
            while self._next <= entry.number:
                if self._next < entry.number:
                    self._beat()
                member = self._stream.next_member(self._tar)
                self._next += 1
                if member is None:
                    raise tarfile.ReadError("it ends early")
            if (member.name, member.size) != (entry.member, entry.size) or not member.isreg():
                raise EntryError("is not where the plan saw it: the archive was changed")
            with self._tar.extractfile(member) as file:
                content = file.read()
            if len(content) != entry.size:
                raise tarfile.ReadError("it ends early")
            return content
        except EntryError:
            raise
        except _TAR_FAULTS as error:  # nothing behind this place can be read either: do not try each time
            self._broken = EntryError(f"cannot be read: the archive is damaged ({_one_line(error)})")
            raise self._broken from None

    def _rewind(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._tar, self._next, self._broken = None, None, 0, None


def is_midi(name: str) -> bool:
    """Whether a file of this name is read."""
    return name.lower().endswith(MIDI_SUFFIXES)


def zip_entries(path: str, source: int) -> Iterator[Entry]:
    """The MIDI files in a zip, in the order of its table of contents.

    Raises:
        ValueError: it cannot be opened.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        EOFError,
        OSError,
        OverflowError,
        LookupError,
        struct.error,
    ) as error:
        raise _unopened(path, error) from None
    if len(members) > MAX_MEMBERS:
        raise ValueError(
            f"{path} has {len(members):,} members, where up to {MAX_MEMBERS:,} are read; split it into smaller archives"
        )
    taken = _sharing(members)
    for number, member in enumerate(members):
        kind = stat.S_IFMT(member.external_attr >> 16)
        if not is_midi(member.filename) or kind not in (0, stat.S_IFREG):
            continue
        damage = ""
        if member.flag_bits & 1:
            damage = "is encrypted in the archive"
        elif member.compress_type not in (_STORED, _DEFLATED):
            damage = f"is packed by the zip method {member.compress_type}; only deflated and stored members are read"
        elif number in taken:
            damage = "shares its bytes in the archive with another member"
        yield Entry(
            path,
            source,
            member.filename,
            member.file_size,
            offset=member.header_offset,
            method=member.compress_type,
            packed=member.compress_size,
            crc=member.CRC,
            damage=damage,
        )


def _sharing(members: Sequence[zipfile.ZipInfo]) -> set[int]:
    """Members, by number, that lie within one that begins before them: a small archive would unpack to any size."""
    taken, reached = set(), 0
    for number in sorted(range(len(members)), key=lambda number: (members[number].header_offset, number)):
        member = members[number]
        if member.header_offset < reached:
            taken.add(number)
        else:
            reached = member.header_offset + _ZIP_HEADER_BYTES + member.compress_size
    return taken


def tar_entries(path: str, source: int) -> Iterator[Entry]:
    """The MIDI files in a tar, compressed or not, as they lie there; if it is damaged further on, the last entry says
    so.

    Raises:
        ValueError: it cannot be opened.
    """
    stream = None
    try:
        stream = TarStream(path)
        tar = _open_tar(stream)
    except _TAR_FAULTS as error:
        if stream is not None:
            stream.close()
        raise _unopened(path, error) from None
    number = 0
    with closing(stream):
        while True:
            try:
                member = stream.next_member(tar)
                if number == MAX_MEMBERS and member is not None:
                    raise tarfile.ReadError(f"more than {MAX_MEMBERS:,} are not read")
            except _TAR_FAULTS as error:
                yield Entry(
                    path, source, number=number, damage=f"is damaged after {number} members ({_one_line(error)})"
                )
                return
            if member is None:
                return
            if member.isreg() and is_midi(member.name):
                offset = member.offset_data if stream.is_plain and member.sparse is None else -1
                yield Entry(path, source, member.name, member.size, number, offset)
            elif member.islnk() and is_midi(member.name):
                yield Entry(
                    path,
                    source,
                    member.name,
                    number=number,
                    damage=f"is a hard link to {member.linkname} of the archive",
                )
            number += 1


class _Member(tarfile.TarInfo):
    """A member whose damaged header is an error, where tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Member":
        try:
            return super().fromtarfile(tar)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None


def _open_tar(stream: TarStream) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=stream, tarinfo=_Member, encoding="utf-8", errors="surrogateescape")


def _unopened(path: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path} cannot be opened as an archive ({_one_line(error)}); download it again, or remove it from the sources"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
