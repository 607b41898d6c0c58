"""Encode scores as mmmtrack tokens, and decode them. The two sides mirror the grammar:

    piece := PIECE_START label* [TEMPO] [TIME_SIGNATURE] track+ fill* [PIECE_END] [DOCUMENT_END]
    track := TRACK_START INST=<0..127|DRUMS|voice> [DENSITY=<k>] bar+ TRACK_END
    bar   := BAR_START [TIME_SIGNATURE] [TEMPO] [DENSITY] (event* | FILL_IN) BAR_END
    event := TIME_DELTA=<1..48> | [VELOCITY=<k>] NOTE_ON=<pitch> | NOTE_OFF=<pitch>
    fill  := FILL_START event* FILL_END

Time counts in grid steps and restarts in each bar. A rest before a note is written, a rest after the last one is not.
At one time NOTE_OFF comes before NOTE_ON, each by rising pitch. A note that ends on a bar line is switched off in the
bar it fills, at its last step, not in the next. A bar says its meter and tempo where they differ from the bar before;
the piece's head says those of its first bar. Which of the optional tokens are there is the ``Encoding``'s word.

The law, for each bar-line policy: ``decode(encode(quantize(score))) == apply_bar_lines(quantize(score))``, which for
``carry`` is ``quantize(score)`` itself. A window decodes to ``slice_bars`` of the piece.
"""

from typing import NamedTuple

import numpy as np

from megatron_music.music.score import (
    DEFAULT_TEMPO,
    DEFAULT_VELOCITY,
    FOUR_FOUR,
    VOICE_NAMES,
    VOICE_PROGRAM,
    Score,
    Tempo,
    TimeSignature,
    Track,
)
from megatron_music.music.tempo import tempo_of_bin
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.infill import put_back
from megatron_music.tokens.windows import (
    Windows,
    first_bars_of,
    instrument_id,
    write_windows,
)

__all__ = ["Windows", "decode_piece", "encode_piece", "encode_windows", "instrument_id", "window_starts"]

_METERS = [
    tuple(map(int, values.split("/"))) for values in next(b.values for b in v.BLOCKS if b.name == "TIME_SIGNATURE")
]


def encode_piece(score: Score, encoding: Encoding = Encoding(), label_ids: tuple[int, ...] = ()) -> np.ndarray:
    """Token ids (uint16) of the whole quantised piece, its silent tracks included, without a DOCUMENT_END.

    Args:
        score: from ``quantize`` with the encoding's options, or decoded.
        encoding: its window and hop do not matter here.
        label_ids: GENRE, STYLE and other labels to say of it.
    """
    return write_windows(score, np.zeros(1, np.int64), score.num_bars, encoding, label_ids, keep_silent=True).ids


def window_starts(score: Score, encoding: Encoding = Encoding()) -> np.ndarray:
    """First bars of the full windows of the piece, the last full window included."""
    return first_bars_of(score.bar_starts, int(score.columns[1].max(initial=0)), encoding)


def encode_windows(
    score: Score,
    first_bars: np.ndarray,
    encoding: Encoding = Encoding(),
    label_ids: tuple[int, ...] = (),
) -> Windows:
    """Windows of a quantised piece, ``encoding.bars`` long, that begin at the rising ``first_bars`` (int64 [W]).

    A track without a note in the window is left out, and so is a window without a note.
    """
    return write_windows(score, first_bars, encoding.bars, encoding, label_ids)


def decode_piece(token_ids, steps_per_quarter: int = 4) -> Score:
    """The score that ``token_ids`` spell, up to the end of the document or of the ids.

    Lenient where a model may slip: tokens out of place are skipped, a NOTE_OFF without its NOTE_ON is ignored, a
    note that is never switched off lasts a quarter, at most to the end of the piece; of two meters or tempos that
    tracks give to one bar the first counts. Tokens of ``encode_piece`` need none of this. Bars that were taken out are
    put back.

    Args:
        token_ids: ids of ``mmmtrack-1``.
        steps_per_quarter: the grid the ids were made on; ``Encoding`` knows it.
    """
    token_ids = np.asarray(token_ids, np.int64)
    ends = np.flatnonzero((token_ids == v.DOCUMENT_END) | (token_ids == v.PIECE_END))
    if len(ends):
        token_ids = token_ids[: ends[0]]
    if (token_ids == v.FILL_IN).any():
        token_ids = put_back(token_ids)
    head, *bodies = np.split(token_ids, np.flatnonzero(token_ids == v.TRACK_START))
    bars = _bar_lines(head, bodies, steps_per_quarter)
    decoded = [_decode_track(body.tolist(), bars.starts) for body in bodies]
    length = int(bars.starts[max((bars_ for _, _, _, bars_ in decoded), default=0)])
    return Score(
        tracks=tuple(_finish_track(*track[:3], steps_per_quarter, length) for track in decoded),
        steps_per_quarter=steps_per_quarter,
        time_signatures=bars.time_signatures,
        tempos=bars.tempos,
        length_steps=length,
    )


def check_grid(token_ids, steps_per_quarter: int) -> str:
    """Whether ids of one piece fit the grid they are to be decoded on.

    Returns:
        A doubt in words, where every bar ends within its first third, as those of 4 steps do on 12; else nothing.

    Raises:
        ValueError: a bar is longer than its meter.
    """
    token_ids = np.asarray(token_ids, np.int64)
    if (token_ids == v.FILL_IN).any():
        token_ids = put_back(token_ids)
    head, *bodies = np.split(token_ids, np.flatnonzero(token_ids == v.TRACK_START))
    bars = _bar_lines(head, bodies, steps_per_quarter)
    reached = [0] * max(len(bars.starts) - 1, 1)
    for body in bodies:
        bar = -1
        for token_id in body.tolist():
            if token_id == v.BAR_START:
                bar, step = bar + 1, 0
            elif v.TIME_DELTA < token_id <= v.TIME_DELTA + v.MAX_TIME_DELTA and bar >= 0:
                step += token_id - v.TIME_DELTA
                reached[bar] = max(reached[bar], step)
    lengths = np.diff(bars.starts).tolist()
    for bar, (steps, length) in enumerate(zip(reached, lengths, strict=False)):
        if steps > length:
            count, unit = [s for s in bars.time_signatures if s.start_step <= bars.starts[bar]][-1][1:]
            remedy = (
                "use --steps-per-quarter 12"
                if steps_per_quarter == 4
                else "the tokens are damaged, or of another program"
            )
            raise ValueError(
                f"bar {bar + 1} has {steps} steps where a bar of {count}/{unit} at {steps_per_quarter} steps per "
                f"quarter note "
                f"has {length}; {remedy}"
            )
    fit_a_third = [3 * steps == length for steps, length in zip(reached, lengths, strict=False)]
    if (
        steps_per_quarter == 12
        and sum(fit_a_third) > 1
        and all(3 * s <= n for s, n in zip(reached, lengths, strict=False))
    ):
        return (
            "every bar ends within its first third, as if the tokens were of 4 steps per quarter note; use "
            "--steps-per-quarter 4"
        )
    return ""


class _BarLines(NamedTuple):
    starts: list[int]  # of each bar, and the end of the last
    time_signatures: tuple[TimeSignature, ...]
    tempos: tuple[Tempo, ...]


def _bar_lines(head: np.ndarray, bodies: list[np.ndarray], steps_per_quarter: int) -> _BarLines:
    """Where bars begin, and what is said of them, from the head and the openings of bars in every track."""
    meter, tempo = FOUR_FOUR[0][1:], DEFAULT_TEMPO[0].quarters_per_minute
    for token_id in head.tolist():
        meter = _meter(token_id) or meter
        tempo = _tempo(token_id) or tempo
    num_bars = max((int(np.count_nonzero(body == v.BAR_START)) for body in bodies), default=0)
    meters: dict[int, tuple[int, int]] = {}
    tempos: dict[int, float] = {}
    for body in bodies:
        is_said = (body >= v.TIME_SIGNATURE) & (body < v.VELOCITY)
        if is_said.any():
            bar_of = np.cumsum(body == v.BAR_START) - 1
            opens = _opens_bar(body)
            for place in np.flatnonzero(is_said & opens).tolist():
                token_id, bar = int(body[place]), int(bar_of[place])
                if (said := _meter(token_id)) and _is_whole(said, steps_per_quarter):
                    meters.setdefault(bar, said)
                elif said := _tempo(token_id):
                    tempos.setdefault(bar, said)
    if not _is_whole(meter, steps_per_quarter):
        meter = FOUR_FOUR[0][1:]
    starts, time_signatures, all_tempos = [0], [TimeSignature(0, *meter)], [Tempo(0, tempo)]
    for bar in range(num_bars):
        if meters.get(bar, meter) != meter:
            meter = meters[bar]
            _replace_last(time_signatures, TimeSignature(starts[-1], *meter))
        if tempos.get(bar, tempo) != tempo:
            tempo = tempos[bar]
            _replace_last(all_tempos, Tempo(starts[-1], tempo))
        starts.append(starts[-1] + 4 * steps_per_quarter * meter[0] // meter[1])
    return _BarLines(starts, tuple(time_signatures), tuple(all_tempos))


def _replace_last(events: list, event) -> None:
    """Append an event; one at the same step gives way."""
    if events[-1].start_step == event.start_step:
        events.pop()
    events.append(event)


def _opens_bar(body: np.ndarray) -> np.ndarray:
    """Which tokens stand between a BAR_START and the first token that is neither meter, tempo nor density."""
    attribute = (body >= v.TIME_SIGNATURE) & (body < v.VELOCITY) | (body >= v.DENSITY) & (
        body < v.DENSITY + v.NUM_DENSITIES
    )
    # The last token before each place that is no attribute: is it a BAR_START?
    place = np.maximum.accumulate(np.where(attribute, 0, np.arange(len(body))))
    return attribute & (body[place] == v.BAR_START)


def _meter(token_id: int) -> tuple[int, int] | None:
    return _METERS[token_id - v.TIME_SIGNATURE] if v.TIME_SIGNATURE <= token_id < v.TEMPO else None


def _tempo(token_id: int) -> float | None:
    return tempo_of_bin(token_id - v.TEMPO) if v.TEMPO <= token_id < v.VELOCITY else None


def _is_whole(meter: tuple[int, int], steps_per_quarter: int) -> bool:
    return 4 * steps_per_quarter * meter[0] % meter[1] == 0


def _decode_track(token_ids: list[int], bar_starts: list[int]):
    """Instrument id, closed notes, still open notes {pitch: (start, velocity)} and number of bars of one track."""
    instrument, notes, sounding, bars = v.INST, [], {}, 0
    place = 0
    while place < len(token_ids):
        token_id = token_ids[place]
        place += 1
        if v.INST <= token_id < v.INST + v.NUM_INSTRUMENTS:
            instrument = token_id
        elif token_id == v.BAR_START:
            place = _decode_bar(token_ids, place, bar_starts[bars], notes, sounding)
            bars += 1
        elif token_id == v.TRACK_END:
            break
    return instrument, notes, sounding, bars


def _decode_bar(token_ids: list[int], place: int, step: int, notes: list, sounding: dict[int, tuple[int, int]]) -> int:
    """Read one bar's events into ``notes`` and ``sounding``; returns the place after the bar."""
    velocity = DEFAULT_VELOCITY
    while place < len(token_ids):
        token_id = token_ids[place]
        if token_id in (v.BAR_START, v.TRACK_END):  # the bar was never closed
            return place
        place += 1
        if token_id == v.BAR_END:
            return place
        if v.TIME_DELTA < token_id <= v.TIME_DELTA + v.MAX_TIME_DELTA:
            step += token_id - v.TIME_DELTA
        elif v.VELOCITY <= token_id < v.VELOCITY + v.NUM_VELOCITIES:
            velocity = 4 * (token_id - v.VELOCITY) + 2
        elif v.NOTE_ON <= token_id < v.NOTE_ON + 128:
            pitch = token_id - v.NOTE_ON
            _close(notes, sounding, pitch, step)
            sounding[pitch] = step, velocity
        elif v.NOTE_OFF <= token_id < v.NOTE_OFF + 128:
            _close(notes, sounding, token_id - v.NOTE_OFF, step)
    return place


def _close(notes: list, sounding: dict[int, tuple[int, int]], pitch: int, step: int) -> None:
    start, velocity = sounding.pop(pitch, (step, 0))
    if start < step:
        notes.append((start, step, pitch, velocity))


def _finish_track(
    instrument: int, notes: list, sounding: dict[int, tuple[int, int]], steps_per_quarter: int, length: int
):
    for pitch, (start, velocity) in sounding.items():
        _close(notes, {pitch: (start, velocity)}, pitch, min(start + steps_per_quarter, length))
    rows = np.array(notes, np.int64).reshape(-1, 4)
    name = v.TOKENS[instrument].removeprefix("INST=")
    if name == v.DRUMS:
        return Track(rows, is_drum=True)
    return Track(rows, VOICE_PROGRAM, voice=name) if name in VOICE_NAMES else Track(rows, int(name))
