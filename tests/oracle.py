"""mmmtrack once more, as a plain walk down the grammar: what the array encoder is tested against."""

from megatron_music.music.score import Score, Track


def encode_piece(score: Score, bars: int, density_bins: tuple[int, ...] = ()) -> str:
    """Tokens of a quantised score whose notes already obey the bar-line policy; carry if they cross bars."""
    words = ["PIECE_START"]
    for track in score.tracks:
        words += _track(track, bars, score.steps_per_bar, density_bins)
    return " ".join(words)


def _track(track: Track, bars: int, bar_steps: int, density_bins: tuple[int, ...]) -> list[str]:
    name = track.voice or ("DRUMS" if track.is_drum else str(track.program))
    words = ["TRACK_START", f"INST={name}"]
    if density_bins:
        words.append(f"DENSITY={sum(len(track) >= limit for limit in density_bins)}")
    for bar in range(bars):
        words += _bar(track, bar * bar_steps, (bar + 1) * bar_steps)
    return [*words, "TRACK_END"]


def _bar(track: Track, first: int, end: int) -> list[str]:
    words, now = ["BAR_START"], first
    events = [(note.start_step, 1, note.pitch) for note in track if first <= note.start_step < end]
    events += [(note.end_step, 0, note.pitch) for note in track if first < note.end_step <= end]
    for step, is_on, pitch in sorted(events):
        if step > now:
            words.append(f"TIME_DELTA={step - now}")
            now = step
        words.append(f"{'NOTE_ON' if is_on else 'NOTE_OFF'}={pitch}")
    return [*words, "BAR_END"]
