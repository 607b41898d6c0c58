from dataclasses import replace

import numpy as np
import oracle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import encodings, quantize_for, scores, tiny_score

from megatron_music.music.grid import sections, slice_bars
from megatron_music.music.score import VOICE_NAMES, Score
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.grammar import Grammar, meter_ids
from megatron_music.tokens.infill import put_back, take_out
from megatron_music.tokens.infill_grammar import FillGrammar
from megatron_music.tokens.mmmtrack import (
    decode_piece,
    encode_piece,
    encode_windows,
    window_starts,
)

LABELS = (("STYLE", ("CALM", "WILD")), ("GENRE", ("JAZZ", "ROCK")), ("MOOD", ("HAPPY",)))
VOICES = tuple(v.IDS[f"INST={voice}"] for voice in VOICE_NAMES)
SOME_METERS = tuple(v.IDS[f"TIME_SIGNATURE={meter}"] for meter in ("3/4", "16/2", "1/8"))


def walk(grammar, seed: int) -> list[int]:
    """Ids drawn with odds of their own, some piece by piece nearly always the same."""
    chance = np.random.default_rng(seed)
    weights = chance.random(v.SIZE) ** chance.integers(1, 6)
    weights[[v.BAR_END, v.FILL_END]] *= chance.random()
    weights[v.TIME_SIGNATURE : v.VELOCITY] *= chance.random() ** 3
    weights[v.VELOCITY : v.VELOCITY + 32] *= chance.random() * 2
    ids = []
    while not grammar.ended:
        odds = grammar.allowed() * weights
        ids.append(int(chance.choice(v.SIZE, p=odds / odds.sum())))
        grammar.advance(ids[-1])
    return ids


def follow(grammar, ids) -> None:
    """The ids are lawful, and the whole of a document."""
    for token_id in np.asarray(ids).tolist():
        grammar.advance(token_id)
    assert grammar.ended


def without_density(ids) -> list[int]:
    return [i for i in np.asarray(ids).tolist() if not v.DENSITY <= i < v.DENSITY + v.NUM_DENSITIES]


def encoded(score: Score, encoding: Encoding, labels=()) -> list[int]:
    """As the plain walk of the oracle encodes it: notes as they stand, whatever the bar-line policy."""
    names = {token_id: token for token, token_id in encoding.label_ids.items()}
    words = oracle.encode_piece(score, encoding, tuple(names[label] for label in labels)).split()
    return [{**v.IDS, **encoding.label_ids}[word] for word in words]


@settings(max_examples=200, deadline=None)
@given(
    st.booleans().flatmap(lambda labelled: encodings(labels=LABELS if labelled else ())),
    st.one_of(st.none(), st.lists(st.integers(v.INST, v.INST + v.NUM_INSTRUMENTS - 1), min_size=1, max_size=3)),
    st.booleans(),
    st.integers(0, 300),
    st.integers(0, 2**32 - 1),
)
def test_any_walk_is_a_piece_that_encodes_to_itself(encoding, instruments, is_labelled, room, seed):
    """Whatever is drawn, the piece ends in time, decodes without repair and encodes to the same ids."""
    labels = list(encoding.label_ids.values())[::2] if is_labelled else None
    track_tokens = 3 + bool(encoding.density) + (2 + bool(encoding.bar_density)) * encoding.bars
    needed = 8 + len(labels or ()) + encoding.tempo + encoding.writes_meters + track_tokens * len(instruments or [0])
    with pytest.raises(ValueError, match=f"allow at least {needed}$"):
        Grammar(encoding, needed - 1, instruments, labels=labels)
    ids = walk(Grammar(encoding, needed + room, instruments, labels=labels), seed)
    assert len(ids) <= needed + room and ids[-1] == v.DOCUMENT_END
    found_labels = [token_id for token_id in ids if token_id in encoding.label_ids.values()]
    assert labels is None or found_labels == labels
    tracks = [token_id for token_id in ids if v.INST <= token_id < v.INST + v.NUM_INSTRUMENTS]
    assert instruments is None or tracks == instruments
    densities = bool(encoding.density) + bool(encoding.bar_density) * encoding.bars
    assert len(ids) - len(without_density(ids)) == len(tracks) * densities
    score = decode_piece(ids, encoding.steps_per_quarter)
    assert score.num_bars == encoding.bars
    ids = without_density(ids[:-1])
    assert without_density(encode_piece(score, encoding, tuple(found_labels))) == ids
    assert without_density(encoded(score, encoding, found_labels)) == ids


def test_walks_use_all_there_is():
    """The walks above would prove little if some tokens never came."""
    encoding = Encoding(bars=3, meters=("all",), velocity=True, tempo=True, density=3, bar_density=2, labels=LABELS)
    came = np.zeros(v.SIZE, bool)
    for seed in range(40):
        came[walk(Grammar(encoding, 600, VOICES[:2]), seed)] = True
    for first, after in (
        (v.TIME_SIGNATURE, v.TEMPO),
        (v.TEMPO, v.VELOCITY),
        (v.VELOCITY, v.VELOCITY + 32),
        (v.DENSITY, v.DENSITY + 3),
        (v.NOTE_ON, v.NOTE_ON + 256),
        (v.TIME_DELTA + 1, v.TIME_DELTA + 49),
    ):
        assert came[first:after].mean() > 0.5
    assert all(came[token_id] for token_id in encoding.label_ids.values())
    assert not came[v.DENSITY + 3]


@settings(max_examples=100, deadline=None)
@given(encodings(infill=True), st.data(), st.integers(0, 2**32 - 1))
def test_any_fills_are_bars_that_encode_to_themselves(encoding, data, seed):
    """A piece, some of its bars emptied, taken out and filled anew."""
    tracks = data.draw(st.integers(1, 3))
    piece = np.array(walk(Grammar(encoding, 700, VOICES[:tracks]), seed), np.uint16)
    bars = data.draw(st.sets(st.tuples(st.integers(0, tracks - 1), st.integers(0, encoding.bars - 1)), min_size=1))
    prompt = take_out(piece, bars)
    prompt = prompt[: np.flatnonzero(prompt == v.FILL_START)[0]]
    try:
        holes = FillGrammar(encoding, 10_000, prompt).holes
    except ValueError as error:
        assert "starts in a bar to fill and sounds on behind it" in str(error) and encoding.bar_line == "carry"
        assume(False)
    needed = len(prompt) + sum(2 + (1 + len(hole.sounding) if hole.sounding else 0) for hole in holes) + 7
    with pytest.raises(ValueError, match=f"allow at least {needed}$"):
        FillGrammar(encoding, needed - 1, prompt)
    room = data.draw(st.integers(0, 100))
    ids = walk(FillGrammar(encoding, needed + room, prompt), seed + 1)
    assert len(ids) <= needed + room and ids[: len(prompt)] == prompt.tolist() and ids[-1] == v.DOCUMENT_END
    filled = put_back(np.array(ids))
    assert (take_out(filled, bars) == ids).all()
    score = decode_piece(ids, encoding.steps_per_quarter)
    assert without_density(encode_piece(score, encoding)) == without_density(filled[:-1])


def quantized_stretches(score: Score, encoding: Encoding) -> list[Score]:
    whole = tuple(m for m in encoding.meter_set if 4 * encoding.steps_per_quarter * m[0] % m[1] == 0)
    return [quantize_for(part, encoding) for part in sections(score, whole) if part.num_notes]


@settings(max_examples=100, deadline=None)
@given(scores(max_steps=8000, any_meter=True), encodings(labels=LABELS), st.booleans())
def test_every_encoded_window_is_lawful(score, encoding, is_labelled):
    labels = tuple(encoding.label_ids.values())[1::2] if is_labelled else ()
    for part in quantized_stretches(score, encoding):
        windows = encode_windows(part, window_starts(part, encoding), encoding, labels)
        for document in np.split(windows.ids, np.cumsum(windows.lengths)[:-1]) if len(windows.lengths) else ():
            follow(Grammar(encoding, 10_000), [*document.tolist(), v.DOCUMENT_END])


@settings(max_examples=60, deadline=None)
@given(scores(max_steps=8000, any_meter=True), encodings(bar_line="split"), st.data())
def test_every_document_with_bars_taken_out_is_lawful(score, encoding, data):
    """With notes that end in their bars; carried ones may sound out of a bar that is taken out."""
    for part in quantized_stretches(score, encoding):
        windows = encode_windows(part, window_starts(part, encoding), encoding)
        if len(windows.lengths):
            document = [*windows.ids[: windows.lengths[0]].tolist(), v.DOCUMENT_END]
            bars = data.draw(st.sets(st.integers(0, encoding.bars - 1), min_size=1))
            ids = take_out(np.array(document), [(0, bar) for bar in bars])
            follow(FillGrammar(encoding, 10_000, ids[: np.flatnonzero(ids == v.FILL_START)[0]]), ids)


PIECE = "PIECE_START TRACK_START INST=0 BAR_START"


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        ("PIECE_START", "DOCUMENT_END"),
        ("PIECE_START TRACK_START", "BAR_START"),
        (PIECE, "NOTE_OFF=60"),
        (f"{PIECE} NOTE_ON=60", "NOTE_ON=60"),
        (f"{PIECE} NOTE_ON=60", "NOTE_ON=59"),
        (f"{PIECE} NOTE_ON=60", "NOTE_OFF=60"),
        (f"{PIECE} NOTE_ON=60", "BAR_END"),  # the last bar, still sounding
        (PIECE, "TIME_DELTA=16"),  # nothing can follow
        (PIECE, "VELOCITY=20"),
        (PIECE, "DENSITY=0"),
        (PIECE, "TIME_SIGNATURE=3/4"),
        (PIECE, "FILL_IN"),
        (f"{PIECE} TIME_DELTA=3", "TIME_DELTA=3"),
        (f"{PIECE} TIME_DELTA=3", "BAR_END"),
        (f"{PIECE} NOTE_ON=60", "TIME_DELTA=17"),
        (f"{PIECE} BAR_END", "BAR_START"),  # one bar was asked for
        ("PIECE_START", "PAD"),
        ("PIECE_START", "GENRE=0"),
        ("PIECE_START", "TEMPO=3"),
    ],
)
def test_what_may_not_come(words, wrong):
    grammar = Grammar(Encoding(bars=1), 100)
    for word in words.split():
        grammar.advance(v.IDS[word])
    with pytest.raises(ValueError, match=f"{wrong} cannot be token {len(words.split()) + 1}"):
        grammar.advance(v.IDS[wrong])


EVERYTHING = Encoding(
    bars=2, meters=("4/4", "16/2", "3/4"), velocity=True, tempo=True, density=2, bar_density=2, labels=LABELS
)
HEAD = "PIECE_START STYLE=1 GENRE=0 TEMPO=9 TIME_SIGNATURE=16/2"
TRACK = f"{HEAD} TRACK_START INST=0 DENSITY=1 BAR_START DENSITY=0"
SECOND = f"{HEAD} TRACK_START INST=0 DENSITY=1 BAR_START DENSITY=0 BAR_END BAR_START"
OTHER = (
    f"{SECOND} TIME_SIGNATURE=3/4 DENSITY=0 BAR_END TRACK_END "
    "TRACK_START INST=1 DENSITY=0 BAR_START DENSITY=0 BAR_END BAR_START"
)


@pytest.mark.parametrize(
    ("words", "may", "may_not"),
    [
        ("PIECE_START", "STYLE=0 STYLE=1 GENRE=1 RESERVED=0 TEMPO=9", "STYLE=2 TIME_SIGNATURE=4/4 TRACK_START"),
        ("PIECE_START GENRE=0", "RESERVED=0 TEMPO=31", "STYLE=0 GENRE=1 TIME_SIGNATURE=4/4"),
        ("PIECE_START TEMPO=9", "TIME_SIGNATURE=4/4 TIME_SIGNATURE=16/2", "GENRE=0 TRACK_START TIME_SIGNATURE=2/4"),
        (f"{HEAD} TRACK_START INST=0", "DENSITY=0 DENSITY=1", "DENSITY=2 BAR_START"),
        (
            f"{HEAD} TRACK_START INST=0 DENSITY=1 BAR_START",
            "DENSITY=1",
            "TIME_SIGNATURE=4/4 TEMPO=3 NOTE_ON=60 DENSITY=2",
        ),
        (TRACK, "VELOCITY=0 TIME_DELTA=48 BAR_END", "NOTE_ON=60"),
        (f"{TRACK} VELOCITY=0", "NOTE_ON=0 NOTE_ON=127", "VELOCITY=0 TIME_DELTA=1 BAR_END"),
        (f"{TRACK} VELOCITY=0 NOTE_ON=127", "TIME_DELTA=1 BAR_END", "VELOCITY=0"),  # no pitch is above
        (f"{TRACK} TIME_DELTA=48", "TIME_DELTA=48 TIME_DELTA=1 VELOCITY=3", "BAR_END"),
        (
            f"{TRACK} TIME_DELTA=48 TIME_DELTA=48",
            "TIME_DELTA=31 VELOCITY=3",
            "TIME_DELTA=32",
        ),  # 128 steps, a note must follow
        (f"{TRACK} TIME_DELTA=48 TIME_DELTA=1", "VELOCITY=3", "TIME_DELTA=1 TIME_DELTA=48"),
        (f"{TRACK} TIME_DELTA=47", "VELOCITY=3", "TIME_DELTA=1"),
        (SECOND, "TIME_SIGNATURE=3/4 TEMPO=8 DENSITY=0", "TIME_SIGNATURE=16/2 TEMPO=9 BAR_END"),
        (f"{SECOND} TIME_SIGNATURE=3/4", "TEMPO=8 DENSITY=0", "TIME_SIGNATURE=4/4 TEMPO=9"),
        (f"{SECOND} TEMPO=8", "DENSITY=0", "TIME_SIGNATURE=3/4 TEMPO=7"),
        (f"{SECOND} TIME_SIGNATURE=3/4 DENSITY=0", "TIME_DELTA=11", "TIME_DELTA=12"),
        (OTHER, "TIME_SIGNATURE=3/4", "DENSITY=0 TIME_SIGNATURE=4/4 TEMPO=8"),  # tracks agree
        (f"{OTHER} TIME_SIGNATURE=3/4", "DENSITY=0", "TEMPO=8"),
    ],
)
def test_what_options_allow(words, may, may_not):
    grammar = Grammar(EVERYTHING, 500)
    for word in words.split():
        grammar.advance(v.IDS[word])
    allowed = grammar.allowed()
    assert [word for word in may.split() if not allowed[v.IDS[word]]] == []
    assert [word for word in may_not.split() if allowed[v.IDS[word]]] == []


def test_given_instruments_are_the_tracks():
    follow(Grammar(Encoding(bars=4), 2000, VOICES), [*encode_piece(tiny_score()).tolist(), v.DOCUMENT_END])


def test_one_meter_and_tempo_stay():
    encoding = replace(EVERYTHING, bars=4)
    tempo, meter = v.IDS["TEMPO=5"], v.IDS["TIME_SIGNATURE=3/4"]
    for seed in range(10):
        ids = walk(Grammar(encoding, 500, meters=[meter], tempos=[tempo]), seed)
        assert [token_id for token_id in ids if v.TIME_SIGNATURE <= token_id < v.VELOCITY] == [tempo, meter]


def test_only_meters_with_whole_steps():
    assert v.IDS["TIME_SIGNATURE=3/4"] in meter_ids(Encoding(meters=("all",)))
    assert v.IDS["TIME_SIGNATURE=5/16"] in meter_ids(Encoding(meters=("all",)))
    assert len(meter_ids(Encoding(meters=("all",)))) == 64 and meter_ids(Encoding()) == ()


def test_what_cannot_be_asked_for():
    with pytest.raises(ValueError, match="allow at least"):
        Grammar(Encoding(bars=4), 12)
    with pytest.raises(ValueError, match="name the number of bars"):
        Grammar(Encoding(bars=0), 100)
    with pytest.raises(ValueError, match="instruments is empty"):
        Grammar(Encoding(), 100, [])
    with pytest.raises(ValueError, match="label is not one of"):
        Grammar(EVERYTHING, 100, labels=[v.IDS["GENRE=7"]])
    with pytest.raises(ValueError, match="meter or tempo is given"):
        Grammar(EVERYTHING, 100, meters=[v.IDS["TIME_SIGNATURE=5/4"]])
    with pytest.raises(ValueError, match="meter or tempo is given"):
        Grammar(Encoding(), 100, tempos=[v.TEMPO])


def test_given_bars_are_taken_over_and_kept_room_for():
    """The first track may not spend the tokens that the second one's given bars need."""
    score = tiny_score(2)
    given_ids = encode_piece(score)
    needed = len(given_ids) + 4 * 2 * 2 + 1
    with pytest.raises(ValueError, match="too few"):
        Grammar(Encoding(bars=4), needed, given=given_ids)
    grammar = Grammar(Encoding(bars=4), needed + 20, given=given_ids)
    written = []
    while not grammar.ended:
        written.append(int(np.flatnonzero(grammar.allowed())[-1]))  # high pitches first: the most notes
        grammar.advance(written[-1])
    assert len(written) <= needed + 20
    assert [t.notes[t.notes[:, 0] < 32].tolist() for t in decode_piece(written).tracks] == [
        track.notes.tolist() for track in score.tracks
    ]


@settings(max_examples=60, deadline=None)
@given(scores(max_steps=8000, any_meter=True), encodings(bars=st.integers(2, 4)), st.integers(0, 2**32 - 1))
def test_given_bars_of_any_meter_come_first(score, encoding, seed):
    for part in quantized_stretches(score, encoding):
        opening = slice_bars(part, 0, min(encoding.bars - 1, part.num_bars))
        if opening.tracks:
            ids = encode_piece(opening, encoding)
            written = walk(Grammar(encoding, 5000, given=ids), seed)
            decoded = decode_piece(written, encoding.steps_per_quarter)
            assert without_density(encode_piece(decoded, encoding)) == without_density(written[:-1])
            again = slice_bars(decoded, 0, opening.num_bars)
            assert without_density(encode_piece(again, encoding)) == without_density(ids)
