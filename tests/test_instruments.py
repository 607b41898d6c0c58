"""Names of instruments as people type them."""

import pytest

from megatron_music.music.instruments import GENERAL_MIDI, read_instruments


@pytest.mark.parametrize(("typed", "values"), [
    ("piano,bass,drums", ["0", "33", "DRUMS"]),
    ("acoustic grand piano,Electric Bass (finger)", ["0", "33"]),
    ("SOPRANO,alto,Tenor,bass", ["SOPRANO", "ALTO", "TENOR", "BASS"]),
    ("piano,BASS", ["0", "BASS"]),
    ("0, 40,DRUMS", ["0", "40", "DRUMS"]),
    ("violin,flute,church organ", ["40", "73", "19"]),
])  # fmt: skip
def test_names_families_voices_and_programs_are_taken(typed, values):
    assert read_instruments(typed.split(",")) == values


def test_every_name_that_is_shown_can_be_typed():
    assert [read_instruments([name]) for name in GENERAL_MIDI] == [[str(program)] for program in range(128)]


def test_a_misspelt_instrument_gets_the_nearest_name():
    with pytest.raises(ValueError, match="instrument 'violn' is unknown; did you mean violin"):
        read_instruments(["violn"])
