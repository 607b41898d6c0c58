"""mmmtrack windows in plain Python over miditoolkit: one function a level of the grammar, as such encoders are usually
written.
"""

from pathlib import Path

import miditoolkit

STEPS_PER_BAR, BARS, HOP = 16, 4, 1


def encode_file(path: Path) -> list[list[str]]:
    """The token windows of a file, 4 bars, hop 1, bars of 4/4 from its start, notes split at bar lines."""
    midi = miditoolkit.MidiFile(str(path))
    tracks = [_notes(instrument, midi.ticks_per_beat) for instrument in midi.instruments]
    last = max((end for notes in tracks for _, end, _ in notes), default=0)
    bars = -(-last // STEPS_PER_BAR)
    cut = [_by_bar(notes, bars) for notes in tracks]
    names = ["DRUMS" if instrument.is_drum else str(instrument.program) for instrument in midi.instruments]
    return [_piece(names, cut, first) for first in range(0, bars - BARS + 1, HOP)]


def _notes(instrument, ticks: int) -> list[tuple[int, int, int]]:
    notes = {}
    for note in instrument.notes:
        start, end = (int(8 * tick + ticks) // (2 * ticks) for tick in (note.start, note.end))
        key = start, note.pitch
        notes[key] = max(notes.get(key, 0), end, start + 1)
    return [(start, end, pitch) for (start, pitch), end in sorted(notes.items())]


def _by_bar(notes, bars: int) -> list[list[tuple[int, int, int]]]:
    cut = [[] for _ in range(bars)]
    for start, end, pitch in notes:
        for bar in range(start // STEPS_PER_BAR, (end - 1) // STEPS_PER_BAR + 1):
            first = bar * STEPS_PER_BAR
            cut[bar].append((max(start, first) - first, min(end, first + STEPS_PER_BAR) - first, pitch))
    return cut


def _piece(names, cut, first: int) -> list[str]:
    words = ["PIECE_START"]
    for name, bars in zip(names, cut, strict=True):
        window = bars[first : first + BARS]
        if any(window):
            words += _track(name, window)
    return words


def _track(name: str, bars) -> list[str]:
    words = ["TRACK_START", f"INST={name}"]
    for bar in bars:
        words += _bar(bar)
    return [*words, "TRACK_END"]


def _bar(notes) -> list[str]:
    words, now = ["BAR_START"], 0
    events = [(start, 1, pitch) for start, _, pitch in notes] + [(end, 0, pitch) for _, end, pitch in notes]
    for step, is_on, pitch in sorted(events):
        if step > now:
            words.append(f"TIME_DELTA={step - now}")
            now = step
        words.append(f"NOTE_ON={pitch}" if is_on else f"NOTE_OFF={pitch}")
    return [*words, "BAR_END"]
