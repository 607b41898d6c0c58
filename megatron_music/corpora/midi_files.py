"""Which MIDI files a build reads: in folders, in archives, in lists.

Archives inside folders are not opened: name them.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from megatron_music.corpora.archives import (
    MIDI_SUFFIXES,
    TAR_SUFFIXES,
    ZIP_SUFFIX,
    Archive,
    Entry,
    EntryError,
    is_midi,
    tar_entries,
    zip_entries,
)
from megatron_music.storage.reading import (
    MIDI_BYTES,
    NOT_OF_THE_FILE,
    TABLE_BYTES,
    read_bytes,
)

LIST_SUFFIX = ".txt"
MAX_FILE_BYTES = MIDI_BYTES

_PASSING = (errno.ENOENT, errno.ENOTDIR, *NOT_OF_THE_FILE)  # a file that was planned is not missing: its disk is


class ChangedSource(ValueError):
    """A file is not the one that was planned: the sentence names it, and says what to do."""


class SourceFile(NamedTuple):
    """A MIDI file or an archive, by its absolute path, and the number of the source that named it first."""

    path: str
    source: int


def find_midi_files(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """As ``find_files``, without the archives: for code that reads files by path."""
    return [
        Path(file.path) for file in find_files(sources) if not file.path.lower().endswith((*TAR_SUFFIXES, ZIP_SUFFIX))
    ]


def find_files(sources: Sequence[str | os.PathLike]) -> list[SourceFile]:
    """MIDI files and archives named in ``sources``, and the MIDI files in their folders; each once, in the order of
    paths.

    A source is a folder (searched at any depth; links are followed, each folder once), an archive, a list (``.txt``:
    one path a line, relative to the list's folder; empty lines and lines beginning with ``#`` are skipped) or a MIDI
    file.

    Raises:
        ValueError: a source is missing, a list names a list, or there is nothing to read.
        OSError: a folder cannot be searched.
    """
    found: list[SourceFile] = []
    loose: dict[str, SourceFile] = {}  # named files and links, by real path
    folders: set[str] = set()  # real paths of those searched
    for number, source in enumerate(sources):
        for path in _listed(_absolute(source)):
            if os.path.isdir(path):
                for below, is_link in _walk(path, folders):
                    if is_link:
                        loose.setdefault(os.path.realpath(below), SourceFile(below, number))
                    else:
                        found.append(SourceFile(below, number))
            elif os.path.isfile(path):
                loose.setdefault(os.path.realpath(path), SourceFile(path, number))
            elif os.path.lexists(path):
                kind = (
                    "a link that leads nowhere"
                    if os.path.islink(path) and not os.path.exists(path)
                    else "neither a file nor a folder"
                )
                raise ValueError(f"{path} is {kind}; name a folder of MIDI files, an archive, a list or a MIDI file")
            else:
                raise ValueError(
                    f"{path} does not exist; name a folder of MIDI files, an archive, a list or a MIDI file"
                )
    for real, file in loose.items():
        if not (os.path.dirname(real) in folders and is_midi(real)):  # else it was found in its folder
            found.append(file)
    if not found:
        raise no_midi_files(sources)
    return sorted(found)


def no_midi_files(sources: Sequence[str | os.PathLike]) -> ValueError:
    """The error for sources with nothing to read."""
    named, suffixes = ", ".join(map(str, sources)), ", ".join(MIDI_SUFFIXES)
    return ValueError(
        f"no MIDI files in {named}; files ending in {suffixes} are read: export scores (MusicXML, ABC, MuseScore) as "
        f"MIDI first"
    )


def find_entries(files: Iterable[SourceFile]) -> Iterator[Entry]:
    """The input files in canonical order: by the path of file or archive, in an archive as they lie there.

    Raises:
        ValueError: an archive cannot be opened at all. One that is damaged further on ends with an entry that says so.
    """
    for path, source in files:
        status = os.stat(path)
        if path.lower().endswith(ZIP_SUFFIX):
            entries = zip_entries(path, source)
        elif path.lower().endswith(TAR_SUFFIXES):
            entries = tar_entries(path, source)
        else:
            yield Entry(path, source, size=status.st_size, mtime_ns=status.st_mtime_ns)
            continue
        for entry in entries:
            yield replace(entry, mtime_ns=status.st_mtime_ns)


class Reader:
    """Reads the contents of entries; fastest in rising order, when a compressed tar is read once, forward.

    Args:
        beat: called while members of an archive are passed over, which can take minutes.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None):
        self._beat = beat
        self._archive: Archive | None = None
        self._mtime_ns = 0  # of the archive

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the open archive."""
        if self._archive is not None:
            self._archive.close()
        self._archive = None

    def read(self, entry: Entry) -> bytes:
        """The content of an entry.

        Raises:
            EntryError: it cannot be read, for a reason of its own.
            ChangedSource: it is not the file that was planned.
            OSError: it is no longer there, or the system has no room for open files: the shard must be done again
                later.
        """
        if entry.damage:
            raise EntryError(entry.damage)
        _check_size(max(entry.size, entry.packed))
        try:
            if not entry.member:
                return _read_file(entry)
            if self._archive is None or self._archive.path != entry.path:
                self.close()
                self._archive = Archive(entry.path, self._beat)
                self._mtime_ns = os.stat(entry.path).st_mtime_ns
            if entry.mtime_ns not in (0, self._mtime_ns):
                raise ChangedSource(f"{entry.path} was changed since it was planned")
            return self._archive.read(entry)
        except OSError as error:
            if error.errno in _PASSING:
                raise
            raise EntryError(f"cannot be read: {error.strerror or error}") from None


def _read_file(entry: Entry) -> bytes:
    """The content, by the system's own calls: a file object costs more than a small file."""
    descriptor = os.open(
        entry.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    )  # a pipe of this name is not waited for
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise EntryError("is not a regular file")
        size = found.st_size
        if entry.mtime_ns and (size, found.st_mtime_ns) != (entry.size, entry.mtime_ns):
            raise ChangedSource(f"{entry.path} was changed since it was planned")
        _check_size(size)
        content = os.read(descriptor, size + 1)
        if len(content) == size:
            return content
        parts = [content]  # it grew or shrank meanwhile, or the system gave a part of it
        while parts[-1]:
            parts.append(os.read(descriptor, 1 << 20))
            _check_size(sum(map(len, parts)))
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise EntryError(f"has {size:,} bytes, more than the {MAX_FILE_BYTES:,} that are read")


def _absolute(path: str | os.PathLike) -> str:
    path = os.fsdecode(path)
    # abspath takes ".." for the folder above by name, which behind a link is another.
    return os.path.realpath(path) if ".." in path.split(os.sep) else os.path.abspath(path)


def _listed(path: str) -> Iterator[str]:
    """What a list names, or the path itself."""
    if not path.lower().endswith(LIST_SUFFIX) or not os.path.isfile(path):
        yield path
        return
    try:
        content = read_bytes(path, TABLE_BYTES)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read ({error}); name a list of files") from None
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        named = os.fsdecode(line.rstrip(b"\r"))
        if named.strip() and not named.lstrip().startswith("#"):
            below = _absolute(os.path.join(os.path.dirname(path), named))
            if below.lower().endswith(LIST_SUFFIX):
                raise ValueError(f"{path}, line {number} names the list {named}; put its lines here instead")
            if not os.path.exists(below):
                raise ValueError(f"{path}, line {number} names {named}, which does not exist; mend or remove the line")
            yield below


def _walk(top: str, folders: set[str]) -> Iterator[tuple[str, bool]]:
    """MIDI files below a folder, and whether each is a link; ``folders`` grows by those searched."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in folders:
            continue
        folders.add(real)
        with os.scandir(folder) as items:
            below = sorted(items, key=lambda item: item.name, reverse=True)
        for item in below:
            try:
                if item.is_dir():
                    waiting.append(item.path)
                elif is_midi(item.name) and item.is_file():
                    yield item.path, item.is_symlink()
            except OSError:  # a link in a circle
                continue
