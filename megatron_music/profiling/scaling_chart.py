"""Tokens a second over the number of GPUs, as a picture. Knows nothing about where they are from."""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from megatron_music.music.pianoroll import save_figure


def plot_scaling(num_gpus: Sequence[int], tokens_per_second: Sequence[float], path: str | os.PathLike, *, title: str) -> None:
    """Both axes logarithmic, with the line of perfect scaling from the first point."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(num_gpus, tokens_per_second, marker="o", color="#4c78a8", label="predicted")
    first = tokens_per_second[0] / num_gpus[0]
    axes.plot(num_gpus, [first * number for number in num_gpus], color="#9d755d", linestyle="--", label="as the first")
    axes.set(xscale="log", yscale="log", xlabel="GPUs", ylabel="tokens a second", title=title)
    axes.set_xticks(num_gpus, labels=[f"{number:,}" for number in num_gpus])
    axes.minorticks_off()
    axes.legend(frameon=False)
    save_figure(figure, path)
