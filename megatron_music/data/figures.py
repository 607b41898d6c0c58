"""The charts of a report as PNG files, drawn with matplotlib: the one file of ``data`` that imports it.

Two drawings of the same numbers are the same bytes: the style and the font are matplotlib's own, whatever a person's
``matplotlibrc`` says, and no date or version is written into a picture.
"""

import os
from pathlib import Path

import matplotlib.style
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from megatron_music.data.charts import Bars, Chart, Histogram, charts, compact, nice_ticks
from megatron_music.data.report import FIGURES

DOTS_PER_INCH = 120
WIDTH_INCHES = 8.0
BAR_INCHES = 0.27
NAME_LETTERS = 34
INK, MUTED, LINES = "#24292f", "#57606a", "#e4e7eb"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a data set may be called a$b$
    "axes.edgecolor": LINES,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": LINES,
    "grid.linewidth": 0.8,
}


def write_figures(report: dict, folder: str | os.PathLike) -> list[Path]:
    """Write ``figures/<name>.png`` into a dataset, one for each chart the report has numbers for.

    Returns:
        The pictures, in the order they are read in.
    """
    target = Path(folder, FIGURES)
    target.mkdir(exist_ok=True)
    paths = []
    for chart in charts(report):
        paths.append(target / f"{chart.name}.png")
        draw_chart(chart, paths[-1])
    return paths


def draw_chart(chart: Chart, path: str | os.PathLike) -> None:
    """Write one chart as PNG: its panels one below another, under the title."""
    with matplotlib.style.context(["default", STYLE]):
        heights = [_height(panel) for panel in chart.panels]
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.55), layout="constrained", facecolor="white")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.09, hspace=0.04)
        figure.suptitle(chart.title, x=0.015, ha="left", fontsize=13, fontweight="bold")
        # Constrained layout takes the ratios for the axes alone: every bar of a picture is as thick as the others.
        ratios = [len(panel.names) if isinstance(panel, Bars) else 1 for panel in chart.panels]
        grid = figure.subplots(len(chart.panels), 1, height_ratios=ratios, squeeze=False)
        for panel, axes in zip(chart.panels, grid[:, 0], strict=True):
            (_draw_bars if isinstance(panel, Bars) else _draw_histogram)(panel, axes)
        _save(figure, Path(path))


def _height(panel: Bars | Histogram) -> float:
    """Inches."""
    return 0.45 + BAR_INCHES * len(panel.names) if isinstance(panel, Bars) else 3.2


def _draw_bars(panel: Bars, axes: Axes) -> None:
    places = range(len(panel.names))
    axes.barh(places, panel.values, height=0.66, color=panel.colour)
    axes.set_yticks(places, [_drawable(name) for name in panel.names], color=INK)
    axes.set_ylim(len(panel.names) - 0.45, -0.55)
    highest = max(panel.values, default=0) or 1
    letters = max(map(len, panel.texts), default=0)
    axes.set_xlim(0, highest / (0.97 - 0.0155 * letters))  # room for the number behind the longest bar
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    for place, value, text in zip(places, panel.values, panel.texts, strict=True):
        axes.annotate(text, (value, place), xytext=(4, 0), textcoords="offset points", va="center", color=MUTED, fontsize=9)
    axes.set_title(panel.heading, loc="left", fontsize=9.5, color=MUTED)


def _draw_histogram(panel: Histogram, axes: Axes) -> None:
    width = 0.9 if len(panel.counts) <= 40 else 1.0
    axes.bar([place + 0.5 for place in range(len(panel.counts))], panel.counts, width=width, color=panel.colour)
    ticks = nice_ticks(max(panel.counts))
    axes.set_yticks(ticks, [compact(value) for value in ticks])
    axes.set_ylim(0, max(ticks[-1], max(panel.counts)) * (1.12 if panel.median else 1.04))  # room for its words
    axes.set_xlim(0, len(panel.counts))
    axes.set_xticks([place for place, _ in panel.ticks], [text for _, text in panel.ticks])
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.median:
        place, text = panel.median
        is_left = place < 0.75 * len(panel.counts)
        axes.axvline(place, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            text, (place, 1), xycoords=("data", "axes fraction"), xytext=(5 if is_left else -5, -4),
            textcoords="offset points", ha="left" if is_left else "right", va="top", color=INK, fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        )  # fmt: skip


def _drawable(name: str) -> str:
    """A name as the font can show it, cut in the middle where it is long."""
    letters = FT2Font(font_manager.findfont("DejaVu Sans")).get_charmap()
    known = (letter if letter.isprintable() and ord(letter) in letters else "\N{REPLACEMENT CHARACTER}" for letter in name)
    name = "".join(known)
    half = NAME_LETTERS // 2
    return name if len(name) <= NAME_LETTERS else f"{name[:half]}…{name[1 - half :]}"


def _save(figure: Figure, path: Path) -> None:
    """Write a picture under a temporary name first."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        with open(temporary, "wb") as file:
            figure.savefig(file, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
