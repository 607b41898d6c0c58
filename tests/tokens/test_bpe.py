"""Merged tokens: exact round trips, never across a bar, the same on every machine, and read without ``tokenizers``."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.bpe import BPE_FILE, MAX_MERGES, Bpe, learn_bpe, read_bpe

ON, OFF, REST = v.NOTE_ON + 60, v.NOTE_OFF + 60, v.TIME_DELTA + 4
EVENTS = np.array(
    [
        *range(v.TIME_DELTA + 1, v.TIME_DELTA + 49),
        *range(v.NOTE_ON, v.NOTE_OFF + 128),
        *range(v.VELOCITY, v.VELOCITY + 32),
    ]
)


def document(random: np.random.Generator, bars: int = 8) -> np.ndarray:
    """Bars of scales and repeated figures, which have much to merge."""
    ids = [v.PIECE_START, v.IDS["GENRE=3"], v.TRACK_START, v.INST]
    for _ in range(bars):
        ids.append(v.BAR_START)
        for pitch in random.choice([60, 62, 64, 65, 67, 69, 71, 72], random.integers(0, 9)):
            ids += [v.VELOCITY + 20, v.NOTE_ON + pitch, v.TIME_DELTA + random.choice([2, 4, 4]), v.NOTE_OFF + pitch]
        ids.append(v.BAR_END)
    return np.array([*ids, v.TRACK_END, v.DOCUMENT_END], np.uint16)


@pytest.fixture(scope="module")
def documents() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [document(random) for _ in range(150)]


@pytest.fixture(scope="module")
def bpe(documents) -> Bpe:
    return learn_bpe(documents, 200)


def joined(documents) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate(documents), np.array([len(ids) for ids in documents], np.int32)


def test_merges_by_hand():
    # 768: a note begins and lasts; 769: the whole note; 770: the whole note again, spelled the other way, is 769.
    bpe = Bpe([(ON, REST), (v.SIZE, OFF), (REST, OFF), (ON, v.SIZE + 2), (v.SIZE + 1, v.SIZE + 1)])
    assert bpe.spelled == ((ON, REST), (ON, REST, OFF), (REST, OFF), (ON, REST, OFF, ON, REST, OFF))
    assert bpe.words[:2] == ("NOTE_ON=60+TIME_DELTA=4", "NOTE_ON=60+TIME_DELTA=4+NOTE_OFF=60") and bpe.size == 4
    note = [ON, REST, OFF]
    ids = [
        v.BAR_START,
        *note,
        *note,
        *note,
        v.BAR_END,
        v.BAR_START,
        v.BAR_END,
        v.DOCUMENT_END,
        v.FILL_START,
        REST,
        OFF,
        v.FILL_END,
        v.DOCUMENT_END,
    ]
    merged, lengths = bpe.encode(np.array(ids, np.uint16), np.array([14, 5]))
    assert merged.tolist() == [
        v.BAR_START,
        771,
        769,
        v.BAR_END,
        v.BAR_START,
        v.BAR_END,
        v.DOCUMENT_END,
        v.FILL_START,
        770,
        v.FILL_END,
        v.DOCUMENT_END,
    ]
    assert (merged.dtype, lengths.dtype, lengths.tolist()) == (np.uint16, np.int32, [7, 4])
    assert bpe.decode(merged).tolist() == ids and bpe.decode(merged).dtype == np.uint16


def test_the_most_frequent_pair_is_merged_first():
    bar = [v.BAR_START, ON, REST, OFF, v.BAR_END]
    rare = [v.BAR_START, v.NOTE_ON + 61, REST, v.NOTE_OFF + 61, v.BAR_END]
    bpe = learn_bpe([np.array(bar * 5 + rare, np.uint16)], 1)
    assert bpe.spelled in (((ON, REST), (ON, REST, OFF)), ((REST, OFF), (ON, REST, OFF)))  # what is there once stays


def test_merges_never_cross_a_bar(bpe):
    # The pairs with the bar line in them are the most frequent of all.
    bars = [v.BAR_START, ON, v.BAR_END, v.BAR_START, OFF, v.BAR_END, v.BAR_START, v.DENSITY, ON, v.BAR_END]
    assert learn_bpe([np.array(bars * 9, np.uint16)], 128).size == 0
    assert all(np.isin(base, EVENTS).all() for base in bpe.spelled)
    assert {v.DOCUMENT_END} == set(bpe.decode(np.array([v.DOCUMENT_END])).tolist())


def test_merging_makes_documents_shorter_and_loses_nothing(bpe, documents):
    ids, lengths = joined(documents)
    merged, merged_lengths = bpe.encode(ids, lengths)
    assert len(merged) < 0.5 * len(ids) and merged.max() >= v.SIZE and merged.max() < v.SIZE + bpe.size
    np.testing.assert_array_equal(bpe.decode(merged), ids)
    np.testing.assert_array_equal(np.cumsum(merged_lengths), np.flatnonzero(merged == v.DOCUMENT_END) + 1)
    for number in (0, 17, 149):  # alone as in company
        alone = bpe.encode(documents[number], lengths[number : number + 1])[0]
        np.testing.assert_array_equal(alone, np.split(merged, np.cumsum(merged_lengths)[:-1])[number])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(
                [
                    v.BAR_START,
                    v.BAR_END,
                    v.FILL_IN,
                    v.PAD,
                    ON,
                    ON + 2,
                    OFF,
                    REST,
                    REST - 2,
                    v.VELOCITY + 20,
                    v.DOCUMENT_END,
                ]
            ),
            min_size=1,
            max_size=60,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_ids_come_back(bpe, found):
    ids, lengths = joined([np.array(ids, np.uint16) for ids in found])
    merged, merged_lengths = bpe.encode(ids, lengths)
    np.testing.assert_array_equal(bpe.decode(merged), ids)
    for own, part in zip(found, np.split(merged, np.cumsum(merged_lengths)[:-1]), strict=True):
        assert bpe.decode(part).tolist() == own
    is_event = np.isin(merged, EVENTS) | (merged >= v.SIZE)
    assert merged[~is_event].tolist() == [token_id for token_id in ids.tolist() if token_id not in EVENTS]


def test_nothing_is_nothing(bpe):
    ids, lengths = bpe.encode(np.empty(0, np.uint16), np.empty(0, np.int32))
    assert len(ids) == len(lengths) == len(bpe.decode(ids)) == 0


def test_words_seen_too_often_to_remember_are_merged_all_the_same(bpe, documents, monkeypatch):
    monkeypatch.setattr("megatron_music.tokens.bpe._CACHED_WORDS", 3)
    fresh = Bpe(bpe.merges)
    ids, lengths = joined(documents)
    for _ in range(2):
        np.testing.assert_array_equal(fresh.encode(ids, lengths)[0], bpe.encode(ids, lengths)[0])


def test_merging_is_what_tokenizers_does(bpe, documents):
    # Byte-pair encoding as the package does it, with our merges as characters.
    spelled = lambda token_id: "".join(chr(0xE000 + part) for part in (bpe.decode(np.array([token_id]))))
    tokens = [spelled(token_id) for token_id in (*EVENTS, *range(v.SIZE, v.SIZE + bpe.size))]
    pairs = [tuple(map(spelled, pair)) for pair in bpe.merges]
    model = tokenizers.models.BPE({token: place for place, token in enumerate(tokens)}, pairs)
    ids, lengths = joined(documents)
    words = np.split(ids, np.flatnonzero(np.diff(np.isin(ids, EVENTS), prepend=False)))
    words = [word for word in words if len(word) and word[0] in EVENTS]
    theirs = [[token.value for token in model.tokenize("".join(map(spelled, word)))] for word in words]
    ours = [list(map(spelled, bpe.encode(word, np.array([len(word)]))[0])) for word in words]
    assert ours == theirs and max(map(len, theirs)) > 1


def test_the_number_of_merges_is_a_multiple_of_128(bpe, documents):
    assert bpe.size == 256
    assert learn_bpe(documents, 128).spelled == bpe.spelled[:128]
    few = learn_bpe(documents[:1], 4096)
    assert 0 < few.size < 4096 and (few.size < 128 or few.size % 128 == 0)
    for merges in (0, -1, MAX_MERGES + 1):
        with pytest.raises(ValueError, match=f"{merges} merged tokens; use 1 to 32,768"):
            learn_bpe(documents, merges)


def test_learning_is_the_same_in_any_order_and_on_any_number_of_threads(bpe, documents, tmp_path):
    assert learn_bpe(documents, 200) == learn_bpe(documents[::-1], 200) == learn_bpe([joined(documents)[0]], 200) == bpe
    np.savez(tmp_path / "ids.npz", ids=joined(documents)[0])
    code = (
        "import sys, numpy\nfrom megatron_music.tokens.bpe import learn_bpe\n"
        "ids = numpy.load(sys.argv[1])['ids']\nlearn_bpe(numpy.array_split(ids, 50), 200).write(sys.argv[2])"
    )
    for threads in "12":
        (tmp_path / threads).mkdir()
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "ids.npz", tmp_path / threads],
            check=True,
            env={**os.environ, "RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true"},
        )
    assert (tmp_path / "1" / BPE_FILE).read_bytes() == (tmp_path / "2" / BPE_FILE).read_bytes()


def test_documents_are_read_one_after_another_not_kept(documents):
    read = iter(documents)
    assert learn_bpe(read, 128).size == 128 and next(read, None) is None


def test_merges_are_read_without_tokenizers(bpe, documents, tmp_path):
    bpe.write(tmp_path)
    assert read_bpe(tmp_path) == bpe
    content = json.loads((tmp_path / BPE_FILE).read_text())
    assert content["tokens"]["768"] == list(bpe.spelled[0]) and len(content["tokens"]) == bpe.size
    code = (
        "import sys; sys.modules['tokenizers'] = None\nimport numpy\nfrom megatron_music.tokens.bpe import read_bpe\n"
        "bpe = read_bpe(sys.argv[1])\nprint(*bpe.decode(numpy.array([1, 768, 767])), 'torch' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code, tmp_path], check=True, capture_output=True, text=True).stdout
    assert printed.split() == ["1", *map(str, bpe.spelled[0]), "767", "False"]


def test_damaged_merges_are_refused(bpe, tmp_path):
    with pytest.raises(ValueError, match=r"bpe.json is missing; name a folder"):
        read_bpe(tmp_path)
    bpe.write(tmp_path)
    content = json.loads((tmp_path / BPE_FILE).read_text())
    for damage in (
        {"merges": content["merges"][1:]},
        {"merges": [[v.BAR_END, ON], *content["merges"]]},
        {"merges": [[ON, v.SIZE]]},
        {"merges": None},
        {"tokens": {**content["tokens"], "768": [ON]}},
    ):
        (tmp_path / BPE_FILE).write_text(json.dumps({**content, **damage}))
        with pytest.raises(ValueError, match=r"bpe.json is damaged"):
            read_bpe(tmp_path)
    (tmp_path / BPE_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"bpe.json is damaged"):
        read_bpe(tmp_path)


def test_merges_that_double_are_refused_at_once():
    first = v.IDS["NOTE_ON=60"]
    with pytest.raises(ValueError, match="merge 15 stands for 32,768 events"):
        Bpe([(first, first), *((v.SIZE + place, v.SIZE + place) for place in range(40))])
