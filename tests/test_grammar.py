import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_music.music.grid import quantize
from megatron_music.music.score import VOICE_NAMES
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.folder import Encoding
from megatron_music.tokens.grammar import Grammar
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece, encode_windows, window_starts
from tiny import scores, tiny_score


@st.composite
def encodings(draw):
    return Encoding(
        bars=draw(st.integers(1, 4)),
        bar_line=draw(st.sampled_from(["carry", "clip", "split"])),
        steps_per_quarter=draw(st.sampled_from([4, 12])),
        density_bins=draw(st.sampled_from([(), (1, 5)])),
    )


@settings(max_examples=150, deadline=None)
@given(
    encodings(),
    st.one_of(st.none(), st.lists(st.integers(v.INST, v.INST + v.NUM_INSTRUMENTS - 1), min_size=1, max_size=3)),
    st.integers(0, 200),
    st.integers(0, 2**32 - 1),
)
def test_any_walk_is_a_piece_that_encodes_to_itself(encoding, instruments, room, seed):
    """Whatever is drawn, the piece ends in time, decodes without repair and encodes to the same ids."""
    track_tokens = 3 + bool(encoding.density_bins) + 2 * encoding.bars
    max_tokens = 8 + track_tokens * len(instruments or [0]) + room
    grammar = Grammar(encoding, max_tokens, tuple(instruments) if instruments else None)
    chance = np.random.default_rng(seed)
    weights = chance.random(v.SIZE) ** chance.integers(1, 6)
    weights[v.BAR_END] *= chance.random()
    ids = []
    while not grammar.ended:
        odds = grammar.allowed() * weights
        ids.append(int(chance.choice(v.SIZE, p=odds / odds.sum())))
        grammar.advance(ids[-1])
    assert len(ids) <= max_tokens and ids[-1] == v.DOCUMENT_END
    score = decode_piece(ids, encoding.steps_per_quarter)
    assert all(track_id in (instruments or range(v.SIZE)) for track_id in ids if v.INST <= track_id < v.DENSITY)
    without_density = [i for i in ids[:-1] if not v.DENSITY <= i < v.DENSITY + v.NUM_DENSITIES]
    assert encode_piece(score, encoding.bar_line).tolist() == without_density


@settings(max_examples=60, deadline=None)
@given(scores(max_steps=8000), st.sampled_from(["carry", "clip", "split"]))
def test_every_encoded_window_is_lawful(score, bar_line):
    quantized = quantize(score)
    ids, lengths = encode_windows(quantized, window_starts(quantized, 2, 1, bar_line), 2, bar_line)
    for document in np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else ():
        grammar = Grammar(Encoding(bars=2, bar_line=bar_line), 10_000)
        for token_id in [*document.tolist(), v.DOCUMENT_END]:
            grammar.advance(token_id)
        assert grammar.ended


@pytest.mark.parametrize(("words", "wrong"), [
    ("PIECE_START", "DOCUMENT_END"),
    ("PIECE_START TRACK_START", "BAR_START"),
    ("PIECE_START TRACK_START INST=0 BAR_START", "NOTE_OFF=60"),
    ("PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60", "NOTE_ON=60"),
    ("PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60", "NOTE_ON=59"),
    ("PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60", "NOTE_OFF=60"),
    ("PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60", "BAR_END"),  # the last bar, still sounding
    ("PIECE_START TRACK_START INST=0 BAR_START", "TIME_DELTA=16"),  # nothing can follow
    ("PIECE_START TRACK_START INST=0 BAR_START TIME_DELTA=3", "TIME_DELTA=3"),
    ("PIECE_START TRACK_START INST=0 BAR_START TIME_DELTA=3", "BAR_END"),
    ("PIECE_START TRACK_START INST=0 BAR_START NOTE_ON=60", "TIME_DELTA=17"),
    ("PIECE_START TRACK_START INST=0 BAR_START BAR_END", "BAR_START"),  # one bar was asked for
    ("PIECE_START", "PAD"),
])  # fmt: skip
def test_what_may_not_come(words, wrong):
    grammar = Grammar(Encoding(bars=1), 100)
    for word in words.split():
        grammar.advance(v.IDS[word])
    with pytest.raises(ValueError, match=f"{wrong} cannot be token {len(words.split()) + 1}"):
        grammar.advance(v.IDS[wrong])


def test_given_instruments_are_the_tracks():
    grammar = Grammar(Encoding(bars=4), 2000, tuple(v.IDS[f"INST={voice}"] for voice in VOICE_NAMES))
    for token_id in [*encode_piece(tiny_score()).tolist(), v.DOCUMENT_END]:
        grammar.advance(token_id)
    assert grammar.ended


def test_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match="allow at least"):
        Grammar(Encoding(bars=4), 12)


def test_given_bars_are_taken_over_and_kept_room_for():
    """The first track may not spend the tokens that the second one's given bars need."""
    score = tiny_score(2)
    ids = encode_piece(score).tolist()
    given = [ids[ids.index(v.IDS[f"INST={voice}"]) + 1 :] for voice in VOICE_NAMES]
    given = [bars[: bars.index(v.TRACK_END)] for bars in given]
    instruments = tuple(v.IDS[f"INST={voice}"] for voice in VOICE_NAMES)
    needed = 1 + sum(len(bars) + 3 + 2 * 2 for bars in given) + 1
    with pytest.raises(ValueError, match="too few"):
        Grammar(Encoding(bars=4), needed, instruments, given)
    grammar = Grammar(Encoding(bars=4), needed + 20, instruments, given)
    written = []
    while not grammar.ended:
        written.append(int(np.flatnonzero(grammar.allowed())[-1]))  # high pitches first: the most notes
        grammar.advance(written[-1])
    assert len(written) <= needed + 20
    assert [t.notes[t.notes[:, 0] < 32].tolist() for t in decode_piece(written).tracks] == [
        track.notes.tolist() for track in score.tracks
    ]
