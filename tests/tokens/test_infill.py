import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import encodings, quantize_for, scores, tiny_score

from megatron_music.music.grid import sections
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.counter_rng import below, draw
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.infill import infill_documents, put_back, take_out
from megatron_music.tokens.mmmtrack import (
    decode_piece,
    encode_piece,
    encode_windows,
    window_starts,
)

TWO_BARS = (
    "PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END "
    "BAR_START TIME_SIGNATURE=3/4 TEMPO=3 DENSITY=1 VELOCITY=20 NOTE_ON=62 TIME_DELTA=2 NOTE_OFF=62 BAR_END TRACK_END "
    "TRACK_START INST=1 BAR_START BAR_END BAR_START TIME_SIGNATURE=3/4 TEMPO=3 DENSITY=0 BAR_END TRACK_END"
)


def documents_of(score, encoding: Encoding) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Windows of a score as a build has them: ids, lengths, and each document alone."""
    whole = tuple(m for m in encoding.meter_set if encoding.steps_per_bar * m[0] % m[1] == 0)
    documents = []
    for part in sections(score, whole):
        if part.num_notes:
            quantized = quantize_for(part, encoding)
            windows = encode_windows(quantized, window_starts(quantized, encoding), encoding)
            documents += np.split(windows.ids, np.cumsum(windows.lengths)[:-1]) if len(windows.lengths) else []
    documents = [np.append(document, np.uint16(v.DOCUMENT_END)) for document in documents]
    ids = np.concatenate(documents) if documents else np.empty(0, np.uint16)
    return ids, np.array(list(map(len, documents)), np.int32), documents


def split(ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


def where_taken_out(ids: np.ndarray) -> list[tuple[int, int]]:
    return [
        (track, bar)
        for track, part in enumerate(np.split(ids, np.flatnonzero(ids == v.TRACK_START))[1:])
        for bar, inner in enumerate(np.split(part, np.flatnonzero(part == v.BAR_START))[1:])
        if v.FILL_IN in inner
    ]


@pytest.mark.parametrize("ending", ["", " DOCUMENT_END"])
def test_bars_move_to_the_end(ending):
    ids = v.to_ids(TWO_BARS + ending)
    before = ids.copy()
    taken = take_out(ids, [(1, 1), (0, 1), (1, 0)])
    assert (
        v.to_text(taken)
        == (
            "PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60 TIME_DELTA=4 NOTE_OFF=60 BAR_END "
            "BAR_START TIME_SIGNATURE=3/4 TEMPO=3 DENSITY=1 FILL_IN BAR_END TRACK_END "
            "TRACK_START INST=1 BAR_START FILL_IN BAR_END "
            "BAR_START TIME_SIGNATURE=3/4 TEMPO=3 DENSITY=0 FILL_IN BAR_END TRACK_END "
            "FILL_START VELOCITY=20 NOTE_ON=62 TIME_DELTA=2 NOTE_OFF=62 FILL_END FILL_START FILL_END FILL_START "
            "FILL_END"
        )
        + ending
    )
    assert (ids == before).all() and taken.dtype == np.uint16
    assert v.to_text(put_back(taken)) == TWO_BARS + ending


def test_nothing_taken_out_is_the_document():
    ids = v.to_ids(TWO_BARS)
    assert (take_out(ids, []) == ids).all() and (put_back(ids) == ids).all()


@pytest.mark.parametrize("bar", [(0, 2), (2, 0), (-1, 0)])
def test_bars_that_are_not_there(bar):
    with pytest.raises(ValueError, match="is not in the document"):
        take_out(v.to_ids(TWO_BARS), [bar])


def test_twice_is_refused():
    with pytest.raises(ValueError, match="put them back first"):
        take_out(take_out(v.to_ids(TWO_BARS), [(0, 0)]), [(0, 1)])


@pytest.mark.parametrize(
    ("fills", "first", "second"),
    [
        ("FILL_START NOTE_ON=1 FILL_END FILL_START NOTE_ON=2 FILL_END", "NOTE_ON=1", "NOTE_ON=2"),
        ("FILL_START NOTE_ON=1 FILL_END", "NOTE_ON=1", ""),  # one is missing
        ("", "", ""),
        ("FILL_START NOTE_ON=1 FILL_START NOTE_ON=2", "NOTE_ON=1", "NOTE_ON=2"),  # never closed
        (
            "FILL_START NOTE_ON=1 FILL_END FILL_START FILL_END FILL_START NOTE_ON=3 FILL_END",
            "NOTE_ON=1",
            "",
        ),  # one too many
        (
            "FILL_START BAR_START FILL_IN NOTE_ON=1 TRACK_END FILL_END NOTE_ON=9 FILL_START NOTE_ON=2",
            "NOTE_ON=1",
            "NOTE_ON=2",
        ),
    ],
)
def test_slips_of_a_model(fills, first, second):
    body = "TRACK_START INST=0 BAR_START {} BAR_END BAR_START {} BAR_END TRACK_END"
    ids = v.to_ids(f"{body.format('FILL_IN', 'FILL_IN')} {fills} DOCUMENT_END PAD PAD")
    assert v.to_text(put_back(ids)).split() == f"{body.format(first, second)} DOCUMENT_END".split()


def test_decoding_puts_back():
    score = tiny_score()
    assert decode_piece(take_out(encode_piece(score), [(0, 1), (0, 2), (3, 0)])) == score


@settings(max_examples=100, deadline=None)
@given(
    scores(max_steps=12_000, any_meter=True),
    encodings(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 3),
    st.floats(0, 1),
)
def test_what_is_taken_out_can_be_put_back(score, encoding, key, copy, share):
    ids, lengths, documents = documents_of(score, encoding)
    before = ids.copy(), lengths.copy()
    taken, new_lengths = infill_documents(ids, lengths, np.arange(len(lengths)), key, copy, share)
    assert (ids == before[0]).all() and (lengths == before[1]).all()
    assert taken.dtype == np.uint16 and new_lengths.dtype == np.int32 and new_lengths.sum() == len(taken)
    for document, infilled in zip(documents, split(taken, new_lengths), strict=True):
        assert (put_back(infilled) == document).all()
        bars, holes = np.count_nonzero(document == v.BAR_START), np.count_nonzero(infilled == v.FILL_IN)
        assert holes <= max(bars // 2, 1) and (holes or share < 1) and (not holes or share)
        assert len(infilled) == len(document) + 3 * holes
        if holes:  # the same as taking out one by one
            assert (take_out(document, where_taken_out(infilled)) == infilled).all()


def many(count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    document = np.append(encode_piece(tiny_score(2)), np.uint16(v.DOCUMENT_END))  # 8 bars
    return np.tile(document, count), np.full(count, len(document), np.int32)


def test_a_documents_bars_depend_on_its_window_alone():
    ids, lengths = many(60)
    windows = np.arange(60) * 7
    together = split(*infill_documents(ids, lengths, windows, 5, 1, 0.5))
    ids, lengths = many(30)
    others = split(*infill_documents(ids, lengths, windows[::2][::-1], 5, 1, 0.5))
    assert all((one == other).all() for one, other in zip(together[::2][::-1], others, strict=True))
    for key, copy in ((6, 1), (5, 2)):
        changed = split(*infill_documents(*many(60), windows, key, copy, 0.5))
        assert any(len(one) != len(other) for one, other in zip(together, changed, strict=True))


def test_shares_numbers_and_bars_are_even():
    infilled = split(*infill_documents(*many(), np.arange(3000), 1, 0, 0.4))
    holes = np.array([np.cumsum(document == v.BAR_START)[document == v.FILL_IN] for document in infilled], object)
    counts = np.bincount([len(found) for found in holes], minlength=5)
    assert (
        counts[0] == pytest.approx(1800, abs=110)
        and counts[1:] == pytest.approx([300] * 4, abs=60)
        and len(counts) == 5
    )
    which = np.bincount(np.concatenate(holes).astype(int))[1:]
    assert which == pytest.approx([which.mean()] * 8, rel=0.15)


def test_open_densities_stay_in_their_bars():
    ids = v.to_ids("TRACK_START INST=0 BAR_START BAR_END TRACK_END DOCUMENT_END")
    ids = np.insert(ids, 3, 32768 + 12)
    taken, _ = infill_documents(ids, np.array([len(ids)], np.int32), np.zeros(1, int), 0, 0, 1.0)
    assert taken[3] == 32780 and v.to_text(np.delete(taken, 3)) == (
        "TRACK_START INST=0 BAR_START FILL_IN BAR_END TRACK_END FILL_START FILL_END DOCUMENT_END"
    )


def test_no_documents():
    ids, lengths = infill_documents(np.empty(0, np.uint16), np.empty(0, np.int32), np.empty(0, int), 0, 0, 1.0)
    assert not len(ids) and not len(lengths)


def test_draws_are_even_and_for_one_purpose():
    draws = draw(2**64 - 1, np.arange(20_000), 3, "a", 3)
    for column in draws.T:
        assert np.bincount(below(column, 5)) == pytest.approx([4000] * 5, abs=300)
    assert len({*draws.ravel().tolist()}) == draws.size
    assert (draw(2**64 - 1, np.array([7, 3]), 3, "a", 2) == draws[[7, 3], :2]).all()
    for other in ((2**64 - 2, 3, "a"), (2**64 - 1, 4, "a"), (2**64 - 1, 3, "b")):
        assert (draw(other[0], np.arange(100), other[1], other[2], 3) != draws[:100]).all()


def test_draws_stay_the_same():
    """Datasets are built again byte for byte only while these numbers stay."""
    assert draw(1, np.array([0, 1]), 0, "test", 2).tolist() == [
        [17798897634946470476, 18321371154645540885],
        [10991764170541502207, 15590434072071196663],
    ]


def test_each_draw_has_its_own_bound():
    draws = draw(0, np.arange(1000), 0, "x", 1)[:, 0]
    bounds = 1 + np.arange(1000) % 4
    found = below(draws, bounds)
    assert (found < bounds).all() and found.min() == 0 and found.max() == 3
