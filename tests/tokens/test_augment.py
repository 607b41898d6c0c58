"""Augmented documents are the same music in another key, its tracks in another order, whatever else is encoded
beside.
"""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny import scores

from megatron_music.music.grid import quantize
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.augment import augment
from megatron_music.tokens.density import open_bar_ids, open_track_ids
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece

HEAD = "PIECE_START STYLE=3 GENRE=7 TEMPO=12 TIME_SIGNATURE=3/4"
BASS = "TRACK_START INST=33 DENSITY=2 BAR_START VELOCITY=20 NOTE_ON=40 TIME_DELTA=4 NOTE_OFF=40 BAR_END TRACK_END"
DRUMS = "TRACK_START INST=DRUMS DENSITY=1 BAR_START VELOCITY=20 NOTE_ON=36 TIME_DELTA=1 NOTE_OFF=36 BAR_END TRACK_END"
FLUTE = (
    "TRACK_START INST=73 DENSITY=0 BAR_START NOTE_ON=72 NOTE_ON=76 TIME_DELTA=12 NOTE_OFF=72 NOTE_OFF=76 BAR_END "
    "TRACK_END"
)


def document(*tracks: str, head: str = HEAD) -> np.ndarray:
    return v.to_ids(" ".join((head, *tracks, "DOCUMENT_END")))


def augmented(
    *documents: np.ndarray, windows=None, key=5, copy=1, transpose=(0, 0), permute_tracks=False
) -> list[np.ndarray]:
    lengths = np.array([len(ids) for ids in documents], np.int32)
    windows = np.arange(len(documents)) if windows is None else np.asarray(windows)
    ids = np.concatenate([*documents, np.empty(0, np.uint16)]).astype(np.uint16)
    before = ids.copy()
    found = augment(ids, lengths, windows, key, copy, transpose, permute_tracks)
    assert found.dtype == np.uint16 and found.flags.writeable and not np.shares_memory(found, ids)
    np.testing.assert_array_equal(ids, before)
    return np.split(found, np.cumsum(lengths)[:-1]) if documents else [found]


def test_notes_move_and_nothing_else_does():
    (up,) = augmented(document(BASS, DRUMS, FLUTE), transpose=(3, 3))
    assert v.to_text(up) == " ".join(
        (
            HEAD,
            "TRACK_START INST=33 DENSITY=2 BAR_START VELOCITY=20 NOTE_ON=43 TIME_DELTA=4 NOTE_OFF=43 BAR_END TRACK_END",
            DRUMS,
            "TRACK_START INST=73 DENSITY=0 BAR_START NOTE_ON=75 NOTE_ON=79 TIME_DELTA=12 NOTE_OFF=75 NOTE_OFF=79 "
            "BAR_END TRACK_END",
            "DOCUMENT_END",
        )
    )


def test_tracks_change_places_and_nothing_else_does():
    orders = Counter(v.to_text(ids) for ids in augmented(*[document(BASS, DRUMS, FLUTE)] * 600, permute_tracks=True))
    wanted = {
        v.to_text(document(*tracks))
        for tracks in (
            (BASS, DRUMS, FLUTE),
            (BASS, FLUTE, DRUMS),
            (DRUMS, BASS, FLUTE),
            (DRUMS, FLUTE, BASS),
            (FLUTE, BASS, DRUMS),
            (FLUTE, DRUMS, BASS),
        )
    }
    assert orders.keys() == wanted
    assert all(60 < count < 140 for count in orders.values()), orders  # 100 each, give or take 4 standard deviations


def pitches(ids: np.ndarray) -> list[int]:
    return [int(note) - v.NOTE_ON for note in ids if v.NOTE_ON <= note < v.NOTE_ON + 128]


def test_shifts_are_drawn_evenly_from_those_that_fit():
    high = document(
        "TRACK_START INST=0 BAR_START NOTE_ON=124 TIME_DELTA=1 NOTE_OFF=124 BAR_END TRACK_END", head="PIECE_START"
    )
    moved = Counter(pitches(ids)[0] - 124 for ids in augmented(*[high] * 1200, transpose=(-2, 6)))
    assert moved.keys() == {-2, -1, 0, 1, 2, 3}
    assert all(140 < count < 260 for count in moved.values()), moved  # 200 each


@pytest.mark.parametrize(
    ("first", "last", "transpose", "wanted"),
    [
        (0, 127, (-6, 5), {0}),
        (0, 127, (1, 5), {0}),  # none fits: it stays
        (5, 100, (-12, -4), {-5, -4}),
        (20, 126, (1, 12), {1}),
        (20, 126, (2, 12), {0}),
    ],
)
def test_pitches_stay_in_range(first, last, transpose, wanted):
    tracks = [
        f"TRACK_START INST={program} BAR_START NOTE_ON={pitch} TIME_DELTA=2 NOTE_OFF={pitch} BAR_END TRACK_END"
        for program, pitch in ((0, last), (1, first), ("DRUMS", 0), ("DRUMS", 127))
    ]
    found = augmented(*[document(*tracks)] * 60, transpose=transpose)
    assert {pitches(ids)[0] - last for ids in found} == wanted
    assert all(pitches(ids)[1] - first == pitches(ids)[0] - last and pitches(ids)[2:] == [0, 127] for ids in found)


def test_drums_alone_stay():
    (same,) = augmented(document(DRUMS), transpose=(1, 12), permute_tracks=True)
    assert v.to_text(same) == v.to_text(document(DRUMS))


def test_open_densities_stay():
    # Their ids look like notes in their lower bits.
    ids = document(BASS, FLUTE, DRUMS)
    density = np.flatnonzero((ids >= v.DENSITY) & (ids < v.DENSITY + v.NUM_DENSITIES))
    ids[density] = open_track_ids(np.array([0, 201, 30_000]))
    ids = np.insert(ids, np.flatnonzero(ids == v.BAR_START) + 1, open_bar_ids(np.array([40, 201, 768])))
    (moved,) = augmented(ids, transpose=(4, 4))
    is_note = (ids >= v.NOTE_ON) & (ids < v.NOTE_OFF + 128)
    np.testing.assert_array_equal(moved[~is_note], ids[~is_note])
    assert sorted(set((moved.astype(int) - ids)[is_note].tolist())) == [0, 4]


def test_a_document_does_not_depend_on_its_company():
    documents = [document(BASS, FLUTE, DRUMS), document(FLUTE), document(DRUMS, BASS)]
    options = {"transpose": (-5, 6), "permute_tracks": True}
    together = augmented(*documents, windows=[4, 7, 9], **options)
    for number, ids, window in zip(range(3), documents, (4, 7, 9), strict=True):
        np.testing.assert_array_equal(augmented(ids, windows=[window], **options)[0], together[number])
    with_seed = lambda **change: [ids.tolist() for ids in augmented(*[documents[0]] * 20, **options, **change)]
    assert with_seed() == with_seed() != with_seed(copy=2) != with_seed(key=6)


def test_nothing_is_nothing():
    assert len(augmented(transpose=(-5, 6), permute_tracks=True)[0]) == 0
    ids = document(FLUTE, BASS)
    np.testing.assert_array_equal(augmented(ids)[0], ids)


def music(score, shift: int = 0) -> Counter:
    moved = lambda track: track.notes[:, :3] + (0, 0, 0 if track.is_drum else shift)
    return Counter(
        (track.program, track.is_drum, track.voice, *map(tuple, moved(track).tolist())) for track in score.tracks
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(scores(max_steps=6000), min_size=1, max_size=4),
    st.integers(-12, 12),
    st.integers(0, 12),
    st.integers(0, 9),
)
def test_augmented_documents_spell_the_same_music_moved(pieces, low, width, key):
    documents = [np.append(encode_piece(quantize(piece, 4)), v.DOCUMENT_END).astype(np.uint16) for piece in pieces]
    documents = [ids for ids in documents if v.TRACK_START in ids]
    assume(documents)
    found = augmented(*documents, key=key, transpose=(low, low + width), permute_tracks=True)
    for before, after in zip(documents, found, strict=True):
        old, new = decode_piece(before), decode_piece(after)
        shifts = [shift for shift in (0, *range(low, low + width + 1)) if music(old, shift) == music(new)]
        assert shifts
        np.testing.assert_array_equal(encode_piece(new), after[:-1])  # in canonical order still
