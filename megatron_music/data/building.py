"""``OUT.building``: the working folder of a build, the lock on it, and which names in it are a build's own.

A folder that holds anything else is refused, and what goes is removed by name: the folder may have been there before
the build.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_music.config.log import logger
from megatron_music.storage.holding import hold, is_of_lock, is_owned
from megatron_music.storage.writing import is_temporary, remove_tree, token

BUILDING_SUFFIX = ".building"
PLAN_FILE, ENTRIES_FILE, LOCK_FILE, SHARDS_FOLDER = "plan.json", "entries.jsonl", "lock", "shards"
_OWN_FILES = {PLAN_FILE, ENTRIES_FILE}
_SHARD_FILE = re.compile(
    r"\d{5,}\.(bin|lengths|json)|\.\d{5,}\.(bin|lengths|json)\.[\w.-]+\.tmp"
)  # temporary ones, of earlier versions too
_TEMPORARY_SHARD = re.compile(r"\.\d{5,}\.(bin|lengths|json)\.([0-9a-f]{16})-[0-9a-f]{16}\.tmp")
_MERGE_FOLDER = re.compile(r"merge-[0-9a-f]{16}")


def building_folder(out: str | os.PathLike) -> Path:
    """Where a build of ``out`` works."""
    out = Path(os.path.realpath(out))
    return out.with_name(out.name + BUILDING_SUFFIX)


@contextmanager
def held(building: str | os.PathLike, shared: bool = False) -> Iterator[None]:
    """Hold the lock of ``OUT.building``: alone, or shared with others who ask for it shared.

    It is let go when the process dies, however it dies. A thread may hold again what it holds. Held alone, the folder
    is made where it is missing, and goes at the end if nothing but the lock is in it.

    Raises:
        ValueError: another holds it, or there is no such folder to share.
    """
    building = Path(os.path.realpath(building))
    busy = f"another build works in {building}{{owner}}; wait for it to end, or stop it"
    missing = f"{building} is missing; run `megatron-music build plan` first" if shared else ""
    try:
        with hold(building / LOCK_FILE, busy, shared=shared, again=True, missing=missing):
            yield
    finally:
        if not shared:
            with suppress(OSError):  # it holds something, or another build has come meanwhile
                building.rmdir()


def check_sources(building: Path, sources: Sequence[str | os.PathLike]) -> None:
    """Refuse sources in the folder that goes when the build is over.

    Raises:
        ValueError: one is that folder, or lies in it.
    """
    for source in sources:
        path = Path(os.path.realpath(source))
        if path == building or building in path.parents:
            raise ValueError(
                f"{source} lies in {building}, the working folder of this build, which goes at its end; name another "
                f"output"
            )


def check_building(building: Path) -> None:
    """Refuse a working folder that holds anything but the files of a build.

    Raises:
        ValueError: it does; the sentence names the first such file.
    """
    for path in sorted(building.iterdir()) if building.is_dir() else ():
        foreign = None
        if path.name == SHARDS_FOLDER and _is_folder(path):
            foreign = next((part for part in sorted(path.iterdir()) if not _is_of_shard(part)), None)
        elif not _is_own_file(path) and not (_MERGE_FOLDER.fullmatch(path.name) and _is_folder(path)):
            foreign = path
        if foreign is not None:
            raise ValueError(
                f"{building} is the working folder of this build and holds {foreign.relative_to(building)}, which is "
                f"not of a build; "
                "move it away, or name another output"
            )


def remove_building(building: Path) -> None:
    """Remove from the working folder what a build has made, by name; ``held`` removes the folder with the lock if
    nothing stays.

    The plan goes last: shards without their plan would be taken for those of the next one.
    """
    remove_merges(building)
    remove_shards(building)
    for path in sorted(building.iterdir(), key=lambda path: path.name == PLAN_FILE):
        if _is_own_file(path) and not is_of_lock(LOCK_FILE, path.name):
            path.unlink(missing_ok=True)
    left = [path.name for path in building.iterdir() if not is_of_lock(LOCK_FILE, path.name)]
    if left:
        logger.warning(f"{building} stays, since it holds {min(left)}, which is not of the build")


def merge_folder(building: Path) -> Path:
    """A name for a dataset in the making."""
    return building / f"merge-{token()}"


def remove_merges(building: Path) -> None:
    """Remove datasets in the making, of merges that ended or were killed."""
    for path in building.iterdir():
        if _MERGE_FOLDER.fullmatch(path.name):
            remove_tree(path)


def remove_shards(building: Path) -> None:
    """Remove the shards of a build that has no plan any more."""
    shards = building / SHARDS_FOLDER
    if not _is_folder(shards):
        return
    for path in shards.iterdir():
        if _is_of_shard(path):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        shards.rmdir()


def temporary_shard(path: Path, owner: str) -> Path:
    """A temporary name for a file of a shard.

    Args:
        owner: by what the hold of the folder is known under which the file is written; with it goes the file.
    """
    return path.with_name(f".{path.name}.{owner}-{token()}.tmp")


def sweep_shards(building: Path, *, own: str = "") -> None:
    """Remove the temporary files of processes that died, and of no others.

    Args:
        own: by what this process's hold is known, whose workers have ended: their files go, too.
    """
    for path in (building / SHARDS_FOLDER).glob(".*.tmp"):
        found = _TEMPORARY_SHARD.fullmatch(path.name)
        if found and (found[2] == own or not is_owned(building / LOCK_FILE, found[2])):
            path.unlink(missing_ok=True)


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _is_own_file(path: Path) -> bool:
    name = path.name
    own = (
        name in _OWN_FILES
        or is_of_lock(LOCK_FILE, name)
        or (is_temporary(name) and name.startswith(tuple(f".{own}." for own in _OWN_FILES)))
    )
    return own and not _is_folder(path)


def _is_of_shard(path: Path) -> bool:
    return bool(_SHARD_FILE.fullmatch(path.name)) and not _is_folder(path)
