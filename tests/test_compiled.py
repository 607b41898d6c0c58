"""The compiled loops give what the array arithmetic gives, for every option."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_music.music import likeness
from megatron_music.music.grid import sections
from megatron_music.tokens import vocabulary, windows
from tiny import encodings, scores

compiled = pytest.importorskip("megatron_music.tokens.compiled", reason="numba is not installed: the extra `fast`")


@settings(max_examples=600, deadline=None)
@given(
    scores(any_meter=True),
    encodings(bars=st.integers(0, 4)),
    st.sampled_from([(), (vocabulary.IDS["GENRE=7"],)]),
    st.booleans(),
)
def test_encode_stretch(score, encoding, labels, has_open_density):
    if has_open_density:
        fields = encoding.__dict__ | {"density": 3, "density_bins": (), "bar_density": 3, "bar_density_bins": ()}
        encoding = type(encoding)(**fields)
    for stretch in sections(score, encoding.meter_set):
        if not stretch.num_notes or any(4 * encoding.steps_per_quarter * s[1] % s[2] for s in stretch.time_signatures):
            continue
        mine, plain = (engine.encode_stretch(stretch, encoding, labels) for engine in (compiled, windows))
        assert mine[1:] == plain[1:]
        for one, other in zip(mine.windows, plain.windows, strict=True):
            assert one.dtype == other.dtype and np.array_equal(one, other)


@settings(max_examples=200, deadline=None)
@given(scores())
def test_note_sums(score):
    is_drum = np.array([track.is_drum for track in score.tracks])
    same = (score.columns, is_drum, score.steps_per_quarter)
    assert compiled.note_sums(*same) == likeness.note_sums(*same)
