"""A process that decodes and cuts audio: ``python -m megatron_music.data.audio_worker DESCRIPTOR``, started by
``worker_pool.py``.

It may use 1 GiB and no more, and is replaced when it is silent for too long. Excerpts go through the file of that
descriptor, float32 [frames, channels] one behind the other, a part at a time.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_music.audio.excerpts import SILENCE, Cut, LeftOut, Piece, pieces
from megatron_music.audio.waveform import load_decoders
from megatron_music.corpora.captioned import state_of
from megatron_music.corpora.midi_files import ChangedSource
from megatron_music.data.worker_process import live_within_bounds, private_channel, say

PART_BYTES = 16 << 20  # of excerpts in a part, and one excerpt at least
_BEAT_SECONDS = 0.5


def main(descriptor: str) -> None:
    """Cut the files that standard input asks for, until it ends."""
    live_within_bounds()
    channel, requests = private_channel()
    load_decoders()  # before the first file, whose time it would count as
    for line in requests:
        asked = json.loads(line)
        number = asked["task"]
        answer = {"done": number}
        try:
            if asked["skip"]:
                (reason,) = asked["skip"].values()
                raise LeftOut(
                    "unreadable", f"{asked['path']} cannot be used: {reason}; convert it to WAV or FLAC, or remove it"
                )
            say(channel, str(number))
            _refuse_change(asked)
            _send(asked, int(descriptor), channel, requests)
            _refuse_change(asked)  # while it was decoded
        except BrokenPipeError:
            return
        except ChangedSource as error:
            answer = {"refused": str(error)}
        except LeftOut as error:
            answer |= {"left_out": {"kind": error.kind, "reason": str(error)}}
        except MemoryError:
            reason = "it needs more memory than a worker may use"
            answer |= {
                "left_out": {
                    "kind": "unreadable",
                    "reason": f"{asked['path']} cannot be used: {reason}; convert it to WAV or FLAC",
                }
            }
        except OSError as error:  # no room for the excerpts
            answer = {"error": error.strerror or str(error), "errno": error.errno, "filename": error.filename}
        except Exception as error:  # a fault of ours, or of a decoder
            reason = f"cannot be decoded ({type(error).__name__}: {error})"
            answer |= {
                "left_out": {"kind": "unreadable", "reason": f"{asked['path']} {reason}; convert it to WAV or FLAC"}
            }
        say(channel, json.dumps(answer))


def _refuse_change(asked: dict) -> None:
    """
    Raises:
        ChangedSource: the file has another size or time of change than when the build began, or is gone.
    """
    path = Path(asked["folder"], asked["path"])
    if "state" in asked and state_of(path) != asked["state"]:
        raise ChangedSource(
            f"{path} was changed while the build was under way; restore it, or build into another folder"
        )


def _send(asked: dict, descriptor: int, channel: int, requests: BinaryIO) -> None:
    """The excerpts of one file, part by part."""
    cut, part = Cut(**asked["cut"]), _Part(asked["task"], descriptor, is_first=True)
    for piece in pieces(os.path.join(asked["folder"], asked["path"]), asked["path"], cut, _beat(channel)):
        part.add(piece)
        if piece.ends and part.size >= PART_BYTES:
            say(channel, part.message())
            requests.readline()  # when it was taken
            part = _Part(asked["task"], descriptor, is_first=False)
    if part.starts:
        say(channel, part.message())
        requests.readline()


def _beat(channel: int) -> Callable[[], None]:
    """Tells the parent, twice a second, that the file is still being decoded."""
    told = time.monotonic()

    def beat() -> None:
        nonlocal told
        if time.monotonic() - told > _BEAT_SECONDS:
            say(channel, ".")
            told = time.monotonic()

    return beat


class _Part:
    """Excerpts as they lie in the file."""

    def __init__(self, number: int, descriptor: int, is_first: bool):
        self._number, self._descriptor, self._is_first = number, descriptor, is_first
        self.starts: list[int] = []
        self._frames: list[int] = []
        self.size = self._total = 0
        self._begin, self._peak = 0, 0.0  # of the excerpt that is written

    def add(self, piece: Piece) -> None:
        """Write a piece; an excerpt that was silent is written over by the next."""
        content = np.ascontiguousarray(piece.samples.T, np.float32)
        self._peak = max(self._peak, float(np.abs(content).max(initial=0.0)))
        self._total, self.size = piece.total, self.size + _write(self._descriptor, content, self.size)
        if not piece.ends:
            return
        if self._peak >= SILENCE:
            self.starts.append(piece.start)
            self._frames.append((self.size - self._begin) // content.itemsize // content.shape[1])
        else:
            self.size = self._begin
        self._begin, self._peak = self.size, 0.0

    def message(self) -> str:
        """The record that is sent to the parent."""
        found = {
            "part": self._number,
            "is_first": self._is_first,
            "starts": self.starts,
            "frames": self._frames,
            "total": self._total,
        }
        return json.dumps(found)


def _write(descriptor: int, content: np.ndarray, offset: int) -> int:
    view = memoryview(content).cast("B")
    written = 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], offset + written)
    return written


if __name__ == "__main__":
    main(sys.argv[1])
