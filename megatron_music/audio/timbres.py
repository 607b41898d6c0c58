"""How instruments of our own synthesiser sound: sixteen families of General MIDI, and drums. Numbers and no sound."""

from typing import NamedTuple


class Timbre(NamedTuple):
    """A note's harmonics and how loud it is while it lasts."""

    harmonics: tuple[float, ...]  # loudness of the fundamental and what is above it
    attack: float  # seconds to full loudness
    decay: float  # seconds in which what is above the sustained loudness falls to 1/e
    sustain: float  # share of full loudness that stays
    release: float  # seconds in which it fades when it ends
    vibrato: float = 0.0  # in semitones, 5.5 times a second
    breath: float = 0.0  # loudness of noise
    stretch: float = 0.0  # how far harmonics stray from whole numbers: bells


def _falling(count: int, power: float, step: int = 1) -> tuple[float, ...]:
    return tuple(0.0 if (number - 1) % step else number**-power for number in range(1, count + 1))


# By program // 8: piano, chromatic percussion, organ, guitar, bass, strings, ensemble, brass, reed, pipe, lead, pad,
# effects, ethnic, percussive, sound effects.
FAMILIES = (
    Timbre(_falling(10, 1.4), 0.004, 0.6, 0.0, 0.12),
    Timbre((1.0, 0.0, 0.1, 0.45, 0.0, 0.0, 0.0, 0.0, 0.0, 0.12), 0.002, 0.35, 0.0, 0.3, stretch=0.004),
    Timbre((1.0, 0.8, 0.5, 0.6, 0.1, 0.35, 0.0, 0.4), 0.02, 1.0, 1.0, 0.06),
    Timbre(_falling(12, 1.0), 0.003, 0.35, 0.0, 0.08),
    Timbre(_falling(6, 1.8), 0.006, 0.8, 0.2, 0.08),
    Timbre(_falling(14, 1.0), 0.09, 0.5, 0.85, 0.12, vibrato=0.18),
    Timbre((0.8, 1.0, 0.7, 0.25, 0.1, 0.15, 0.1), 0.14, 0.5, 0.9, 0.2, vibrato=0.25, breath=0.02),
    Timbre((0.7, 1.0, 0.9, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.15), 0.05, 0.2, 0.75, 0.08),
    Timbre(_falling(11, 0.8, step=2), 0.035, 0.3, 0.9, 0.07, vibrato=0.05),
    Timbre((1.0, 0.25, 0.08, 0.02), 0.06, 0.4, 0.9, 0.1, vibrato=0.12, breath=0.06),
    Timbre(_falling(15, 1.0, step=2), 0.005, 0.4, 0.8, 0.05),
    Timbre((1.0, 0.5, 0.35, 0.2, 0.1), 0.35, 0.5, 1.0, 0.4, vibrato=0.1),
    Timbre((1.0, 0.3, 0.5, 0.2, 0.3), 0.2, 0.8, 0.5, 0.4, vibrato=0.3, breath=0.08),
    Timbre(_falling(12, 0.7), 0.002, 0.22, 0.0, 0.06, stretch=0.001),
    Timbre((1.0, 0.4, 0.5, 0.3, 0.2), 0.002, 0.12, 0.0, 0.05, stretch=0.02),
    Timbre((0.3, 0.1), 0.05, 0.3, 0.4, 0.2, breath=0.8),
)


class Drum(NamedTuple):
    """A stroke: a falling sine and noise, each with its own decay in seconds."""

    frequency: float  # Hz
    tone: float  # loudness of the sine
    tone_decay: float
    noise: float
    noise_decay: float


KICK = Drum(55.0, 1.0, 0.12, 0.1, 0.02)
SNARE = Drum(190.0, 0.4, 0.06, 0.8, 0.1)
HAT = Drum(6000.0, 0.05, 0.02, 0.5, 0.03)
CYMBAL = Drum(4000.0, 0.05, 0.2, 0.6, 0.5)
TOM = Drum(110.0, 0.9, 0.15, 0.1, 0.04)
# By the pitch of General MIDI's percussion map; others are toms.
DRUMS = {35: KICK, 36: KICK, 37: SNARE, 38: SNARE, 39: SNARE, 40: SNARE, 42: HAT, 44: HAT, 46: HAT} | dict.fromkeys(
    (49, 51, 52, 53, 55, 57, 59), CYMBAL
)
