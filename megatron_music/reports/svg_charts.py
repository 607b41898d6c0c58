"""The charts of a report as pictures: SVG files that need nothing but a browser, and the same bytes for the same
numbers.

Widths of names are estimated, not measured: names stand in a column of their own, on two lines where they are long, and
lose their middle where two lines are not enough.
"""

import math
import os
import textwrap
import unicodedata
from pathlib import Path

from megatron_music.music.names import printable
from megatron_music.reports.dataset import FIGURES
from megatron_music.reports.dataset_charts import (
    Bars,
    Chart,
    Histogram,
    charts,
    compact,
    nice_ticks,
)
from megatron_music.reports.html_charts import text

WIDTH, LEFT, RIGHT = 760, 236, 744  # pixels: of a picture, and where what is drawn in it begins and ends
ROW, PLOT = 25, 236  # heights of a bar and of a histogram
NAME_LETTERS, LETTER = 34, 6.6  # of a line of a name, and the width of a letter; East Asian letters are twice as wide
LINE = 13  # height of a line of a name
INK, MUTED, LINES = "#24292f", "#57606a", "#e4e7eb"


def write_figures(report: dict, folder: str | os.PathLike) -> list[Path]:
    """Write ``figures/<name>.svg`` into a dataset in the making, one for each chart the report has numbers for.

    Returns:
        The pictures, in the order they are read in.
    """
    target = Path(folder, FIGURES)
    target.mkdir(exist_ok=True)
    paths = []
    for chart in charts(report):
        paths.append(target / f"{chart.name}.svg")
        paths[-1].write_text(picture(chart), encoding="utf-8", newline="\n")
    return paths


def picture(chart: Chart) -> str:
    """A chart as SVG: its panels one below another, under the title."""
    parts, top = [f'<text x="16" y="30" font-size="17" font-weight="bold">{text(chart.title)}</text>'], 42
    for panel in chart.panels:
        drawn, height = (_bars if isinstance(panel, Bars) else _histogram)(panel)
        parts.append(f'<g transform="translate(0 {top})">{drawn}</g>')
        top += height
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top + 8}" viewBox="0 0 {WIDTH} {top + 8}" '
        f'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="{INK}" role="img">'
        f"<title>{text(chart.title)}</title><desc>{text(chart.caption)}</desc>"
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _bars(panel: Bars) -> tuple[str, int]:
    """Named bars, and their height with the heading."""
    room = RIGHT - LEFT - LETTER * (2 + max(map(len, panel.texts), default=0))  # for the number behind the longest bar
    highest = max(panel.values, default=0) or 1
    parts, top = [_word(LEFT, 20, panel.heading)], 30.0
    for name, value, said in zip(panel.names, panel.values, panel.texts, strict=True):
        width, lines = room * value / highest, _lines(name)
        extra = LINE * (len(lines) - 1)
        words = "".join(
            _word(LEFT - 8, top + 13 + LINE * number, line, "end", INK) for number, line in enumerate(lines)
        )
        parts.append(
            f"<g>{f'<title>{text(name)}</title>' if _columns(name) > NAME_LETTERS else ''}{words}"
            + f'<rect x="{LEFT}" y="{top + extra / 2:g}" width="{width:.1f}" height="17" fill="{panel.colour}"/>'
            + _word(LEFT + width + 6, top + 13 + extra / 2, said)
            + "</g>"
        )
        top += ROW + extra
    return "".join(parts), math.ceil(top) + 4


def _histogram(panel: Histogram) -> tuple[str, int]:
    """Bars side by side over an axis, and their height with its words."""
    left, top = 84, 18
    ticks = nice_ticks(max(panel.counts))
    highest = max(ticks[-1], max(panel.counts)) * (1.12 if panel.median else 1.04)  # room for the median's words
    across = lambda place: left + (RIGHT - left) * place / len(panel.counts)
    up = lambda count: top + PLOT * (1 - count / highest)
    parts = [
        f'<line x1="{left}" x2="{RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" stroke="{LINES}"/>'
        + _word(left - 8, up(tick) + 4, compact(tick), "end")
        for tick in ticks
    ]
    gap = 0.05 if len(panel.counts) <= 40 else 0.0
    parts += [
        f'<rect x="{across(place + gap):.1f}" y="{up(count):.1f}" width="{across(1 - 2 * gap) - left:.1f}" '
        f'height="{top + PLOT - up(count):.1f}" fill="{panel.colour}"><title>{text(name)}: {count:,}</title></rect>'
        for place, (count, name) in enumerate(zip(panel.counts, panel.names, strict=True))
        if count
    ]
    parts += [_word(across(place), top + PLOT + 16, said, "middle") for place, said in panel.ticks]
    parts.append(_word((left + RIGHT) / 2, top + PLOT + 36, panel.x_label, "middle"))
    parts.append(
        f'<g transform="translate(24 {top + PLOT / 2:.0f}) rotate(-90)">{_word(0, 0, panel.y_label, "middle")}</g>'
    )
    if panel.median:
        place, said = panel.median
        is_left = place < 0.75 * len(panel.counts)
        parts.append(
            f'<line x1="{across(place):.1f}" x2="{across(place):.1f}" y1="{top}" y2="{top + PLOT}" stroke="{INK}" '
            'stroke-dasharray="5 4"/>'
            + _word(across(place) + (6 if is_left else -6), top + 10, said, "start" if is_left else "end", INK)
        )
    return "".join(parts), top + PLOT + 48


def _word(x: float, y: float, said: str, anchor: str = "start", colour: str = MUTED) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text(said)}</text>'


def _lines(name: str) -> list[str]:
    """A name on one line or two, each of at most ``NAME_LETTERS`` columns."""
    name = printable(name)
    if _columns(name) <= NAME_LETTERS:
        return [name]
    if _columns(name) == len(name):
        lines = textwrap.wrap(name, NAME_LETTERS, break_long_words=False, break_on_hyphens=False)
        if len(lines) > 1 and len(lines[0]) <= NAME_LETTERS:
            rest = " ".join(lines[1:])
            return [lines[0], rest if len(rest) <= NAME_LETTERS else _shortened(rest)]
    return [_shortened(name)]


def _shortened(name: str) -> str:
    """A name that loses its middle, so that its beginning and its end fit one line."""
    half = (NAME_LETTERS - 1) // 2
    return f"{_fitting(name, half)}…{_fitting(name[::-1], half)[::-1]}"


def _fitting(name: str, columns: int) -> str:
    """The longest prefix that fits into the given number of columns."""
    end = next((end for end in range(len(name)) if _columns(name[: end + 1]) > columns), len(name))
    return name[:end]


def _columns(name: str) -> int:
    """The width of a name in letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)
