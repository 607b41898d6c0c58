"""Sounds as pictures."""

import os
from collections.abc import Sequence

from matplotlib.figure import Figure

from megatron_music.audio.music_encoder import HOP, SAMPLE_RATE, log_mel
from megatron_music.audio.waveform import Waveform
from megatron_music.reports.pianoroll import plain, save_figure


def plot_spectrograms(sounds: Sequence[tuple[str, Waveform]], path: str | os.PathLike) -> None:
    """Draw log-mel spectrograms below each other, each with its title.

    Raises:
        ValueError: there are none.
    """
    if not sounds:
        raise ValueError("there is no sound to draw")
    figure = Figure(figsize=(9, 1.9 * len(sounds)), layout="constrained")
    rows = figure.subplots(len(sounds), squeeze=False)[:, 0]
    for axes, (title, waveform) in zip(rows, sounds, strict=True):
        mel = log_mel(waveform)
        end = mel.shape[1] * HOP / SAMPLE_RATE
        axes.imshow(mel, origin="lower", aspect="auto", cmap="magma", extent=(0, end, 0, len(mel)), vmin=-1.5, vmax=7)
        axes.set_title(plain(title), fontsize=9, loc="left")
        axes.set_ylabel("mel band", fontsize=8)
        axes.tick_params(labelsize=7)
    rows[-1].set_xlabel("seconds", fontsize=8)
    save_figure(figure, path)
