"""Files that are there whole or not at all: the one writer of whole files, and of what waits for the disk.

A file is written under a temporary name beside its own, ``.NAME.16-hex-digits.tmp``, which nobody can foresee and which
is made anew (``O_EXCL``, ``O_NOFOLLOW``), waits for the disk, and takes its name by one rename. A link that lies under
either name is never written through. What a killed process left under such a name is removed by whoever holds the
folder next.
"""

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_LETTERS = 50  # of the name in a temporary name: four bytes each at most, and 255 bytes is what a name may have
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
# What file systems that have no such call answer to fsync.
HAS_NO_FSYNC = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


def token() -> str:
    """16 hexadecimal digits that nobody can foresee."""
    return secrets.token_hex(8)


def write_whole(path: str | os.PathLike, content: bytes, *, syncs_folder: bool = False) -> None:
    """Write a file that is there whole or not at all; see ``appearing``."""
    with appearing(path, syncs_folder=syncs_folder) as file:
        file.write(content)


@contextmanager
def appearing(path: str | os.PathLike, *, syncs_folder: bool = False) -> Iterator[BinaryIO]:
    """A file to write that takes its name when it is whole and on the disk; nothing is left where that fails.

    Args:
        path: the name; a file that has it is replaced, a link is replaced and not followed.
        syncs_folder: wait until the name is on the disk, too.

    Raises:
        OSError: it cannot be written; with a file name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name[:_LETTERS]}.{token()}.tmp")
    with naming(path):
        file = create(temporary)
        try:
            with file:
                yield file
                file.flush()
                sync_file(file.fileno())
            os.replace(temporary, path)
            if syncs_folder:
                sync(path.parent)
        finally:
            with suppress(OSError):  # a full disk was named already, and close tries to write what is left
                file.close()
            temporary.unlink(missing_ok=True)


@contextmanager
def written_apart(path: str | os.PathLike) -> Iterator[Path]:
    """A path in a new folder beside ``path``, for libraries that open files by name; what they write there takes its
    name at the end.

    What a killed process left of the same file is removed: only while nobody else writes it.
    """
    path = Path(path)
    with _unfinished(path) as folder:
        yield folder / path.name
        with naming(path):
            sync(folder / path.name)
            os.replace(folder / path.name, path)


def create(path: str | os.PathLike) -> BinaryIO:
    """A new file, open for writing; its mode is as the umask has it.

    Raises:
        FileExistsError: something has the name, be it a link to nothing.
    """
    descriptor = os.open(
        path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o666
    )
    return open(descriptor, "wb")


def no_links(path: str, flags: int) -> int:
    """An opener for ``open`` that refuses a link, a pipe or a device under the file's own name: for logs, which grow in
    place.

    Raises:
        OSError: it is a link, or cannot be opened.
        ValueError: it is no regular file.
    """
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    except OSError as error:
        if error.errno != errno.ENXIO:  # a pipe that nobody reads, or a socket
            raise
        raise ValueError(f"{path} is not a regular file; move it away") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file; move it away")
    return descriptor


@contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """Errors of the system name a file, if they name none."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def sync_file(descriptor: int) -> None:
    """Wait until an open file is on the disk; on a file system that has no such call, go on.

    Raises:
        OSError: the disk is full or broken.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in HAS_NO_FSYNC:
            raise


def sync(path: str | os.PathLike) -> None:
    """Wait until a file is on the disk, or the names in a folder are."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync_file(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until everything below a folder is on the disk, and the folder itself; links are passed over.

    Asked for together, small files take little more than one.
    """
    paths = [path for path in (*folder.rglob("*"), folder) if not path.is_symlink()]
    with ThreadPoolExecutor() as threads:
        list(threads.map(sync, paths))


def is_temporary(name: str) -> bool:
    """Whether a file's name is one that ``appearing`` gives."""
    return bool(_TEMPORARY.fullmatch(name))


def sweep_temporary(folder: Path, names: Iterable[str] | None = None) -> None:
    """Remove what killed processes left under temporary names. Only while nobody else writes these files.

    Args:
        names: of the files; left out: all in the folder, which nobody else writes to.
    """
    ours = None if names is None else {name[:_LETTERS] for name in names}
    for path in folder.iterdir():
        found = _TEMPORARY.fullmatch(path.name)
        if found and (ours is None or found[1] in ours) and (path.is_symlink() or path.is_file()):
            path.unlink(missing_ok=True)


@contextmanager
def appearing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill that takes its name when all in it is on the disk; nothing is left where that fails.

    What a killed process left of the same folder is removed: only while nobody else makes it.

    Raises:
        OSError: the disk is full or not writable, or a folder with something in it has the name.
    """
    path = Path(path)
    with _unfinished(path) as folder:
        yield folder
        sync_tree(folder)
        os.rename(folder, path)
        sync(path.parent)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, which goes at the end; those of killed processes go before."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.unfinished")
    for old in path.parent.iterdir():
        if left.fullmatch(old.name):
            remove_tree(old)
    folder = path.with_name(f".{path.name}.{token()}.unfinished")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_tree(path: Path) -> None:
    """Remove a folder of ours with all in it; a link that has its name goes alone."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)
