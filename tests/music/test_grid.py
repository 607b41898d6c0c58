import numpy as np
import pytest
from hypothesis import given
from tiny import BAR, scores, tiny_score

from megatron_music.music.grid import quantize, sections, slice_bars, slice_steps
from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track
from megatron_music.music.tempo import tempo_bin, tempo_of_bin


def quantized_notes(*notes: tuple, ticks: int = 480, steps_per_quarter: int = 4) -> list[tuple]:
    score = quantize(Score((Track([Note(*note) for note in notes]),), ticks), steps_per_quarter)
    return [tuple(note)[:3] for note in score.tracks[0]]


@pytest.mark.parametrize(("ticks", "step"), [(0, 0), (59, 0), (60, 1), (61, 1), (179, 1), (180, 2), (480, 4)])
def test_halves_round_up(ticks, step):
    assert quantized_notes((ticks, ticks + 480, 60))[0][0] == step


def test_twelve_steps_hold_triplets():
    assert quantized_notes((0, 160, 60), (160, 320, 62), steps_per_quarter=12) == [(0, 4, 60), (4, 8, 62)]


def test_a_note_lasts_at_least_one_step():
    assert quantized_notes((0, 0, 60), (130, 140, 62)) == [(0, 1, 60), (1, 2, 62)]


def test_of_equal_onsets_the_longest_stays():
    assert quantized_notes((0, 240, 60), (10, 480, 60)) == [(0, 4, 60)]


def test_a_note_ends_where_its_pitch_is_struck_again():
    assert quantized_notes((0, 960, 60), (480, 720, 60)) == [(0, 4, 60), (4, 6, 60)]


def test_what_was_lost_is_reported():
    notes = [Note(0, 480, 60), Note(10, 240, 60), Note(30, 40, 64), Note(480, 960, 67), Note(720, 960, 67)]
    report = quantize(Score((Track(notes),), 480)).quantization
    assert (report.notes_in, report.notes_out, report.notes_lost) == (5, 4, 1)
    assert (report.notes_shortened, report.notes_lengthened, report.onsets_on_grid) == (1, 1, 3)
    assert report.max_onset_error == pytest.approx(30 / 120) and report.mean_onset_error == pytest.approx(40 / 120 / 5)


@given(scores())
def test_quantising_twice_changes_nothing(score):
    once = quantize(score)
    assert quantize(once) == once


@given(scores())
def test_the_grid_holds_what_it_promises(score):
    quantized = quantize(score)
    assert quantized.length_steps % BAR == 0 and quantized.length_steps - BAR < quantized.last_end_step
    for track in quantized.tracks:
        for pitch in set(track.notes[:, 2].tolist()):
            rows = track.notes[track.notes[:, 2] == pitch]
            assert np.all(rows[:, 1] > rows[:, 0]) and np.all(rows[1:, 0] >= rows[:-1, 1])
    report = quantized.quantization
    assert report.notes_in == score.num_notes and report.notes_out == quantized.num_notes
    assert report.max_onset_error <= 0.5


def test_no_notes_is_no_piece():
    with pytest.raises(ValueError, match="no notes"):
        quantize(Score((Track(),), 4))


def test_slices():
    score = Score((Track([Note(0, 20, 60), Note(30, 40, 62)]), Track([Note(0, 4, 40)])), 4)
    window = slice_bars(score, 1, 1)
    assert [list(track) for track in window.tracks] == [[Note(0, 4, 60), Note(14, 16, 62)]]
    assert len(slice_steps(score, 16, 32).tracks) == 2


@pytest.mark.parametrize(
    ("signatures", "stretches"),
    [
        ([(0, 4, 4)], [(0, 128)]),
        ([(0, 3, 4)], []),
        ([(0, 1, 4)], []),
        ([(0, 4, 4), (32, 4, 4)], [(0, 128)]),  # repeated on a bar line: nothing new
        ([(0, 4, 4), (40, 4, 4)], [(0, 40), (40, 88)]),  # bars restart here
        ([(0, 4, 4), (32, 3, 4), (56, 4, 4)], [(0, 32), (56, 72)]),
        ([(32, 3, 4)], [(0, 32)]),  # MIDI begins in 4/4
        ([(0, 4, 4), (0, 3, 4)], []),  # the last of two at one time
    ],
)
def test_the_stretches_in_four_four(signatures, stretches):
    notes = [Note(step, step + 4, 60) for step in range(0, 128, 4)]
    score = Score((Track(notes),), 4, tuple(TimeSignature(*s) for s in signatures))
    found = sections(score)
    assert [stretch.length_steps for stretch in found] == [length for _, length in stretches]
    assert [stretch.num_notes for stretch in found] == [length // 4 for _, length in stretches]


@pytest.mark.parametrize(
    ("signatures", "stretches"),
    [
        ([(0, 4, 4), (32, 3, 4), (56, 6, 8)], [[(0, 4, 4), (32, 3, 4), (56, 6, 8)]]),  # on bar lines: one stretch
        ([(0, 4, 4), (30, 3, 4), (54, 4, 4)], [[(0, 4, 4)], [(0, 3, 4), (24, 4, 4)]]),  # inside a bar: another
        ([(0, 7, 8), (28, 4, 4)], [[(0, 4, 4)]]),  # 7/8 is not wanted
        ([(0, 3, 4), (24, 7, 8), (38, 3, 4)], [[(0, 3, 4)], [(0, 3, 4)]]),
        ([(0, 3, 4), (24, 1, 4)], [[(0, 3, 4)]]),  # 1/4 is unknown: as if it were not there
        (
            [(0, 1, 4), (8, 3, 4)],
            [[(0, 4, 4)], [(0, 3, 4)]],
        ),  # ... so that the piece begins in 4/4, and 3/4 inside a bar
    ],
)
def test_the_stretches_in_several_meters(signatures, stretches):
    notes = [Note(step, step + 4, 60) for step in range(0, 128, 4)]
    score = Score((Track(notes),), 4, tuple(TimeSignature(*s) for s in signatures))
    found = sections(score, ((4, 4), (3, 4), (6, 8)), unknown=((1, 4),))
    assert [[tuple(signature) for signature in stretch.time_signatures] for stretch in found] == stretches


def test_bars_of_any_meter():
    signatures = [TimeSignature(0, 3, 4), TimeSignature(24, 7, 8), TimeSignature(52, 5, 4)]
    score = quantize(Score((Track([Note(0, 60, 60)]),), 4, tuple(signatures)), meters=True)
    assert score.bar_starts.tolist() == [0, 12, 24, 38, 52, 72]
    assert score.num_bars == 5 and score.length_steps == 72
    assert slice_bars(score, 1, 2).time_signatures == (TimeSignature(0, 3, 4), TimeSignature(12, 7, 8))
    assert quantize(score).bar_starts.tolist() == [0, 16, 32, 48, 64]  # without meters: bars of 4/4


def test_a_meter_inside_a_bar_is_refused():
    score = Score((Track([Note(0, 60, 60)]),), 4, (TimeSignature(0, 4, 4), TimeSignature(30, 3, 4)))
    with pytest.raises(ValueError, match="3/4 begins inside a bar; cut the piece with `sections`"):
        quantize(score, meters=True)
    with pytest.raises(ValueError, match="a bar of 5/32 is no whole number of steps"):
        quantize(Score((Track([Note(0, 60, 60)]),), 4, (TimeSignature(0, 5, 32),)), meters=True)


def test_tempo_and_velocity_in_bins():
    notes = [Note(0, 480, 60, 1), Note(480, 960, 60, 127), Note(0, 480, 64, 64), Note(0, 480, 64, 70)]
    tempos = (Tempo(0, 100.0), Tempo(900, 60.0), Tempo(2400, 500.0), Tempo(3840, 60.5))
    score = Score((Track([*notes, Note(7680, 8000, 60, 80)]),), 480, tempos=tempos)
    quantized = quantize(score, velocity=True, tempo=True)
    assert [tuple(note)[3] for note in quantized.tracks[0]] == [2, 70, 126, 82]  # of equals the loudest
    # Bars start at 0, 1920, 3840 ...: 100, then 60; 500 comes and goes within a bar, and 60.5 is in the bin of 60.
    assert quantized.tempos == (Tempo(0, tempo_of_bin(tempo_bin(100))), Tempo(16, tempo_of_bin(tempo_bin(60))))
    assert [tempo_bin(tempo_of_bin(k)) for k in range(32)] == list(range(32))
    assert (tempo_of_bin(0), tempo_of_bin(31)) == (30.0, 240.0)


def test_tracks_compare_by_their_notes():
    first, second = tiny_score(), tiny_score()
    assert first == second and first.tracks[0] != first.tracks[1]
    assert Track([Note(4, 8, 60), Note(0, 4, 62)]) == Track([Note(0, 4, 62), Note(4, 8, 60)])
    with pytest.raises(ValueError, match=r"General MIDI has 0..127"):
        Track(program=128)
    with pytest.raises(ValueError, match="voice is 'MEZZO'"):
        Track(voice="MEZZO")
