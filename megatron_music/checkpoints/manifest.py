"""The manifest of a checkpoint: the name, size and SHA-256 of every file, and what is wrong with one that differs.

It tells a torn or altered checkpoint from a whole one. It is no signature: who writes all files writes the manifest,
too.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from megatron_music.storage.reading import hash_of_file, read_json_object, reason_of

MANIFEST = "manifest.json"
VERSION = 1

Digests = Callable[[Sequence[Path]], list[str]]


def fingerprint(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint's manifest, which has those of its files."""
    return hash_of_file(checkpoint / MANIFEST)


def digest_all(paths: Sequence[Path]) -> list[str]:
    """SHA-256 of each file, one after another."""
    return [hash_of_file(path) for path in paths]


def write_manifest(checkpoint: Path, known: dict[str, str] | None = None) -> None:
    """Write the manifest of the files that lie there.

    Args:
        checkpoint: a folder whose files are all written.
        known: digests of files by name that need not be read again.
    """
    files = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        name = path.relative_to(checkpoint).as_posix()
        if name != MANIFEST:
            files[name] = {"size": path.stat().st_size, "sha256": (known or {}).get(name) or hash_of_file(path)}
    text = json.dumps({"version": VERSION, "files": files}, indent=1) + "\n"
    (checkpoint / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(checkpoint: Path) -> dict[str, dict]:
    """Size and SHA-256 of each file, by its name below the checkpoint.

    Raises:
        ValueError: why it is none, as half a sentence.
    """
    try:
        tree = read_json_object(checkpoint / MANIFEST, follow_links=False)
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read: {str(error).splitlines()[0]}") from None
    try:
        if tree["version"] != VERSION:
            raise ValueError(f"its {MANIFEST} is of version {tree['version']!r}, not {VERSION}")
        files = {name: {"size": facts["size"], "sha256": facts["sha256"]} for name, facts in tree["files"].items()}
        if not all(type(facts["size"]) is int and type(facts["sha256"]) is str for facts in files.values()):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"its {MANIFEST} does not say which files there are") from None
    for name in files:
        # A name decides what is read; none may lead out of the folder.
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or not name:
            raise ValueError(f"its {MANIFEST} names {name!r}, which is not below it")
    return files


def what_is_wrong(checkpoint: Path) -> str | None:
    """What the sizes of its files tell: why a checkpoint is not whole, as half a sentence; None where nothing
    is wrong.
    """
    try:
        files = read_manifest(checkpoint)
    except ValueError as error:
        return str(error)
    for name, facts in files.items():
        path = checkpoint / name
        if path.is_symlink() or not path.is_file():
            return f"{name} is {'a link' if path.is_symlink() else 'missing'}"
        if path.stat().st_size != facts["size"]:
            return f"{name} has {path.stat().st_size:,} bytes and had {facts['size']:,}"
    return None


def what_was_altered(checkpoint: Path, files: dict[str, dict], digests: Digests = digest_all) -> str | None:
    """What the contents of its files tell, of a checkpoint whose sizes are right.

    Args:
        checkpoint: the folder.
        files: what ``read_manifest`` gave.
        digests: how to come by the SHA-256 of files; several processes share the reading.
    """
    try:
        found = digests([checkpoint / name for name in files])
    except (OSError, ValueError) as error:
        return (
            f"{os.path.basename(getattr(error, 'filename', None) or '') or 'a file'} cannot be read: {reason_of(error)}"
        )
    for (name, facts), content in zip(files.items(), found, strict=True):
        if content != facts["sha256"]:
            return f"{name} does not have the content that was saved"
    return None
