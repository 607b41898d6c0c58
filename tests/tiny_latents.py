"""A small dataset of embeddings and latents in the format of `build latents`, with made-up numbers, and its runs."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from megatron_music.config import Run
from megatron_music.recipes import load_run

CHANNELS, FRAMES, TEXT_SIZE, TEXT_LENGTH, EMBEDDING = 8, 16, 24, 5, 12


def tiny_latents(folder: Path, seed: int = 0, counts: dict[str, int] | None = None) -> Path:
    """Samples whose latents and embedding say which of four captions they have, and noise."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    captions = ["", "a slow piano", "a fast organ", "strings", "a drum"]
    states = random.standard_normal((len(captions), TEXT_LENGTH, TEXT_SIZE)).astype(np.float32)
    lengths = np.array([1, 3, 3, 1, 2], np.int32)
    save_file({"states": states, "lengths": lengths}, folder / "texts.safetensors")
    (folder / "texts.jsonl").write_text("".join(json.dumps(text) + "\n" for text in captions))
    ways = random.standard_normal((len(captions), CHANNELS, FRAMES)).astype(np.float32)
    points = random.standard_normal((len(captions), EMBEDDING)).astype(np.float32)
    splits = {}
    for split, count in (counts or {"train": 21, "valid": 6, "test": 3}).items():
        (folder / split).mkdir()
        kinds = random.integers(1, len(captions), count)
        latents = ways[kinds] + 0.1 * random.standard_normal((count, CHANNELS, FRAMES)).astype(np.float32)
        embeddings = points[kinds] + 0.1 * random.standard_normal((count, EMBEDDING)).astype(np.float32)
        name = folder / split / "00000.safetensors"
        save_file(
            {
                "latents": latents,
                "embeddings": embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True),
                "seconds_start": np.zeros(count, np.float32),
                "seconds_total": np.full(count, 2.0, np.float32),
                "caption_starts": np.arange(count + 1),
                "caption_numbers": kinds.astype(np.int64),
            },
            name,
        )
        splits[split] = [{"name": name.name, "count": count, "sha256": sha256(name.read_bytes()).hexdigest()}]
    index = {
        "format": 1, "latent_channels": CHANNELS, "latent_length": FRAMES, "sample_rate": 16000, "channels": 2,
        "downsampling": 2000, "embedding_size": EMBEDDING, "text_length": TEXT_LENGTH, "text_size": TEXT_SIZE,
        "encoders": {name: {"name": f"made-up {name}", "sha256": "0" * 64} for name in ("text", "music", "autoencoder")},
        "splits": splits,
    }  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))
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
