"""The record of a run: ``metrics.jsonl``, TensorBoard, Weights & Biases, and a progress bar.

It receives numbers and pictures. Only the main process makes one that writes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from megatron_music.config.errors import ConfigError
from megatron_music.config.log import is_quiet, logger
from megatron_music.storage.reading import LINE_BYTES, open_regular, parse_json
from megatron_music.storage.writing import appearing, no_links

FILE = "metrics.jsonl"
# What is shown to a person, in this order; the files have everything.
SHOWN = {
    "loss": ".4f",
    "valid_loss": ".4f",
    "valid_perplexity": ".3f",
    "grad_norm": ".3f",
    "learning_rate": ".2e",
    "epoch": ".3f",
    "tokens_per_second": ",.0f",
    "tflops_per_gpu": ",.3g",
    "mfu": ".1%",
    "cuda_memory_gib": ".2f",
    "process_memory_gib": ".2f",
    "grammatical_share": ".0%",
    "pitch_class_distance": ".3f",
    "duration_distance": ".3f",
    "self_similarity": ".3f",
    "note_density": ".1f",
    "polyphony": ".2f",
}


def cut_metrics(path: Path, iteration: int) -> None:
    """Drop the lines after ``iteration``, and whatever is no line of a run: a log never keeps a run from going on.

    A resumed run then goes on writing the file as if nothing had happened.

    Raises:
        ConfigError: there is something of that name that is no file.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ConfigError(f"{path} cannot be written to ({error}); move it away") from None
    with file, appearing(path) as kept:
        while line := file.readline(LINE_BYTES):
            try:
                if parse_json(line)["iteration"] <= iteration:
                    kept.write(line.rstrip(b"\n") + b"\n")
            except (ValueError, KeyError, TypeError):
                continue


class Metrics:
    """Writes one JSON object a line, at once; shows a bar where stderr is a terminal, and lines where it is not.

    Args:
        folder: the run's folder, or None to write nothing.
        iteration: of the checkpoint the run goes on from.
        total: iterations of the whole run.
        log_interval: steps between lines on stderr.
        tensorboard: write TensorBoard events too.
        speaks: whether this process says anything at all.
        wandb_project: write to this project of Weights & Biases too.
        run: the run's configuration as a tree, for Weights & Biases.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        iteration: int,
        total: int,
        log_interval: int,
        tensorboard: bool,
        speaks: bool,
        wandb_project: str | None = None,
        run: dict | None = None,
    ):
        self.speaks, self.log_interval, self.total = speaks, log_interval, total
        self.file = self.board = self.bar = self.wandb = self.terminal = None
        if not speaks:
            return
        if wandb_project:
            self.wandb = _start_wandb(wandb_project, folder, run)
        if folder is not None:
            cut_metrics(folder / FILE, iteration)
            self.file = open(folder / FILE, "a", encoding="utf-8", opener=no_links)  # noqa: SIM115 (closed by close)
            if tensorboard:
                from torch.utils.tensorboard import (
                    SummaryWriter,  # takes a second to import
                )

                self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)
        if sys.stderr.isatty() and iteration < total and not is_quiet():
            self.terminal = sys.stderr
            self.bar = tqdm(
                total=total, initial=iteration, unit="step", desc="train", dynamic_ncols=True, file=self.terminal
            )
            sys.stderr = DummyTqdmFile(
                self.terminal
            )  # whoever writes a line while the bar is shown writes it above the bar

    def write(self, iteration: int, **values: float | None) -> None:
        """Record numbers under an iteration; None, where there is none, becomes null, and no point of a curve."""
        if not self.speaks:
            return
        if self.file is not None:
            self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self.file.flush()
        known = {name: value for name, value in values.items() if value is not None}
        if self.board is not None:
            for name, value in known.items():
                self.board.add_scalar(name, value, iteration)
        if self.wandb is not None:
            self.wandb.log({"iteration": iteration, **known})
        self._show(iteration, known)

    def write_picture(self, iteration: int, name: str, pixels_HWC: np.ndarray) -> None:
        """Put a picture (uint8, red, green and blue) into TensorBoard; nowhere else, as it is in a file already."""
        if self.speaks and self.board is not None:
            self.board.add_image(name, pixels_HWC, iteration, dataformats="HWC")

    def _show(self, iteration: int, values: dict[str, float]) -> None:
        if self.bar is not None:
            if "loss" in values:
                self.bar.update(iteration - self.bar.n)
                self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            else:
                self.bar.write(self._line(iteration, values), file=self.terminal)
        elif not is_quiet() and ("loss" not in values or iteration % self.log_interval == 0 or iteration == self.total):
            print(self._line(iteration, values), file=sys.stderr, flush=True)

    def _line(self, iteration: int, values: dict[str, float]) -> str:
        told = [f"{name} {values[name]:{form}}" for name, form in SHOWN.items() if name in values]
        return " | ".join([f"iteration {iteration}/{self.total}", *told])

    def close(self) -> None:
        """Finish the files and the bar."""
        if self.terminal is not None:
            sys.stderr, self.terminal = self.terminal, None
        for sink in (self.file, self.board, self.bar):
            if sink is not None:
                sink.close()
        if self.wandb is not None:
            self.wandb.finish()


def _start_wandb(project: str, folder: Path | None, run: dict | None):
    """A run of Weights & Biases: the same one when the folder's run goes on; in files alone where nobody is logged in.

    A server that does not answer costs half a minute, and no run: ``wandb sync`` sends the files later.
    """
    import wandb  # an extra, and a second to import

    place = folder.resolve() if folder is not None else Path.cwd()
    options = {
        "project": project,
        "name": place.name if folder is not None else None,
        "id": hashlib.sha256(str(place).encode()).hexdigest()[:16] if folder is not None else None,
        "resume": "allow" if folder is not None else None,
        "dir": str(place),
        "config": run,
        "settings": wandb.Settings(init_timeout=30),
    }
    mode = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
    try:
        started = wandb.init(mode=mode, **options)
    except wandb.Error as error:
        logger.warning(f"Weights & Biases does not answer ({error}); its files are in {place}/wandb")
        started = wandb.init(mode="offline", **options)
    # A run that goes on from a checkpoint goes back, and its own steps may not.
    started.define_metric("*", step_metric="iteration")
    return started
