"""One MIDI file to token ids: read, find the stretches in the wanted meters, quantise, cut into windows, encode,
augment.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from megatron_music.data.build_options import BuildOptions, Filters
from megatron_music.data.token_counts import count_ids
from megatron_music.music import fingerprint
from megatron_music.music.grid import sections
from megatron_music.music.midi import read_midi
from megatron_music.music.score import QuantizationReport, Score
from megatron_music.reports import reasons
from megatron_music.reports.unheld import count_unheld
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens import windows as arrays
from megatron_music.tokens.augment import augment
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.infill import infill_documents
from megatron_music.tokens.windows import EncodedStretch, Windows

_NUM_COUNTS = 6  # the first fields of a QuantizationReport, which count notes
NOTE_COLUMNS = (
    *QuantizationReport._fields[:_NUM_COUNTS],
    "onset_error_sum",
    "max_onset_error",
)  # of ``EncodedFile.notes``
_MAX_DENSITY = 127
NO_FILTERS = Filters()


@dataclass(slots=True)
class EncodedFile:
    """What one file gave.

    Args:
        digest: SHA-256 of the bytes, hexadecimal.
        content: hash of its music (``likeness.content_hash``); empty if the file could not be read.
        ids: all documents one after another, each with its DOCUMENT_END (uint16). DENSITY is open where bins are not
            known.
        lengths: tokens in each document (int32): the windows of copy 0 first, then those of copy 1, ...
        copies: documents of copy 0, 1, ...; empty if there are none.
        damage: why the file goes to quarantine, or empty.
        left_out: why a good file gave no document, or empty.
        rescued: whether it could be read only after its bytes were clamped.
        windows_left_out: windows that a filter dropped, by reason.
        notes: what quantising changed, summed over the stretches that gave documents.
        density: int64 [128], tracks of documents (of copy 0) by their number of notes; the last bin is 127 and more.
        unheld: what the file holds and its documents do not, counted by kind: see ``reports.unheld``.
        onset_error: int64 [10], onsets by how far they moved, in twentieths of a step.
        meters: what it says of its meter; None if it could not be read.
    """

    digest: str
    content: str = ""
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint16))
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))
    copies: tuple[int, ...] = ()
    damage: str = ""
    left_out: str = ""
    rescued: bool = False
    windows_left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)
    density: np.ndarray = field(default_factory=lambda: np.zeros(_MAX_DENSITY + 1, np.int64))
    onset_error: np.ndarray = field(default_factory=lambda: np.zeros(10, np.int64))
    unheld: dict[str, int] = field(default_factory=dict)
    meters: "MetersOfFile | None" = None


class Engine(NamedTuple):
    """The steps that are most of the work."""

    read_midi: Callable
    encode_stretch: Callable
    note_sums: Callable
    count_ids: Callable


ARRAYS = Engine(read_midi, arrays.encode_stretch, fingerprint.note_sums, count_ids)


@cache
def fastest_engine() -> Engine:
    """Compiled loops where numba is installed (the extra `fast`), else array arithmetic: the same results."""
    try:
        from megatron_music.music import midi_numba
        from megatron_music.tokens import counts_numba, quantize_numba
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        return ARRAYS
    return Engine(midi_numba.read_midi, quantize_numba.encode_stretch, counts_numba.note_sums, counts_numba.count_ids)


def encode_content(content: bytes, options: BuildOptions, label_ids: tuple[int, ...] = ()) -> EncodedFile:
    """Encode the bytes of one file; whatever is wrong with them is said in the result, never raised.

    A file that cannot be read as it is, is read once more with its bytes clamped, if ``options.sanitize``.

    Args:
        label_ids: GENRE, STYLE and other labels of the file, in the encoding's order.
    """
    digest = hashlib.sha256(content).hexdigest()
    try:
        score, rescued = _read(content, options.sanitize, options.encoding)
        return _encode(digest, score, rescued, options, label_ids)
    except MemoryError:
        damage = "needs more memory than a worker may use"
    except ValueError as error:
        damage = str(error)
    except Exception as error:  # a fault of ours or of a parser costs this file, never the build
        damage = f"cannot be encoded ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    return EncodedFile(digest, damage=damage)


def _read(content: bytes, sanitize: bool, encoding: Encoding) -> tuple[Score, bool]:
    """The score, and whether its bytes had to be clamped for it.

    What stopped the second try is the reason, not the first.
    """
    read = fastest_engine().read_midi
    try:
        return read(content, False, encoding.voices, encoding.pedal), False
    except ValueError:
        if not sanitize:
            raise
    return read(content, True, encoding.voices, encoding.pedal), True


def _encode(digest: str, score: Score, rescued: bool, options: BuildOptions, label_ids: tuple[int, ...]) -> EncodedFile:
    engine = fastest_engine()
    found = encode_score(score, options.encoding, options.filters, label_ids, engine)
    ids, lengths, copies = found.ids, found.lengths, (len(found.lengths),)
    if found.left_out:
        copies = ()
    elif options.copies > 1 or options.infill:
        ids, lengths, copies = _copies(digest, found, options)
    errors = [report.onset_errors for report in found.reports]
    return EncodedFile(
        digest,
        fingerprint.content_hash(score, engine.note_sums),
        ids,
        lengths,
        copies,
        left_out=found.left_out,
        rescued=rescued,
        windows_left_out=dict(found.windows_left_out),
        notes=_summed(found.reports),
        density=np.bincount(np.minimum(found.track_notes, _MAX_DENSITY), minlength=_MAX_DENSITY + 1),
        unheld={} if found.left_out else count_unheld(score, options.encoding),
        onset_error=np.array(errors[0] if len(errors) == 1 else [*map(sum, zip(*errors, strict=True))] or [0] * 10),
        meters=meters_of(score, found.undeclared),
    )


def _copies(
    digest: str, found: "EncodedScore", options: BuildOptions
) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The documents of every copy: ids, lengths, and how many there are of each."""
    key = int.from_bytes(hashlib.sha256(f"{options.seed}:{digest}".encode()).digest()[:8], "big")
    all_ids, all_lengths = [], []
    for copy in range(options.copies):
        ids, lengths = found.ids, found.lengths
        if copy:
            ids = augment(ids, lengths, found.numbers, key, copy, options.transpose, options.permute_tracks)
        if options.infill:
            ids, lengths = infill_documents(ids, lengths, found.numbers, key, copy, options.infill)
        all_ids.append(ids)
        all_lengths.append(lengths)
    return np.concatenate(all_ids), np.concatenate(all_lengths).astype(np.int32), tuple(map(len, all_lengths))


class EncodedScore(NamedTuple):
    """The documents of a score, and what became of the rest."""

    ids: np.ndarray  # uint16, documents one after another, each with its DOCUMENT_END
    lengths: np.ndarray  # int32
    numbers: np.ndarray  # int64: a number for each window, by where it lies in the piece
    track_notes: np.ndarray  # int64: notes in each track of each document
    reports: list[QuantizationReport]  # of the stretches that gave documents
    windows_left_out: Counter
    left_out: str  # why there are none, or empty
    undeclared: tuple[tuple[int, int], ...]  # meters that were read as if the file had not declared them


def encode_score(
    score: Score,
    encoding: Encoding,
    filters: Filters = NO_FILTERS,
    label_ids: tuple[int, ...] = (),
    engine: Engine = ARRAYS,
) -> EncodedScore:
    """Every window of every stretch in the encoding's meters; whole stretches where the encoding has no windows."""
    meters, unknown = (
        _meters_on_grid(encoding.meters, encoding.steps_per_quarter),
        encoding.undeclared(score.time_signatures),
    )
    stretches = [
        stretch for stretch in sections(score, meters, unknown, encoding.steps_per_quarter) if stretch.num_notes
    ]
    dropped: Counter = Counter()
    made, numbers, reports = [], [], []
    for place, stretch in enumerate(stretches):
        encoded = engine.encode_stretch(stretch, encoding, label_ids)
        if not _within(encoded.num_bars, filters.piece_bars):
            dropped["bars"] += len(encoded.windows.lengths)
            continue
        windows = _filtered(encoded, encoding.bars or encoded.num_bars, filters, dropped)
        if len(windows.lengths):
            made.append(windows)
            numbers.append((place << 32) + windows.first_bars)
            reports.append(encoded.report)
    if dropped:
        dropped = +dropped  # a stretch too short for any window drops none
    if made:
        left_out = ""
    elif not stretches:
        left_out = reasons.no_meter(encoding)
    elif dropped:
        left_out = reasons.filtered(dropped)
    else:
        left_out = reasons.too_short(encoding)
    whole = _joined(made)
    return EncodedScore(
        whole.ids,
        whole.lengths,
        numbers[0] if len(numbers) == 1 else np.concatenate(numbers or [whole.first_bars]),
        whole.row_notes,
        reports,
        dropped,
        left_out,
        unknown,
    )


@cache
def _meters_on_grid(names: tuple[str, ...], steps_per_quarter: int) -> frozenset[tuple[int, int]]:
    """The meters of an encoding whose bars are a whole number of steps."""
    return frozenset(
        meter for meter in Encoding(meters=names).meter_set if 4 * steps_per_quarter * meter[0] % meter[1] == 0
    )


def meters_of(score: Score, unknown: Sequence[tuple[int, int]]) -> "MetersOfFile":
    """What a file says of its meter.

    Args:
        unknown: meters that are read as if they were not declared.
    """
    if len(score.time_signatures) == 1 and not score.time_signatures[0].start_step:  # as most files
        _, numerator, denominator = score.time_signatures[0]
        return MetersOfFile(f"{numerator}/{denominator}", False, (numerator, denominator) in unknown)
    starts = {0: (4, 4)}  # as MIDI has it where a file says nothing
    for start, numerator, denominator in sorted(score.time_signatures, key=itemgetter(0)):
        starts[start] = (numerator, denominator)  # of several at one time the last holds
    lasting: Counter = Counter()
    places = sorted(starts)
    for start, end in pairwise((*places, max(score.length_steps, places[-1]))):
        lasting[starts[start]] += end - start
    (main, _), *_ = sorted(lasting.items(), key=lambda row: (-row[1], row[0]))
    return MetersOfFile(f"{main[0]}/{main[1]}", sum(map(bool, lasting.values())) > 1, main in unknown)


class MetersOfFile(NamedTuple):
    """The meters of a file."""

    longest: str  # in force for most of it
    changes: bool  # whether there are others
    is_undeclared: bool  # whether the longest is read as if it had not been declared


def _joined(parts: list[Windows]) -> Windows:
    if len(parts) == 1:
        return parts[0]
    return Windows(*(np.concatenate(column) for column in zip(*parts, strict=True))) if parts else Windows.none()


def _within(value, bounds: tuple) -> np.ndarray | bool:
    low, high = bounds
    return (low is None or value >= low) & (high is None or value <= high)


def _filtered(encoded: EncodedStretch, bars: int, filters: Filters, dropped: Counter) -> Windows:
    """The windows that pass; the others are counted by the first filter that stops them."""
    written = encoded.windows
    if filters is NO_FILTERS or filters == NO_FILTERS or not len(written.lengths):
        return written
    count = len(written.lengths)
    tracks = np.bincount(written.row_documents, minlength=count)
    notes = np.bincount(written.row_documents, written.row_notes, minlength=count)
    keep = np.ones(count, bool)
    for reason, passes in (
        ("tracks", _within(tracks, filters.tracks)),
        ("notes a bar", _within(notes / bars, filters.notes_per_bar)),
        ("empty tracks", _within(encoded.num_tracks - tracks, filters.empty_tracks)),
        ("pitch range", _pitches_within(written, filters.pitches)),
    ):
        stopped = keep & ~np.broadcast_to(passes, count)
        if stopped.any():
            dropped[reason] += int(stopped.sum())
            keep &= ~stopped
    rows = keep[written.row_documents]
    return Windows(
        written.ids[np.repeat(keep, written.lengths)],
        written.lengths[keep],
        written.first_bars[keep],
        (np.cumsum(keep) - 1)[written.row_documents[rows]],
        written.row_tracks[rows],
        written.row_notes[rows],
    )


def _pitches_within(written: Windows, bounds: tuple) -> np.ndarray | bool:
    """Whether every struck pitch of each document, drums aside, is within the bounds."""
    if bounds == (None, None):
        return True
    ids = written.ids.astype(np.int64)
    is_instrument = (ids >= v.INST) & (ids < v.INST + v.NUM_INSTRUMENTS) & (np.append(0, ids[:-1]) == v.TRACK_START)
    in_force = np.maximum.accumulate(np.where(is_instrument, np.arange(len(ids)), 0))
    struck = (ids >= v.NOTE_ON) & (ids < v.NOTE_ON + 128) & (ids[in_force] != v.IDS[f"INST={v.DRUMS}"])
    outside = struck & ~_within(ids - v.NOTE_ON, bounds)
    passes = np.ones(len(written.lengths), bool)
    passes[np.repeat(np.arange(len(written.lengths)), written.lengths)[outside]] = False
    return passes


def _summed(reports: list[QuantizationReport]) -> dict[str, float]:
    counts = (
        reports[0]
        if len(reports) == 1
        else [sum(column) for column in zip(*(report[:_NUM_COUNTS] for report in reports), strict=True)]
    )
    sums = dict(zip(NOTE_COLUMNS, counts or [0] * _NUM_COUNTS, strict=False))
    sums["onset_error_sum"] = sum([report.mean_onset_error * report.notes_in for report in reports])
    sums["max_onset_error"] = max([report.max_onset_error for report in reports], default=0)
    return sums
