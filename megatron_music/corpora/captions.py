"""What a score says of itself in words: instruments, tempo, key, density, register, mood, and captions made of them.

A caption tells some of the facts in one of many ways, so that one caption is true of many pieces and one piece has many
true captions. Sources: the key's profiles are those of Krumhansl and Kessler 1982.
"""

import math
import random
from dataclasses import dataclass

import numpy as np

from megatron_music.music.score import Score
from megatron_music.music.tempo import seconds_at

FAMILIES = (
    "piano",
    "bells",
    "organ",
    "guitar",
    "bass",
    "strings",
    "choir",
    "brass",
    "reeds",
    "flute",
    "synth lead",
    "synth pad",
    "synth effects",
    "plucked folk strings",
    "percussion",
    "sound effects",
)
DRUMS = "drums"
NOTE_NAMES = ("C", "C sharp", "D", "E flat", "E", "F", "F sharp", "G", "A flat", "A", "B flat", "B")
_MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
_MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])
# The lowest value of each word; the words between are said of what lies in between.
TEMPO_WORDS = ((0, "slow"), (84, "moderate"), (126, "fast"))  # quarters a minute
DENSITY_WORDS = ((0, "sparse"), (4, "flowing"), (10, "dense"))  # notes a second
REGISTER_WORDS = ((0, "low"), (54, "middle"), (69, "high"))  # mean pitch


@dataclass(frozen=True)
class Facts:
    """What captions tell."""

    instruments: tuple[str, ...]  # families, the one with the most notes first
    quarters_per_minute: float
    tempo: str
    key: str  # as in "E flat major"
    notes_per_second: float
    density: str
    register: str
    meter: str  # as in "3/4"
    moods: tuple[str, ...]


def facts_of(score: Score) -> Facts:
    """What is true of a score with notes.

    Raises:
        ValueError: it has none.
    """
    if not score.num_notes:
        raise ValueError("the score has no notes to describe; use another file")
    names: dict[str, int] = {}
    for track in score.tracks:
        if len(track):
            name = DRUMS if track.is_drum else FAMILIES[track.program // 8]
            names[name] = names.get(name, 0) + len(track)
    seconds = seconds_at(score, np.array([score.last_end_step]))[0]
    # Half of a piece's time passes at no more than this tempo.
    tempo = _median_tempo(score)
    key, is_major = _key(score)
    pitched = [track.notes for track in score.tracks if len(track) and not track.is_drum]
    pitch = float(np.concatenate(pitched)[:, 2].mean()) if pitched else 60.0
    per_second = score.num_notes / max(float(seconds), 1e-6)
    signature = score.time_signatures[0]
    speed, density = _word(TEMPO_WORDS, tempo), _word(DENSITY_WORDS, per_second)
    return Facts(
        instruments=tuple(sorted(names, key=lambda name: (-names[name], name))),
        quarters_per_minute=tempo,
        tempo=speed,
        key=key,
        notes_per_second=per_second,
        density=density,
        register=_word(REGISTER_WORDS, pitch),
        meter=f"{signature.numerator}/{signature.denominator}",
        moods=_moods(speed, is_major),
    )


def captions(facts: Facts, seed: int, count: int) -> list[str]:
    """Captions that differ, each true, the same ones for the same seed; fewer where there are not so many."""
    chance, found = random.Random(seed), {}
    for _ in range(20 * count):
        found[_caption(facts, chance)] = None
        if len(found) == count:
            break
    return list(found)


_TEMPO_PHRASES = {
    "slow": ("slow", "unhurried", "at a slow tempo"),
    "moderate": ("moderate", "at a walking pace", "at a moderate tempo"),
    "fast": ("fast", "quick", "at a fast tempo"),
}
_DENSITY_PHRASES = {
    "sparse": ("sparse", "with few notes"),
    "flowing": ("flowing",),
    "dense": ("dense", "with many notes"),
}
_REGISTER_PHRASES = {
    "low": ("low", "in a low register"),
    "middle": ("in the middle register",),
    "high": ("high", "in a high register"),
}
_FRAMES = (
    "{before} {who} music {after}",
    "a {before} piece for {who} {after}",
    "{who}, {before} {after}",
    "{before} {who} {after}",
)


def _caption(facts: Facts, chance: random.Random) -> str:
    who = " and ".join(facts.instruments[:3])
    phrases = [chance.choice(_TEMPO_PHRASES[facts.tempo])]
    if chance.random() < 0.35:
        phrases.append(f"at {round(facts.quarters_per_minute)} beats per minute")
    for share, phrase in (
        (0.35, chance.choice(_DENSITY_PHRASES[facts.density])),
        (0.35, chance.choice(_REGISTER_PHRASES[facts.register])),
        (0.35, f"in {facts.key}"),
        (0.2, f"in {facts.meter}"),
        (0.35, chance.choice(facts.moods)),
    ):
        if chance.random() < share:
            phrases.append(phrase)
    before = [phrase for phrase in phrases if " " not in phrase]
    after = [phrase for phrase in phrases if " " in phrase]
    words = chance.choice(_FRAMES).format(before=", ".join(before), who=who, after=", ".join(after))
    return " ".join(words.replace(" ,", ",").split()).strip(" ,").replace("a  piece", "a piece")


def _word(words: tuple[tuple[int, str], ...], value: float) -> str:
    return [word for least, word in words if value >= least][-1]


def _median_tempo(score: Score) -> float:
    starts = [tempo.start_step for tempo in score.tempos]
    limits = seconds_at(score, np.array([*starts, max(score.last_end_step, starts[-1] + 1)]))
    spans = sorted(zip([tempo.quarters_per_minute for tempo in score.tempos], np.diff(limits), strict=True))
    half, passed = sum(span for _, span in spans) / 2, 0.0
    for tempo, span in spans:  # noqa: B007 (the last one is what is wanted)
        passed += span
        if passed >= half:
            break
    return float(tempo)


def _key(score: Score) -> tuple[str, bool]:
    weights = np.zeros(12)
    for track in score.tracks:
        if len(track) and not track.is_drum:
            np.add.at(weights, track.notes[:, 2] % 12, track.notes[:, 1] - track.notes[:, 0])
    best = max(
        (
            (_likeness(np.roll(weights, -tonic), profile), is_major, tonic)
            for is_major, profile in ((True, _MAJOR), (False, _MINOR))
            for tonic in range(12)
        )
    )
    return f"{NOTE_NAMES[best[2]]} {'major' if best[1] else 'minor'}", best[1]


def _likeness(weights: np.ndarray, profile: np.ndarray) -> float:
    weights, profile = weights - weights.mean(), profile - profile.mean()
    size = math.sqrt(float((weights**2).sum() * (profile**2).sum()))
    return float(weights @ profile) / size if size else 0.0


def _moods(tempo: str, is_major: bool) -> tuple[str, ...]:
    if is_major:
        return {"slow": ("calm", "peaceful"), "moderate": ("warm", "gentle"), "fast": ("joyful", "bright")}[tempo]
    return {"slow": ("sad", "solemn"), "moderate": ("serious", "pensive"), "fast": ("restless", "tense")}[tempo]
