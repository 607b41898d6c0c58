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
    Tempo,
    TimeSignature,
    Track,
    bar_lines,
    known_meter,
    rows_of_tracks,
)
from megatron_music.music.tempo import tempo_bin, tempo_of_bin

MAX_STEPS = (1 << 20) - 1  # 5 hours at 12 steps a quarter and 250 quarters a minute
MAX_TRACKS = 1 << 11


def quantize(
    score: Score, steps_per_quarter: int = 4, *, meters: bool = False, velocity: bool = False, tempo: bool = False
) -> Score:
    """The score on a grid of ``steps_per_quarter``, as the encoding can hold it.

    The rule: a time goes to the nearest step, halves up; a note lasts at least one step; at most one note
    sounds at a time for each track and pitch (of equal onsets the longest stays, an earlier note ends where its
    pitch is struck again). What tokens do not carry takes its default: velocity 80, 120 quarters a minute, 4/4,
    no track names; a named voice plays program 52. Tracks without notes are dropped and the length is whole bars.

    Quantising twice changes nothing. ``quantization`` of the result says what was lost and by how much onsets moved.

    Args:
        meters: keep time signatures; each must fall on a bar line of the one before, as ``sections`` gives them.
        velocity: keep velocities, in 32 bins.
        tempo: keep the tempo in force at the start of each bar, in 32 bins.

    Raises:
        ValueError: the score has no notes, more steps or tracks than the encoding holds, or a meter that the grid
            does not.
    """
    score = sounding_tracks(score)
    columns, report = quantize_columns(score.columns, steps_per_quarter, score.steps_per_quarter, velocity)
    return on_grid(score, columns, report, steps_per_quarter, meters, tempo)


def quantize_columns(columns: np.ndarray, new: int, old: int, velocity: bool) -> tuple[np.ndarray, QuantizationReport]:
    """Notes on another grid: the rule of ``quantize`` on ``Score.columns``.

    Args:
        new, old: steps a quarter.
        velocity: whether velocities are kept, in bins.

    Returns:
        The columns that are left, by track, pitch and start, and what was lost.
    """
    track, old_starts, old_ends, pitch, old_velocity = columns
    starts = _round_half_up(old_starts, new, old)
    rounded_ends = _round_half_up(old_ends, new, old)
    ends = np.maximum(rounded_ends, starts + 1)
    check_length(int(ends.max()))

    # One sort by (track, pitch, start, longest, loudest first) finds equal onsets and the next onset of each pitch.
    softness = 31 - (old_velocity >> 2) if velocity else 0
    key = np.sort((((track << 7) | pitch) << 45) | (starts << 25) | (MAX_STEPS - ends) << 5 | softness)
    first = np.ones(len(key), bool)
    first[1:] = (key[1:] >> 25) != (key[:-1] >> 25)
    kept = key[first]
    group, start, end = kept >> 45, (kept >> 25) & MAX_STEPS, MAX_STEPS - ((kept >> 5) & MAX_STEPS)
    next_onset = np.where(group[1:] == group[:-1], start[1:], MAX_STEPS)
    shortened = int(np.count_nonzero(next_onset < end[:-1]))
    end[:-1] = np.minimum(end[:-1], next_onset)
    error = np.abs(starts * old - old_starts * new)
    report = QuantizationReport(
        notes_in=len(old_starts),
        notes_out=len(start),
        notes_lost=len(old_starts) - len(start),
        notes_shortened=shortened,
        notes_lengthened=int(np.count_nonzero(rounded_ends <= starts)),
        onsets_on_grid=int(np.count_nonzero(error == 0)),
        mean_onset_error=int(error.sum()) / old / len(old_starts),
        max_onset_error=int(error.max()) / old,
        onset_errors=tuple(np.bincount(np.minimum(error * 20 // old, 9), minlength=10).tolist()),
    )
    velocities = 126 - ((kept & 31) << 2) if velocity else np.full_like(start, DEFAULT_VELOCITY)
    return np.stack([group >> 7, start, end, group & 127, velocities]), report


def check_length(last_step: int) -> None:
    """Refuse a piece that is longer than the encoding can count."""
    if last_step > MAX_STEPS:
        raise ValueError(f"the piece lasts {last_step} steps; at most {MAX_STEPS} can be encoded")


def sounding_tracks(score: Score) -> Score:
    """The score without silent tracks, refused if none is left or too many are."""
    score = without_silent_tracks(score)
    if not score.tracks:
        raise ValueError("the piece has no notes; skip it")
    if len(score.tracks) > MAX_TRACKS:
        raise ValueError(f"the piece has {len(score.tracks)} tracks; at most {MAX_TRACKS} can be encoded")
    return score


def without_silent_tracks(score: Score) -> Score:
    """The score without tracks that have no note."""
    if all(map(len, score.tracks)):
        return score
    return replace(score, tracks=tuple(track for track in score.tracks if len(track)))


def on_grid(
    score: Score, columns: np.ndarray, report: QuantizationReport, steps_per_quarter: int, meters: bool, tempo: bool
) -> Score:
    """The score that quantised ``columns`` make, with all that is not notes taken to the grid from ``score``."""
    last = int(columns[2].max())
    signatures = _meters_on_grid(score, steps_per_quarter, last) if meters else FOUR_FOUR
    lines = bar_lines(signatures, steps_per_quarter, last)
    quantized = Score.from_columns(
        columns,
        [
            Track(rows, VOICE_PROGRAM if t.voice else 0 if t.is_drum else t.program, t.is_drum, t.voice)
            for t, rows in zip(score.tracks, rows_of_tracks(columns, len(score.tracks)), strict=True)
        ],
        steps_per_quarter=steps_per_quarter,
        time_signatures=signatures,
        tempos=_tempos_of_bars(lines[:-1], steps_per_quarter, score) if tempo else DEFAULT_TEMPO,
        length_steps=int(lines[-1]),
        quantization=report,
    )
    quantized.__dict__["bar_starts"] = lines
    return quantized


def _round_half_up(ticks, new: int, old: int):
    """Times (integers or an array of them) on another grid: the nearest step, halves up."""
    return (2 * new * ticks + old) // (2 * old)


def _meters_on_grid(score: Score, steps_per_quarter: int, last_step: int) -> tuple[TimeSignature, ...]:
    """The changes of meter while notes sound, on the new grid; each must fall on a bar line."""
    kept = [] if score.time_signatures[0].start_step == 0 else list(FOUR_FOUR)
    for start, numerator, denominator in score.time_signatures:
        step = int(_round_half_up(start, steps_per_quarter, score.steps_per_quarter))
        if kept and step >= last_step:
            break
        bar = 4 * steps_per_quarter * numerator
        if bar % denominator:
            raise ValueError(
                f"a bar of {numerator}/{denominator} is no whole number of steps at {steps_per_quarter} steps a "
                f"quarter; "
                "leave this meter out, or use a finer grid"
            )
        if kept and (step - kept[-1].start_step) % (4 * steps_per_quarter * kept[-1].numerator // kept[-1].denominator):
            raise ValueError(
                f"the meter {numerator}/{denominator} begins inside a bar; cut the piece with `sections` first"
            )
        if not kept or kept[-1][1:] != (numerator, denominator):
            kept.append(TimeSignature(step, numerator, denominator))
    return tuple(kept)


def _tempos_of_bars(bars: np.ndarray, steps_per_quarter: int, score: Score) -> tuple[Tempo, ...]:
    """The tempo at the start of each bar, in bins, where it changes."""
    places = tempo_places(score, bars, steps_per_quarter)
    speeds = [tempo.quarters_per_minute for tempo in _by_time(score.tempos)]
    tempos: list[Tempo] = []
    for step, place in zip(bars.tolist(), places.tolist(), strict=True):
        bin_ = tempo_bin(speeds[place] if place >= 0 else DEFAULT_TEMPO[0].quarters_per_minute)
        if not tempos or tempo_bin(tempos[-1].quarters_per_minute) != bin_:
            tempos.append(Tempo(step, tempo_of_bin(bin_)))
    return tuple(tempos)


def tempo_places(score: Score, steps: np.ndarray, steps_per_quarter: int) -> np.ndarray:
    """Which of the score's tempos, by time, holds at each step of another grid; -1 before the first (int64, [steps]).

    Tempos go to the nearest step, as notes do; of several at one step the last in the file holds.
    """
    starts = np.array([tempo.start_step for tempo in _by_time(score.tempos)], np.int64)
    return np.searchsorted(_round_half_up(starts, steps_per_quarter, score.steps_per_quarter), steps, side="right") - 1


def _by_time(events):
    """The events by time; those of one time stay in their order, so that the last one holds."""
    return sorted(events, key=lambda event: event.start_step)


def cut_at_bar_lines(
    starts: np.ndarray, ends: np.ndarray, bar_starts: np.ndarray, bar_line: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Notes under one of the three bar-line policies.

    Args:
        starts, ends: int64 [N], in steps.
        bar_starts: as ``Score.bar_starts``.
        bar_line: ``carry`` leaves notes whole, ``clip`` ends them with the bar they start in, ``split`` strikes
            them again in each bar they sound in.

    Returns:
        For each resulting note the index of the note it comes from, its start and its end.
    """
    index = np.arange(len(starts))
    if bar_line == "clip":
        ends = np.minimum(ends, bar_starts[bars_of(starts, bar_starts) + 1])
    elif bar_line == "split":
        bar = bars_of(starts, bar_starts)
        count = bars_of(ends - 1, bar_starts) - bar + 1
        index = np.repeat(index, count)
        bar = bar[index] + np.arange(len(index)) - np.repeat(np.cumsum(count) - count, count)
        starts = np.maximum(starts[index], bar_starts[bar])
        ends = np.minimum(ends[index], bar_starts[bar + 1])
    elif bar_line != "carry":
        raise ValueError(f"bar_line is {bar_line!r}; use carry, clip or split")
    return index, starts, ends


def bars_of(steps: np.ndarray, bar_starts: np.ndarray) -> np.ndarray:
    """The number of the bar that each step is in."""
    return np.searchsorted(bar_starts, steps, side="right") - 1


def apply_bar_lines(score: Score, bar_line: str) -> Score:
    """The quantised score as it sounds after encoding with a bar-line policy; ``carry`` changes nothing."""
    tracks = []
    for track in score.tracks:
        index, starts, ends = cut_at_bar_lines(track.notes[:, 0], track.notes[:, 1], score.bar_starts, bar_line)
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
        time_signatures=_events_in(_by_time(score.time_signatures), start_step, end_step, FOUR_FOUR[0]),
        tempos=_events_in(_by_time(score.tempos), start_step, end_step, DEFAULT_TEMPO[0]),
        length_steps=end_step - start_step,
    )


def _events_in(events, start_step: int, end_step: int, default):
    """The event in force at ``start_step`` and those up to ``end_step``, counted from ``start_step``."""
    before = [event for event in events if event.start_step <= start_step]
    first = (before[-1] if before else default)._replace(start_step=0)
    inside = [e._replace(start_step=e.start_step - start_step) for e in events if start_step < e.start_step < end_step]
    return (first, *inside)


def slice_bars(score: Score, first_bar: int, bars: int) -> Score:
    """Bars ``first_bar .. first_bar + bars - 1``, silent tracks dropped: one window."""
    lines = score.bar_starts
    return without_silent_tracks(slice_steps(score, int(lines[first_bar]), int(lines[first_bar + bars])))


def sections(
    score: Score,
    meters: Sequence[tuple[int, int]] = ((4, 4),),
    unknown: Sequence[tuple[int, int]] = (),
    steps_per_quarter: int = 12,
) -> list[Score]:
    """The stretches of the piece whose meters are all among ``meters``, each from step 0 on.

    Bars restart at every time-signature event: one that falls on a bar line of the meter before may change the
    meter within a stretch, one inside a bar begins a new stretch. Before the first event the meter is 4/4, as MIDI
    has it. An event that repeats the meter on a bar line changes nothing.

    A note belongs to the stretch in which its onset lies on the new grid; of one that sounds on into another stretch,
    what rounds to no step is dropped there.

    Args:
        meters: (numerator, denominator) of those that are wanted.
        unknown: those that are read as if they were not declared.
        steps_per_quarter: of the grid that the stretches are for: an event nearer to a bar line than half a step is on
            it.
    """
    if (4, 4) in meters and score.length_steps:
        declared = [signature for signature in score.time_signatures if signature[1:] not in unknown]
        if not declared or declared == [FOUR_FOUR[0]]:  # as most pieces are
            return [_stretch(score, 0, score.length_steps, list(FOUR_FOUR), steps_per_quarter)]
    changes, breaks = meter_changes(score, unknown, steps_per_quarter)
    found, start, inside = [], None, []
    for change, is_break in zip((*changes, None), (*breaks, True), strict=True):
        wanted = change is not None and change[1:] in meters
        if start is not None and (is_break or not wanted):
            end = score.length_steps if change is None else change.start_step
            if end > start:
                found.append(_stretch(score, start, end, inside, steps_per_quarter))
            start = None
        if wanted:
            inside = [change] if start is None else [*inside, change]
            start = change.start_step if start is None else start
    return found


def meter_changes(
    score: Score, unknown: Sequence[tuple[int, int]], steps_per_quarter: int
) -> tuple[list[TimeSignature], list[bool]]:
    """The meters of a piece from its beginning on, each once, and whether it begins inside a bar of the one before.

    Arguments as of ``sections``. An event nearer to a bar line than half a step is put on it.
    """
    changes, breaks = list(FOUR_FOUR), [True]  # a stretch begins at the first
    for signature in _by_time(score.time_signatures):
        if signature[1:] in unknown:
            continue
        last = changes[-1]
        signature = TimeSignature(signature.start_step, *known_meter(*signature[1:]))
        ticks, unit = 4 * score.steps_per_quarter * last.numerator, last.denominator  # ticks in so many bars
        bars = (2 * (signature.start_step - last.start_step) * unit + ticks) // (2 * ticks)
        line = last.start_step + bars * ticks // unit
        distance = abs((signature.start_step - last.start_step) * unit - bars * ticks)
        on_bar_line = 2 * distance * steps_per_quarter < score.steps_per_quarter * unit
        signature = signature._replace(start_step=line) if on_bar_line else signature
        if signature.start_step <= last.start_step:
            changes[-1] = signature
        elif signature[1:] != last[1:] or not on_bar_line:
            changes.append(signature)
            breaks.append(not on_bar_line)
    return changes, breaks


def _stretch(score: Score, start: int, end: int, signatures: list[TimeSignature], steps_per_quarter: int) -> Score:
    whole = start == 0 and end == score.length_steps
    if whole and tuple(signatures) == score.time_signatures:
        return score
    stretch = score if whole else _cut_out(score, start, end, steps_per_quarter)
    return Score.from_columns(
        stretch.columns,
        stretch.tracks,
        steps_per_quarter=stretch.steps_per_quarter,
        time_signatures=tuple([s._replace(start_step=s.start_step - start) for s in signatures]),
        tempos=stretch.tempos,
        length_steps=stretch.length_steps,
        quantization=stretch.quantization,
        content=stretch.content,
    )


def _cut_out(score: Score, start: int, end: int, steps_per_quarter: int) -> Score:
    """As ``slice_steps``; but notes go where their onset lies on the new grid, and what rounds to no step is
    dropped.
    """
    old = score.steps_per_quarter
    track, first, last, pitch, velocity = score.columns
    onset = _round_half_up(first - start, steps_per_quarter, old)
    length = _round_half_up(end - start, steps_per_quarter, old)
    is_inside = (onset >= 0) & ((onset < length) | (end == score.length_steps))
    sounds_on = (onset < 0) & (_round_half_up(last - start, steps_per_quarter, old) > 0)
    kept = is_inside | sounds_on
    columns = np.stack(
        [track, np.clip(first - start, 0, end - start), np.clip(last - start, 0, end - start), pitch, velocity]
    )[:, kept]
    return Score.from_columns(
        columns,
        [
            Track(rows, t.program, t.is_drum, t.voice, t.name)
            for t, rows in zip(score.tracks, rows_of_tracks(columns, len(score.tracks)), strict=True)
        ],
        steps_per_quarter=old,
        time_signatures=FOUR_FOUR,
        tempos=_events_in(_by_time(score.tempos), start, end, DEFAULT_TEMPO[0]),
        length_steps=end - start,
        content=score.content,
    )
