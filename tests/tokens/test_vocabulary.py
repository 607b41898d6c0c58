from pathlib import Path

import pytest

from megatron_music.tokens import vocabulary


def test_ids_never_move():
    # Datasets and checkpoints in the world hold these numbers; a change here needs a new vocabulary name.
    first_of_each_block = {
        "PAD": 0,
        "PIECE_START": 1,
        "PIECE_END": 2,
        "TRACK_START": 3,
        "TRACK_END": 4,
        "BAR_START": 5,
        "BAR_END": 6,
        "FILL_IN": 7,
        "FILL_START": 8,
        "FILL_END": 9,
        "INST=0": 10,
        "INST=127": 137,
        "INST=DRUMS": 138,
        "INST=SOPRANO": 139,
        "INST=BASS": 142,
        "DENSITY=0": 143,
        "TIME_DELTA=1": 153,
        "TIME_DELTA=48": 200,
        "NOTE_ON=0": 201,
        "NOTE_ON=127": 328,
        "NOTE_OFF=0": 329,
        "NOTE_OFF=127": 456,
        "TIME_SIGNATURE=1/2": 457,
        "TEMPO=0": 521,
        "VELOCITY=0": 553,
        "GENRE=0": 585,
        "STYLE=0": 713,
        "RESERVED=0": 745,
        "DOCUMENT_END": 767,
    }
    assert {token: vocabulary.IDS[token] for token in first_of_each_block} == first_of_each_block
    assert vocabulary.SIZE == 768
    assert vocabulary.HASH == "eb85e2327b74b4156db0da9af0f6e99d3f66cf2322a2d74ac6bffaa66ceeff40"


def test_tokens_are_distinct_and_ids_are_their_places():
    assert len(set(vocabulary.TOKENS)) == vocabulary.SIZE
    assert [vocabulary.IDS[token] for token in vocabulary.TOKENS] == list(range(vocabulary.SIZE))


def test_transposition_is_an_addition():
    assert vocabulary.IDS["NOTE_ON=63"] == vocabulary.NOTE_ON + 60 + 3
    assert vocabulary.IDS["NOTE_OFF=63"] == vocabulary.NOTE_OFF + 60 + 3


def test_the_document_end_is_the_last_id_and_not_the_padding():
    assert vocabulary.DOCUMENT_END == vocabulary.SIZE - 1 != vocabulary.PAD


def test_text_and_ids():
    text = "PIECE_START TRACK_START INST=BASS BAR_START NOTE_ON=61"
    assert vocabulary.to_ids(text).tolist() == [1, 3, 142, 5, 262]
    assert vocabulary.to_text([1, 3, 142, 5, 262]) == text


def test_an_unknown_word_is_named_with_its_place():
    with pytest.raises(ValueError, match="token 2 is 'NOTE_ON=128'"):
        vocabulary.to_ids("PIECE_START NOTE_ON=128")
    with pytest.raises(ValueError, match=r"768 is outside 0..767"):
        vocabulary.to_text([768])
    with pytest.raises(ValueError, match=r"-1 is outside 0..767"):
        vocabulary.to_text([-1])


def test_the_page_about_it_is_current():
    page = Path(__file__).parents[2] / "docs" / "vocabulary.md"
    assert page.read_text(encoding="utf-8") == vocabulary.markdown(), (
        "run: python -m megatron_music.tokens.vocabulary > docs/vocabulary.md"
    )
