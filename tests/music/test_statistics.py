"""The measures of music, each by a piece small enough to count in one's head, and their laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import scores, tiny_score

from megatron_music.music.score import Note, Score, TimeSignature, Track
from megatron_music.music.statistics import (
    duration_histogram,
    measure,
    note_density,
    pitch_class_histogram,
    polyphony,
    self_similarity,
    total_variation,
)


def piece(*notes: tuple[int, int, int], steps_per_quarter: int = 4, **options) -> Score:
    """One track of (start, end, pitch)."""
    return Score((Track([Note(*note) for note in notes]),), steps_per_quarter, **options)


def drums(*notes: tuple[int, int, int]) -> Track:
    return Track([Note(*note) for note in notes], is_drum=True)


def shares(histogram: np.ndarray) -> dict[int, float]:
    return {int(place): histogram[place] for place in np.flatnonzero(histogram)}


# Two bars of 4/4: a C major chord of a half note, twice; then C and a C sharp two octaves up, in eighths.
CHORDS = piece((0, 8, 60), (0, 8, 64), (0, 8, 67), (16, 18, 72), (18, 20, 85))


def test_pitch_classes():
    assert shares(pitch_class_histogram([CHORDS])) == {0: 0.4, 1: 0.2, 4: 0.2, 7: 0.2}
    with_drums = Score((*CHORDS.tracks, drums((0, 1, 38))), 4)
    found = pitch_class_histogram([with_drums, piece((0, 1, 61))])
    assert shares(found) == pytest.approx({0: 2 / 6, 1: 2 / 6, 4: 1 / 6, 7: 1 / 6})


def test_durations():
    # In twelfths of a quarter: a half note is 24, an eighth is 6; the first place is a length of 1.
    assert shares(duration_histogram([CHORDS])) == {23: 0.6, 5: 0.4}
    in_ticks = piece((0, 240, 60), (0, 1, 61), (0, 99999, 62), steps_per_quarter=480)
    assert shares(duration_histogram([in_ticks])) == pytest.approx({5: 1 / 3, 0: 1 / 3, 48: 1 / 3})


def test_lengths_do_not_depend_on_the_grid():
    on_twelve = piece((0, 24, 60), (48, 54, 72), steps_per_quarter=12)
    assert shares(duration_histogram([on_twelve])) == {23: 0.5, 5: 0.5}


def test_total_variation():
    half = np.array([0.5, 0.5, 0.0])
    assert total_variation(half, half) == 0 and total_variation(half, np.array([0, 0, 1.0])) == 1
    assert total_variation(half, np.array([0.0, 0.5, 0.5])) == 0.5
    assert total_variation(half, np.zeros(3)) is None


def test_self_similarity():
    bar = [(0, 4, 60), (4, 8, 62), (8, 16, 64)]
    later = lambda bars, notes: [(start + 16 * bars, end + 16 * bars, pitch) for start, end, pitch in notes]
    assert self_similarity([piece(*bar, *later(1, bar), *later(2, bar))]) == 1
    assert self_similarity([piece(*bar, *later(1, [(0, 4, 61)]))]) == 0
    # Two of four notes are in both bars; the lengths do not matter.
    assert self_similarity([piece(*bar, *later(1, [(0, 1, 60), (4, 5, 62), (8, 9, 65)]))]) == 0.5
    # Beside a silent bar 0; two silent ones are no pair.
    assert self_similarity([piece(*bar, *later(2, bar))]) == 0
    assert self_similarity([piece(*bar, *later(3, bar))]) == 0
    assert self_similarity([piece(*bar)]) is None and self_similarity([]) is None
    # A drum on the place of a note is another note.
    assert self_similarity([Score((Track([Note(0, 4, 60)]), drums((16, 17, 60))), 4)]) == 0


def test_bars_are_those_of_the_meter():
    waltz = piece((0, 4, 60), (12, 16, 60), time_signatures=(TimeSignature(0, 3, 4),))
    assert self_similarity([waltz]) == 1 and note_density([waltz]) == 1
    assert self_similarity([piece((0, 4, 60), (12, 16, 60), length_steps=32)]) == 0


def test_a_note_of_no_length_at_the_end():
    assert self_similarity([piece((0, 0, 60))]) is None
    assert self_similarity([piece((0, 4, 60), (16, 16, 60), length_steps=16)]) is None


def test_note_density():
    assert note_density([CHORDS]) == 2.5
    assert note_density([CHORDS, Score((drums((0, 1, 38)),), 4)]) == 2
    assert note_density([]) is None


def test_polyphony():
    # Three notes for 8 steps and one for 4 steps; the silence between does not count.
    assert polyphony([CHORDS]) == (3 * 8 + 4) / 12
    assert polyphony([piece((0, 8, 60), (4, 12, 64))]) == 16 / 12
    assert polyphony([piece((0, 12, 60), (2, 4, 64), (6, 8, 65))]) == 16 / 12
    assert polyphony([Score((drums((0, 4, 38)), *piece((0, 4, 60)).tracks), 4)]) == 1
    assert polyphony([Score((drums((0, 4, 38)),), 4)]) is None and polyphony([]) is None
    assert polyphony([tiny_score(2)]) == 4


def test_all_of_them():
    assert measure([tiny_score(4)], [tiny_score(4)]) == {
        "pitch_class_distance": 0,
        "duration_distance": 0,
        "self_similarity": self_similarity([tiny_score(4)]),
        "note_density": 16,
        "polyphony": 4,
    }
    assert set(measure([], [tiny_score(1)]).values()) == {None}


@settings(max_examples=30)
@given(st.lists(scores(), max_size=3), st.lists(scores(), max_size=3))
def test_ranges(some, others):
    found = measure(some, others)
    for name in ("pitch_class_distance", "duration_distance", "self_similarity"):
        assert found[name] is None or 0 <= found[name] <= 1 + 1e-12
    assert found["polyphony"] is None or found["polyphony"] >= 1
    for histogram in (pitch_class_histogram(some), duration_histogram(some)):
        assert histogram.sum() == pytest.approx(1) or not histogram.any()


@settings(max_examples=40)
@given(scores(steps_per_quarter=12, max_steps=200))
def test_polyphony_step_by_step(score):
    at_once = np.zeros(score.length_steps, int)
    for track in score.tracks:
        for note in track if not track.is_drum else ():
            at_once[note.start_step : note.end_step] += 1
    found = polyphony([score])
    assert found == pytest.approx(at_once[at_once > 0].mean()) if at_once.any() else found is None
