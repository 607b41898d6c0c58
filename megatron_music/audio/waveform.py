"""Sound files in and out, WAV and FLAC. The one owner of soundfile.

A waveform is float32 [channels, frames] in -1 to 1, with a sample rate in Hz. Knows nothing about music.
"""

import json
import os
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from scipy.signal import resample_poly

SUBTYPES = {16: "PCM_16", 24: "PCM_24"}
SUFFIXES = (".wav", ".flac")
READABLE = (*SUFFIXES, ".ogg", ".mp3", ".aiff", ".aif")


class Waveform(NamedTuple):
    """Sound."""

    samples: np.ndarray  # float32 [channels, frames]
    sample_rate: int  # Hz

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def read_waveform(path: str | os.PathLike) -> Waveform:
    """The sound of a file.

    Raises:
        ValueError: it is missing, no sound, empty, or holds what is no number; one sentence with the path.
    """
    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; check the path") from None
        raise ValueError(f"{path} is no sound that can be read ({str(error).splitlines()[0]}); convert it to WAV or FLAC") from None
    if not len(samples):
        raise ValueError(f"{path} has no samples; leave it out")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has samples that are no numbers; mend it or leave it out")
    return Waveform(np.ascontiguousarray(samples.T), sample_rate)


def write_waveform(
    path: str | os.PathLike, samples: np.ndarray, sample_rate: int, *, bits: int = 16, metadata: dict | None = None
) -> None:
    """Write WAV or FLAC, by the suffix, under a temporary name first.

    Args:
        samples: [channels, frames]; what is beyond -1 to 1 is clipped.
        bits: 16 or 24.
        metadata: of plain values; stands as JSON in the file's comment, where ``read_metadata`` finds it.

    Raises:
        ValueError: another suffix or width, or samples that are no numbers.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} does not end in {' or '.join(SUFFIXES)}; name it so")
    if bits not in SUBTYPES:
        raise ValueError(f"a sample of {bits} bits cannot be written; use 16 or 24")
    if not np.isfinite(samples).all():
        raise ValueError(f"the sound for {path} has samples that are no numbers; nothing was written")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with soundfile.SoundFile(
            temporary, "w", sample_rate, len(samples), SUBTYPES[bits], format=path.suffix[1:].upper()
        ) as file:
            if metadata:
                if metadata.get("prompt"):
                    file.title = str(metadata["prompt"])
                file.comment = json.dumps(metadata, ensure_ascii=False)
            file.write(np.clip(samples.T, -1, 1))
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except soundfile.LibsndfileError as error:
        raise OSError(f"{path} cannot be written ({str(error).splitlines()[0]})") from None
    finally:
        temporary.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike) -> dict:
    """What ``write_waveform`` was told of a file; empty for another's."""
    with soundfile.SoundFile(path) as file:
        try:
            found = json.loads(file.comment)
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


def resampled(waveform: Waveform, sample_rate: int) -> Waveform:
    """The sound at another rate, by a polyphase filter."""
    if sample_rate == waveform.sample_rate:
        return waveform
    common = gcd(sample_rate, waveform.sample_rate)
    samples = resample_poly(waveform.samples, sample_rate // common, waveform.sample_rate // common, axis=1)
    return Waveform(samples.astype(np.float32), sample_rate)


def with_channels(waveform: Waveform, channels: int) -> Waveform:
    """The sound on so many channels: mono on all of them, more on fewer as their mean.

    Raises:
        ValueError: neither is possible, as from 2 channels to 6.
    """
    found = len(waveform.samples)
    if found == channels:
        return waveform
    if channels == 1 or found == 1:
        samples = waveform.samples.mean(0, keepdims=True, dtype=np.float32)
        return Waveform(np.repeat(samples, channels, axis=0), waveform.sample_rate)
    if channels < found:  # the front ones come first
        return Waveform(np.ascontiguousarray(waveform.samples[:channels]), waveform.sample_rate)
    raise ValueError(f"a sound of {found} channels cannot become one of {channels}; mix it before")
