"""What conversions share: a folder that appears whole or not at all, and one process."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.parallel import distributed
from megatron_music.storage.holding import hold
from megatron_music.storage.writing import appearing_folder

_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust's libraries write it, safetensors among them


@contextlib.contextmanager
def one_process() -> Iterator[None]:
    """Groups that are started within end at the end."""
    processes = distributed.launched_size()
    refuse_unless(processes == 1, f"convert runs in one process, not in {processes}; start it without torchrun")
    try:
        yield
    finally:
        distributed.stop()


@contextlib.contextmanager
def new_folder(target: str | os.PathLike) -> Iterator[Path]:
    """A folder beside ``target``, which takes its place when all in it is written and on the disk.

    Raises:
        ConfigError: ``target`` is a file, or holds something, or another conversion writes it.
        OSError: the disk is full or not writable; whatever kind of error a library made of that.
    """
    target = Path(os.path.realpath(target))
    _check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another `convert` writes {target}{{owner}}; wait for it to end, or name another folder"
    with hold(target.with_name(f".{target.name}.lock"), busy):
        _check_free(target)  # another may have ended just now
        try:
            with appearing_folder(target) as unfinished:
                yield unfinished
                for path in unfinished.rglob("*"):
                    if path.is_file():  # safetensors makes files that their owner alone can read
                        path.chmod(unfinished.stat().st_mode & 0o666)
        except Exception as error:
            found = error_of_disk(error)
            if found is None or not _is_of(target, found.filename):
                raise
            if found.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise ConfigError(f"{target} was filled meanwhile; name a new folder") from None
            raise OSError(found.errno, found.strerror, str(target)) from None


def _is_of(target: Path, name: str | None) -> bool:
    """Whether the path that an error names is that of the new folder, or of what becomes it; one that it reads from is
    not.
    """
    return name is None or str(name).startswith((str(target), str(target.with_name(f".{target.name}."))))


def _check_free(target: Path) -> None:
    refuse_unless(not target.exists() or target.is_dir(), f"{target} is a file; name a new folder")
    refuse_unless(not target.is_dir() or not any(target.iterdir()), f"{target} is not empty; name a new folder")


def error_of_disk(error: BaseException | None) -> OSError | None:
    """The error of the system that another was made of; None where there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error
        found = _OS_ERROR.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        if found:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__
    return None
