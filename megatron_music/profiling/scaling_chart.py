"""Speeds as pictures: tokens per second over the number of GPUs, and the rows of a sweep."""

import os
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from megatron_music.config.errors import counted
from megatron_music.music.instruments import TRACK_COLOURS
from megatron_music.profiling.sweep import MEASURED, SHORT, Figures, scaling, short_name
from megatron_music.reports.pianoroll import plain, save_figure

BLUE, ORANGE = TRACK_COLOURS[:2]
_SOFT = "#57606a"  # words and lines beside the data
_MARKERS = "osD^vP*X"  # lines of one picture differ in colour and marker
_LETTERS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def plot_scaling(
    num_gpus: Sequence[int], tokens_per_second: Sequence[float], path: str | os.PathLike, *, title: str
) -> None:
    """Tokens per second over GPUs, both axes logarithmic, beside perfect scaling from the first point.

    Below it the efficiency of each point: its tokens per second per GPU as a share of the first one's."""
    figure = Figure(figsize=(7, 5.2), layout="constrained")
    speed, share = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1.3))
    first = tokens_per_second[0] / num_gpus[0]
    speed.plot(num_gpus, [first * number for number in num_gpus], color=_SOFT, linestyle="--", label="perfect scaling")
    speed.plot(num_gpus, tokens_per_second, marker="o", color=BLUE, label="predicted")
    for number, tokens in zip(num_gpus, tokens_per_second, strict=True):
        speed.annotate(
            _compact(tokens), (number, tokens), (-6, 6), textcoords="offset points", ha="right", fontsize="small"
        )
    speed.margins(y=0.12)
    speed.set(xscale="log", yscale="log", ylabel="tokens per second", title=plain(title))
    speed.yaxis.set_major_formatter(lambda value, _: _compact(value))
    speed.legend(frameon=False, loc="upper left")
    efficiency = [100 * tokens / number / first for number, tokens in zip(num_gpus, tokens_per_second, strict=True)]
    share.axhline(100, color=_SOFT, linestyle="--", linewidth=1)
    share.plot(num_gpus, efficiency, marker="o", color=BLUE)
    for number, percent in zip(num_gpus, efficiency, strict=True):
        share.annotate(
            f"{percent:.1f}%", (number, percent), (0, -15), textcoords="offset points", ha="center", fontsize="small"
        )
    share.set(ylim=(0, 115), xlabel="GPUs", ylabel="efficiency, %", yticks=(0, 50, 100))
    share.margins(x=0.1)
    share.set_xticks(num_gpus, labels=[f"{number:,}" for number in num_gpus])
    for axes in (speed, share):
        axes.minorticks_off()
        _plain_axes(axes)
    save_figure(figure, path)


def plot_sweep(figures: Sequence[Figures], path: str | os.PathLike, *, title: str) -> None:
    """A bar for each row: model TFLOP/s per GPU, the best in orange, and why a row has none. Beside it, where the
    number of GPUs varies, tokens per second over GPUs, a line for each precision and batch, and perfect scaling from
    the first point of each.
    """
    scales = len({row.num_gpus for row in figures if row.status == MEASURED}) > 1
    figure = Figure(figsize=(12 if scales else 7.5, max(3.2, 1.3 + 0.3 * len(figures))), layout="constrained")
    bars, *rest = figure.subplots(1, 2 if scales else 1, squeeze=False, width_ratios=(1.25, 1) if scales else None)[0]
    _draw_rows(bars, figures)
    figure.suptitle(plain(title), fontsize="medium", wrap=True)
    if meanings := _meanings(figures):
        figure.supxlabel(meanings, fontsize="small", color=_SOFT, wrap=True)
    if scales:
        _draw_scaling(rest[0], figures)
    save_figure(figure, path)


def _draw_scaling(axes: Axes, figures: Sequence[Figures]) -> None:
    groups: dict[tuple, list] = {}
    for row in scaling(figures):
        groups.setdefault((row.what, row.precision, row.sequences_per_gpu), []).append(row)
    for place, ((what, precision, sequences), rows) in enumerate(groups.items()):
        name = ", ".join(filter(None, [what, precision, f"{sequences:g} sequences per GPU"]))
        gpus, speeds = [row.num_gpus for row in rows], [row.tokens_per_second for row in rows]
        style = {"color": TRACK_COLOURS[place % len(TRACK_COLOURS)], "marker": _MARKERS[place % len(_MARKERS)]}
        axes.plot(gpus, speeds, label=plain(name), **style)
        perfect = [speeds[0] / gpus[0] * number for number in gpus]
        axes.plot(
            gpus,
            perfect,
            color=_SOFT,
            linestyle="--",
            linewidth=1,
            zorder=0,
            label=None if place else "perfect scaling",
        )
        for row in rows if len(groups) == 1 else ():
            place = (row.num_gpus, row.tokens_per_second)
            axes.annotate(
                f"{row.efficiency:.0%}", place, (0, -15), textcoords="offset points", ha="center", fontsize="small"
            )
    axes.set_xticks(sorted({row.num_gpus for rows in groups.values() for row in rows}))
    axes.set(xlabel="GPUs", ylabel="tokens per second, the best layout of each")
    axes.margins(x=0.12)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    _plain_axes(axes)


def _draw_rows(axes: Axes, figures: Sequence[Figures]) -> None:
    places = range(len(figures))
    axes.barh(places, [row.tflops or 0 for row in figures], color=[ORANGE if row.is_best else BLUE for row in figures])
    for place, row in zip(places, figures, strict=True):
        said = f"{row.tflops:.3g}" if row.status == MEASURED and row.tflops else row.status
        axes.text(
            row.tflops or 0, place, f" {said}", va="center", fontsize="small", color="black" if row.tflops else _SOFT
        )
    names = [
        ", ".join(
            [counted(row.num_gpus, "GPU"), *(f"{short_name(name)} {value}" for name, value in row.settings.items())]
        )
        for row in figures
    ]
    axes.set_yticks(list(places), labels=[plain(name) for name in names], fontsize="small")
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlim(left=0)
    axes.set(xlabel="model TFLOP/s per GPU")
    if any(row.is_best for row in figures):
        axes.legend(handles=[Patch(color=ORANGE, label="best row")], frameon=False, fontsize="small", loc="lower right")
    _plain_axes(axes, "x")


def _meanings(figures: Sequence[Figures]) -> str:
    """The abbreviations in the names of the rows."""
    fields = dict.fromkeys(name for row in figures for name in row.settings)
    return "; ".join(
        f"{SHORT[name]}: {name.partition('.')[2].replace('_', ' ')}" for name in fields if SHORT.get(name, "").isupper()
    )


def _plain_axes(axes: Axes, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def _compact(value: float) -> str:
    """A count in few letters: 950, 12 k, 3.4 M."""
    for size, letter in _LETTERS:
        if value >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"
