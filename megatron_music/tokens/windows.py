"""Windows of a quantised piece as token ids, by array arithmetic: the meaning of the encoding on the writing side.

Each bar of each track is written once, whatever windows it is in. A window is, for each track, a run of bars between
two edges: it begins by striking what sounds on from before, and ends by closing what sounds on.
``tokens.quantize_numba`` does the same as one loop, faster; the two are tested equal.
"""

from typing import NamedTuple

import numpy as np

from megatron_music.music.grid import bars_of, cut_at_bar_lines, quantize
from megatron_music.music.score import VOICE_NAMES, QuantizationReport, Score, Track
from megatron_music.music.tempo import tempo_bin
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.density import open_bar_ids, open_track_ids
from megatron_music.tokens.encoding import Encoding

# A sort key of one int64: the bar's place in the output, the time in the bar, off before on, pitch, velocity bin.
_PITCH_SHIFT, _ON_SHIFT, _TIME_SHIFT, _BAR_SHIFT = 5, 12, 13, 23


class Windows(NamedTuple):
    """Documents, and what is in them; a row is one track of one document."""

    ids: np.ndarray  # uint16: all documents one after another
    lengths: np.ndarray  # int32 [D]: tokens in each
    first_bars: np.ndarray  # int64 [D]: where in the piece each begins
    row_documents: np.ndarray  # int64 [R], rising
    row_tracks: np.ndarray  # int64 [R]: number of the track in the piece
    row_notes: np.ndarray  # int64 [R]: NOTE_ONs

    @staticmethod
    def none() -> "Windows":
        none = np.empty(0, np.int64)
        return Windows(np.empty(0, np.uint16), np.empty(0, np.int32), none, none, none, none)


class EncodedStretch(NamedTuple):
    """A stretch of music in the encoding's meters, encoded."""

    windows: Windows  # each with its DOCUMENT_END
    report: QuantizationReport
    num_bars: int
    num_tracks: int


def encode_stretch(score: Score, encoding: Encoding, label_ids: tuple[int, ...] = ()) -> EncodedStretch:
    """Quantise a stretch that ``sections`` gave, and encode all its windows; the whole of it where the encoding has
    none.
    """
    quantized = quantize(
        score,
        encoding.steps_per_quarter,
        meters=encoding.writes_meters,
        velocity=encoding.velocity,
        tempo=encoding.tempo,
    )
    starts = first_bars_of(quantized.bar_starts, int(quantized.columns[1].max()), encoding)
    bars = encoding.bars or quantized.num_bars
    windows = write_windows(quantized, starts, bars, encoding, label_ids, keep_silent=not encoding.bars, ends=True)
    return EncodedStretch(windows, quantized.quantization, quantized.num_bars, len(quantized.tracks))


def first_bars_of(bar_starts: np.ndarray, last_onset: int, encoding: Encoding) -> np.ndarray:
    """First bars of the full windows of a piece, the last full window included (int64 [W]); 0 where there are no
    windows.

    Under ``clip`` no note sounds past the bar it starts in, so a piece ends with the bar of its last onset.
    """
    if not encoding.bars:
        return np.zeros(1, np.int64)
    num_bars = len(bar_starts) - 1
    if encoding.bar_line == "clip":
        num_bars = int(np.searchsorted(bar_starts, last_onset, side="right"))
    return np.arange(0, num_bars - encoding.bars + 1, encoding.hop)


class Attributes(NamedTuple):
    """What is said of bars beside their notes: the same for all tracks."""

    head: np.ndarray  # uint16 [bars, H]: after PIECE_START of a document that begins with this bar
    change: np.ndarray  # uint16 [bars, 2]: after BAR_START where it differs from the bar before; 0 where not


def attributes(score: Score, encoding: Encoding, label_ids: tuple[int, ...] = ()) -> Attributes:
    """The labels, tempo and meter of each bar as token ids."""
    bars = score.bar_starts[:-1]
    if not (label_ids or encoding.tempo or encoding.writes_meters):
        return Attributes(np.empty((len(bars), 0), np.uint16), np.zeros((len(bars), 2), np.uint16))
    heads = [np.full(len(bars), label) for label in label_ids]
    change = np.zeros((len(bars), 2), np.uint16)
    if encoding.tempo:
        ids = np.array([v.TEMPO + tempo_bin(tempo.quarters_per_minute) for tempo in score.tempos])
        heads.append(ids[np.searchsorted([tempo.start_step for tempo in score.tempos], bars, side="right") - 1])
        change[1:, 1] = np.where(heads[-1][1:] != heads[-1][:-1], heads[-1][1:], 0)
    if encoding.writes_meters:
        ids = np.array([v.IDS[f"TIME_SIGNATURE={s.numerator}/{s.denominator}"] for s in score.time_signatures])
        heads.append(ids[np.searchsorted([s.start_step for s in score.time_signatures], bars, side="right") - 1])
        change[1:, 0] = np.where(heads[-1][1:] != heads[-1][:-1], heads[-1][1:], 0)
    head = np.stack(heads, axis=1) if heads else np.empty((len(bars), 0))
    return Attributes(head.astype(np.uint16), change)


_VOICES = {name: v.IDS[f"INST={name}"] for name in VOICE_NAMES}
_DRUMS = v.IDS[f"INST={v.DRUMS}"]


def instrument_id(track: Track) -> int:
    """The id of a track's INST token."""
    if track.voice:
        return _VOICES[track.voice]
    return _DRUMS if track.is_drum else v.INST + track.program


def write_windows(
    score: Score,
    first_bars: np.ndarray,
    bars: int,
    encoding: Encoding,
    label_ids: tuple[int, ...] = (),
    keep_silent: bool = False,
    ends: bool = False,
) -> Windows:
    """Windows of ``bars`` bars that begin at the rising ``first_bars`` (int64 [W]); all must lie in the piece.

    Args:
        label_ids: written at the head of each.
        keep_silent: also write tracks without a note in the window, and windows without a note.
        ends: whether DOCUMENT_END closes each document.
    """
    num_tracks, num_bars = len(score.tracks), score.num_bars
    first_bars = np.asarray(first_bars, np.int64)
    if not len(first_bars) or not num_tracks or not bars:
        return Windows.none()
    written = _write_bars(score, encoding, attributes(score, encoding, label_ids), first_bars, first_bars + bars - 1)

    row_window, row_track = np.divmod(np.arange(len(first_bars) * num_tracks), num_tracks)
    first = row_track * num_bars + first_bars[row_window]
    row_notes = written.notes[first + bars] - written.notes[first] + written.heads.added[first]
    if not keep_silent:
        sounding = np.flatnonzero(row_notes)
        row_window, row_track, first, row_notes = (
            array[sounding] for array in (row_window, row_track, first, row_notes)
        )
    used = np.zeros(len(first_bars), bool)
    used[row_window] = True
    row_document = (np.cumsum(used) - 1)[row_window]
    first_bars = first_bars[used]
    instruments = np.array([instrument_id(track) for track in score.tracks], np.int64)[row_track]
    ids, lengths = _write_rows(
        written, first, first + bars - 1, row_document, first_bars, instruments, _density(row_notes, encoding), ends
    )
    return Windows(ids, lengths, first_bars, row_document, row_track, row_notes)


def _density(notes: np.ndarray, encoding: Encoding) -> np.ndarray | None:
    """The DENSITY of tracks with so many notes: token ids, or open ones, or None for no DENSITY."""
    if not encoding.density:
        return None
    if encoding.density_bins or encoding.density == 1:
        return v.DENSITY + np.searchsorted(encoding.density_bins, notes, side="right")
    return open_track_ids(notes)


def _bar_density(notes: np.ndarray, encoding: Encoding) -> np.ndarray:
    if encoding.bar_density_bins or encoding.bar_density == 1:
        return v.DENSITY + np.searchsorted(encoding.bar_density_bins, notes, side="right")
    return open_bar_ids(notes)


class _Edges(NamedTuple):
    """How bars begin (or end) at the edge of a window, where that is not as it is anywhere; all by bar number.

    Where it is, all numbers here are 0.
    """

    ids: np.ndarray  # uint16, all edges one after another
    start: np.ndarray  # of the bar's edge in ``ids``
    length: np.ndarray
    replaced: np.ndarray  # how many of the bar's own tokens the edge stands for
    added: np.ndarray  # notes that sound across


class _Bars(NamedTuple):
    """Every bar of every track as tokens, BAR_START to BAR_END; bar b of track t is number ``t * num_bars + b``."""

    ids: np.ndarray  # uint16, all bars one after another
    start: np.ndarray  # of each bar in ``ids``, and the end of the last
    notes: np.ndarray  # NOTE_ONs before each bar, and before the end
    heads: _Edges
    tails: _Edges
    attributes: Attributes


def _write_bars(
    score: Score, encoding: Encoding, attributes: Attributes, begins: np.ndarray, ends: np.ndarray
) -> _Bars:
    """Write each bar once, whatever windows it is in, and its edges where windows begin or end in each track."""
    lines, num_bars, num_tracks = score.bar_starts, score.num_bars, len(score.tracks)
    total, bar_steps = num_tracks * num_bars, np.diff(lines)
    track, start, end, pitch, velocity = score.columns
    index, start, end = cut_at_bar_lines(start, end, lines, encoding.bar_line)
    pitch, offset = pitch[index], track[index] * num_bars
    strength = velocity[index] >> 2 if encoding.velocity else np.zeros_like(index)
    start_bar, end_bar = bars_of(start, lines), bars_of(end - 1, lines)
    low = pitch << _PITCH_SHIFT | strength
    on = (offset + start_bar) << _BAR_SHIFT | (start - lines[start_bar]) << _TIME_SHIFT | 1 << _ON_SHIFT
    off = (offset + end_bar) << _BAR_SHIFT | (end - lines[end_bar]) << _TIME_SHIFT
    key = np.sort(np.concatenate((on | low, off | low)))
    bar, time, is_on = key >> _BAR_SHIFT, (key >> _TIME_SHIFT) & 1023, (key >> _ON_SHIFT) & 1
    change = np.tile(attributes.change, (num_tracks, 1))
    notes_in_bar = np.bincount(bar, is_on, minlength=total).astype(np.int64)
    ids, bar_start = _write_events(key, bar, time, is_on, change, notes_in_bar, encoding)
    notes = np.append(0, np.cumsum(notes_in_bar))

    # Every bar line that a note sounds across, by the number of the bar before it.
    crossings = end_bar - start_bar
    index = np.repeat(np.arange(len(start)), crossings)
    before = start_bar[index] + np.arange(len(index)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
    offset, low = offset[index], low[index]
    is_begin, is_end = np.zeros(num_bars, bool), np.zeros(num_bars, bool)
    is_begin[begins], is_end[ends] = True, True
    at_begin, at_end = is_begin[before + 1], is_end[before]

    own_bar, own_low, at_start = bar, key & 4095, (time == 0) & (is_on == 1)
    changes = np.count_nonzero(change, axis=1) * np.tile(
        is_begin, num_tracks
    )  # a document's first bar says none of them
    heads = _heads(
        (offset + before + 1)[at_begin],
        low[at_begin],
        own_bar[at_start],
        own_low[at_start],
        changes,
        notes_in_bar,
        encoding,
    )
    at_line = time == np.tile(bar_steps, num_tracks)[bar]
    rest = np.tile(bar_steps, num_tracks)
    inner = bar[~at_line]
    last_step = np.zeros(total, np.int64)
    last_step[inner] = time[~at_line]  # times rise within a bar: its last one stays
    tails = _tails((offset + before)[at_end], low[at_end], own_bar[at_line], own_low[at_line], rest - last_step)
    return _Bars(ids, bar_start, notes, heads, tails, attributes)


def _rest_tokens(steps: np.ndarray) -> np.ndarray:
    return -(-steps // v.MAX_TIME_DELTA)


def _write_events(key, bar, time, is_on, change, notes_in_bar, encoding: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of sorted events: ids (uint16), and the start of each bar and the end of the last."""
    delta = time.copy()
    delta[1:] -= np.where(bar[1:] == bar[:-1], time[:-1], 0)
    strengths = is_on if encoding.velocity else np.zeros_like(is_on)
    rests = _rest_tokens(delta)
    words = 1 + rests + strengths
    fixed = 2 + np.count_nonzero(change, axis=1) + bool(encoding.bar_density)
    length = np.bincount(bar, words, minlength=len(fixed)).astype(np.int64) + fixed
    start = np.append(0, np.cumsum(length))
    ids = np.full(start[-1], v.TIME_DELTA + v.MAX_TIME_DELTA, np.uint16)  # what no other token takes is a long rest
    ids[start[:-1]] = v.BAR_START
    ids[start[1:] - 1] = v.BAR_END
    place = start[:-1].copy()
    for kind in range(2):
        said = np.flatnonzero(change[:, kind])
        place[said] += 1
        ids[place[said]] = change[said, kind]
    if encoding.bar_density:
        ids[place + 1] = _bar_density(notes_in_bar, encoding)
    place = np.cumsum(words) + np.cumsum(fixed)[bar] - 2  # words up to its own, and all that stands around them
    ids[place] = np.where(is_on, v.NOTE_ON, v.NOTE_OFF) + (key >> _PITCH_SHIFT & 127)
    if encoding.velocity:
        struck = np.flatnonzero(is_on)
        ids[place[struck] - 1] = v.VELOCITY + (key[struck] & 31)
    rested = np.flatnonzero(delta)
    ids[(place - strengths)[rested] - 1] = v.TIME_DELTA + (delta - v.MAX_TIME_DELTA * (rests - 1))[rested]
    return ids, start


def _heads(bar, low, own_bar, own_low, changes, notes_in_bar, encoding: Encoding) -> _Edges:
    """How bars begin in which notes sound on from before, or which would say a change that a first bar does not say.

    BAR_START, DENSITY where bars have it, and every note at step 0 by rising pitch.

    Args:
        bar, low: of the notes that sound on (pitch and velocity bin).
        own_bar, own_low: of the notes that are struck at step 0 anyway.
        changes: tokens of changes that each bar would say.
    """
    added = np.bincount(bar, minlength=len(changes))
    touched = (added > 0) | (changes > 0)
    stays = touched[own_bar]
    own = np.bincount(own_bar[stays], minlength=len(changes))
    words = 1 + encoding.velocity
    opening = 1 + bool(encoding.bar_density)
    length = np.where(touched, opening + words * (added + own), 0)
    start = np.cumsum(length) - length
    ids = np.empty(int(length.sum()), np.uint16)
    ids[start[touched]] = v.BAR_START
    if encoding.bar_density:
        ids[start[touched] + 1] = _bar_density((added + notes_in_bar)[touched], encoding)
    key = np.sort(np.concatenate((bar << 12 | low, own_bar[stays] << 12 | own_low[stays])))
    place = words * np.arange(len(key)) + opening * np.cumsum(touched)[key >> 12] + words - 1
    ids[place] = v.NOTE_ON + (key >> _PITCH_SHIFT & 127)
    if encoding.velocity:
        ids[place - 1] = v.VELOCITY + (key & 31)
    return _Edges(ids, start, length, np.where(touched, opening + changes + words * own, 0), added)


def _tails(bar, low, own_bar, own_low, rest) -> _Edges:
    """How bars end in which notes sound on: a rest to the bar line, every release there by rising pitch, BAR_END.

    Args:
        bar, low: of the notes that sound on (pitch and velocity bin).
        own_bar, own_low: of the releases that stand at the bar line anyway.
        rest: steps from each bar's last other event to the bar line.
    """
    added = np.bincount(bar, minlength=len(rest))
    touched = added > 0
    stays = touched[own_bar]
    own = np.bincount(own_bar[stays], minlength=len(rest))
    rests = _rest_tokens(rest)
    length = np.where(touched, rests + added + own + 1, 0)
    start = np.cumsum(length) - length
    ids = np.full(int(length.sum()), v.TIME_DELTA + v.MAX_TIME_DELTA, np.uint16)
    ids[(start + rests - 1)[touched]] = v.TIME_DELTA + (rest - v.MAX_TIME_DELTA * (rests - 1))[touched]
    ids[(start + length - 1)[touched]] = v.BAR_END
    key = np.sort(np.concatenate((bar << 12 | low, own_bar[stays] << 12 | own_low[stays])))
    place = np.arange(len(key)) + np.cumsum(np.where(touched, rests + 1, 0))[key >> 12] - 1
    ids[place] = v.NOTE_OFF + (key >> _PITCH_SHIFT & 127)
    return _Edges(ids, start, length, np.where(touched, 1 + own + np.where(own, rests, 0), 0), added)


def _write_rows(bars: _Bars, first, last, row_document, first_bars, instruments, density, ends: bool):
    """Each row: its head, the edge it begins with, its bars as they stand, the edge it ends with, TRACK_END.

    Returns:
        Ids of all rows (uint16), and the tokens of each document (int32).
    """
    heads = bars.attributes.head
    opens, closes = np.ones(len(first), bool), np.ones(len(first), bool)
    opens[1:] = row_document[1:] != row_document[:-1]
    closes[:-1] = opens[1:]
    before = opens * (1 + heads.shape[1])  # PIECE_START and what is said of the piece
    head = before + 2 + (density is not None)  # TRACK_START INST [DENSITY]
    after = 1 + (closes & ends)
    ids = np.concatenate((bars.ids, bars.heads.ids, bars.tails.ids))
    plain_start, plain_end = (
        bars.start[first] + bars.heads.replaced[first],
        bars.start[last + 1] - bars.tails.replaced[last],
    )
    sources = np.stack(
        (
            len(bars.ids) + bars.heads.start[first],
            plain_start,
            len(bars.ids) + len(bars.heads.ids) + bars.tails.start[last],
        ),
        axis=1,
    ).ravel()
    lengths = np.stack((bars.heads.length[first], plain_end - plain_start, bars.tails.length[last]), axis=1)
    body = lengths.sum(axis=1)
    row_length = head + body + after
    row_start = np.cumsum(row_length) - row_length

    # The three runs of a row follow one another: one gather for all.
    lengths = lengths.ravel()
    source = np.arange(int(lengths.sum())) + np.repeat(sources - (np.cumsum(lengths) - lengths), lengths)
    out = np.empty(int(row_length.sum()), np.uint16)
    out[np.arange(len(source)) + np.repeat(row_start + head - (np.cumsum(body) - body), body)] = ids[source]
    out[row_start[opens]] = v.PIECE_START
    for place in range(heads.shape[1]):
        out[row_start[opens] + 1 + place] = heads[first_bars, place]
    out[row_start + before] = v.TRACK_START
    out[row_start + before + 1] = instruments
    if density is not None:
        out[row_start + before + 2] = density
    out[row_start + head + body] = v.TRACK_END
    if ends:
        out[(row_start + row_length - 1)[closes]] = v.DOCUMENT_END
    return out, np.bincount(row_document, row_length, minlength=len(first_bars)).astype(np.int32)
