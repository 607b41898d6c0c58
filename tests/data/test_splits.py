"""Which split a file goes to."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.data.splits import DROPPED, KEY_BYTES, assign_splits

FRACTIONS = (0.5, 0.25, 0.25)


def keys(numbers: list[int]) -> np.ndarray:
    """A hash for each number."""
    return np.array([list(number.to_bytes(KEY_BYTES, "big")) for number in numbers], np.uint8).reshape(-1, KEY_BYTES)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40), st.integers(0, 3), st.booleans())
def test_copies_share_a_split_and_are_counted(files, seed, drop):
    contents, digests = [content for content, _ in files], [4 * content + variant for content, variant in files]
    found = assign_splits(keys(contents), keys(digests), seed, FRACTIONS, drop)
    firsts = [place for place, content in enumerate(contents) if content not in contents[:place]]
    kept = [place for place in range(len(files)) if found.splits[place] != DROPPED]
    assert kept == (firsts if drop else list(range(len(files))))
    for place in kept:
        assert found.splits[place] == found.splits[contents.index(contents[place])]
    assert found.copies == len(files) - len(set(digests))
    assert found.near_copies == len(set(digests)) - len(set(contents))
    of_groups = found.splits[firsts].tolist()
    assert not firsts or 0 in of_groups
    assert {1, 2} <= set(of_groups) or of_groups.count(0) <= 1, "a wanted split is empty while train could fill it"


def test_places_are_fixed_for_good():
    """Another split of the same files would leak what a model was trained on into its test."""
    found = assign_splits(keys(list(range(12))), keys(list(range(12))), 0, FRACTIONS)
    assert found.splits.tolist() == [2, 1, 0, 1, 2, 2, 0, 0, 2, 1, 1, 0]


@pytest.mark.parametrize(("fractions", "wanted"), [((1, 0, 0), {0}), ((0, 1, 0), {1}), ((0.9, 0.1 - 1e-7, 0), {0, 1})])
def test_splits_that_nobody_wants_stay_empty(fractions, wanted):
    numbers = keys(list(range(50)))
    assert set(assign_splits(numbers, numbers, 0, fractions).splits.tolist()) == wanted


def test_one_file_is_for_training():
    assert assign_splits(keys([7]), keys([7]), 0, FRACTIONS).splits.tolist() == [0]
    assert sorted(assign_splits(keys([7, 8]), keys([7, 8]), 0, FRACTIONS).splits.tolist()) == [0, 2]
