"""Reading sound files without what their decoders write on the terminal."""

import contextlib
import os
from collections.abc import Iterator

from megatron_music.audio.waveform import Waveform, read_waveform


def read_quietly(path: str | os.PathLike) -> Waveform:
    """``read_waveform`` without the notes that libmpg123 writes to file descriptor 2 about MP3 files; errors are raised
    as there.
    """
    with _stderr_closed():
        return read_waveform(path)


@contextlib.contextmanager
def _stderr_closed() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
