"""Audio files of a listing as samples of one length, or the reason why a file gives none."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.audio.reading import read_quietly
from megatron_music.audio.waveform import Waveform, resampled, with_channels
from megatron_music.data.captioned import Captioned
from megatron_music.data.latents_options import LatentsOptions

SILENCE = 1e-4  # of the loudest moment


class Crop(NamedTuple):
    waveform: Waveform
    seconds_start: float
    seconds_total: float  # of the file


class LeftOut(ValueError):
    """A sound that is no sample: ``kind`` counts, the sentence tells."""

    def __init__(self, kind: str, sentence: str):
        super().__init__(sentence)
        self.kind = kind


class Crops:
    """Sounds as samples of one length."""

    def __init__(self, folder: Path, options: LatentsOptions):
        self.folder, self.options = folder, options

    def whole(self, sound: Captioned, sample_rate: int, channels: int) -> Waveform:
        """A whole file. Raises LeftOut."""
        least = self.options.min_seconds
        if not sound.captions:
            raise LeftOut("no caption", f"{sound.path} has an empty caption; describe it")
        try:
            found = with_channels(read_quietly(self.folder / sound.path), channels)
        except ValueError as error:
            is_there = (self.folder / sound.path).exists()
            raise LeftOut("unreadable" if is_there else "missing", str(error)) from None
        if found.seconds < least:
            raise LeftOut("too short", f"{sound.path} lasts {found.seconds:.2f} s, where {least:g} s are required; remove it")
        if float(np.abs(found.samples).max()) < SILENCE:
            raise LeftOut("silent", f"{sound.path} is silent; remove it")
        return resampled(found, sample_rate)

    def of(self, sound: Captioned, sample_rate: int, channels: int, length: int) -> list[Crop]:
        """Where each crop begins, in samples, and its sound, silence behind the last one. Raises as ``whole``."""
        found = self.whole(sound, sample_rate, channels)
        total, least = found.samples.shape[1], round(self.options.min_seconds * sample_rate)
        firsts = [first for first in range(0, total, length) if total - first >= min(length, max(least, length // 2)) or not first]
        if self.options.crops_per_file:
            wanted = np.linspace(0, len(firsts) - 1, min(self.options.crops_per_file, len(firsts))).round().astype(int)
            firsts = [firsts[place] for place in wanted]
        crops = []
        for first in firsts:
            samples = found.samples[:, first : first + length]
            if float(np.abs(samples).max()) >= SILENCE:
                missing = length - samples.shape[1]
                crop = Waveform(np.pad(samples, ((0, 0), (0, missing))), sample_rate)
                crops.append(Crop(crop, first / sample_rate, found.seconds))
        return crops

    def some(self, sounds: Sequence[Captioned], count: int, make: Callable[[Captioned], list]) -> list:
        """Up to ``count`` of what ``make`` makes of sounds, taken from all over; what is left out says so later."""
        found = []
        order = np.random.default_rng(self.options.seed).permutation(len(sounds))
        for number in order:
            try:
                found += make(sounds[number])
            except LeftOut:
                continue
            if len(found) >= count:
                break
        return found[:count]
