"""Captions are true, many, and those of their score."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.corpora.captions import (
    DENSITY_WORDS,
    FAMILIES,
    NOTE_NAMES,
    TEMPO_WORDS,
    captions,
    facts_of,
)
from megatron_music.music.score import Score, Tempo, TimeSignature, Track

C_MAJOR = (60, 64, 67, 72, 65, 69, 67, 62, 59, 60, 64, 60)


def score(pitches=C_MAJOR, program=0, tempo=100.0, shift=0, meter=(4, 4)) -> Score:
    notes = [(4 * place, 4 * place + 4, pitch + shift, 90) for place, pitch in enumerate(pitches)]
    return Score([Track(notes, program)], 4, (TimeSignature(0, *meter),), (Tempo(0, tempo),))


@given(st.integers(-12, 12))
def test_the_key_moves_with_the_notes(shift):
    assert facts_of(score(shift=shift)).key == f"{NOTE_NAMES[shift % 12]} major"


def test_minor_is_heard():
    assert facts_of(score((57, 60, 64, 69, 62, 65, 64, 56, 57, 60, 64, 57))).key == "A minor"


@pytest.mark.parametrize(("tempo", "word"), [(60.0, "slow"), (100.0, "moderate"), (160.0, "fast")])
def test_tempo_has_its_word(tempo, word):
    found = facts_of(score(tempo=tempo))
    assert (found.tempo, found.quarters_per_minute) == (word, tempo)
    assert found.notes_per_second == pytest.approx(tempo / 60)


def test_the_tempo_of_half_the_time_counts():
    assert facts_of(replace(score(), tempos=(Tempo(0, 60.0), Tempo(4, 150.0)))).tempo == "fast"


@given(program=st.integers(0, 127), tempo=st.sampled_from((60.0, 100.0, 170.0)), seed=st.integers(0, 1000))
def test_every_word_is_true(program, tempo, seed):
    found = facts_of(score(program=program, tempo=tempo, meter=(3, 4)))
    wrong = {word for _, word in (*TEMPO_WORDS, *DENSITY_WORDS)} - {found.tempo, found.density}
    wrong |= {name for name in FAMILIES if name not in found.instruments[0] and found.instruments[0] not in name}
    for caption in captions(found, seed, 8):
        assert found.instruments[0] in caption
        words = caption.replace(",", "").split()
        assert not wrong & set(words), caption
        assert "minor" not in words
        assert "/" not in caption or "3/4" in caption


def test_captions_differ_and_come_again():
    found = facts_of(score())
    first = captions(found, 1, 8)
    assert len(set(first)) == 8 and first == captions(found, 1, 8) != captions(found, 2, 8)
    assert all(caption == " ".join(caption.split()) and caption.strip(" ,") == caption for caption in first)


def test_drums_and_several_instruments():
    tracks = [Track([(0, 4, 60, 80)], 0), Track([(0, 4, 36, 80), (4, 8, 38, 80)], is_drum=True)]
    assert facts_of(Score(tracks, 4)).instruments == ("drums", "piano")
    assert facts_of(Score(tracks[1:], 4)).instruments == ("drums",)


def test_no_notes_are_refused():
    with pytest.raises(ValueError, match="no notes to describe"):
        facts_of(Score([Track(np.empty((0, 4), np.int64))], 4))
