"""Arithmetic on the grid: quantise, cut at bar lines, slice bars, and find the parts in 4/4.

All of it on arrays of notes; knows nothing about files or tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from megatron_music.music.score import (
    DEFAULT_TEMPO,
    DEFAULT_VELOCITY,
    FOUR_FOUR,
    VOICE_PROGRAM,
    QuantizationReport,
    Score,
    Track,
)

MAX_STEPS = (1 << 20) - 1  # 5 hours at 12 steps a quarter and 250 quarters a minute
MAX_TRACKS = 1 << 12


def quantize(score: Score, steps_per_quarter: int = 4) -> Score:
    """The score on a grid of ``steps_per_quarter``, as the encoding can hold it.

    The rule: a time goes to the nearest step, halves up; a note lasts at least one step; at most one note
    sounds at a time for each track and pitch (of equal onsets the longest stays, an earlier note ends where its
    pitch is struck again). What tokens do not carry takes its default: velocity 80, 120 quarters a minute, 4/4,
    no track names; a named voice plays program 52. Tracks without notes are dropped and the length is whole bars.

    Quantising twice changes nothing. ``quantization`` of the result says what was lost and by how much onsets moved.

    Raises:
        ValueError: the score has no notes, or more steps or tracks than the encoding holds.
    """
    tracks = [track for track in score.tracks if len(track)]
    if not tracks:
        raise ValueError("the piece has no notes; leave it out")
    if len(tracks) > MAX_TRACKS:
        raise ValueError(f"the piece has {len(tracks)} tracks; at most {MAX_TRACKS} can be encoded")
    index = np.repeat(np.arange(len(tracks)), [len(track) for track in tracks])
    old_starts, old_ends, pitches = concatenated_columns(tracks)
    old = score.steps_per_quarter
    starts = _round_half_up(old_starts, steps_per_quarter, old)
    rounded_ends = _round_half_up(old_ends, steps_per_quarter, old)
    ends = np.maximum(rounded_ends, starts + 1)
    if int(ends.max()) > MAX_STEPS:
        raise ValueError(f"the piece lasts {int(ends.max())} steps; at most {MAX_STEPS} can be encoded")

    # One sort by (track, pitch, start, longest first) finds equal onsets and the next onset of each pitch.
    key = np.sort((((index << 7) | pitches) << 40) | (starts << 20) | (MAX_STEPS - ends))
    first = np.ones(len(key), bool)
    first[1:] = (key[1:] >> 20) != (key[:-1] >> 20)
    kept = key[first]
    group, start, end = kept >> 40, (kept >> 20) & MAX_STEPS, MAX_STEPS - (kept & MAX_STEPS)
    next_onset = np.where(group[1:] == group[:-1], start[1:], MAX_STEPS)
    shortened = int(np.count_nonzero(next_onset < end[:-1]))
    end[:-1] = np.minimum(end[:-1], next_onset)

    fields = np.stack([start, end, group & 127, np.full_like(start, DEFAULT_VELOCITY)])
    limits = np.searchsorted(group >> 7, np.arange(len(tracks) + 1)).tolist()
    error = np.abs(starts - old_starts * (steps_per_quarter / old))
    report = QuantizationReport(
        notes_in=len(old_starts),
        notes_out=len(start),
        notes_lost=len(old_starts) - len(start),
        notes_shortened=shortened,
        notes_lengthened=int(np.count_nonzero(rounded_ends <= starts)),
        onsets_on_grid=int(np.count_nonzero(old_starts * steps_per_quarter % old == 0)),
        mean_onset_error=float(error.mean()),
        max_onset_error=float(error.max()),
    )
    bar = 4 * steps_per_quarter
    return Score(
        tracks=tuple(
            Track(fields[:, first:last].T, VOICE_PROGRAM if track.voice else 0 if track.is_drum else track.program,
                  track.is_drum, track.voice)
            for track, first, last in zip(tracks, limits, limits[1:], strict=False)
        ),
        steps_per_quarter=steps_per_quarter,
        time_signatures=FOUR_FOUR,
        tempos=DEFAULT_TEMPO,
        length_steps=-(-int(end.max()) // bar) * bar,
        quantization=report,
    )  # fmt: skip


def concatenated_columns(tracks: Sequence[Track]) -> list[np.ndarray]:
    """Start, end and pitch of the notes of all tracks, track after track, int64 [N] each."""
    columns = [track.columns for track in tracks]
    return [np.concatenate([column[field] for column in columns]) for field in range(3)]


def _round_half_up(ticks: np.ndarray, new: int, old: int) -> np.ndarray:
    return (2 * new * ticks + old) // (2 * old)


def cut_at_bar_lines(
    starts: np.ndarray, ends: np.ndarray, steps_per_bar: int, bar_line: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Notes under one of the three bar-line policies.

    Args:
        starts, ends: int64 [N], in steps.
        bar_line: ``carry`` leaves notes whole, ``clip`` ends them with the bar they start in, ``split`` strikes
            them again in each bar they sound in.

    Returns:
        For each resulting note the index of the note it comes from, its start and its end.
    """
    index, bar = np.arange(len(starts)), starts // steps_per_bar
    if bar_line == "clip":
        ends = np.minimum(ends, (bar + 1) * steps_per_bar)
    elif bar_line == "split":
        count = (ends - 1) // steps_per_bar - bar + 1
        index = np.repeat(index, count)
        bar = bar[index] + np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
        starts = np.maximum(starts[index], bar * steps_per_bar)
        ends = np.minimum(ends[index], (bar + 1) * steps_per_bar)
    elif bar_line != "carry":
        raise ValueError(f"bar_line is {bar_line!r}; use carry, clip or split")
    return index, starts, ends


def apply_bar_lines(score: Score, bar_line: str) -> Score:
    """The quantised score as it sounds after encoding with a bar-line policy; ``carry`` changes nothing."""
    tracks = []
    for track in score.tracks:
        index, starts, ends = cut_at_bar_lines(track.notes[:, 0], track.notes[:, 1], score.steps_per_bar, bar_line)
        rows = np.stack([starts, ends, track.notes[index, 2], track.notes[index, 3]], axis=1)
        tracks.append(Track(rows, track.program, track.is_drum, track.voice, track.name))
    return replace(score, tracks=tuple(tracks))


def slice_steps(score: Score, start_step: int, end_step: int) -> Score:
    """What sounds in ``[start_step, end_step)``, from step 0 on.

    A note that sounds on at the start is struck there, one that sounds on at the end is closed there. All
    tracks stay, also silent ones; tempos and time signatures at the start are those in force there.
    """
    tracks = []
    for track in score.tracks:
        inside = (track.notes[:, 0] < end_step) & (track.notes[:, 1] > start_step)
        rows = track.notes[inside].copy()
        rows[:, 0] = np.maximum(rows[:, 0], start_step) - start_step
        rows[:, 1] = np.minimum(rows[:, 1], end_step) - start_step
        tracks.append(Track(rows, track.program, track.is_drum, track.voice, track.name))
    return replace(
        score,
        tracks=tuple(tracks),
        time_signatures=_events_in(score.time_signatures, start_step, end_step, FOUR_FOUR[0]),
        tempos=_events_in(score.tempos, start_step, end_step, DEFAULT_TEMPO[0]),
        length_steps=end_step - start_step,
    )


def _events_in(events, start_step: int, end_step: int, default):
    """The event in force at ``start_step`` and those up to ``end_step``, counted from ``start_step``."""
    before = [event for event in events if event.start_step <= start_step]
    first = (before[-1] if before else default)._replace(start_step=0)
    inside = [e._replace(start_step=e.start_step - start_step) for e in events if start_step < e.start_step < end_step]
    return (first, *inside)


def slice_bars(score: Score, first_bar: int, bars: int) -> Score:
    """Bars ``first_bar .. first_bar + bars - 1`` of 4/4, silent tracks dropped: one window."""
    bar = score.steps_per_bar
    window = slice_steps(score, first_bar * bar, (first_bar + bars) * bar)
    return replace(window, tracks=tuple(track for track in window.tracks if len(track)))


def four_four_sections(score: Score) -> list[Score]:
    """The stretches of the piece whose meter is 4/4, each from step 0 on.

    Bars restart at every time-signature event. Before the first event the meter is 4/4, as MIDI has it. An
    event that repeats the meter on a bar line changes nothing.
    """
    changes = list(FOUR_FOUR)
    for signature in sorted(score.time_signatures, key=lambda signature: signature.start_step):
        last = changes[-1]
        if signature.start_step <= last.start_step:
            changes[-1] = signature
            continue
        bar = 4 * score.steps_per_quarter * last.numerator / last.denominator
        on_bar_line = (signature.start_step - last.start_step) % bar == 0
        if signature[1:] != last[1:] or not on_bar_line:
            changes.append(signature)
    if len(changes) == 1 and changes[0][1:] == (4, 4):
        return [score]
    limits = [change.start_step for change in changes[1:]] + [score.length_steps]
    return [
        slice_steps(score, change.start_step, limit)
        for change, limit in zip(changes, limits, strict=True)
        if change[1:] == (4, 4) and limit > change.start_step
    ]
