"""Small runs and datasets for the tests of models and training."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_music.config.load import load_run
from megatron_music.config.run import RunConfig
from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder


def tiny_dataset(folder: Path, *, seed: int = 0, documents: dict[str, int] | None = None) -> Path:
    """A folder as `build tokens` writes it, of random notes: each document ends in DOCUMENT_END."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for split, count in (documents or {"train": 60, "valid": 12, "test": 12}).items():
        builder = IndexedDatasetBuilder(str(folder / f"{split}.bin"), dtype=np.uint16)
        for _ in range(count):
            document = tiny_document(random)
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / f"{split}.idx"))
    write_tokenizer_folder(folder / "tokenizer", Encoding())
    return folder


def tiny_document(random: np.random.Generator) -> np.ndarray:
    """One track of one bar, of 5 to 25 notes that sound one after another."""
    ids = [vocabulary.PIECE_START, vocabulary.TRACK_START, vocabulary.INST, vocabulary.BAR_START]
    for pitch in random.integers(50, 70, random.integers(5, 26)):
        ids += [vocabulary.NOTE_ON + pitch, vocabulary.TIME_DELTA + random.integers(1, 5), vocabulary.NOTE_OFF + pitch]
    ids += [vocabulary.BAR_END, vocabulary.TRACK_END, vocabulary.PIECE_END, vocabulary.DOCUMENT_END]
    return np.array(ids, np.uint16)


def tiny_run(data: Path | str, *overrides: str) -> RunConfig:
    """The tiny recipe on a dataset."""
    return load_run("tiny", [f"data.path={data}", "logging.tensorboard=false", *overrides])


def launch(world_size: int, program: Path, *arguments) -> None:
    """Run a program on several processes and wait for them; what they wrote is shown where they failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    processes = subprocess.Popen(
        [*command, str(program), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        start_new_session=True,
    )
    try:
        output, _ = processes.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        os.killpg(processes.pid, signal.SIGKILL)
        raise
    assert processes.returncode == 0, output


class RandomModel:
    """``NextLogits`` that depend on the last id alone; notes and the ends of fills are likely."""

    def __init__(self, model, batch_size: int, max_tokens: int):
        self.table = torch.randn((vocabulary.SIZE, vocabulary.SIZE), generator=torch.Generator().manual_seed(0))
        self.table[:, vocabulary.NOTE_ON : vocabulary.NOTE_ON + 128] += 1
        self.table[:, vocabulary.FILL_END] += 3

    def __call__(self, ids_BS):
        return self.table[ids_BS[:, -1]]

    def keep(self, rows):
        pass
