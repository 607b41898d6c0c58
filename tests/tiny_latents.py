"""A small dataset of embeddings and latents in the format of `build latents`, with made-up numbers, and its runs."""

from pathlib import Path

import numpy as np

from megatron_music.config.load import load_run
from megatron_music.config.sections import Run
from megatron_music.data.latents import LatentItem, write_samples, write_texts
from megatron_music.data.latents_index import (
    ENCODERS,
    PARTS,
    LatentsInfo,
    encoder_hash,
    write_index,
)

CHANNELS, FRAMES, TEXT_SIZE, TEXT_LENGTH, EMBEDDING = 8, 16, 24, 5, 12
INFO = LatentsInfo(CHANNELS, FRAMES, 16000, 2, 2000, EMBEDDING, TEXT_LENGTH, TEXT_SIZE)


def tiny_latents(folder: Path, seed: int = 0, counts: dict[str, int] | None = None) -> Path:
    """Samples whose latents and embedding say which of four captions they have, and noise."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    captions = ["", "a slow piano", "a fast organ", "strings", "a drum"]
    states = random.standard_normal((len(captions), TEXT_LENGTH, TEXT_SIZE)).astype(np.float32)
    lengths = np.array([1, 3, 3, 1, 2], np.int32)
    files = write_texts(folder, captions, states, lengths)
    ways = random.standard_normal((len(captions), CHANNELS, FRAMES)).astype(np.float32)
    points = random.standard_normal((len(captions), EMBEDDING)).astype(np.float32)
    splits = {}
    for split, count in (counts or {"train": 21, "valid": 6, "test": 3}).items():
        (folder / split).mkdir()
        items = []
        for kind in random.integers(1, len(captions), count):
            latents = ways[kind] + 0.1 * random.standard_normal((CHANNELS, FRAMES)).astype(np.float32)
            embedding = points[kind] + 0.1 * random.standard_normal(EMBEDDING).astype(np.float32)
            items.append(LatentItem(latents, embedding / np.linalg.norm(embedding), (int(kind), 4), 0.0, 2.0))
        parts = [items[: count // 2], items[count // 2 :]]
        splits[split] = [
            write_samples(folder / split / f"{n:05}.safetensors", part) for n, part in enumerate(parts) if part
        ]
    encoders = {}
    for name in PARTS:
        (folder / ENCODERS / name).mkdir(parents=True)
        (folder / ENCODERS / name / "made-up.json").write_text(f'{{"name": "{name}"}}')
        encoders[name] = {"name": f"made-up {name}", "sha256": encoder_hash(folder / ENCODERS / name)}
    write_index(folder, INFO, splits, encoders, files)
    return folder


RECIPE = """
model:
  kind: dit
  size: tiny
optimizer:
  lr: 0.003
train:
  train_iters: 20
  micro_batch_size: 2
  global_batch_size: 8
  eval_interval: 10
  eval_iters: 1
checkpoint:
  save_interval: 10
logging:
  tensorboard: false
"""


def flow_run(data: Path | str, *overrides: str) -> Run:
    """A run of milliseconds over a dataset."""
    recipe = Path(data).parent / "flow.yaml"
    recipe.write_text(RECIPE)
    return load_run(str(recipe), [f"data.path={data}", *overrides])
