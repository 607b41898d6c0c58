"""The encoding: literal examples a reader learns it from, the law, and a second encoder."""

from pathlib import Path

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encodings, quantize_for, scores, tiny_score

from megatron_music.music.grid import apply_bar_lines, quantize, slice_bars
from megatron_music.music.midi import read_midi
from megatron_music.music.score import Note, Score, Track
from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import (
    check_grid,
    decode_piece,
    encode_piece,
    encode_windows,
    window_starts,
)

GOLDEN = Path(__file__).parents[1] / "golden"


def text(score: Score, **options) -> str:
    return vocabulary.to_text(encode_piece(score, Encoding(**options)))


def one_track(*notes: tuple, **options) -> Score:
    return quantize(Score((Track([Note(*note) for note in notes], **options),), 4))


def test_the_fragment_of_the_article():
    bass = one_track((0, 4, 61), (4, 8, 59), (8, 12, 58), (12, 16, 56), voice="BASS")
    assert text(bass) == (
        "PIECE_START TRACK_START INST=BASS BAR_START "
        "NOTE_ON=61 TIME_DELTA=4 NOTE_OFF=61 NOTE_ON=59 TIME_DELTA=4 NOTE_OFF=59 "
        "NOTE_ON=58 TIME_DELTA=4 NOTE_OFF=58 NOTE_ON=56 TIME_DELTA=4 NOTE_OFF=56 "
        "BAR_END TRACK_END"
    )


def test_a_leading_rest_is_written_and_a_trailing_one_is_not():
    assert text(one_track((4, 6, 60))) == (
        "PIECE_START TRACK_START INST=0 BAR_START TIME_DELTA=4 NOTE_ON=60 TIME_DELTA=2 NOTE_OFF=60 BAR_END TRACK_END"
    )


def test_chords_rise_and_releases_come_first():
    assert text(one_track((0, 4, 64), (0, 4, 60), (4, 8, 62), program=5)) == (
        "PIECE_START TRACK_START INST=5 BAR_START NOTE_ON=60 NOTE_ON=64 TIME_DELTA=4 "
        "NOTE_OFF=60 NOTE_OFF=64 NOTE_ON=62 TIME_DELTA=4 NOTE_OFF=62 BAR_END TRACK_END"
    )


@pytest.mark.parametrize(
    ("bar_line", "first_bar", "second_bar"),
    [
        ("carry", "TIME_DELTA=12 NOTE_ON=60", "TIME_DELTA=4 NOTE_OFF=60"),
        ("clip", "TIME_DELTA=12 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60", ""),
        ("split", "TIME_DELTA=12 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60", "NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60"),
    ],
)
def test_a_note_across_a_bar_line(bar_line, first_bar, second_bar):
    words = f"PIECE_START TRACK_START INST=0 BAR_START {first_bar} BAR_END BAR_START {second_bar} BAR_END TRACK_END"
    assert text(one_track((12, 20, 60)), bar_line=bar_line) == " ".join(words.split())


def test_a_note_that_ends_on_a_bar_line_ends_in_the_bar_it_fills():
    assert "BAR_START NOTE_ON=60 TIME_DELTA=16 NOTE_OFF=60 BAR_END" in text(one_track((0, 16, 60), (16, 20, 60)))


def test_drums_density_and_twelve_steps():
    score = quantize(Score((Track([Note(0, 1, 36), Note(4, 5, 38)], is_drum=True),), 12), 12)
    assert text(score, steps_per_quarter=12, density=3, density_bins=(1, 3)) == (
        "PIECE_START TRACK_START INST=DRUMS DENSITY=1 BAR_START NOTE_ON=36 TIME_DELTA=1 NOTE_OFF=36 "
        "TIME_DELTA=3 NOTE_ON=38 TIME_DELTA=1 NOTE_OFF=38 BAR_END TRACK_END"
    )


@pytest.mark.parametrize("name", ["chorale", "band"])
def test_golden_files(name):
    score = quantize(read_midi(GOLDEN / f"{name}.mid"))
    assert text(score).split() == (GOLDEN / f"{name}.txt").read_text().split()
    assert decode_piece(vocabulary.to_ids((GOLDEN / f"{name}.txt").read_text())) == score


@settings(max_examples=300, deadline=None)
@given(scores(any_meter=True), encodings())
def test_the_law(score, encoding):
    quantized = quantize_for(score, encoding)
    decoded = decode_piece(encode_piece(quantized, encoding), encoding.steps_per_quarter)
    assert decoded == apply_bar_lines(quantized, encoding.bar_line)
    assert quantize_for(quantized, encoding) == quantized
    if encoding.bar_line == "carry":
        assert decoded == quantized


@settings(max_examples=300, deadline=None)
@given(
    scores(any_meter=True), encodings(), st.sampled_from([(), (vocabulary.IDS["STYLE=3"], vocabulary.IDS["GENRE=7"])])
)
def test_windows_decode_to_slices_and_equal_the_plain_encoder(score, encoding, labels):
    quantized = quantize_for(score, encoding)
    sounding = apply_bar_lines(quantized, encoding.bar_line)
    starts = window_starts(quantized, encoding)
    written = encode_windows(quantized, starts, encoding, labels)
    windows = {
        int(first): window for first in starts if (window := slice_bars(sounding, int(first), encoding.bars)).tracks
    }
    assert written.first_bars.tolist() == list(windows)
    assert written.lengths.sum() == len(written.ids)
    for window, document in zip(windows.values(), documents(written), strict=True):
        assert vocabulary.to_text(document) == oracle.encode_piece(
            window, encoding, [vocabulary.TOKENS[i] for i in labels]
        )
        assert decode_piece(document, encoding.steps_per_quarter) == window
        again = encode_piece(decode_piece(document, encoding.steps_per_quarter), encoding, labels)
        assert again.tolist() == document.tolist()
    counts = [[len(track) for track in window.tracks] for window in windows.values()]
    assert written.row_notes.tolist() == sum(counts, [])
    assert np.bincount(written.row_documents, minlength=len(windows)).tolist() == [len(row) for row in counts]


def documents(written) -> list[np.ndarray]:
    return np.split(written.ids, np.cumsum(written.lengths)[:-1]) if len(written.lengths) else []


@pytest.mark.parametrize(
    ("piece_bars", "bars", "hop", "starts"),
    [
        (4, 4, 1, [0]),
        (5, 4, 1, [0, 1]),
        (6, 4, 2, [0, 2]),
        (3, 4, 1, []),
        (16, 8, 8, [0, 8]),
        (2, 1, 1, [0, 1]),
    ],
)
def test_the_last_full_window_is_kept(piece_bars, bars, hop, starts):
    assert window_starts(tiny_score(piece_bars), Encoding(bars=bars, hop=hop)).tolist() == starts


def test_a_window_without_notes_is_no_document():
    ids, lengths, *_ = encode_windows(one_track((0, 4, 60), (64, 68, 60)), np.arange(5), Encoding(bars=1))
    assert len(lengths) == 2 and vocabulary.to_text(ids).split().count("PIECE_START") == 2


def test_a_note_sounding_into_a_window_is_struck_at_its_start():
    ids = encode_windows(one_track((0, 20, 60)), np.array([1]), Encoding(bars=1)).ids
    assert "BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END" in vocabulary.to_text(ids)


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        ("BAR_START NOTE_OFF=60 BAR_END BAR_START BAR_END", []),  # released, never struck
        ("BAR_START NOTE_ON=60 BAR_END BAR_START BAR_END", [(0, 4, 60, 80)]),  # never released: a quarter
        ("BAR_START TIME_DELTA=14 NOTE_ON=60 BAR_END", [(14, 16, 60, 80)]),  # at most to the end
        (
            "BAR_START NOTE_ON=60 TIME_DELTA=2 NOTE_ON=60 TIME_DELTA=2 NOTE_OFF=60 BAR_END",
            [(0, 2, 60, 80), (2, 4, 60, 80)],
        ),
        ("BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_START BAR_END", [(0, 4, 60, 80)]),  # bar not closed
        ("FILL_IN BAR_START TEMPO=3 NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END", [(0, 4, 60, 80)]),  # out of place
    ],
)
def test_decoding_forgives(words, notes):
    score = decode_piece(
        vocabulary.to_ids(f"PIECE_START TRACK_START INST=7 {words} TRACK_END DOCUMENT_END PIECE_START")
    )
    assert score.tracks == (Track([Note(*note) for note in notes], 7),)


@given(st.lists(st.integers(0, vocabulary.SIZE - 1), max_size=80))
def test_any_ids_decode(ids):
    score = decode_piece([vocabulary.PIECE_START, vocabulary.TRACK_START, *ids])
    assert all(note.start_step < note.end_step and 0 <= note.pitch <= 127 for track in score.tracks for note in track)


def test_a_wrong_grid_is_noticed():
    score = quantize(Score((Track([(160 * n, 160 * n + 160, 60 + n % 3, 80) for n in range(24)]),), 480), 12)
    ids = encode_piece(score, Encoding(12))
    assert check_grid(ids, 12) == ""
    with pytest.raises(
        ValueError,
        match="bar 1 has 48 steps where a bar of 4/4 at 4 steps per quarter note has 16; use --steps-per-quarter 12",
    ):
        check_grid(ids, 4)
    quarters = encode_piece(quantize(Score((Track([(n, n + 1, 60, 80) for n in range(8)]),), 1)), Encoding())
    assert check_grid(quarters, 4) == "" and "use --steps-per-quarter 4" in check_grid(quarters, 12)
