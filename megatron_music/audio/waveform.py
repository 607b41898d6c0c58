"""Audio files in and out. The one owner of soundfile, which everything but writing WAV needs.

A waveform is float32 [channels, frames] in -1 to 1, with a sample rate in Hz. WAV is written here by hand, and so
`render` and the demo need numpy alone.
"""

import io
import json
import math
import os
import struct
import wave
from collections.abc import Iterable, Iterator
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.storage.reading import NOT_OF_THE_FILE, reason_of, regular
from megatron_music.storage.writing import write_whole

SUBTYPES = {16: "PCM_16", 24: "PCM_24"}
SUFFIXES = (".wav", ".flac")
READABLE = (*SUFFIXES, ".ogg", ".mp3", ".aiff", ".aif")
# What is read; beyond it a file is damaged, or made to fill the memory.
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE, MAX_CHANNELS = 1000, 384_000, 24
MAX_SECONDS, LOUDEST, MAX_WHOLE_BYTES = 12 * 3600, 100.0, 1 << 30
MAX_VALUES = MAX_SECONDS * 2 * 96_000  # samples of all channels together: 12 hours of stereo at 96 kHz
_BLOCK_VALUES = 1 << 18  # decoded at a time
MAX_RATIO = 1 << 16  # of a rate without what it has in common with another: filters of more take hundreds of MiB
_HALF_FILTER = 10  # of the polyphase filter: periods of the lower rate


class Waveform(NamedTuple):
    """Sound."""

    samples: np.ndarray  # float32 [channels, frames]
    sample_rate: int  # Hz

    @property
    def seconds(self) -> float:
        return self.samples.shape[1] / self.sample_rate


def read_waveform(path: str | os.PathLike) -> Waveform:
    """The audio of a whole file.

    Raises:
        ValueError: it is missing, not audio, empty, beyond what ``read_blocks`` reads, or longer than 1 GiB of samples;
            one sentence with the path.
    """
    blocks, size = [], 0
    for block in read_blocks(path):
        blocks.append(block.samples)
        size += block.samples.nbytes
        if size > MAX_WHOLE_BYTES:
            raise ValueError(f"{path} has more than {MAX_WHOLE_BYTES >> 30} GiB of samples; cut it into shorter files")
    return Waveform(np.concatenate(blocks, axis=1), block.sample_rate)


def read_blocks(path: str | os.PathLike) -> Iterator[Waveform]:
    """The audio of a file, some seconds at a time, none of them empty: memory does not grow with the file.

    Raises:
        ValueError: it is missing, not audio, empty, of more than 24 channels, of a sample rate outside 1,000 to 384,000
            Hz, longer than 12 hours (of stereo at 96 kHz: more channels or a higher rate make it less), or has samples
            that are not finite or louder than 100 times full scale; one sentence with the path. It may come after
            blocks that were given.
        OSError: the disk is not there any more, or too many files are open.
    """
    import soundfile

    try:
        _check_regular(path)
        with soundfile.SoundFile(path) as file:
            _check_format(path, file.samplerate, file.channels)
            total = 0
            while len(samples := file.read(_BLOCK_VALUES // file.channels, dtype="float32", always_2d=True)):
                total += len(samples)
                if total > MAX_SECONDS * file.samplerate:
                    raise ValueError(f"{path} lasts more than {MAX_SECONDS // 3600} hours; cut it into shorter files")
                if total * file.channels > MAX_VALUES:
                    raise ValueError(
                        f"{path} has more than {MAX_VALUES:,} samples on {file.channels} channels; cut it into "
                        f"shorter files"
                    )
                _check_samples(path, samples)
                yield Waveform(np.ascontiguousarray(samples.T), file.samplerate)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; check the path") from None
    except (soundfile.LibsndfileError, OSError, TypeError) as error:
        if isinstance(error, OSError) and error.errno in NOT_OF_THE_FILE:
            raise
        raise ValueError(
            f"{path} is no sound that can be read ({reason_of(error)}); convert it to WAV or FLAC"
        ) from None
    if not total:
        raise ValueError(f"{path} has no samples; remove it")


def load_decoders() -> None:
    """Import what reading and resampling need, which takes seconds the first time.

    Raises:
        ModuleNotFoundError: the extra ``audio`` is not installed.
    """
    import scipy.signal  # noqa: F401 (it is loaded, not used)
    import soundfile  # noqa: F401 (likewise)


def check_rates(path: str | os.PathLike, source_rate: int, sample_rate: int) -> None:
    """Refuse audio whose sample rate has next to nothing in common with the one it is brought to. Raises ValueError."""
    if max(source_rate, sample_rate) // gcd(source_rate, sample_rate) > MAX_RATIO:
        raise ValueError(
            f"{path} has a sample rate of {source_rate:,} Hz, which does not go into {sample_rate:,} Hz; convert it"
        )


def _check_regular(path: str | os.PathLike) -> None:
    """Refuse a pipe, which a decoder would wait for, and a device."""
    try:
        regular(path, follow_links=True)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; remove it") from None


def _check_format(path: str | os.PathLike, sample_rate: int, channels: int) -> None:
    if not MIN_SAMPLE_RATE <= sample_rate <= MAX_SAMPLE_RATE:
        raise ValueError(
            f"{path} has a sample rate of {sample_rate:,} Hz, where {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,} are "
            f"read; convert it"
        )
    if channels > MAX_CHANNELS:
        raise ValueError(f"{path} has {channels} channels, where up to {MAX_CHANNELS} are read; mix it to fewer")


def _check_samples(path: str | os.PathLike, samples: np.ndarray) -> None:
    loudest = max(float(samples.max()), -float(samples.min()))
    if not loudest <= LOUDEST:
        if math.isfinite(loudest):
            raise ValueError(f"{path} has samples up to {loudest:.3g}, where 1 is full scale; scale it down")
        raise ValueError(f"{path} has samples that are not finite; repair it or remove it")


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
    scaled = np.rint(np.asarray(samples).T.astype(np.float64) * (2 ** (bits - 1) - 1)).astype(
        "<i4"
    )  # [frames, channels]
    content = scaled.astype("<i2").tobytes() if bits == 16 else scaled.reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    channels, width = len(samples), bits // 8
    chunks = [
        (
            b"fmt ",
            struct.pack("<HHIIHH", 1, channels, sample_rate, sample_rate * channels * width, channels * width, bits),
        )
    ]
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
            is_usual = file.getnchannels() <= MAX_CHANNELS and MIN_SAMPLE_RATE <= file.getframerate() <= MAX_SAMPLE_RATE
            if file.getsampwidth() != 2 or not is_usual:
                return read_waveform(path)
            frames = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels())
            return Waveform(np.ascontiguousarray(frames.T, np.float32) / np.float32(32768), file.getframerate())
    except (
        wave.Error,
        EOFError,
        RuntimeError,
        ValueError,
    ):  # libsndfile says what is wrong, where it is no sound at all
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
        raise ValueError(
            f"{sample_rate} Hz with {len(samples)} channels cannot be FLAC ({str(error).splitlines()[0]}); write WAV"
        ) from None
    return content.getvalue()


def read_metadata(path: str | os.PathLike) -> dict:
    """What ``write_waveform`` was told of a file; empty for another's."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            found = json.loads(file.comment)
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} cannot be read as audio ({error.error_string}); name a WAV or FLAC file") from None
    except (ValueError, RecursionError):
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


def resampled_blocks(blocks: Iterable[Waveform], sample_rate: int) -> Iterator[Waveform]:
    """What ``resampled`` makes of the blocks in one piece, in blocks again."""
    kept, done, last = None, 0, None  # samples from ``done - context`` on
    for block in blocks:
        if block.sample_rate == sample_rate:
            yield block
            continue
        if last is None:
            resample = _Resampler(block.sample_rate, sample_rate)
            kept = np.zeros((len(block.samples), resample.context), np.float32)  # silence before the beginning
        last = block
        kept = np.concatenate([kept, block.samples], axis=1)
        whole = (kept.shape[1] - 2 * resample.context) // resample.down * resample.down
        if whole > 0:
            yield resample(kept[:, : whole + 2 * resample.context], whole)
            kept, done = kept[:, whole:], done + whole
    if last is not None:
        rest = kept.shape[1] - resample.context
        kept = np.pad(kept, ((0, 0), (0, resample.context)))  # silence behind the end
        if rest:
            yield resample(kept, rest)


class _Resampler:
    """One rate to another, of samples with ``context`` more before and behind them."""

    def __init__(self, source_rate: int, sample_rate: int):
        from scipy.signal import firwin

        common = gcd(sample_rate, source_rate)
        self.up, self.down, self.sample_rate = sample_rate // common, source_rate // common, sample_rate
        most, half = max(self.up, self.down), _HALF_FILTER * max(self.up, self.down)
        self._filter = firwin(2 * half + 1, 1 / most, window=("kaiser", 5.0)).astype(
            np.float32
        )  # that of resample_poly
        self.context = -(-(half // self.up + 1) // self.down) * self.down

    def __call__(self, samples: np.ndarray, count: int) -> Waveform:
        from scipy.signal import resample_poly

        found = resample_poly(samples, self.up, self.down, axis=1, window=self._filter)
        first = self.context // self.down * self.up
        return Waveform(found[:, first : first + -(-count * self.up // self.down)].astype(np.float32), self.sample_rate)


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
