"""The charts of a report as pictures: SVG files that need nothing but a browser, and the same bytes for the same numbers.

Words are not measured: names stand to the right in a column of their own, and are cut in the middle where they are long.
"""

import os
from pathlib import Path

from megatron_music.data.charts import Bars, Chart, Histogram, charts, compact, nice_ticks
from megatron_music.data.drawings import text
from megatron_music.data.report import FIGURES

WIDTH, LEFT, RIGHT = 760, 236, 744  # pixels: of a picture, and where what is drawn in it begins and ends
ROW, PLOT = 25, 236  # heights of a bar and of a histogram
NAME_LETTERS, LETTER = 34, 6.6  # of a name, and the width of a letter
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
    parts = [_word(LEFT, 20, panel.heading)]
    for place, (name, value, said) in enumerate(zip(panel.names, panel.values, panel.texts, strict=True)):
        top, width = 30 + ROW * place, room * value / highest
        parts.append(
            _word(LEFT - 8, top + 13, _short(name), "end", INK)
            + f'<rect x="{LEFT}" y="{top}" width="{width:.1f}" height="17" fill="{panel.colour}"/>'
            + _word(LEFT + width + 6, top + 13, said)
        )
    return "".join(parts), 34 + ROW * len(panel.names)


def _histogram(panel: Histogram) -> tuple[str, int]:
    """Bars side by side over an axis, and their height with its words."""
    left, top = 84, 18
    ticks = nice_ticks(max(panel.counts))
    highest = max(ticks[-1], max(panel.counts)) * (1.12 if panel.median else 1.04)  # room for the median's words
    across = lambda place: left + (RIGHT - left) * place / len(panel.counts)  # noqa: E731
    up = lambda count: top + PLOT * (1 - count / highest)  # noqa: E731
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
    parts.append(f'<g transform="translate(24 {top + PLOT / 2:.0f}) rotate(-90)">{_word(0, 0, panel.y_label, "middle")}</g>')
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


def _short(name: str) -> str:
    half = NAME_LETTERS // 2
    return name if len(name) <= NAME_LETTERS else f"{name[:half]}…{name[1 - half :]}"
