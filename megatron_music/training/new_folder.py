"""What conversions share: a folder that appears whole or not at all, and one process."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_music.config import refuse_unless
from megatron_music.training import distributed


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
        ConfigError: ``target`` is a file, or holds something.
    """
    target = Path(os.path.abspath(target))
    refuse_unless(not target.exists() or target.is_dir(), f"{target} is a file; name a new folder")
    refuse_unless(not target.is_dir() or not any(target.iterdir()), f"{target} is not empty; name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
    unfinished.mkdir()
    try:
        yield unfinished
        for path in (*unfinished.rglob("*"), unfinished):
            if path.is_file():  # safetensors makes files that their owner alone can read
                path.chmod(unfinished.stat().st_mode & 0o666)
            _sync(path)
        unfinished.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
