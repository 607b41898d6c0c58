"""A person's piece bar by bar: where its bars lie in ticks, which of them a model can read, and how it reads them.

Only what the model reads is quantised; the piece stays on its own ticks.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_music.music.grid import quantize_columns, slice_steps
from megatron_music.music.score import (
    DEFAULT_QUARTERS_PER_MINUTE,
    DEFAULT_TEMPO,
    FOUR_FOUR,
    VOICE_PROGRAM,
    Score,
    Tempo,
    TimeSignature,
    Track,
    known_meter,
)
from megatron_music.music.tempo import tempo_bin, tempo_of_bin
from megatron_music.tokens.encoding import Encoding


class GivenBars:
    """The bars of a piece.

    Args:
        score: as read from a file, on its own ticks.
        encoding: of the model.

    Attributes:
        lines: where bars begin, in ticks, and the end of the last one (int64, [bars + 1]).
        meters: (numerator, denominator) of each bar, as tokens write it: 12/8 for 24/16.
        steps: of each bar on the encoding's grid; 0 for bars it does not encode, and for those that are cut short.
    """

    def __init__(self, score: Score, encoding: Encoding):
        unknown = encoding.undeclared(score.time_signatures)
        declared = [signature for signature in score.time_signatures if signature[1:] not in unknown]
        signatures = tuple(sorted(declared, key=_start)) or FOUR_FOUR  # of those at one tick the last holds
        self.encoding = encoding
        self.score = replace(score, time_signatures=signatures)
        self.lines = self.score.bar_starts
        self.meters = _meters_of_bars(signatures, self.lines)
        self.steps = _steps_of_bars(self.lines, self.meters, score.steps_per_quarter, encoding)

    def on_grid(self, score: Score, first: int, after: int) -> Score:
        """The bars from ``first`` up to ``after`` of a score with these bars, on the model's grid; silent
        tracks stay.
        """
        encoding = self.encoding
        lines = np.append(0, np.cumsum(self.steps[first:after]))
        part = slice_steps(score, int(self.lines[first]), int(self.lines[after]))
        columns = part.columns
        if columns.shape[1]:
            columns, _ = quantize_columns(
                columns, encoding.steps_per_quarter, score.steps_per_quarter, encoding.velocity
            )
            columns[2] = np.minimum(columns[2], lines[-1])
            columns = columns[:, columns[1] < lines[-1]]  # what the grid moves into the next bar is not here
        starts, ticks = lines[:-1].tolist(), self.lines[first:after].tolist()
        signatures = [
            TimeSignature(start, *meter) for start, meter in zip(starts, self.meters[first:after], strict=True)
        ]
        tempos = list(DEFAULT_TEMPO)
        if encoding.tempo:
            bins = [tempo_bin(_tempo_at(score, tick)) for tick in ticks]
            tempos = [Tempo(start, tempo_of_bin(bin_)) for start, bin_ in zip(starts, bins, strict=True)]
        return Score(
            tuple(
                Track(columns[1:, columns[0] == number].T, VOICE_PROGRAM if t.voice else t.program, t.is_drum, t.voice)
                for number, t in enumerate(part.tracks)
            ),
            encoding.steps_per_quarter,
            _changes(signatures),
            _changes(tempos),
            int(lines[-1]),
        )


def _start(event: TimeSignature | Tempo) -> int:
    return event.start_step


def _changes(events: list) -> tuple:
    """Meters or tempos without those that repeat the one before."""
    return tuple(event for place, event in enumerate(events) if not place or event[1:] != events[place - 1][1:])


def _meters_of_bars(signatures: Sequence[TimeSignature], lines: np.ndarray) -> list[tuple[int, int]]:
    starts = np.array([signature.start_step for signature in signatures])
    places = np.searchsorted(starts, lines[:-1], side="right") - 1
    return [known_meter(*signatures[place][1:]) if place >= 0 else FOUR_FOUR[0][1:] for place in places.tolist()]


def _steps_of_bars(
    lines: np.ndarray, meters: list[tuple[int, int]], ticks_per_quarter: int, encoding: Encoding
) -> list[int]:
    steps = []
    for length, (numerator, denominator) in zip(np.diff(lines).tolist(), meters, strict=True):
        whole = length * denominator == 4 * ticks_per_quarter * numerator
        count, rest = divmod(encoding.steps_per_bar * numerator, denominator)
        steps.append(count if whole and not rest and (numerator, denominator) in encoding.meter_set else 0)
    return steps


def _tempo_at(score: Score, tick: int) -> float:
    before = [tempo for tempo in sorted(score.tempos, key=_start) if tempo.start_step <= tick]
    return before[-1].quarters_per_minute if before else DEFAULT_QUARTERS_PER_MINUTE
