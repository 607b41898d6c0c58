"""Audio files of a listing as samples of one length, or the reason why a file gives none.

Files are decoded in a worker process of 1 GiB, which is replaced when a file crashes it or keeps it silent for a
minute: that costs the file, and nothing else.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from megatron_music.audio.excerpts import Cut, LeftOut
from megatron_music.audio.waveform import Waveform, load_decoders
from megatron_music.corpora.captioned import Captioned
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.data.worker_pool import Supervisor, Task

SECONDS_PER_FILE = 60.0  # of silence of the worker
Made = TypeVar("Made")


class Crop(NamedTuple):
    waveform: Waveform
    seconds_start: float
    seconds_total: float  # of the file


class Read(NamedTuple):
    """Crops of a file; a file gives them in several parts.

    Attributes:
        number: of the file among those that were asked for.
        crops: the next ones, in order.
        is_first: whether they are the first ones: what was given of this file before is to be forgotten.
        ends: whether nothing more comes of this file.
        left_out: why it gives nothing; what was given of it before is to be forgotten.
    """

    number: int
    crops: tuple[Crop, ...]
    is_first: bool = False
    ends: bool = False
    left_out: LeftOut | None = None


class Crops:
    """Files of a folder as samples of one length.

    Args:
        folder: where they lie.
        options: of the build.
        states: what ``state_of`` gave of each file, by path, when the build began; None: changes are not looked for.

    Raises:
        ModuleNotFoundError: the extra ``audio`` is not installed.
    """

    def __init__(self, folder: Path, options: LatentsOptions, states: Mapping[str, list[int] | None] | None = None):
        load_decoders()  # in the worker a package that is missing would cost every file
        self.folder, self.options, self._states = folder, options, states
        self._room = _room()
        command = [sys.executable, "-P", "-m", "megatron_music.data.audio_worker", str(self._room)]
        self._workers = Supervisor(command, 1, SECONDS_PER_FILE, (self._room,))

    def __enter__(self) -> "Crops":
        return self

    def __exit__(self, *_) -> None:
        self._workers.stop()
        os.close(self._room)

    def read(
        self,
        sounds: Sequence[Captioned],
        sample_rate: int,
        channels: int,
        length: int,
        at_most: int = 0,
        *,
        pads: bool = True,
    ) -> Iterator[Read]:
        """The crops of files, one file after the other; close it before another is begun.

        Args:
            length: frames of a crop.
            at_most: crops of a file, spread evenly; 0: all.
            pads: whether silence is put behind a crop that is shorter.

        Raises:
            ChangedSource: a file is not the one of ``states``.
            OSError: the disk is full or gone, or workers die outside of any file.
        """
        cut = asdict(Cut(sample_rate, channels, length, self.options.min_seconds, at_most))
        tasks = [
            Task(number, number, 1, self._request(number, sound) | {"cut": cut})
            for number, sound in enumerate(sounds)
            if sound.captions
        ]
        named, next_task = {task.number for task in tasks}, 0
        for number, answer in self._workers.run(tasks):
            while next_task < number:  # those without captions, in their order
                if next_task not in named:
                    yield _without_caption(next_task, sounds[next_task])
                next_task += 1
            if answer is not None and "part" in answer:
                crops = self._crops(answer, sample_rate, channels, length if pads else 0)
                yield Read(number, crops, is_first=answer["is_first"])
            elif answer is not None:
                left_out = answer.get("left_out")
                yield Read(
                    number, (), ends=True, left_out=LeftOut(left_out["kind"], left_out["reason"]) if left_out else None
                )
                next_task = number + 1
        for number in range(next_task, len(sounds)):
            yield _without_caption(number, sounds[number])

    def _request(self, number: int, sound: Captioned) -> dict:
        state = {} if self._states is None else {"state": self._states[sound.path]}
        return {"task": number, "folder": os.fspath(self.folder), "path": sound.path, **state}

    def _crops(self, part: dict, sample_rate: int, channels: int, length: int) -> tuple[Crop, ...]:
        """What the worker wrote; copied, since it writes over it."""
        content = os.pread(self._room, 4 * channels * sum(part["frames"]), 0)
        samples = np.frombuffer(content, np.float32).reshape(-1, channels)
        crops, place = [], 0
        for start, frames in zip(part["starts"], part["frames"], strict=True):
            crop = np.zeros((channels, max(length, frames)), np.float32)
            crop[:, :frames] = samples[place : place + frames].T
            crops.append(Crop(Waveform(crop, sample_rate), start / sample_rate, part["total"] / sample_rate))
            place += frames
        return tuple(crops)

    def some(
        self,
        sounds: Sequence[Captioned],
        make: Callable[[Captioned, Crop], Made],
        is_enough: Callable[[list[Made]], bool],
        *cut,
        **options,
    ) -> list[Made]:
        """What ``make`` makes of crops, of files from all over, until there is enough; what is left out says so later.

        Args:
            cut, options: of ``read``.
        """
        order = np.random.default_rng(self.options.seed).permutation(len(sounds))
        chosen = [sounds[number] for number in order]
        found: list[Made] = []
        of_file: list[Made] = []
        reading = self.read(chosen, *cut, **options)
        try:
            for read in reading:
                of_file = [] if read.is_first else of_file
                of_file += [make(chosen[read.number], crop) for crop in read.crops]
                if read.ends:
                    found += of_file if read.left_out is None else []
                    of_file = []
                if is_enough(found):
                    break
        finally:
            reading.close()
        return found


def _without_caption(number: int, sound: Captioned) -> Read:
    return Read(
        number, (), ends=True, left_out=LeftOut("no caption", f"{sound.path} has an empty caption; describe it")
    )


def _room() -> int:
    """The descriptor of a file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("megatron-music-audio")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
