"""The n-gram baseline: counts one can check by hand, probabilities that are some, and music under the grammar."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import tiny_score

from megatron_music.generation.midi import Composer
from megatron_music.generation.ngram import MAX_ORDER, Markov, MarkovLogits
from megatron_music.generation.unconstrained import is_grammatical, write_unruled
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece

DOCUMENTS = [[1, 2, 3, 1, 2, 4], [1, 2, 3]]
documents_ = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=4)


def test_frequencies():
    # Nine ids of four kinds: 9 / 13 for what was counted, 4 / 13 for all ids alike.
    found = Markov(DOCUMENTS, 0).probabilities([7, 7])
    assert found[[1, 2, 3, 4, 0]] == pytest.approx(np.array([3, 3, 2, 1, 0]) / 13 + 4 / 13 / v.SIZE)


def test_each_order_mixes_with_the_one_below():
    zero = Markov(DOCUMENTS, 0).probabilities([])
    one = Markov(DOCUMENTS, 1).probabilities([2])
    # After 2 came 3, 3 and 4.
    expected = 2 / 5 * zero
    expected[[3, 4]] += [2 / 5, 1 / 5]
    assert one == pytest.approx(expected)
    # After 1, 2 the same: once more.
    expected = 2 / 5 * expected
    expected[[3, 4]] += [2 / 5, 1 / 5]
    assert Markov(DOCUMENTS, 2).probabilities([9, 1, 2]) == pytest.approx(expected)
    assert Markov(DOCUMENTS, 5).probabilities([1, 2]) == pytest.approx(expected)


def test_contexts_end_at_a_documents_start():
    # 3 and 4 end documents: nothing is known of what comes after 4, and after 3 only 1, within the first.
    model = Markov(DOCUMENTS, 1)
    assert model.probabilities([4]) == pytest.approx(Markov(DOCUMENTS, 0).probabilities([]))
    assert model.probabilities([3])[1] > 0.5 and model.probabilities([3]).argmax() == 1


@given(documents_, st.integers(0, MAX_ORDER), st.lists(st.integers(0, 7), max_size=8))
def test_probabilities_add_up_and_none_is_0(documents, order, context):
    found = Markov(documents, order).probabilities(context)
    assert found.sum() == pytest.approx(1) and found.min() > 0


@given(documents_, st.integers(1, MAX_ORDER), st.data())
def test_it_is_the_model_one_would_write_down(documents, order, data):
    context = data.draw(st.lists(st.integers(0, 7), max_size=7))
    expected = np.full(v.SIZE, 1 / v.SIZE)
    for length in range(min(order, len(context)) + 1):
        said = tuple(context[len(context) - length :])
        after = [d[i] for d in documents for i in range(length, len(d)) if tuple(d[i - length : i]) == said]
        if after:
            kinds = len(set(after))
            expected = (np.bincount(after, minlength=v.SIZE) + kinds * expected) / (len(after) + kinds)
    assert Markov(documents, order).probabilities(context) == pytest.approx(expected)


def test_large_ids_do_not_run_over():
    top = [v.SIZE - 1] * 8
    assert Markov([top], MAX_ORDER).probabilities(top).argmax() == v.SIZE - 1
    assert all(keys.min() >= 0 for keys in Markov([top], MAX_ORDER)._keys)


def test_the_loss_is_that_of_the_probabilities():
    model = Markov(DOCUMENTS, 2)
    total, count = model.loss([[1, 2, 4], [3]])
    assert count == 2
    assert total == pytest.approx(-np.log(model.probabilities([1])[2]) - np.log(model.probabilities([1, 2])[4]))


def test_what_cannot_be_learned_from():
    with pytest.raises(ValueError, match="order is 6; use 0 to 5"):
        Markov(DOCUMENTS, 6)
    for documents in ([], [[]], [[v.SIZE]], [[-1]]):
        with pytest.raises(ValueError, match="without merged tokens"):
            Markov(documents, 1)


def test_it_stands_in_the_place_of_a_gpt():
    ids = [*encode_piece(tiny_score(4)).tolist(), v.DOCUMENT_END]
    model = Markov([ids], 5)
    pieces = Composer(model, Encoding(), 512, next_logits=MarkovLogits).compose(range(4))
    assert all(score.num_bars == 4 and decode_piece(encode_piece(score)) == score for score in pieces)
    unruled = write_unruled(range(4), MarkovLogits(model, 4, 512), 512)
    assert any(ids[1] == v.TRACK_START for ids in unruled) and not all(
        is_grammatical(ids, Encoding()) for ids in unruled
    )


def test_logits_are_the_probabilities_of_all_ids_so_far():
    model = Markov(DOCUMENTS, 2)
    logits = MarkovLogits(model, 2, 99)
    logits(torch.tensor([[1], [5]]))
    found = logits(torch.tensor([[2], [2]])).softmax(-1)
    assert found[0].tolist() == pytest.approx(model.probabilities([1, 2]).tolist(), abs=1e-6)
    assert found[1].tolist() == pytest.approx(model.probabilities([5, 2]).tolist(), abs=1e-6)
