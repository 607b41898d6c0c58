"""Which MIDI files a build reads. Knows nothing about what is in them."""

import os
from collections.abc import Sequence
from pathlib import Path

MIDI_SUFFIXES = (".mid", ".midi", ".kar")


def find_midi_files(sources: Sequence[str | os.PathLike]) -> list[Path]:
    """MIDI files named in ``sources`` or lying in their folders, at any depth; each once, in the order of their paths.

    Raises:
        ValueError: a source is missing, or there is no MIDI file at all.
    """
    found: dict[Path, None] = {}
    for source in map(Path, sources):
        if source.is_dir():
            for folder, _, names in os.walk(source):
                for name in names:
                    if name.lower().endswith(MIDI_SUFFIXES):
                        found[Path(folder, name)] = None
        elif source.is_file():
            found[source] = None
        else:
            raise ValueError(f"{source} does not exist; name a folder of MIDI files or a MIDI file")
    if not found:
        raise ValueError(
            f"no MIDI files in {', '.join(str(source) for source in sources)}; files ending in {', '.join(MIDI_SUFFIXES)} are read"
        )
    return sorted(found)
