"""The compiled loops give what the array arithmetic gives, for every option."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encodings, scores

from megatron_music.music import fingerprint, grid
from megatron_music.music.grid import sections
from megatron_music.music.score import Score, Track
from megatron_music.tokens import vocabulary, windows
from megatron_music.tokens.encoding import Encoding

compiled = pytest.importorskip(
    "megatron_music.tokens.quantize_numba", reason="numba is not installed: the extra `fast`"
)
compiled_sums = pytest.importorskip(
    "megatron_music.tokens.counts_numba", reason="numba is not installed: the extra `fast`"
)


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


@pytest.mark.parametrize("engine", [compiled, windows], ids=lambda engine: engine.__name__)
@pytest.mark.parametrize("start", [grid.MAX_STEPS, 1 << 21, 1 << 40])
def test_a_piece_that_cannot_be_counted_is_refused(engine, start):
    """No loop writes where there is no room for it."""
    track = Track(np.array([[start, start + 1, 60 + number, 80] for number in range(40)]))
    with pytest.raises(ValueError, match=f"the piece lasts {start + 1} steps; at most {grid.MAX_STEPS}"):
        engine.encode_stretch(Score((track,), 4), Encoding(bars=4))


@settings(max_examples=200, deadline=None)
@given(scores())
def test_note_sums(score):
    is_drum = np.array([track.is_drum for track in score.tracks])
    same = (score.columns, is_drum, score.steps_per_quarter)
    assert compiled_sums.note_sums(*same) == fingerprint.note_sums(*same)
