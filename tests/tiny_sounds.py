"""A folder of sounds with captions that takes seconds to make and to encode: pieces of two families and two tempos."""

import json
from pathlib import Path

import numpy as np

from megatron_music.audio.waveform import write_waveform

RATE = 16000


def tiny_sounds(folder: Path, count: int = 12, seconds: float = 1.1) -> Path:
    """Strokes of a high or a low tone, slow or fast, with their captions in ``captions.jsonl``."""
    folder.mkdir(parents=True)
    lines = []
    for number in range(count):
        chance = np.random.default_rng(number)
        is_high, is_fast = bool(number & 1), bool(number & 2)
        time = np.arange(round(seconds * RATE)) / RATE
        sound = np.exp(-(time % (0.2 if is_fast else 0.5)) / 0.08) * np.sin(
            2 * np.pi * (1200 if is_high else 200) * time
        )
        sound += 0.01 * chance.standard_normal(len(time))
        write_waveform(folder / f"{number:03}.wav", 0.5 * np.stack([sound, sound]), RATE)
        words = ("fast" if is_fast else "slow", "bell" if is_high else "bass")
        caption = [f"{words[0]} {words[1]} music", f"{words[1]}, {words[0]}"]
        lines.append({"path": f"{number:03}.wav", "captions": caption, "group": str(number // 2)})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
