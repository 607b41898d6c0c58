"""Audio of any length cut into excerpts of one length, in memory that does not grow with the file.

Shapes: [channels, frames].
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from megatron_music.audio.waveform import (
    Waveform,
    check_rates,
    read_blocks,
    resampled_blocks,
    with_channels,
)

SILENCE = 1e-4  # of the loudest moment
KEPT_BYTES = 128 << 20  # of decoded audio: what is longer is decoded twice


class LeftOut(ValueError):
    """A file that gives no excerpt: ``kind`` counts, the sentence explains."""

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


@dataclass(frozen=True)
class Cut:
    """How audio is cut.

    Args:
        sample_rate, channels: of the excerpts.
        length: of an excerpt, in frames.
        min_seconds: shorter files are left out, and a rest at the end that is shorter.
        at_most: excerpts, spread evenly; 0: all.
    """

    sample_rate: int
    channels: int
    length: int
    min_seconds: float
    at_most: int = 0

    def starts(self, total: int) -> list[int]:
        """Where the excerpts of a file with this number of frames at ``sample_rate`` begin."""
        least = round(self.min_seconds * self.sample_rate)
        needed = min(self.length, max(least, self.length // 2))
        firsts = [first for first in range(0, total, self.length) if total - first >= needed or not first]
        if self.at_most:
            wanted = np.linspace(0, len(firsts) - 1, min(self.at_most, len(firsts))).round().astype(int)
            firsts = [firsts[place] for place in wanted]
        return firsts


class Piece(NamedTuple):
    """A part of an excerpt, in order; the last of each ends it."""

    start: int  # of the excerpt, in frames
    samples: np.ndarray  # float32
    ends: bool
    total: int  # frames of the file


def pieces(path: str | os.PathLike, name: str, cut: Cut, beat: Callable[[], None] = lambda: None) -> Iterator[Piece]:
    """The excerpts of a file, piece by piece. The whole file has been looked at before the first is given.

    Args:
        name: of the file, in sentences.
        beat: called for each block that is decoded, which of a long file takes minutes.

    Raises:
        LeftOut: it is missing, unreadable, too short or silent.
    """
    decoded = _Decoded(path, cut.channels, beat)
    try:
        decoded.scan()
        check_rates(path, decoded.sample_rate, cut.sample_rate)
    except ValueError as error:
        raise LeftOut("unreadable" if os.path.lexists(path) else "missing", str(error)) from None
    seconds = decoded.frames / decoded.sample_rate
    if seconds < cut.min_seconds:
        raise LeftOut("too short", f"{name} lasts {seconds:.2f} s, where {cut.min_seconds:g} s are required; remove it")
    if decoded.peak < SILENCE:
        raise LeftOut("silent", f"{name} is silent; remove it")
    total = -(-decoded.frames * cut.sample_rate // decoded.sample_rate)
    starts = iter(cut.starts(total))
    start, place = next(starts), 0
    for block in resampled_blocks(decoded.blocks(), cut.sample_rate):
        samples = block.samples
        while start is not None and start < place + samples.shape[1]:
            first, last = max(start - place, 0), min(start + cut.length - place, samples.shape[1])
            ends = place + last == min(start + cut.length, total)
            yield Piece(start, samples[:, first:last], ends, total)
            if not ends:
                break
            start = next(starts, None)
        place += samples.shape[1]
        if start is None:
            return


class _Decoded:
    """A file's audio with the given number of channels, at its own rate: kept where it is short, decoded again where it
    is long.
    """

    def __init__(self, path: str | os.PathLike, channels: int, beat: Callable[[], None]):
        self._path, self._channels, self._beat = path, channels, beat
        self._kept: list[Waveform] | None = []
        self.frames, self.sample_rate, self.peak = 0, 0, 0.0

    def scan(self) -> None:
        """Decode it once. Raises ValueError as ``read_blocks``."""
        size = 0
        for block in self._decode():
            self.frames += block.samples.shape[1]
            self.sample_rate = block.sample_rate
            self.peak = max(self.peak, float(np.abs(block.samples).max()))
            size += block.samples.nbytes
            if size > KEPT_BYTES:
                self._kept = None
            elif self._kept is not None:
                self._kept.append(block)

    def blocks(self) -> Iterator[Waveform]:
        return iter(self._kept) if self._kept is not None else self._decode()

    def _decode(self) -> Iterator[Waveform]:
        for block in read_blocks(self._path):
            self._beat()
            try:
                mixed = with_channels(block, self._channels)
            except ValueError as error:
                raise ValueError(f"{self._path} cannot be used: {error}") from None
            yield mixed
