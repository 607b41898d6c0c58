"""A person's piece with new bars after its last: what a model reads of it, and where the new notes lie in its ticks.

Nothing of the piece moves; ``music.midi_edits`` writes the new notes into its file.
"""

from dataclasses import replace

import numpy as np

from megatron_music.generation.given_bars import GivenBars
from megatron_music.music.score import (
    DEFAULT_VELOCITY,
    Score,
    TimeSignature,
    Track,
    known_meter,
)
from megatron_music.tokens.encoding import Encoding


class Continuation:
    """A piece to be continued in the meter and at the tempo of its end.

    Args:
        score: as read from a file, on its own ticks; it is not changed.
        encoding: of the model.
        sounding: the same piece with notes as long as the model's data have them, where the sustain pedal holds them
            longer.

    Attributes:
        opening: the last bars that are in the model's meters, on its grid, with the tracks that sound in them: what
            ``Composer.continue_scores`` goes on from.
        join: the tick at which new bars begin: the end of the last bar with notes, or a bar line after the last change
            of meter or tempo where that comes later.

    Raises:
        ValueError: the piece ends in a meter that the model does not know, or in a bar that is cut short.
    """

    def __init__(self, score: Score, encoding: Encoding, sounding: Score | None = None):
        bars = GivenBars(score, encoding)
        self._score, self._bars = score, bars
        self._after = after = _bars_with_notes(bars)
        first = after
        while first and bars.steps[first - 1]:
            first -= 1
        numerator, denominator = bars.meters[after - 1]
        if first == after and (numerator, denominator) in encoding.meter_set:
            raise ValueError(
                f"the piece ends in bar {after}, which the next time signature cuts short; remove that time "
                f"signature, or end the piece "
                "with a whole bar"
            )
        if first == after:
            raise ValueError(
                f"the piece ends in {numerator}/{denominator} (bar {after}), which the model has no token for; it has "
                f"{encoding.meters_in_words}; continue a piece that ends in one of these"
            )
        opening = bars.on_grid(sounding or score, first, after)
        self._tracks = [number for number, track in enumerate(opening.tracks) if len(track)]
        if not self._tracks:
            raise ValueError(
                f"the last {after - first} bars of the piece have no notes on the model's grid; shorten the piece"
            )
        self.opening = replace(opening, tracks=[opening.tracks[number] for number in self._tracks])
        self._bar = int(bars.lines[after] - bars.lines[after - 1])
        self.join = int(bars.lines[after])
        last_change = max(event.start_step for event in (*score.time_signatures, *score.tempos))
        self.join += max(-(-(last_change - self.join) // self._bar), 0) * self._bar

    def extended(self, continued: Score) -> Score:
        """The piece with the new bars of ``opening`` continued, on its own ticks."""
        old, ticks, steps = self.opening.length_steps, self._score.steps_per_quarter, continued.steps_per_quarter
        tracks = list(self._score.tracks)
        for number, track in zip(self._tracks, continued.tracks, strict=True):
            new = track.notes[track.notes[:, 0] >= old].copy()
            new[:, :2] = self.join + (new[:, :2] - old) * ticks // steps
            new[:, 1] = np.maximum(new[:, 1], new[:, 0] + 1)  # on ticks coarser than the grid
            if not self._bars.encoding.velocity:
                new[:, 3] = self._last_velocity(tracks[number])
            was = tracks[number]
            tracks[number] = Track(np.concatenate([was.notes, new]), was.program, was.is_drum, was.voice, was.name)
        new_bars = (continued.length_steps - old) * ticks // steps
        signatures, meter = self._score.time_signatures, self._bars.meters[self._after - 1]
        if known_meter(*self._bars.score.time_signatures[-1][1:]) != meter:  # it changes after the last bar with notes
            signatures = (*signatures, TimeSignature(self.join, *meter))
        return replace(self._score, tracks=tracks, time_signatures=signatures, length_steps=self.join + new_bars)

    def _last_velocity(self, track: Track) -> int:
        """The mean velocity of a track's last bars, as many as the model reads at a time."""
        begins = self._bars.lines[max(self._after - self._bars.encoding.bars, 0)]
        last = track.notes[track.notes[:, 0] >= begins]
        velocities = (last if len(last) else track.notes[-1:])[:, 3]
        return int(np.rint(velocities.mean())) if len(velocities) else DEFAULT_VELOCITY


def _bars_with_notes(bars: GivenBars) -> int:
    """How many bars there are up to the last in which a note sounds for half a step or longer."""
    score = bars.score
    half_step = score.steps_per_quarter / (2 * bars.encoding.steps_per_quarter)
    _, starts, ends, _, _ = score.columns
    sounds = [
        ((starts < line_after - half_step) & ((starts >= line - half_step) | (ends >= line + half_step))).any()
        for line, line_after in zip(bars.lines[:-1].tolist(), bars.lines[1:].tolist(), strict=True)
    ]
    return int(np.flatnonzero(sounds).max(initial=0)) + 1
