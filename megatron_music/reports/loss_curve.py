"""The loss curve of a run as a picture, from its ``metrics.jsonl``."""

import os

from matplotlib.figure import Figure

from megatron_music.music.instruments import TRACK_COLOURS
from megatron_music.reports.pianoroll import plain, save_figure
from megatron_music.storage.reading import TABLE_BYTES, parse_json, read_text


def plot_loss(
    metrics: str | os.PathLike,
    path: str | os.PathLike,
    baselines: dict[str, float] | None = None,
    unit: str = "nats per token",
) -> None:
    """Draw training and validation loss over steps.

    Args:
        metrics: a ``metrics.jsonl``.
        path: the picture.
        baselines: losses drawn as horizontal lines, by name.
        unit: of the loss.
    """
    rows = [parse_json(line) for line in read_text(metrics, TABLE_BYTES).splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for key, label, style in (
        ("loss", "training", {"linewidth": 1, "color": TRACK_COLOURS[0]}),
        ("valid_loss", "validation", {"marker": "o", "markersize": 5, "color": TRACK_COLOURS[1]}),
    ):
        points = [(row["iteration"], row[key]) for row in rows if key in row]
        if points:
            if key == "valid_loss":
                label += f", last {points[-1][1]:.3f}"
            axes.plot(*zip(*points, strict=True), label=label, **style)
    for number, (name, loss) in enumerate((baselines or {}).items()):
        axes.axhline(loss, linestyle=("--", ":")[number % 2], color="#57606a")
        axes.text(
            0.995,
            loss,
            plain(f"{name} {loss:.2f}"),
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color="#57606a",
        )
    axes.set_xlabel("step")
    axes.set_ylabel(plain(f"loss, {unit}"))
    axes.set_ylim(bottom=0)
    if baselines:
        axes.set_ylim(
            top=max(axes.get_ylim()[1], 1.08 * max(baselines.values()))
        )  # room for the words on the highest line
    axes.grid(True, color="#e4e7eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines[: -len(baselines or ()) or None]:
        figure.legend(loc="outside upper right", ncols=2, frameon=False)
    save_figure(figure, path)
