"""mmmtrack once more, as a plain walk down the grammar: what the array encoder is tested against."""

import itertools

from megatron_music.music.score import Score, Track
from megatron_music.music.tempo import tempo_bin
from megatron_music.tokens.encoding import Encoding


def encode_piece(score: Score, encoding: Encoding = Encoding(), labels: tuple[str, ...] = ()) -> str:
    """Tokens of a quantised score whose notes already obey the bar-line policy; carry if they cross bars."""
    lines = score.bar_starts.tolist()
    attributes = [_attributes(score, step, encoding) for step in lines[:-1]]
    words = ["PIECE_START", *labels]
    if attributes:
        words += reversed(attributes[0])
    for track in score.tracks:
        words += _track(track, lines, attributes, encoding)
    return " ".join(words)


def _attributes(score: Score, step: int, encoding: Encoding) -> list[str]:
    """Meter and tempo in force at a step."""
    words = []
    if encoding.writes_meters:
        _, numerator, denominator = [s for s in score.time_signatures if s.start_step <= step][-1]
        words.append(f"TIME_SIGNATURE={numerator}/{denominator}")
    if encoding.tempo:
        words.append(f"TEMPO={tempo_bin([t for t in score.tempos if t.start_step <= step][-1].quarters_per_minute)}")
    return words


def _track(track: Track, lines: list[int], attributes: list[list[str]], encoding: Encoding) -> list[str]:
    name = track.voice or ("DRUMS" if track.is_drum else str(track.program))
    words = ["TRACK_START", f"INST={name}"]
    if encoding.density:
        words.append(_density(len(track), encoding.density_bins))
    for bar, (first, end) in enumerate(itertools.pairwise(lines)):
        changed = [word for word in attributes[bar] if bar and word not in attributes[bar - 1]]
        words += _bar(track, first, end, changed, encoding)
    return [*words, "TRACK_END"]


def _density(notes: int, bins: tuple[int, ...]) -> str:
    return f"DENSITY={sum(notes >= limit for limit in bins)}"


def _bar(track: Track, first: int, end: int, changed: list[str], encoding: Encoding) -> list[str]:
    struck = [note for note in track if first <= note.start_step < end]
    words, now = ["BAR_START", *changed], first
    if encoding.bar_density:
        words.append(_density(len(struck), encoding.bar_density_bins))
    events = [(note.start_step, 1, note.pitch, note.velocity) for note in struck]
    events += [(note.end_step, 0, note.pitch, 0) for note in track if first < note.end_step <= end]
    for step, is_on, pitch, velocity in sorted(events):
        while step > now:
            rest = min(step - now, 48)
            words.append(f"TIME_DELTA={rest}")
            now += rest
        if is_on and encoding.velocity:
            words.append(f"VELOCITY={velocity // 4}")
        words.append(f"{'NOTE_ON' if is_on else 'NOTE_OFF'}={pitch}")
    return [*words, "BAR_END"]
