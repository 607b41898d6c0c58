"""A score as a picture: time to the right, pitch upwards, a colour for each voice or track."""

import os
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from megatron_music.music.instruments import TRACK_COLOURS, VOICE_COLOURS
from megatron_music.music.score import Score


def plot_score(score: Score, path: str | os.PathLike, title: str = "") -> None:
    """Write a piano roll as PNG (or by the suffix of ``path``): bars as vertical lines, octaves as horizontal.

    Raises:
        ValueError: the score has no notes.
    """
    save_figure(_figure(score, title), path)


def score_pixels(score: Score, title: str = "") -> np.ndarray:
    """The same picture as red, green and blue (uint8, [height, width, 3])."""
    canvas = FigureCanvasAgg(_figure(score, title))
    canvas.draw()
    return np.array(canvas.buffer_rgba())[:, :, :3]


def _figure(score: Score, title: str) -> Figure:
    tracks = [track for track in score.tracks if len(track)]
    if not tracks:
        raise ValueError("the piece has no notes to draw")
    lines = score.bar_starts.tolist()
    bars = max(score.num_bars, 1)
    figure = Figure(figsize=(min(max(1.6 * bars, 8), 40), 4.5), layout="constrained")
    axes = figure.add_subplot()
    low = min(int(track.notes[:, 2].min()) for track in tracks) - 2
    high = max(int(track.notes[:, 2].max()) for track in tracks) + 3
    for number, track in enumerate(tracks):
        colour = VOICE_COLOURS.get(track.voice, TRACK_COLOURS[number % len(TRACK_COLOURS)])
        gap = 0.06 * score.steps_per_quarter  # so that repeated notes are told apart
        boxes = [
            Rectangle((note.start_step, note.pitch), max(note.end_step - note.start_step - gap, gap), 0.9)
            for note in track
        ]
        axes.add_collection(PatchCollection(boxes, facecolor=colour, edgecolor="none"))
        axes.plot([], [], color=colour, linewidth=6, label=track.label)
    axes.set_xlim(0, lines[-1])
    axes.set_ylim(low, high)
    bar_ticks = range(0, len(lines), max(bars // 32, 1))
    axes.set_xticks([lines[bar] for bar in bar_ticks], [str(bar + 1) for bar in bar_ticks])
    octaves = range(-(-low // 12) * 12, high, 12)
    axes.set_yticks(list(octaves), [f"C{pitch // 12 - 1}" for pitch in octaves])
    axes.grid(True, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel("bar")
    axes.set_ylabel("pitch")
    if title:
        axes.set_title(title)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=min(len(tracks), 8), frameon=False)
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a picture under a temporary name first."""
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        figure.savefig(temporary, dpi=110)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
