"""The loss curve of a run as a picture, from its ``metrics.jsonl``."""

import json
import os
from pathlib import Path

from matplotlib.figure import Figure

from megatron_music.music.pianoroll import save_figure


def plot_loss(
    metrics: str | os.PathLike,
    path: str | os.PathLike,
    baselines: dict[str, float] | None = None,
    unit: str = "nats a token",
) -> None:
    """Draw training and validation loss over steps.

    Args:
        metrics: a ``metrics.jsonl``.
        path: the picture.
        baselines: losses drawn as horizontal lines, by name.
        unit: of the loss.
    """
    rows = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (
        ("loss", "training", {"linewidth": 1, "alpha": 0.6}),
        ("valid_loss", "validation", {"marker": "o", "markersize": 4}),
    ):
        points = [(row["iteration"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    for number, (name, loss) in enumerate((baselines or {}).items()):
        axes.axhline(loss, linestyle=("--", ":")[number % 2], color="#888888", label=f"{name} {loss:.2f}")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, {unit}")
    axes.set_ylim(bottom=0)
    axes.grid(True, color="#eeeeee")
    axes.legend(frameon=False)
    save_figure(figure, path)
