"""Which checkpoint a path means: the one it names, or the newest whole one of the run it names.

A damaged checkpoint that was named itself is refused. Where a run was named, the one before it takes its place, and
that is said aloud.
"""

import os
from pathlib import Path

from megatron_music.checkpoints.folder import (
    LATEST,
    checkpoints_of,
    iteration_of,
    read_latest,
)
from megatron_music.checkpoints.manifest import (
    MANIFEST,
    digest_all,
    read_manifest,
    what_is_wrong,
    what_was_altered,
)
from megatron_music.config.errors import ConfigError
from megatron_music.parallel import distributed


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The checkpoint folder that ``path`` means, read once in full and found whole.

    Where the processes are joined, every one must call this: they share the reading.

    Args:
        path: one checkpoint, or a run's folder for its newest whole one.

    Raises:
        ConfigError: there is none, or none that is whole.
    """
    path = Path(path)
    if distributed.on_main(lambda: _is_checkpoint(path)):
        reason = damage(path)
        if reason is not None:
            raise ConfigError(
                f"{path} is damaged ({reason}); name another iter_ folder, or the run's folder for its newest whole one"
            )
        return path
    found = newest_whole(path)
    if found is None:
        raise ConfigError(f"{path} holds no checkpoint; name a run's folder or one of its iter_ folders")
    return found


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint that ``latest`` names, or the newest whole one before it; None where a run has none yet.

    Raises:
        ConfigError: there are checkpoints, and none is whole.
    """
    complaint, candidates = distributed.on_main(lambda: _candidates(folder))
    damaged = []
    for checkpoint in candidates:
        reason = damage(checkpoint)
        if reason is None:
            if damaged:
                distributed.warn(f"{'; '.join(damaged)}; using {checkpoint}, the newest whole checkpoint before that")
            elif complaint:
                distributed.warn(
                    f"{folder / LATEST} {complaint}; using {checkpoint}, the newest whole checkpoint there"
                )
            return checkpoint
        damaged.append(f"{checkpoint} is damaged ({reason})")
    if not candidates and complaint == "is missing":
        return None
    told = "; ".join(damaged) or f"{folder / LATEST} {complaint}"
    raise ConfigError(
        f"no checkpoint of {folder} is whole: {told}; name another run, or remove its iter_ folders and {LATEST} to "
        f"begin "
        "anew"
    )


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint is not whole, as half a sentence; None where every file is as it was saved."""
    reason = distributed.on_main(lambda: what_is_wrong(checkpoint))
    if reason is not None:
        return reason
    files = distributed.on_main(lambda: read_manifest(checkpoint))
    return what_was_altered(checkpoint, files, lambda paths: distributed.share_work(paths, digest_all))


def _is_checkpoint(path: Path) -> bool:
    return path.is_dir() and (iteration_of(path) is not None or (path / MANIFEST).is_file())


def _candidates(folder: Path) -> tuple[str, list[Path]]:
    """What is wrong with ``latest``, and the checkpoints to try one after another."""
    if not folder.is_dir():
        return "is missing", []
    named, complaint = read_latest(folder)
    known = checkpoints_of(folder)
    if named is None:
        return complaint, known
    return "", [named, *(path for path in known if iteration_of(path) < iteration_of(named))]
