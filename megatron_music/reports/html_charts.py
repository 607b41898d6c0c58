"""Charts and piano rolls as HTML and inline SVG: crisp at any width, readable without colour, script or network.

Bars that have names are rows of a table, so that a screen reader reads them out. A histogram and a piano roll are an
SVG that stretches, with its words beside it in HTML, so that they stay readable on a telephone. Styles are in ``page``.
"""

from html import escape

from megatron_music.config.errors import counted
from megatron_music.music.instruments import css_colour, track_colour, track_labels
from megatron_music.music.names import printable
from megatron_music.music.score import Score, Track
from megatron_music.reports.dataset_charts import (
    Bars,
    Chart,
    Histogram,
    compact,
    nice_ticks,
)

MAX_ROLL_BARS = 16
MIN_ROLL_PITCHES = 18  # of a roll's height, so that few notes are not drawn as large blocks and a C is always in it
_BLACK_KEYS = (1, 3, 6, 8, 10)


def text(value: object) -> str:
    """A value for HTML. Names are strangers' words: markup and what cannot be printed are escaped."""
    return escape(printable(str(value)))


def draw_chart(chart: Chart) -> str:
    """A figure with its title, what to see in it, and its panels."""
    panels = "".join(draw_bars(panel) if isinstance(panel, Bars) else draw_histogram(panel) for panel in chart.panels)
    words = f"<h2>{text(chart.title)}</h2><figcaption>{text(chart.caption)}</figcaption>"
    return f'<figure id="{chart.name}">{words}{panels}</figure>'


def draw_bars(panel: Bars) -> str:
    """Named bars as a table: name, bar, number."""
    highest = max(panel.values, default=0) or 1
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td class="bar"><span style="width:{100 * value / highest:.2f}%;'
        f'background:{css_colour(panel.colour)}"></span></td><td>{text(said)}</td></tr>'
        for name, value, said in zip(panel.names, panel.values, panel.texts, strict=True)
    )
    return f'<table class="bars"><caption>{text(panel.heading)}</caption><tbody>{rows}</tbody></table>'


def draw_histogram(panel: Histogram) -> str:
    """A histogram; each bar says its own numbers where the pointer rests on it."""
    width, ticks = len(panel.counts), nice_ticks(max(panel.counts))
    top = max(ticks[-1], max(panel.counts))
    gap = 0.05 if width <= 40 else 0.0
    bars = "".join(
        f'<rect x="{place + gap:g}" y="{_up(count, top)}" width="{1 - 2 * gap:g}" height="{100 * count / top:.2f}">'
        f"<title>{text(name)}: {count:,} {text(panel.y_label)}</title></rect>"
        for place, (count, name) in enumerate(zip(panel.counts, panel.names, strict=True))
        if count
    )
    heights = [_up(tick, top) for tick in ticks]
    grid = "".join(f'<line class="grid" x1="0" x2="{width}" y1="{height}" y2="{height}"/>' for height in heights)
    y_words = "".join(f'<span style="top:{_up(tick, top)}%">{compact(tick)}</span>' for tick in ticks)
    x_words = "".join(
        f'<span style="left:{100 * place / width:.2f}%">{text(word)}</span>' for place, word in panel.ticks
    )
    median, said = "", ""
    if panel.median:
        place, word = panel.median
        median = f'<line class="median" x1="{place:.3f}" x2="{place:.3f}" y1="0" y2="100"/>'
        side = f"left:{100 * place / width:.2f}%" if place < 0.7 * width else f"right:{100 - 100 * place / width:.2f}%"
        said = f'<span class="said" style="{side}">{text(word)}</span>'
    label = f"Histogram: {panel.y_label} by {panel.x_label}" + (f"; {panel.median[1]}" if panel.median else "")
    return (
        f'<div class="plot"><div class="y" aria-hidden="true">{y_words}</div><div class="canvas">'
        f'<svg role="img" aria-label="{text(label)}" viewBox="0 0 {width} 100" preserveAspectRatio="none" '
        f'style="fill:{css_colour(panel.colour)}">{grid}{bars}{median}</svg>{said}</div>'
        f'<div class="x" aria-hidden="true">{x_words}</div><p class="unit">{text(panel.x_label)}</p></div>'
    )


def draw_roll(score: Score, title: str) -> str:
    """A piano roll: time to the right, pitch upwards, a colour for each voice or track; at most 16 bars of the
    piece.
    """
    tracks = [track for track in score.tracks if len(track)]
    starts = score.bar_starts[: MAX_ROLL_BARS + 1].tolist()
    end = starts[-1]
    pitches = [pitch for track in tracks for _, _, pitch in _notes_before(end, track)]
    if not pitches:
        return f"<figure><h3>{text(title)}</h3><p>No note sounds in it.</p></figure>"
    low, high = min(pitches) - 1, max(pitches) + 2
    missing = max(MIN_ROLL_PITCHES - (high - low), 0)
    low, high = low - missing // 2, high + missing - missing // 2
    black = [pitch for pitch in range(low, high) if pitch % 12 in _BLACK_KEYS]
    lines = [f'<rect class="black" x="0" y="{high - pitch - 1}" width="{end}" height="1"/>' for pitch in black]
    lines += [f'<line class="grid" x1="{start}" x2="{start}" y1="0" y2="{high - low}"/>' for start in starts]
    octaves = range(-(-low // 12) * 12, high, 12)
    lines += [f'<line class="grid" x1="0" x2="{end}" y1="{high - pitch}" y2="{high - pitch}"/>' for pitch in octaves]
    groups, keys = [], []
    names = track_labels(tracks)
    for number, track in enumerate(tracks):
        colour = css_colour(track_colour(track, number))
        gap = 0.06 * score.steps_per_quarter  # keeps repeated notes apart
        boxes = "".join(
            f'<rect x="{start}" y="{high - pitch - 0.95:g}" width="{max(stop - start - gap, gap):g}" height="0.9"/>'
            for start, stop, pitch in _notes_before(end, track)
        )
        name = text(names[number])
        groups.append(f'<g style="fill:{colour}"><title>{name}</title>{boxes}</g>')
        keys.append(f'<li><i style="background:{colour}"></i>{name}</li>')
    size = 100 / (high - low)
    y_words = "".join(
        f'<span style="top:{size * (high - pitch):.2f}%">C{pitch // 12 - 1}</span>'
        for pitch in octaves
        if pitch < high - 1
    )
    x_words = "".join(
        f'<span style="left:{100 * start / end:.2f}%">{bar + 1}</span>' for bar, start in enumerate(starts[:-1])
    )
    shown = "" if score.num_bars < len(starts) else f"; the first {MAX_ROLL_BARS} bars are drawn"
    facts = (counted(score.num_bars, "bar"), counted(score.num_notes, "note"), counted(len(tracks), "track"))
    label = f"Piano roll of {title}: {', '.join(facts)}{shown}"
    return (
        f'<figure class="roll"><h3>{text(title)}</h3><figcaption>{text(label.partition(": ")[2])}</figcaption>'
        f'<div class="plot"><div class="y" aria-hidden="true">{y_words}</div><div class="canvas">'
        f'<svg role="img" aria-label="{text(label)}" viewBox="0 0 {end} {high - low}" preserveAspectRatio="none">'
        f'{"".join(lines)}{"".join(groups)}</svg></div><div class="x" aria-hidden="true">{x_words}</div>'
        f'<p class="unit">bar</p></div><ul class="key">{"".join(keys)}</ul></figure>'
    )


def _notes_before(end: int, track: Track) -> list[tuple[int, int, int]]:
    """Start, end and pitch of the notes that begin before a step, none of them longer."""
    return [(start, min(stop, end), pitch) for start, stop, pitch, _ in track.notes.tolist() if start < end]


def _up(value: float, top: float) -> str:
    """A height as SVG counts it: per cent from above."""
    return f"{100 - 100 * value / top:.2f}"
