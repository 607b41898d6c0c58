"""DENSITY: open while the levels are unknown, closed by the quantiles of the training split."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.density import (
    MAX_COUNT,
    NUM_IDS,
    bar_counts,
    closing_table,
    density_ids,
    open_bar_ids,
    open_track_ids,
    quantile_bins,
    track_counts,
)


@pytest.mark.parametrize(
    ("members", "levels", "bins"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 2, (5,)),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 4, (3, 5, 7)),
        ([1, 2], 2, (2,)),  # 1.5: a half goes up
        ([0, 0, 0, 0, 0, 0, 0, 0, 0, 40], 4, (0, 0, 0)),
        ([7], 3, (7, 7)),
        ([], 3, (0, 0)),
    ],
)
def test_bins_are_rounded_percentiles(members, levels, bins):
    assert quantile_bins(np.bincount(members, minlength=1) if members else np.zeros(5, np.int64), levels) == bins


@given(st.lists(st.integers(0, 60), min_size=1, max_size=60), st.integers(2, 10))
def test_bins_agree_with_numpy(members, levels):
    bins = quantile_bins(np.bincount(members), levels)
    exact = np.percentile(members, [100 * k / levels for k in range(1, levels)])
    assert np.all(np.abs(np.array(bins) - exact) <= 0.5 + 1e-9) and list(bins) == sorted(bins)


def test_levels_are_the_number_of_bins_reached():
    assert (density_ids(np.array([0, 2, 3, 4, 7, 8]), (3, 5, 8)) - v.DENSITY).tolist() == [0, 0, 1, 1, 2, 3]


@given(st.lists(st.integers(0, 40_000), max_size=20), st.lists(st.integers(0, 40_000), max_size=20))
def test_open_ids_count_and_close(tracks, bars):
    ids = np.concatenate([open_track_ids(np.array(tracks, np.int64)), open_bar_ids(np.array(bars, np.int64))])
    counts = np.bincount(ids, minlength=NUM_IDS)
    most = MAX_COUNT
    assert np.repeat(np.arange(most + 1), track_counts(counts)).tolist() == sorted(min(n, most) for n in tracks)
    assert np.repeat(np.arange(most + 1), bar_counts(counts)).tolist() == sorted(min(n, most) for n in bars if n)
    closed = closing_table((3, 5, 8), (2,))[ids]
    assert closed.tolist() == [*density_ids(np.array(tracks), (3, 5, 8)), *density_ids(np.array(bars), (2,))]


def test_closing_leaves_tokens_alone():
    assert np.array_equal(closing_table((1,), (1,))[: v.SIZE], np.arange(v.SIZE))
