"""Which MIDI files a build reads. Knows nothing about what is in them."""

import os
from collections.abc import Sequence
from pathlib import Path

MIDI_SUFFIXES = (".mid", ".midi", ".kar")


def find_midi_files(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """MIDI files named in ``sources`` or lying in their folders, at any depth; each once, in the order of their paths.

    Links to folders are followed, each folder once; only regular files are taken.

    Raises:
        ValueError: a source is missing, or there is no MIDI file at all.
    """
    found: dict[str, Path] = {}  # by real path
    folders: set[str] = set()
    for source in map(Path, sources):
        if source.is_dir():
            for folder, below, names in os.walk(source, followlinks=True):
                if os.path.realpath(folder) in folders:
                    below.clear()
                    continue
                folders.add(os.path.realpath(folder))
                paths = (Path(folder, name) for name in names if name.lower().endswith(MIDI_SUFFIXES))
                found.update((os.path.realpath(path), path) for path in paths if path.is_file())
        elif source.is_file():
            found[os.path.realpath(source)] = source
        else:
            raise ValueError(f"{source} does not exist; name a folder of MIDI files or a MIDI file")
    if not found:
        raise ValueError(
            f"no MIDI files in {', '.join(str(source) for source in sources)}; files ending in {', '.join(MIDI_SUFFIXES)} are read"
        )
    return sorted(found.values())
