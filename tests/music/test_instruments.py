"""Names of instruments as people type them."""

from itertools import combinations

import pytest
from contrast import VISIONS, contrast, distance, schemes
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.music.instruments import (
    DARK_TRACK_COLOURS,
    DARK_VOICE_COLOURS,
    GENERAL_MIDI,
    PALETTE_CSS,
    TRACK_COLOURS,
    VOICE_COLOURS,
    css_colour,
    read_instruments,
    track_labels,
)
from megatron_music.music.score import VOICE_NAMES, Note, Track


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("piano,bass,drums", ["0", "33", "DRUMS"]),
        ("acoustic grand piano,Electric Bass (finger)", ["0", "33"]),
        ("SOPRANO,alto,Tenor,bass", ["SOPRANO", "ALTO", "TENOR", "BASS"]),
        ("piano,BASS", ["0", "BASS"]),
        ("0, 40,DRUMS", ["0", "40", "DRUMS"]),
        ("violin,flute,church organ", ["40", "73", "19"]),
    ],
)
def test_names_families_voices_and_programs_are_taken(typed, values):
    assert read_instruments(typed.split(",")) == values


def test_every_name_that_is_shown_can_be_typed():
    assert [read_instruments([name]) for name in GENERAL_MIDI] == [[str(program)] for program in range(128)]


def test_a_misspelt_instrument_gets_the_nearest_name():
    with pytest.raises(ValueError, match="instrument 'violn' is unknown; did you mean violin"):
        read_instruments(["violn"])


PAPERS = {
    "light": ("#ffffff", "#fbfaf7"),
    "dark": ("#14171c", "#1a1d22", "#1c2128"),
}  # of the pages that show these colours
PALETTES = {
    ("light", "tracks"): TRACK_COLOURS,
    ("dark", "tracks"): DARK_TRACK_COLOURS,
    ("light", "voices"): tuple(VOICE_COLOURS.values()),
    ("dark", "voices"): tuple(DARK_VOICE_COLOURS.values()),
}


@pytest.mark.parametrize(("scheme", "of"), PALETTES)
def test_notes_stand_out_from_the_page(scheme, of):
    worst = min((contrast(colour, paper), colour, paper) for colour in PALETTES[scheme, of] for paper in PAPERS[scheme])
    assert worst[0] >= 3, worst


@pytest.mark.parametrize(("scheme", "of"), PALETTES)
@pytest.mark.parametrize("vision", VISIONS)
def test_colour_blind_readers_can_tell_two_tracks_apart(scheme, of, vision):
    worst = min((distance(one, other, vision), one, other) for one, other in combinations(PALETTES[scheme, of], 2))
    assert worst[0] >= 8, worst


def test_the_dark_scheme_has_a_colour_for_each_of_the_light_one():
    found = schemes(PALETTE_CSS)
    light = [*VOICE_COLOURS.values(), *TRACK_COLOURS]
    assert tuple(VOICE_COLOURS) == tuple(DARK_VOICE_COLOURS) == VOICE_NAMES
    assert [found["light"][css_colour(colour)[6:-1]] for colour in light] == light
    assert [found["dark"][css_colour(colour)[6:-1]] for colour in light] == [
        *DARK_VOICE_COLOURS.values(),
        *DARK_TRACK_COLOURS,
    ]


def test_a_track_without_a_name_is_called_by_its_instrument_and_no_two_are_called_alike():
    note = [Note(0, 4, 60)]
    tracks = [
        Track(note, 0),
        Track(note, 40, name="Lead"),
        Track(note, 40),
        Track(note, 0),
        Track(note, is_drum=True),
        Track(note, voice="ALTO", name="x"),
        Track(note, 0, name="  "),
        Track(note, 0, name="Grand piano 1"),
        Track(note, 0, name="a\nb"),
    ]
    labels = track_labels(tracks)
    assert labels == [
        "Grand piano 2",
        "Lead",
        "Violin",
        "Grand piano 3",
        "Drums",
        "Alto",
        "Grand piano 4",
        "Grand piano 1",
        r"a\nb",
    ]
    assert track_labels(tracks[:2]) == ["Grand piano", "Lead"]


@given(st.lists(st.sampled_from(["", "A", "A 1", "A 2", "A 1 1", "Grand piano"]), max_size=9))
def test_labels_differ_whatever_the_names_are(names):
    labels = track_labels([Track([Note(0, 4, 60)], 0, name=name) for name in names])
    assert len(set(labels)) == len(names)
