"""Short sounds of three random pitches."""

import numpy as np


def tones(seed: int) -> np.ndarray:
    time = np.arange(16000) / 16000
    chance = np.random.default_rng(seed)
    sound = sum(np.sin(2 * np.pi * hertz * time) for hertz in chance.uniform(100, 800, 3))
    return np.stack([sound, sound]).astype(np.float32) * 0.2
