"""A run's checkpoints as folders: their names, which is the newest, and how one comes and goes.

``RUN/latest`` names the newest complete one. A checkpoint comes by a rename and goes by a rename, so that a kill
leaves nothing that looks like one and is none. Knows the names of a checkpoint's files and nothing of what is in them.
"""

import os
import re
from pathlib import Path

from megatron_music.storage.reading import read_text
from megatron_music.storage.writing import (
    remove_tree,
    sweep_temporary,
    sync,
    sync_tree,
    token,
    write_whole,
)

LATEST = "latest"
# In every checkpoint: where the run stood, the run, and of a GPT the tokenizer of its data.
STATE, CONFIG, TOKENIZER = "state.json", "config.yaml", "tokenizer"
_NAME = re.compile(r"iter_(\d{7,})")
_LEFT = re.compile(r"\.iter_\d{7,}\.(removed|([0-9a-f]{16}\.)?unfinished)")  # earlier versions wrote no digits


def checkpoint_name(iteration: int) -> str:
    """The name of the checkpoint after an iteration."""
    return f"iter_{iteration:07d}"


def iteration_of(checkpoint: Path) -> int | None:
    """The iteration in a checkpoint's name; None where it is no such name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else None


def checkpoints_of(folder: Path) -> list[Path]:
    """All checkpoints of a run that came to their names, newest first. Some may be damaged."""
    found = [path for path in folder.iterdir() if iteration_of(path) is not None and path.is_dir()]
    return sorted(found, key=iteration_of, reverse=True)


def read_latest(folder: Path) -> tuple[Path | None, str]:
    """What ``latest`` names, and why that is nothing, as half a sentence."""
    try:
        name = read_text(folder / LATEST, 4096).strip()
    except FileNotFoundError:
        return None, "is missing"
    except (OSError, ValueError):
        return None, "cannot be read"
    if not name:
        return None, "is empty"
    if not _NAME.fullmatch(name):
        return None, f"says {name[:40]!r}, which is no checkpoint's name"
    return folder / name, ""


def prepare(folder: Path, iteration: int) -> Path:
    """An empty folder to write a checkpoint into; what killed saves and removals left is swept away."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    unfinished = folder / f".{checkpoint_name(iteration)}.{token()}.unfinished"
    unfinished.mkdir()
    return unfinished


def sweep(folder: Path) -> None:
    """Delete what killed saves and removals left, and temporary files. Not while a save is under way."""
    for old in folder.iterdir():
        if _LEFT.fullmatch(old.name):
            remove_tree(old)
    sweep_temporary(folder)


def publish(unfinished: Path, checkpoint: Path) -> None:
    """Put a finished folder in its place, then point ``latest`` at it; a kill at any point leaves a good ``latest``."""
    sync_tree(unfinished)
    if os.path.lexists(checkpoint):
        # Left by a run killed between the two steps below, or damaged: never what ``latest`` names and is whole.
        remove(checkpoint)
    unfinished.rename(checkpoint)
    sync(checkpoint.parent)
    write_whole(checkpoint.parent / LATEST, f"{checkpoint.name}\n".encode(), syncs_folder=True)


def remove(checkpoint: Path) -> None:
    """Take a checkpoint away: its name goes at once, its files after that."""
    doomed = checkpoint.with_name(f".{checkpoint.name}.removed")
    if os.path.lexists(doomed):
        remove_tree(doomed)
    checkpoint.rename(doomed)
    sync(checkpoint.parent)
    remove_tree(doomed)


def prune(folder: Path, most_recent_k: int, keep_every: int) -> list[Path]:
    """Remove old checkpoints. What ``latest`` names stays, and so does everything newer.

    Args:
        folder: the run's folder.
        most_recent_k: how many to keep, counted back from what ``latest`` names; 0 keeps all.
        keep_every: checkpoints at its multiples are kept for good; 0: none is.

    Returns:
        Those removed.
    """
    newest, _ = read_latest(folder)
    if most_recent_k == 0 or newest is None:
        return []
    known = [path for path in checkpoints_of(folder) if iteration_of(path) <= iteration_of(newest)]
    old = [path for path in known[most_recent_k:] if not keep_every or iteration_of(path) % keep_every]
    for path in old:
        remove(path)
    return old
