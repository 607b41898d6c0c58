"""When two files hold the same music. Knows nothing about where they lie."""

import hashlib

import numpy as np

from megatron_music.music.score import Score

_STEPS_PER_QUARTER = 4


def content_hash(score: Score) -> str:
    """32 hexadecimal digits that two scores share if they have the same onsets and pitches.

    Onsets count in 16ths from the first one, pitches in semitones from the lowest, drums for themselves. Nothing else
    matters: neither the order of tracks, nor instruments, tempo, note lengths, velocities, ticks a quarter, leading
    silence, or the key it stands in.
    """
    track, start, _, pitch, _ = score.columns
    step = (2 * _STEPS_PER_QUARTER * start + score.steps_per_quarter) // (2 * score.steps_per_quarter)
    if any(track.is_drum for track in score.tracks):
        drum = np.array([track.is_drum for track in score.tracks])[track]
        height = np.where(drum, pitch + 128, pitch - pitch[~drum].min(initial=127))
    else:
        height = pitch - pitch.min(initial=127)
    key = np.sort((step - step.min(initial=1 << 40)) << 8 | height)
    if len(key):
        key = key[np.append(True, key[1:] != key[:-1])]
    return hashlib.blake2b(key.astype("<i8").tobytes(), digest_size=16).hexdigest()
