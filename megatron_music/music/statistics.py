"""Numbers that describe music as music: which pitches and lengths, how full, how like itself.

They say whether two sets of pieces are alike in these respects, and nothing about whether a piece is good. Drums are no
pitches: they count in ``note_density`` and ``self_similarity`` alone. Knows nothing about tokens, models or files.
"""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from megatron_music.music.score import Score

# Both grids, 4 and 12 steps a quarter, are whole numbers of these.
TICKS_PER_QUARTER = 12
LONGEST = 4 * TICKS_PER_QUARTER  # a whole note


def pitch_class_histogram(scores: Iterable[Score]) -> np.ndarray:
    """The share of the notes that are C, C sharp, ... B (float64, [12]); it sums to 1, or is all 0 without notes."""
    counts = np.zeros(12)
    for score in scores:
        counts += np.bincount(_pitched(score)[2] % 12, minlength=12)
    return _shares(counts)


def duration_histogram(scores: Iterable[Score]) -> np.ndarray:
    """The share of the notes that last 1, 2, ... 48 twelfths of a quarter, or longer (float64, [49]).

    Lengths are rounded to the nearest twelfth, halves up, the shortest to one. It sums to 1, or is all 0 without notes.
    """
    counts = np.zeros(LONGEST + 1)
    for score in scores:
        start, end, _ = _pitched(score)
        lengths = np.clip(_in_ticks(end - start, score.steps_per_quarter), 1, LONGEST + 1)
        counts += np.bincount(lengths - 1, minlength=LONGEST + 1)
    return _shares(counts)


def total_variation(shares: np.ndarray, others: np.ndarray) -> float | None:
    """The distance of two histograms: half the sum of differences, in [0, 1]; None where one has no notes.

    It is the share of the notes that would have to change for the two to be the same. 0: alike; 1: nothing in common.
    """
    if not shares.any() or not others.any():
        return None
    return float(abs(shares - others).sum() / 2)


def self_similarity(scores: Iterable[Score]) -> float | None:
    """How like each bar is to the next, in [0, 1]: 1 where all bars are the same, 0 where none shares a note.

    For each two neighbouring bars: notes that are in both, over notes that are in either (Jaccard), where a note is its
    place in the bar in twelfths of a quarter, its pitch, and whether it is of the drums. The mean of all pairs of all
    scores in which anything is struck; None without such a pair. Wu and Yang's grooving similarity (arXiv:2008.01307)
    compares bars in the same way by onsets alone.
    """
    found = []
    for score in scores:
        bars = _notes_of_bars(score)
        found += [len(one & next_) / len(one | next_) for one, next_ in itertools.pairwise(bars) if one | next_]
    return float(np.mean(found)) if found else None


def note_density(scores: Iterable[Score]) -> float | None:
    """Notes struck a bar, all tracks together: all notes over all bars, the last bar of a piece counted whole."""
    notes, bars = np.sum([(score.num_notes, score.num_bars) for score in scores] or [(0, 0)], axis=0)
    return float(notes / bars) if bars else None


def polyphony(scores: Iterable[Score]) -> float | None:
    """Notes that sound at once, on average over the time in which any does: 1 or more; None without notes.

    Drums are left out, as in MusPy's measure of this name (arXiv:2008.01951).
    """
    sounding, covered = 0.0, 0.0
    for score in scores:
        start, end, _ = _pitched(score)
        order = np.argsort(start, kind="stable")
        start, end = start[order], end[order]
        reached = np.maximum.accumulate(end) if len(end) else end
        # Of each note the part that no earlier one has covered.
        new = end - np.maximum(start, np.append(start[:1], reached[:-1])) if len(end) else end
        sounding += (end - start).sum() / score.steps_per_quarter
        covered += np.maximum(new, 0).sum() / score.steps_per_quarter
    return float(sounding / covered) if covered else None


def measure(scores: Sequence[Score], reference: Sequence[Score]) -> dict[str, float | None]:
    """Everything above of a set of pieces, the histograms as distances (``total_variation``) to the reference's."""
    return {
        "pitch_class_distance": total_variation(pitch_class_histogram(scores), pitch_class_histogram(reference)),
        "duration_distance": total_variation(duration_histogram(scores), duration_histogram(reference)),
        "self_similarity": self_similarity(scores),
        "note_density": note_density(scores),
        "polyphony": polyphony(scores),
    }


def _pitched(score: Score) -> np.ndarray:
    """Start, end and pitch of all notes but those of drums (int64, [3, N])."""
    is_drum = np.array([track.is_drum for track in score.tracks], bool)
    columns = score.columns
    return columns[1:4, ~is_drum[columns[0]]] if len(is_drum) else columns[1:4]


def _notes_of_bars(score: Score) -> list[set[tuple[int, int, bool]]]:
    """Place, pitch and drums of the notes struck in each bar; a note of no length at the very end is in the
    last one.
    """
    lines = score.bar_starts
    bars: list[set] = [set() for _ in range(max(score.num_bars, 1))]
    for track in score.tracks:
        start, pitch = track.rows[:, 0], track.rows[:, 2]
        bar = np.minimum(np.searchsorted(lines, start, side="right"), len(bars)) - 1
        places = _in_ticks(start - lines[bar], score.steps_per_quarter)
        for number, place, height in zip(bar.tolist(), places.tolist(), pitch.tolist(), strict=True):
            bars[number].add((place, height, track.is_drum))
    return bars


def _in_ticks(steps: np.ndarray, steps_per_quarter: int) -> np.ndarray:
    return (2 * TICKS_PER_QUARTER * steps + steps_per_quarter) // (2 * steps_per_quarter)


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)
