"""Bars of a person's piece written anew, with a model of random weights."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import encodings, scores, tiny_score
from tiny_gpt import RandomModel

from megatron_music.cli.entry import main
from megatron_music.generation.infill import Filling, parse_bars
from megatron_music.generation.midi import Composer
from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track
from megatron_music.music.tempo import tempo_bin
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding


def composer(encoding: Encoding, max_tokens: int = 4000) -> Composer:
    return Composer(None, encoding, max_tokens, next_logits=RandomModel)


def bar_of(score: Score, start: int, steps_per_quarter: int) -> int:
    """The bar in which a time in ticks lies once it is moved to the grid."""
    lines, ticks = score.bar_starts.tolist(), score.steps_per_quarter
    steps = [(2 * steps_per_quarter * (start - line) + ticks) // (2 * ticks) for line in lines]
    return max(bar for bar, step in enumerate(steps) if bar == 0 or step >= 0)


@settings(max_examples=80, deadline=None)
@given(scores(max_steps=12_000, any_meter=True), encodings(meters=("all",), infill=True), st.data())
def test_all_else_stays_note_for_note(score, encoding, data):
    lines = score.bar_starts.tolist()
    whole = [
        bar
        for bar, (start, end) in enumerate(itertools.pairwise(lines))
        if (s := [s for s in score.time_signatures if s.start_step <= start][-1])
        and end - start == 1920 * s.numerator // s.denominator
        and encoding.steps_per_bar * s.numerator % s.denominator == 0
    ]
    assume(whole)
    bars = data.draw(
        st.sets(
            st.tuples(st.integers(0, sum(map(bool, map(len, score.tracks))) - 1), st.sampled_from(whole)),
            min_size=1,
            max_size=8,
        )
    )
    instruments = [number for number, track in enumerate(score.tracks) if len(track)]
    before = [track.notes.copy() for track in score.tracks]
    (filled,) = composer(encoding).fill(score, bars, [data.draw(st.integers(0, 1000))])
    assert all((track.notes == notes).all() for track, notes in zip(score.tracks, before, strict=True))
    assert (filled.steps_per_quarter, filled.time_signatures, filled.tempos) == (
        score.steps_per_quarter,
        score.time_signatures,
        score.tempos,
    )
    for number, (old, new) in enumerate(zip(score.tracks, filled.tracks, strict=True)):
        assert (old.program, old.is_drum, old.voice, old.name) == (new.program, new.is_drum, new.voice, new.name)
        chosen = sorted(bar for track, bar in bars if instruments[track] == number)
        kept = []
        for start, end, pitch, velocity in old.notes.tolist():
            bar = bar_of(score, start, encoding.steps_per_quarter)
            if bar not in chosen:
                stops = [lines[place] for place in chosen if start < lines[place] < end]
                kept.append((start, min([end, *stops]), pitch, velocity))
        left = [tuple(row) for row in new.notes.tolist()]
        for note in kept:
            left.remove(note)
        for start, end, _, _ in left:  # what is new lies in the chosen bars
            bar = max(bar for bar, line in enumerate(lines) if line <= start)
            assert bar in chosen and start < end
            while end > lines[bar + 1]:
                bar += 1
                assert bar in chosen and encoding.bar_line == "carry"


def test_fills_are_new_and_a_seeds_own():
    score = tiny_score(6)
    makes = composer(Encoding(infill=True))
    bars = [(1, 2), (1, 3), (3, 5)]
    together = makes.fill(score, bars, [3, 4, 5])
    assert len({str(piece.tracks) for piece in together}) == 3
    assert makes.fill(score, bars, [4]) == [together[1]]
    assert together[0].tracks[0] == score.tracks[0] and together[0].tracks[2] == score.tracks[2]
    assert (together[0].tracks[1].notes[:, 0] // 16 == 2).any() and together[0].tracks[1] != score.tracks[1]


def test_a_region_longer_than_a_window_is_filled_from_left_to_right():
    filling = Filling(tiny_score(12), [(0, bar) for bar in range(2, 11)], Encoding(infill=True))
    windows = []
    while filling.left:
        grammar = filling.next_window(4000)
        first, after, tracks, holes = filling._window
        windows.append((first, after, sorted(bar for _, bar in holes)))
        assert tracks == [0, 1, 2, 3] and len(grammar.holes) == len(holes)
        fill = [v.FILL_START, v.NOTE_ON + 90, v.TIME_DELTA + 16, v.NOTE_OFF + 90, v.FILL_END]
        filling.put([*grammar.prompt, *fill * len(holes), v.DOCUMENT_END])
        if len(windows) == 2:  # the fills before are shown
            assert v.NOTE_ON + 90 in grammar.prompt
    assert windows == [(1, 5, [2, 3, 4]), (4, 8, [5, 6, 7]), (7, 11, [8, 9, 10])]
    notes = filling.score.tracks[0].notes
    assert notes[notes[:, 2] == 90][:, 0].tolist() == [16 * bar for bar in range(2, 11)]
    assert filling.score.tracks[1:] == tiny_score(12).tracks[1:]


def test_around_a_bar_lies_what_is_there():
    for bar, window in ((0, (0, 4)), (5, (4, 8)), (11, (8, 12))):
        filling = Filling(tiny_score(12), [(2, bar)], Encoding(infill=True))
        filling.next_window(4000)
        assert filling._window[:2] == window


def test_where_a_model_has_little_room_the_window_is_smaller():
    filling = Filling(tiny_score(12), [(2, 5)], Encoding(infill=True))
    grammar = filling.next_window(200)
    assert filling._window[1] - filling._window[0] == 3 and len(grammar.prompt) < 200
    with pytest.raises(ValueError, match="bar 6 has too many notes or tracks for a model that reads 20 tokens"):
        filling.next_window(20)


def test_a_silent_stretch_is_filled_and_tracks_without_notes_are_not_counted():
    late = Track(np.add(tiny_score(1).tracks[0].notes, (48, 48, 0, 0)), 40)
    score = Score((Track((), 41), *tiny_score(4).tracks, late), 4)
    filling = Filling(score, [(4, 1)], Encoding(bars=2, infill=True))  # the fifth that has notes, which is silent there
    instruments = [token_id for token_id in filling.next_window(4000).prompt if v.INST <= token_id < v.DENSITY]
    assert instruments[4:] == [v.INST + 40]
    assert filling._window[2] == [1, 2, 3, 4, 5]
    (filled,) = composer(Encoding(bars=2, infill=True)).fill(score, [(4, 1)], [0])
    assert len(filled.tracks[5]) > len(late) and not len(filled.tracks[0])
    assert {track for track, _ in Filling(score, [(None, 1)], Encoding(infill=True)).left} == {1, 2, 3, 4, 5}


def test_of_two_meters_at_one_tick_the_last_holds():
    signatures = (TimeSignature(0, 4, 4), TimeSignature(0, 3, 4))
    score = Score(tiny_score(3).tracks[:1], 4, signatures)
    filling = Filling(score, [(0, 1)], Encoding(meters=("3/4", "4/4"), infill=True))
    left = set(score.tracks[0].notes[:, 0].tolist()) - set(filling.score.tracks[0].notes[:, 0].tolist())
    assert left == {12, 16, 20}


def test_of_two_tempos_at_one_tick_the_last_is_told_to_the_model():
    score = Score(tiny_score(3).tracks[:1], 4, tempos=(Tempo(0, 120.0), Tempo(0, 80.0)))
    prompt = Filling(score, [(0, 1)], Encoding(tempo=True, infill=True)).next_window(4000).prompt
    assert prompt[1] == v.TEMPO + tempo_bin(80.0)


def test_names_are_listed_without_what_a_terminal_acts_on():
    score = Score((Track(), Track(tiny_score(1).tracks[0].notes, 3, name="\x1b[31mPiano\nno")), 4)
    with pytest.raises(ValueError) as error:
        Filling(score, [(5, 0)], Encoding(infill=True))
    assert str(error.value) == r"track 6 is not in the piece; its tracks are 1 \x1b[31mPiano\nno"


def test_as_many_notes_are_asked_for_as_there_were():
    encoding = Encoding(bars=2, density=3, density_bins=(2, 8), bar_density=3, bar_density_bins=(2, 4), infill=True)
    score = Score(
        (Track([Note(0, 4, 60), Note(4, 8, 61), Note(8, 12, 62), Note(16, 20, 60)]), Track([Note(16, 20, 50)])), 4
    )
    prompt = Filling(score, [(0, 0), (1, 0)], encoding).next_window(400).prompt
    assert v.to_text(prompt) == (
        "PIECE_START TRACK_START INST=0 DENSITY=1 BAR_START DENSITY=1 FILL_IN BAR_END "
        "BAR_START DENSITY=0 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END TRACK_END "
        "TRACK_START INST=0 DENSITY=1 BAR_START DENSITY=1 FILL_IN BAR_END "
        "BAR_START DENSITY=0 NOTE_ON=50 TIME_DELTA=4 NOTE_OFF=50 BAR_END TRACK_END"
    )


def test_velocities_are_those_of_the_track_where_the_model_writes_none():
    score = Score((Track(np.add(tiny_score(4).tracks[0].notes, (0, 0, 0, 21))),), 4)
    bars = [(0, 1), (0, 2)]
    for filled in composer(Encoding(infill=True)).fill(score, bars, range(5)):
        assert set(filled.tracks[0].notes[:, 3].tolist()) == {101}
    own = [
        piece.tracks[0].notes for piece in composer(Encoding(infill=True, velocity=True)).fill(score, bars, range(5))
    ]
    assert len({velocity for notes in own for velocity in notes[:, 3].tolist()}) > 1


@pytest.mark.parametrize(
    ("bars", "sentence"),
    [
        ([(4, 0)], "track 5 is not in the piece; its tracks are 1 Soprano, 2 Alto, 3 Tenor, 4 Bass$"),
        ([(0, 6)], "bar 7 is not in the piece; it has 6 bars"),
        ([(0, 1)], "bar 2 is in 3/4 or not a whole bar of it, and cannot be filled by a model of 4/4"),
        ([(0, 2)], "bar 3 is in 4/4 or not a whole bar"),
        ([], "there is no bar to fill; name one of the piece"),
    ],
)
def test_bars_that_cannot_be_filled(bars, sentence):
    signatures = (TimeSignature(0, 4, 4), TimeSignature(16, 3, 4), TimeSignature(28, 4, 4), TimeSignature(36, 4, 4))
    with pytest.raises(ValueError, match=sentence):
        Filling(Score(tiny_score(5).tracks, 4, signatures), bars, Encoding(infill=True))


def test_models_that_have_not_learned_it():
    with pytest.raises(ValueError, match="built with --infill"):
        composer(Encoding()).fill(tiny_score(), [(0, 0)], [0])
    with pytest.raises(ValueError, match="merged tokens cannot be sampled under the grammar yet"):
        composer(Encoding(bpe=128))


def test_words_for_bars():
    assert parse_bars("track 2 bars 3-4; track 1 bar 7") == [(1, 2), (1, 3), (0, 6)]
    assert parse_bars(" Track 1 bars 1, 3 - 4,9 ") == [(0, 0), (0, 2), (0, 3), (0, 8)]
    assert parse_bars("track 1 bar 1;track 1 bars 1-2") == [(0, 0), (0, 1)]
    assert parse_bars("bars 3-4; track 2") == [(None, 2), (None, 3), (1, None)]


def test_a_whole_track_or_a_bar_of_all_tracks():
    score, encoding = tiny_score(6), Encoding(infill=True)
    (track,) = composer(encoding).fill(score, parse_bars("track 2"), [0])
    assert (
        track.tracks[0] == score.tracks[0]
        and track.tracks[2:] == score.tracks[2:]
        and track.tracks[1] != score.tracks[1]
    )
    assert Filling(score, parse_bars("track 2"), encoding).left == {(1, bar) for bar in range(6)}
    (bar,) = composer(encoding).fill(score, parse_bars("bar 3"), [0])
    for old, new in zip(score.tracks, bar.tracks, strict=True):
        others = [note for note in old if note.start_step // 16 != 2]
        assert [note for note in new if note.start_step // 16 != 2] == others and old != new
    # Of a whole track, the bars in a meter that the model does not know stay.
    mixed = Score(tiny_score(5).tracks, 4, (TimeSignature(0, 4, 4), TimeSignature(16, 3, 4), TimeSignature(28, 4, 4)))
    left = Filling(mixed, parse_bars("track 1"), encoding).left
    assert (0, 0) in left and (0, 1) not in left and (0, 2) in left
    with pytest.raises(ValueError, match="bar 2 is in 3/4"):
        Filling(mixed, parse_bars("bar 2"), encoding)
    in_three = Score(score.tracks, 4, (TimeSignature(0, 3, 4),))
    with pytest.raises(
        ValueError, match="there is no bar to fill; name one of the piece, in a meter of the model: 4/4"
    ):
        Filling(in_three, parse_bars("track 1"), encoding)


@pytest.mark.parametrize(
    "text", ["", "bar", "track", "3-4", "track 2 bars 3-4;", "track 2bar 1", "track two bar 1", "track 1 bar 1 bar 2"]
)
def test_other_words(text):
    with pytest.raises(ValueError, match=r'write e.g. "track 2 bars 3-4", "track 2"'):
        parse_bars(text)


@pytest.mark.parametrize("text", ["track 0 bar 1", "track 1 bar 0", "track 1 bars 4-3", "track 1 bars 1-99999999999"])
def test_numbers_that_cannot_be(text):
    with pytest.raises(ValueError, match="count from 1"):
        parse_bars(text)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--infill", "--infill and --from go together: give --infill the bars"),
        ("--from", "--infill and --from go together: give --infill the bars"),
        ("--infill --from --continue", "--infill does not go with --continue"),
        ("--infill --from --bars", "--bars does not go with --infill"),
        ("--infill --from --meter", "--meter does not go with --infill"),
        ("--continue --tempo", "--tempo does not go with --continue"),
        ("--infill --from --density", "--density does not go with --infill"),
        ("--continue --bar-density", "--bar-density does not go with --continue"),
        ("--continue --instruments", "--instruments does not go with --continue"),
    ],
)
def test_options_that_do_not_go_together(options, sentence, tmp_path, capsys):
    values = {
        "--infill": "track 1 bar 1",
        "--bars": "4",
        "--tempo": "90",
        "--meter": "3/4",
        "--instruments": "0",
        "--density": "1",
        "--bar-density": "1",
    }
    arguments = [word for option in options.split() for word in (option, values.get(option, "x.mid"))]
    assert main(["generate", "midi", str(tmp_path), "-o", str(tmp_path / "new"), *arguments]) == 2
    assert sentence in capsys.readouterr().err
