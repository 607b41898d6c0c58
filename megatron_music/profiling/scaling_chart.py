"""Speeds as pictures: tokens a second over the number of GPUs, the rows of a sweep."""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from megatron_music.music.pianoroll import save_figure
from megatron_music.profiling.sweep import MEASURED, Figures, scaling, short_name

BLUE, ORANGE, BROWN = "#4c78a8", "#f58518", "#9d755d"


def plot_scaling(num_gpus: Sequence[int], tokens_per_second: Sequence[float], path: str | os.PathLike, *, title: str) -> None:
    """Both axes logarithmic, with the line of perfect scaling from the first point."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(num_gpus, tokens_per_second, marker="o", color=BLUE, label="predicted")
    first = tokens_per_second[0] / num_gpus[0]
    axes.plot(num_gpus, [first * number for number in num_gpus], color=BROWN, linestyle="--", label="ideal")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="tokens per second", title=title)
    axes.set_xticks(num_gpus, labels=[f"{number:,}" for number in num_gpus])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save_figure(figure, path)


def plot_sweep(figures: Sequence[Figures], path: str | os.PathLike, *, title: str) -> None:
    """A bar for each row: model TFLOP/s per GPU, the best in orange, and why a row has none. Beside it, where the number of GPUs varies,
    tokens per second over GPUs, a line for each precision and batch."""
    scales = len({row.num_gpus for row in figures if row.status == MEASURED}) > 1
    figure = Figure(figsize=(11 if scales else 7, max(3, 1 + 0.3 * len(figures))), layout="constrained")
    bars, *rest = figure.subplots(1, 2 if scales else 1, squeeze=False)[0]
    _draw_rows(bars, figures)
    figure.suptitle(title, fontsize="medium", wrap=True)
    if scales:
        groups: dict[tuple, list] = {}
        for row in scaling(figures):
            groups.setdefault((row.what, row.precision, row.sequences_per_gpu), []).append(row)
        for (what, precision, sequences), rows in groups.items():
            name = ", ".join(filter(None, [what, precision, f"{sequences:g} sequence{'s' if sequences != 1 else ''} per GPU"]))
            rest[0].plot([row.num_gpus for row in rows], [row.tokens_per_second for row in rows], marker="o", label=name)
        rest[0].set(xlabel="GPUs", ylabel="tokens per second", xticks=sorted({row.num_gpus for rows in groups.values() for row in rows}))
        rest[0].set_ylim(bottom=0)
        rest[0].yaxis.set_major_formatter("{x:,.0f}")
        rest[0].legend(frameon=False, fontsize="small")
    save_figure(figure, path)


def _draw_rows(axes, figures: Sequence[Figures]) -> None:
    places = range(len(figures))
    axes.barh(places, [row.tflops or 0 for row in figures], color=[ORANGE if row.is_best else BLUE for row in figures])
    for place, row in zip(places, figures, strict=True):
        if row.status != MEASURED:
            axes.text(0, place, f" {row.status}", va="center", fontsize="small", color=BROWN)
    names = [
        ", ".join([f"{row.num_gpus} GPU{'s' if row.num_gpus > 1 else ''}", *(f"{short_name(name)} {value}" for name, value in row.settings.items())])
        for row in figures
    ]
    axes.set_yticks(list(places), labels=names, fontsize="small")
    axes.invert_yaxis()
    axes.set(xlabel="model TFLOP/s per GPU")

