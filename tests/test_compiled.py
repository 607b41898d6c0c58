"""The compiled loops give what the array arithmetic gives, for every option."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_music.music import grid
from megatron_music.tokens import vocabulary, windows
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece, window_starts
from tiny import encodings, quantize_for, scores

compiled = pytest.importorskip("megatron_music.tokens.compiled", reason="numba is not installed: the extra `fast`")
LABELS = st.sampled_from([(), (vocabulary.IDS["GENRE=7"],)])


@settings(max_examples=300, deadline=None)
@given(scores(any_meter=True), encodings())
def test_quantize(score, encoding):
    options = {"meters": encoding.writes_meters, "velocity": encoding.velocity, "tempo": encoding.tempo}
    mine = compiled.quantize(score, encoding.steps_per_quarter, **options)
    plain = grid.quantize(score, encoding.steps_per_quarter, **options)
    assert mine == plain and mine.quantization == plain.quantization
    assert np.array_equal(mine.columns, plain.columns)


@settings(max_examples=400, deadline=None)
@given(scores(any_meter=True), encodings(), LABELS, st.booleans(), st.booleans(), st.booleans())
def test_write_windows(score, encoding, labels, keep_silent, ends, has_open_density):
    if has_open_density:
        fields = encoding.__dict__ | {"density": 3, "density_bins": (), "bar_density": 3, "bar_density_bins": ()}
        encoding = type(encoding)(**fields)
    score = quantize_for(score, encoding)
    options = (window_starts(score, encoding), encoding.bars, encoding, labels, keep_silent, ends)
    for mine, plain in zip(compiled.write_windows(score, *options), windows.write_windows(score, *options), strict=True):
        assert mine.dtype == plain.dtype and mine.tolist() == plain.tolist()


@settings(max_examples=50, deadline=None)
@given(scores(any_meter=True), encodings(bar_density=0, bar_density_bins=(), density=0, density_bins=()))
def test_notes_in_any_order(score, encoding):
    """A decoded score has its notes in another order than a quantised one."""
    score = decode_piece(encode_piece(quantize_for(score, encoding), encoding), encoding.steps_per_quarter)
    whole = (np.zeros(1, np.int64), score.num_bars, encoding, (), True)
    assert compiled.write_windows(score, *whole).ids.tolist() == windows.write_windows(score, *whole).ids.tolist()
