"""A score as a picture: time to the right, pitch upwards, a colour for each voice or track, a row for every 16 bars or
so.
"""

import io
import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Patch

from megatron_music.music.instruments import instrument_name, track_colour, track_labels
from megatron_music.music.names import printable
from megatron_music.music.score import Score, Track
from megatron_music.storage.writing import write_whole

QUARTERS_PER_ROW = 64  # 16 bars of 4/4
MAX_ROWS = 40  # a longer piece has more bars in a row, so that its picture can still be opened
MAX_READABLE_BARS = 32  # in a row
NO_FONT = "name needs another font"
_DPI = 110
_WIDTH, _LEFT, _RIGHT = 13.0, 0.62, 0.18  # inches: of a picture, and of its margins
_BLACK_KEYS = (1, 3, 6, 8, 10)
_FAMILY = "DejaVu Sans"  # comes with matplotlib
# Fonts of many scripts, looked at before all others.
_BROAD = (
    "CJK",
    "Source Han",
    "WenQuanYi",
    "Droid Sans Fallback",
    "Arial Unicode",
    "IPA",
    "PingFang",
    "Hiragino",
    "Yu Gothic",
    "Malgun",
    "SimHei",
    "SimSun",
    "Microsoft",
    "Unifont",
    "Noto Sans",
)


def plot_score(
    score: Score, path: str | os.PathLike, title: str = "", bars: tuple[int, int] | None = None
) -> list[str]:
    """Write a piano roll as PNG (or by the suffix of ``path``): bars as vertical lines, octaves as horizontal.

    Args:
        bars: the first and the last bar to draw, from 1; all by default.

    Returns:
        Sentences on what the picture cannot show well: names without a font, more bars in a row than can be read.

    Raises:
        ValueError: the score has no notes, or not these bars.
    """
    figure, notes = _draw(score, title, bars)
    save_figure(figure, path)
    return notes


def score_pixels(score: Score, title: str = "") -> np.ndarray:
    """The same picture as red, green and blue (uint8, [height, width, 3])."""
    canvas = FigureCanvasAgg(_draw(score, title, None)[0])
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def rows_of_bars(score: Score, bars: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """The first and the last bar of each row, from 1; rows have the same number of bars, a multiple of 4, and the last
    one the rest.

    Raises:
        ValueError: the score has not these bars.
    """
    count = max(score.num_bars, 1)
    first, last = bars or (1, count)
    if not 1 <= first <= last <= count:
        raise ValueError(f"bars {first}-{last} are not in the piece, which has bars 1-{count}; choose a range of these")
    starts = score.bar_starts
    quarters = max(float(starts[last] - starts[first - 1]) / score.steps_per_quarter, 1e-9)
    number = last - first + 1
    rows = min(max(round(quarters / QUARTERS_PER_ROW + 0.25), 1), MAX_ROWS, number)
    size = -(-number // rows)
    if rows > 1:
        size = -(-size // 4) * 4
    return [(bar, min(bar + size - 1, last)) for bar in range(first, last + 1, size)]


def _draw(score: Score, title: str, bars: tuple[int, int] | None) -> tuple[Figure, list[str]]:
    tracks = [track for track in score.tracks if len(track)]
    if not tracks:
        raise ValueError("the piece has no notes to draw")
    rows = rows_of_bars(score, bars)
    begin, end = int(score.bar_starts[rows[0][0] - 1]), int(score.bar_starts[rows[-1][1]])
    drawn = [(track, notes) for track in tracks if len(notes := _notes_between(track, begin, end))]
    if not drawn:
        raise ValueError(f"bars {rows[0][0]}-{rows[-1][1]} have no notes to draw; choose others")
    low = min(int(notes[:, 2].min()) for _, notes in drawn) - 2
    high = max(int(notes[:, 2].max()) for _, notes in drawn) + 3
    low, high = (low, high) if high - low >= 18 else ((low + high) // 2 - 9, (low + high) // 2 + 9)
    height = min(max(0.055 * (high - low), 1.3), 3.2) if len(rows) > 1 else 3.4
    labels, missing = _drawable_labels(tracks)
    families, title, title_missing = _drawable_title(title)
    places = {id(track): place for place, track in enumerate(tracks)}
    handles = [Patch(color=track_colour(track, places[id(track)])) for track, _ in drawn]
    shown = [labels[places[id(track)]] for track, _ in drawn]
    columns = max(1, min(len(shown), int(_WIDTH / (0.085 * max(map(_columns, shown)) + 0.65))))
    above, between, below = 0.45 if title else 0.15, 0.36, 0.62 + 0.23 * -(-len(shown) // columns)
    total = above + len(rows) * height + (len(rows) - 1) * between + below
    figure = Figure(figsize=(_WIDTH, total))
    longest = max(int(score.bar_starts[last] - score.bar_starts[first - 1]) for first, last in rows)
    axes = None
    for number, (first, last) in enumerate(rows):
        top = total - above - number * (height + between)
        width = (_WIDTH - _LEFT - _RIGHT) * int(score.bar_starts[last] - score.bar_starts[first - 1]) / longest
        axes = figure.add_axes((_LEFT / _WIDTH, (top - height) / total, width / _WIDTH, height / total))
        _draw_row(
            axes,
            score,
            first,
            last,
            low,
            high,
            [(notes, track_colour(track, places[id(track)])) for track, notes in drawn],
        )
        axes.set_ylabel("pitch")
    axes.set_xlabel("bar", loc="left" if len(rows) > 1 else "center")
    if title:
        figure.text(0.5, 1 - 0.12 / total, plain(title), ha="center", va="top", fontsize="large", fontfamily=families)
    legend = figure.legend(
        handles,
        list(map(plain, shown)),
        loc="lower center",
        bbox_to_anchor=(0.5, 0.05 / total),
        ncols=columns,
        frameon=False,
        prop={"family": _families("".join(shown))[0]},
        handlelength=1.4,
    )
    legend.set_in_layout(False)
    return figure, _remarks(rows, sorted({*missing, *title_missing}))


def _draw_row(axes: Axes, score: Score, first: int, last: int, low: int, high: int, parts: Sequence) -> None:
    """Bars ``first`` to ``last`` of the piece; ``parts`` are notes (int64, [N, 4]) with their colour."""
    starts = score.bar_starts
    begin, end = int(starts[first - 1]), int(starts[last])
    for pitch in range(low, high):
        if pitch % 12 in _BLACK_KEYS:
            axes.axhspan(pitch, pitch + 1, color="#f4f4f4", linewidth=0, zorder=0)
    gap = 0.06 * score.steps_per_quarter  # keeps repeated notes apart
    for notes, colour in parts:
        rows = notes[(notes[:, 0] < end) & (notes[:, 1] > begin)].astype(float)
        left, right, pitch = rows[:, 0], np.maximum(rows[:, 1] - gap, rows[:, 0] + gap), rows[:, 2] + 0.05
        corners = np.stack([[left, pitch], [right, pitch], [right, pitch + 0.9], [left, pitch + 0.9]]).transpose(
            2, 0, 1
        )
        axes.add_collection(PolyCollection(corners, facecolors=colour, edgecolors="none", zorder=2), autolim=False)
    axes.set_xlim(begin, end)
    axes.set_ylim(low, high)
    every = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if (last - first + 1) <= 32 * step)
    ticks = [bar for bar in range(first, last + 1) if (bar - 1) % every == 0] or [first]
    axes.set_xticks([int(starts[bar - 1]) for bar in ticks], [str(bar) for bar in ticks], fontsize="small")
    octaves = range(-(-low // 12) * 12, high, 12)
    axes.set_yticks([pitch + 0.5 for pitch in octaves], [f"C{pitch // 12 - 1}" for pitch in octaves], fontsize="small")
    axes.grid(True, axis="x", color="#cfcfcf", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _notes_between(track: Track, begin: int, end: int) -> np.ndarray:
    """The notes that sound in a stretch of steps (int64, [N, 4])."""
    notes = track.notes
    return notes[(notes[:, 0] < end) & (notes[:, 1] > begin)]


def _remarks(rows: Sequence[tuple[int, int]], missing: Sequence[str]) -> list[str]:
    remarks = []
    if missing:
        letters = " ".join(missing[:8])
        remarks.append(
            f"no installed font has {letters}: the picture has other names in their place; install a font such as "
            f"Noto Sans CJK"
        )
    first, last = rows[0]
    if last - first >= MAX_READABLE_BARS:
        remarks.append(
            f"{rows[-1][1] - first + 1:,} bars are {last - first + 1} in a row, too many to read; draw a part with "
            f"--bars {first}-{first + 63}"
        )
    return remarks


def _drawable_labels(tracks: Sequence[Track]) -> tuple[list[str], list[str]]:
    """A label for each track, and the letters that no font has; names with such letters give way to the instrument."""
    missing, kept = [], []
    for track in tracks:
        name = unicodedata.normalize("NFC", printable(track.name).strip())
        absent = [] if track.voice else _families(name)[1]
        missing += absent
        if absent:
            name = f"{instrument_name('DRUMS' if track.is_drum else str(track.program))} ({NO_FONT})"
        name = name if len(name) <= 48 else f"{name[:30]}…{name[-16:]}"
        kept.append(Track(track.rows, track.program, track.is_drum, track.voice, name))
    return track_labels(kept), missing


def _drawable_title(title: str) -> tuple[list[str], str, list[str]]:
    """Fonts for a title, the title, and the letters that no font has, each of them left out as ``…``."""
    title = unicodedata.normalize("NFC", printable(title))
    title = title if _columns(title) <= 110 else f"{title[:70]}…{title[-30:]}"
    families, missing = _families(title)
    if missing:
        for letter in missing:
            title = title.replace(letter, "…")
        while "……" in title:
            title = title.replace("……", "…")
    return families, title, missing


def _families(words: str) -> tuple[list[str], list[str]]:
    """The fonts to draw words with, the first that has a letter draws it; and the letters that none of them has."""
    wanted = {letter for letter in words if not letter.isspace()}
    families = [_FAMILY]
    wanted -= _letters_of(font_manager.findfont(_FAMILY), wanted)
    if not wanted:
        return families, []
    upright = (
        font for font in font_manager.fontManager.ttflist if font.style == "normal" and "LastResort" not in font.fname
    )
    fonts = {font.fname: font.name for font in upright}
    for path in sorted(fonts, key=lambda path: (not any(word in fonts[path] for word in _BROAD), fonts[path], path)):
        found = _letters_of(path, wanted)
        if found:
            families.append(fonts[path])
            wanted -= found
        if not wanted:
            break
    return families, sorted(wanted)


def _letters_of(path: str, wanted: set[str]) -> set[str]:
    try:
        letters = FT2Font(path).get_charmap()
    except (OSError, RuntimeError):  # a font that was removed since matplotlib listed it, or is damaged
        return set()
    return {letter for letter in wanted if ord(letter) in letters}


def _columns(words: str) -> int:
    """The width of words in letters; East Asian letters are twice as wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in words)


def plain(words: str) -> str:
    r"""Words from outside for a picture, drawn as they are: ``$`` begins no formula, and a legend keeps a name that
    begins with ``_``.
    """
    words = words.replace("$", r"\$")
    return f" {words}" if words.startswith("_") else words


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a picture, in the format that its suffix names; the file is there whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format=Path(path).suffix[1:].lower(), dpi=_DPI)
    write_whole(path, content.getvalue())
