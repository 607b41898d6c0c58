"""Holding a folder, so that two processes do not fill it at once, on whatever file system it lies.

A holder takes a lock of the system (``flock``) on a lock file, and writes an owner file beside it,
``LOCK.16-hex-digits``: the machine, the process, and since when; a thread refreshes its time every 5 seconds. The lock
alone would do on a local disk. File systems of clusters may have none (Lustre without ``-o flock``) or one for each
node (Lustre's ``localflock``, NFS's ``local_lock``): there the owner files keep others out. ``storage.owners`` tells
who of them is alive.
"""

import errno
import fcntl
import functools
import logging
import os
import random
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from megatron_music.storage.owners import REFRESH_SECONDS, Owner
from megatron_music.storage.writing import naming, sweep_temporary, token

_logger = logging.getLogger("megatron_music")
LOCK = ".lock"  # in a folder that is held as a whole
_POLL_SECONDS = 0.5
_TOKEN = re.compile(r"[0-9a-f]{16}")
_HAS_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class Busy(ValueError):
    """Another process is at work in the folder."""


@contextmanager
def hold(
    lock: str | os.PathLike,
    busy: str,
    *,
    shared: bool = False,
    waits: bool = False,
    again: bool = False,
    missing: str = "",
) -> Iterator[None]:
    """Hold a lock file: alone, or shared with others who ask for it shared.

    It is let go when the process dies, however it dies. Held alone, the file is made where it is missing, and goes at
    the end.

    Args:
        lock: the file, in a folder that is made where ``missing`` is empty.
        busy: what ``Busy`` says; ``{owner}`` stands for the process that holds it, in brackets, or for nothing.
        waits: wait until the others let go.
        again: do nothing where this thread holds it already.
        missing: what is said where the folder does not exist.

    Raises:
        Busy: another holds it.
        ValueError: there is no such folder, and none is to be made.
        OSError: the folder cannot be written to.
    """
    lock = Path(os.path.realpath(Path(lock).parent), Path(lock).name)
    holding = _holding.get()
    owner = holding.get(str(lock))
    if again and owner is not None and (shared or not owner.shared):
        yield
        return
    descriptor, owner = _acquire(lock, busy, shared, waits, missing)
    reset = _holding.set(holding | {str(lock): owner})
    try:
        yield
    finally:
        _holding.reset(reset)
        owner.let_go()
        if not shared:
            with suppress(OSError):
                lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def hold_folder(folder: str | os.PathLike, what: str, names: Iterable[str] = ()) -> Iterator[None]:
    """Hold a folder that a command fills with files. It is made where it is missing, and goes at the end if nothing
    came of it.

    Args:
        what: the command.
        names: of the files; what killed processes left of them under temporary names is removed.

    Raises:
        Busy: another fills it.
        ValueError: it is a file.
        OSError: it cannot be written to.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder")
    is_new = not folder.exists()
    try:
        with hold(
            folder / LOCK, f"another `{what}` writes to {folder}{{owner}}; wait for it to end, or name another folder"
        ):
            sweep_temporary(folder, names)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # something is in it
                folder.rmdir()


def token_of(lock: Path) -> str:
    """By what this thread's hold of a lock file is known, in the name of its owner file; a new one where it
    holds none.
    """
    owner = _holding.get().get(os.path.join(os.path.realpath(lock.parent), lock.name))
    return owner.token if owner else token()


def is_owned(lock: Path, name: str) -> bool:
    """Whether the holder of a lock file that is known by a token is, or may be, alive."""
    if not _TOKEN.fullmatch(name):
        return False
    found = Owner.read(lock, name)
    return found is not None and found.is_alive() is not False


def is_of_lock(lock: str, name: str) -> bool:
    """Whether a file's name is that of a lock file or of an owner file of it."""
    return name == lock or (name.startswith(f"{lock}.") and bool(_TOKEN.fullmatch(name[len(lock) + 1 :])))


def _acquire(lock: Path, busy: str, shared: bool, waits: bool, missing: str) -> tuple[int, Owner]:
    """The descriptor of the locked file, and the owner file.

    Two that come at once, without a lock of the system, may both give way.
    """
    while True:
        if not missing:
            lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except (FileNotFoundError, NotADirectoryError):
            if not missing:  # who held it has just removed the folder
                continue
            raise ValueError(missing) from None
        keeps = False
        try:
            if _lock(descriptor, lock, shared):
                if not _is_at(descriptor, lock):  # who held it has just removed the file: lock the new one
                    continue
                try:
                    owner = Owner.new(lock, shared)
                except OSError:
                    if not shared:
                        lock.unlink(missing_ok=True)
                    raise
                try:
                    other = _other_owner(owner)
                    keeps = other is None
                finally:
                    if not keeps:
                        owner.let_go()
                if keeps:
                    return descriptor, owner
            else:
                other = next(iter(_owners(lock)), None)
        finally:
            if not keeps:
                os.close(descriptor)
        if not waits:
            raise Busy(busy.replace("{owner}", f" ({other})" if other and other.facts else ""))
        time.sleep(random.uniform(0.1, _POLL_SECONDS))


def _lock(descriptor: int, lock: Path, shared: bool) -> bool:
    """Take the lock of the system; False: another has it. True also where there are none."""
    try:
        with naming(lock):
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _HAS_NO_LOCKS:
            raise
        _tell_without_locks(error.strerror, str(lock.parent))
        return True


@functools.cache
def _tell_without_locks(reason: str, folder: str) -> None:
    _logger.info(
        f"the file system of {folder} has no locks (flock: {reason}); files that say who is at work there, refreshed "
        f"every "
        f"{REFRESH_SECONDS:g} s, keep others out (Lustre has locks with the mount option flock)"
    )


def _owners(lock: Path) -> list[Owner]:
    names = (path.name for path in lock.parent.glob(f"{lock.name}.*") if is_of_lock(lock.name, path.name))
    found = (Owner.read(lock, name[len(lock.name) + 1 :]) for name in names)
    return [owner for owner in found if owner is not None]


def _other_owner(own: Owner) -> Owner | None:
    """A living owner that must not be there beside this one; what the dead left is removed."""
    for other in _owners(own.lock):
        if other.token == own.token or (own.shared and other.shared):
            continue
        if not other.is_dead(own.seconds):
            return other
        with suppress(OSError):
            other.path.unlink(missing_ok=True)
    return None


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still has this name: it may have been removed, and another have taken the name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


# What this thread holds, by lock file. A build that holds its folder calls functions that hold it again.
_holding: ContextVar[dict[str, Owner]] = ContextVar("holding", default={})  # noqa: B039 (never changed in place)
