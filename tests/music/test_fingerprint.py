"""What makes two files the same music, and what does not."""

import pytest
from tiny import tiny_score

from megatron_music.music.fingerprint import content_hash
from megatron_music.music.score import Note, Score, Tempo, Track

DRUMS = Track([Note(0, 1, 36), Note(8, 9, 38)], is_drum=True)


def changed(start: int = 0, pitch: int = 0, factor: int = 1, tracks=None) -> Score:
    """The tiny score with drums, later, higher, on finer ticks."""
    return Score(
        tuple(
            Track(
                [
                    Note(
                        (n.start_step + start) * factor,
                        (n.end_step + start) * factor,
                        n.pitch + (0 if t.is_drum else pitch),
                    )
                    for n in t
                ],
                is_drum=t.is_drum,
            )
            for t in tracks or (*tiny_score().tracks, DRUMS)
        ),
        4 * factor,
    )


@pytest.mark.parametrize(
    "other",
    [
        changed(pitch=3),  # transposed, drums as they were
        changed(start=16),  # after a bar of silence
        changed(factor=120),  # 480 ticks a quarter
        changed(tracks=(DRUMS, *reversed(tiny_score().tracks))),
        Score(changed().tracks, 4, tempos=(Tempo(0, 200.0),)),
        Score((*(Track(t.rows, 7, t.is_drum) for t in changed().tracks),), 4),
    ],
    ids=["key", "silence", "ticks", "order of tracks", "tempo", "instruments"],
)
def test_the_same_music(other):
    assert content_hash(other) == content_hash(changed())


@pytest.mark.parametrize(
    "other",
    [
        changed(tracks=tiny_score().tracks),  # no drums
        changed(tracks=(*tiny_score().tracks[:3], DRUMS)),
        changed(tracks=(*tiny_score(5).tracks, DRUMS)),
        changed(tracks=(*tiny_score().tracks, Track([Note(0, 1, 37), Note(8, 9, 38)], is_drum=True))),
        changed(tracks=(*tiny_score().tracks, Track([Note(0, 1, 36), Note(9, 10, 38)], is_drum=True))),
        Score((Track(),), 4),
    ],
    ids=["drums", "a voice", "a bar", "another drum", "a step later", "nothing"],
)
def test_other_music(other):
    assert content_hash(other) != content_hash(changed())


def test_its_form():
    assert len(content_hash(tiny_score())) == 32 and int(content_hash(tiny_score()), 16) > 0
