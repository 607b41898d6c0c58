"""A score to sound: FluidSynth with a SoundFont where both are there, else a small synthesiser of our own in numpy.

What was used is said with the sound. Shapes: [channels, frames].
"""

import math
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_music.audio.timbres import DRUMS, FAMILIES, TOM, Drum, Timbre
from megatron_music.audio.waveform import Waveform, read_pcm16, resampled
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Score
from megatron_music.music.tempo import seconds_at

OWN = "the synthesiser of megatron-music"
SOUND_FONT = "SOUND_FONT"  # environment variable that names one
SOUND_FONTS = (
    "/usr/share/sounds/sf3/default-GM.sf3",
    "/usr/share/sounds/sf2/default-GM.sf2",
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/sounds/sf2/TimGM6mb.sf2",
)
SECONDS_ALLOWED = 300  # for FluidSynth
MAX_SECONDS = 3600.0  # of audio: an hour takes about 5 GiB while it is rendered
PEAK, TAIL_SECONDS = 0.89, 0.5
_VIBRATO_HZ = 5.5


class Rendered(NamedTuple):
    """A score's sound."""

    waveform: Waveform
    synthesiser: str


def render(
    score: Score,
    sample_rate: int = 44100,
    sound_font: str | os.PathLike | None = None,
    *,
    own: bool = False,
    max_seconds: float = MAX_SECONDS,
) -> Rendered:
    """Stereo sound of a score, its loudest moment at -1 dB.

    Args:
        sound_font: for FluidSynth; left out: ``$SOUND_FONT``, or where Debian keeps its own.
        own: use our synthesiser whatever is installed. The same score gives the same samples then, to the bit.
        max_seconds: a longer score is refused before any memory is taken.

    Raises:
        ValueError: a score without notes, one that is too long, a sound font that is not there, or FluidSynth failed;
            one sentence.
    """
    if not score.num_notes:
        raise ValueError("the score has no notes to play; use another file")
    seconds = float(seconds_at(score, np.array([score.last_end_step]))[0])
    if not seconds <= max_seconds:
        raise ValueError(
            f"the score lasts {seconds:,.0f} s, where {max_seconds:,.0f} are rendered; raise --max-seconds, or cut "
            f"the piece"
        )
    program, font = _fluidsynth_with(sound_font, own)
    if sound_font and not Path(sound_font).is_file():
        raise ValueError(f"{sound_font} does not exist; name a SoundFont (.sf2 or .sf3)")
    if program and font:
        waveform = _fluidsynth(score, sample_rate, program, font)
    elif sound_font:
        raise ValueError(
            f"{sound_font} needs FluidSynth, which is not on PATH; install fluidsynth, or omit --sound-font"
        )
    else:
        waveform = Waveform(_synthesise(score, sample_rate), sample_rate)
    peak = float(np.abs(waveform.samples).max(initial=0.0))
    return Rendered(
        Waveform(waveform.samples * np.float32(PEAK / peak if peak else 1.0), sample_rate), _name(program, font)
    )


def synthesiser(sound_font: str | os.PathLike | None = None, *, own: bool = False) -> str:
    """The name of what ``render`` would use."""
    return _name(*_fluidsynth_with(sound_font, own))


def _fluidsynth_with(sound_font: str | os.PathLike | None, own: bool) -> tuple[str | None, str | os.PathLike | None]:
    program = None if own else shutil.which("fluidsynth")
    return program, sound_font or os.environ.get(SOUND_FONT) or next(
        (path for path in SOUND_FONTS if Path(path).is_file()), None
    )


def _name(program: str | None, font: str | os.PathLike | None) -> str:
    return f"FluidSynth with {Path(font).name}" if program and font else OWN


def _fluidsynth(score: Score, sample_rate: int, program: str, font: str | os.PathLike) -> Waveform:
    with tempfile.TemporaryDirectory(prefix="megatron-music-") as folder:
        midi, sound = Path(folder, "score.mid"), Path(folder, "score.wav")
        write_midi(score, midi)
        command = [
            program,
            "-ni",
            "-q",
            "-g",
            "0.5",
            "-r",
            str(sample_rate),
            "-F",
            str(sound),
            os.fspath(font),
            str(midi),
        ]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=SECONDS_ALLOWED, check=False, stdin=subprocess.DEVNULL
            )
        except subprocess.TimeoutExpired:
            raise ValueError(
                f"FluidSynth took more than {SECONDS_ALLOWED} s over a score; use another file, or --own"
            ) from None
        if done.returncode or not sound.is_file():
            said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
            raise ValueError(f"FluidSynth could not render with {font} ({said[-1]}); try another SoundFont")
        return resampled(read_pcm16(sound), sample_rate)


def _synthesise(score: Score, sample_rate: int) -> np.ndarray:
    ends = seconds_at(score, np.array([score.last_end_step]))
    samples = np.zeros((2, math.ceil((ends[0] + TAIL_SECONDS) * sample_rate)), np.float32)
    for number, track in enumerate(score.tracks):
        notes = track.notes
        begins, ends = seconds_at(score, notes[:, 0]), seconds_at(score, notes[:, 1])
        place = 0.5 + 0.3 * math.sin(2.4 * number)  # from left to right
        sides = np.array([[math.cos(place * math.pi / 2)], [math.sin(place * math.pi / 2)]], np.float32)
        for begin, end, pitch, velocity in zip(
            begins.tolist(), ends.tolist(), notes[:, 2].tolist(), notes[:, 3].tolist(), strict=True
        ):
            if track.is_drum:
                sound = _drum(DRUMS.get(pitch, TOM), pitch, sample_rate)
            else:
                length = round(min(max(end - begin, 0.02), 30.0) * sample_rate)
                sound = _note(FAMILIES[track.program // 8], pitch, length, sample_rate)
            first = round(begin * sample_rate)
            sound = sound[: samples.shape[1] - first]
            samples[:, first : first + len(sound)] += sides * (velocity / 127) ** 1.5 * sound
    return samples


@lru_cache(maxsize=512)
def _note(timbre: Timbre, pitch: int, length: int, sample_rate: int) -> np.ndarray:
    """A note of full loudness, its release after it (float32)."""
    frequency = 440.0 * 2 ** ((pitch - 69) / 12)
    time = np.arange(length + round(timbre.release * sample_rate), dtype=np.float32) / sample_rate
    phase = 2 * np.pi * frequency * time
    if timbre.vibrato:
        depth = frequency * (2 ** (timbre.vibrato / 12) - 1) / _VIBRATO_HZ
        phase += depth * (1 - np.cos(2 * np.pi * _VIBRATO_HZ * time)) * np.minimum(time / 0.3, 1)
    sound = np.zeros_like(time)
    for number, loudness in enumerate(timbre.harmonics, start=1):
        multiple = number * math.sqrt(1 + timbre.stretch * number**2)
        if loudness and frequency * multiple < 0.45 * sample_rate:
            sound += loudness * np.sin(multiple * phase)
    sound /= math.sqrt(sum(loudness**2 for loudness in timbre.harmonics))
    if timbre.breath:
        sound += timbre.breath * np.random.default_rng(pitch).standard_normal(len(time)).astype(np.float32)
    envelope = timbre.sustain + (1 - timbre.sustain) * np.exp(-np.maximum(time - timbre.attack, 0) / timbre.decay)
    envelope *= np.minimum(time / timbre.attack, 1)
    envelope[length:] *= np.linspace(1, 0, len(time) - length, dtype=np.float32)
    return (sound * envelope).astype(np.float32)


@lru_cache(maxsize=128)
def _drum(drum: Drum, pitch: int, sample_rate: int) -> np.ndarray:
    longest = 5 * max(drum.tone_decay, drum.noise_decay)
    time = np.arange(round(longest * sample_rate), dtype=np.float32) / sample_rate
    frequency = np.minimum(drum.frequency * (1 + np.exp(-time / 0.03)), 0.45 * sample_rate)
    phase = 2 * np.pi * np.cumsum(frequency) / sample_rate
    noise = np.random.default_rng(pitch).standard_normal(len(time)).astype(np.float32)
    sound = (
        drum.tone * np.exp(-time / drum.tone_decay) * np.sin(phase)
        + drum.noise * np.exp(-time / drum.noise_decay) * noise
    )
    return sound.astype(np.float32)
