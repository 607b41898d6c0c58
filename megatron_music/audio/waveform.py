"""Audio files in and out. The one owner of soundfile, which everything but writing WAV needs.

A waveform is float32 [channels, frames] in -1 to 1, with a sample rate in Hz. WAV is written here by hand, and so `render` and
the demo need numpy alone.
"""

import io
import json
import os
import struct
import wave
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.storage.writing import write_whole

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
    import soundfile

    try:
        samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        if not Path(path).exists():
            raise ValueError(f"{path} does not exist; check the path") from None
        raise ValueError(f"{path} is no sound that can be read ({str(error).splitlines()[0]}); convert it to WAV or FLAC") from None
    if not len(samples):
        raise ValueError(f"{path} has no samples; remove it")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has samples that are not finite; repair it or remove it")
    return Waveform(np.ascontiguousarray(samples.T), sample_rate)


def write_waveform(
    path: str | os.PathLike, samples: np.ndarray, sample_rate: int, *, bits: int = 16, metadata: dict | None = None
) -> None:
    """Write WAV or FLAC, by the suffix; the file is there whole or not at all.

    Args:
        samples: [channels, frames]; what is beyond -1 to 1 is clipped.
        bits: 16 or 24.
        metadata: of plain values; stands as JSON in the file's comment, where ``read_metadata`` finds it.

    Raises:
        ValueError: another suffix or width, or samples that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} does not end in {' or '.join(SUFFIXES)}; name it so")
    if bits not in SUBTYPES:
        raise ValueError(f"a sample of {bits} bits cannot be written; use 16 or 24")
    if not np.isfinite(samples).all():
        raise ValueError(f"the sound for {path} has samples that are not finite; nothing was written")
    samples = np.clip(samples, -1, 1)
    if path.suffix.lower() == ".wav":
        content = wav_bytes(samples, sample_rate, bits=bits, metadata=metadata)
    else:
        content = _flac_bytes(samples, sample_rate, bits, metadata)
    write_whole(path, content)


def wav_bytes(samples: np.ndarray, sample_rate: int, *, bits: int = 16, metadata: dict | None = None) -> bytes:
    """A WAV file of PCM samples; ``metadata`` as in ``write_waveform``.

    Raises:
        ValueError: more than the 4 GiB that a WAV file can hold.
    """
    scaled = np.rint(np.asarray(samples).T.astype(np.float64) * (2 ** (bits - 1) - 1)).astype("<i4")  # [frames, channels]
    content = scaled.astype("<i2").tobytes() if bits == 16 else scaled.reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    channels, width = len(samples), bits // 8
    chunks = [(b"fmt ", struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * channels * width, channels * width, bits))]
    if metadata:
        words = [(b"ICMT", json.dumps(metadata, ensure_ascii=False))]
        if metadata.get("prompt"):
            words.insert(0, (b"INAM", str(metadata["prompt"])))
        chunks.append((b"LIST", b"INFO" + b"".join(_chunk(name, text.encode() + b"\0") for name, text in words)))
    chunks.append((b"data", content))
    size = 4 + sum(8 + len(data) + len(data) % 2 for _, data in chunks)
    if size >= 2**32:
        raise ValueError(f"{size / 2**30:.1f} GiB of samples do not fit in a WAV file; write FLAC, or shorter files")
    return _chunk(b"RIFF", b"WAVE" + b"".join(_chunk(name, data) for name, data in chunks))


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def read_pcm16(path: str | os.PathLike) -> Waveform:
    """A WAV file of 16-bit samples, by the standard library alone; other files go to ``read_waveform``."""
    try:
        with wave.open(os.fspath(path), "rb") as file:
            if file.getsampwidth() != 2:
                return read_waveform(path)
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            return Waveform(np.ascontiguousarray(frames.T, np.float32) / np.float32(32768), file.getframerate())
    except (wave.Error, EOFError):
        return read_waveform(path)


def _flac_bytes(samples: np.ndarray, sample_rate: int, bits: int, metadata: dict | None) -> bytes:
    import soundfile

    content = io.BytesIO()
    try:
        with soundfile.SoundFile(content, "w", sample_rate, len(samples), SUBTYPES[bits], format="FLAC") as file:
            if metadata:
                if metadata.get("prompt"):
                    file.title = str(metadata["prompt"])
                file.comment = json.dumps(metadata, ensure_ascii=False)
            file.write(samples.T)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{sample_rate} Hz with {len(samples)} channels cannot be FLAC ({str(error).splitlines()[0]}); write WAV") from None
    return content.getvalue()


def read_metadata(path: str | os.PathLike) -> dict:
    """What ``write_waveform`` was told of a file; empty for another's."""
    import soundfile

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
    from scipy.signal import resample_poly

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
