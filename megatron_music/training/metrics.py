"""The record of a run: ``metrics.jsonl``, TensorBoard, and a progress bar.

Knows nothing about training: it is handed numbers. Only the main process makes one that writes.
"""

import json
import sys
from pathlib import Path

from tqdm import tqdm

FILE = "metrics.jsonl"


def cut_metrics(path: Path, iteration: int) -> None:
    """Drop the lines after ``iteration``, and a line that a killed process left half written.

    A resumed run then goes on writing the file as if nothing had happened.
    """
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["iteration"] <= iteration:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(path)


class Metrics:
    """Writes one JSON object a line, at once; shows a bar where stderr is a terminal, and lines where it is not.

    Args:
        folder: the run's folder, or None to write nothing.
        iteration: of the checkpoint the run goes on from.
        total: iterations of the whole run.
        log_interval: steps between lines on stderr.
        tensorboard: write TensorBoard events too.
        speaks: whether this process says anything at all.
    """

    def __init__(
        self, folder: Path | None, *, iteration: int, total: int, log_interval: int, tensorboard: bool, speaks: bool
    ):
        self.speaks, self.log_interval, self.total = speaks, log_interval, total
        self.file = self.board = self.bar = None
        if not speaks:
            return
        if folder is not None:
            cut_metrics(folder / FILE, iteration)
            self.file = open(folder / FILE, "a", encoding="utf-8")
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=iteration + 1)
        if sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=iteration, unit="step", desc="train", dynamic_ncols=True)

    def write(self, iteration: int, **values: float) -> None:
        """Record numbers under an iteration."""
        if not self.speaks:
            return
        if self.file is not None:
            self.file.write(json.dumps({"iteration": iteration, **values}) + "\n")
            self.file.flush()
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, iteration)
        self._show(iteration, values)

    def _show(self, iteration: int, values: dict[str, float]) -> None:
        if self.bar is not None:
            if "loss" in values:
                self.bar.update(iteration - self.bar.n)
                self.bar.set_postfix(loss=f"{values['loss']:.4f}", refresh=False)
            else:
                self.bar.write(self._line(iteration, values), file=sys.stderr)
        elif "loss" not in values or iteration % self.log_interval == 0 or iteration == self.total:
            print(self._line(iteration, values), file=sys.stderr, flush=True)

    def _line(self, iteration: int, values: dict[str, float]) -> str:
        shown = {
            "loss": ".4f", "valid_loss": ".4f", "grad_norm": ".3f", "learning_rate": ".2e", "tokens_per_second": ",.0f"
        }
        told = [f"{name} {values[name]:{form}}" for name, form in shown.items() if name in values]
        return " | ".join([f"iteration {iteration}/{self.total}", *told])

    def close(self) -> None:
        """Finish the files and the bar."""
        for sink in (self.file, self.board, self.bar):
            if sink is not None:
                sink.close()
