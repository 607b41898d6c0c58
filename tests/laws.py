"""What must hold of the documents of a file, whatever the options: said of scores, by the plain words of the options.

Which documents there must be follows from the quantised stretches, cut with ``slice_bars`` and filtered by their notes;
what is compared with them is what the documents decode to.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import oracle
from tiny import quantize_for

from megatron_music.data.build_options import BuildOptions, Filters
from megatron_music.data.encode import EncodedFile
from megatron_music.music.grid import apply_bar_lines, sections, slice_bars
from megatron_music.music.midi import read_midi
from megatron_music.music.score import Score
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.density import OPEN_BAR, OPEN_TRACK
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.infill import put_back
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece

_DRUMS = v.IDS["INST=DRUMS"]
_LONG = 5000  # ids: the plain encoder's time grows with the square

# Every id as one letter, so that the grammar is a regular expression.
_LETTERS = np.full(1 << 16, "?")
for _letter, _first, _count in (
    ("X", OPEN_TRACK, 30_001),
    ("Y", OPEN_BAR, 30_001),
    ("D", v.DENSITY, v.NUM_DENSITIES),
    ("I", v.INST, v.NUM_INSTRUMENTS),
    ("d", v.TIME_DELTA + 1, v.MAX_TIME_DELTA),
    ("N", v.NOTE_ON, 128),
    ("O", v.NOTE_OFF, 128),
    ("V", v.VELOCITY, 32),
    ("Q", v.TEMPO, 32),
    ("M", v.TIME_SIGNATURE, v.TEMPO - v.TIME_SIGNATURE),
    ("P", v.PIECE_START, 1),
    ("E", v.DOCUMENT_END, 1),
    ("T", v.TRACK_START, 1),
    ("t", v.TRACK_END, 1),
    ("B", v.BAR_START, 1),
    ("b", v.BAR_END, 1),
    ("F", v.FILL_IN, 1),
    ("S", v.FILL_START, 1),
    ("s", v.FILL_END, 1),
    *(
        ("L", token_id, 1)
        for token_id, token in enumerate(v.TOKENS)
        if token.startswith(("STYLE=", "GENRE=", "RESERVED="))
    ),
):
    _LETTERS[_first : _first + _count] = _letter


def grammar(encoding: Encoding, labels: int = 0) -> re.Pattern:
    """The documents of an encoding, as letters."""
    on = "VN" if encoding.velocity else "N"
    tempo, meter = "Q" if encoding.tempo else "", "M" if encoding.writes_meters else ""
    track = (encoding.density and ("D" if encoding.density_bins else "X")) or ""
    bar = (encoding.bar_density and ("D" if encoding.bar_density_bins else "Y")) or ""
    events = f"(?:d|{on}|O)*"
    holes, fills = ("|F", f"(?:S{events}s)*") if encoding.infill else ("", "")
    change = f"{meter and 'M?'}{tempo and 'Q?'}{bar}"
    return re.compile(f"PL{{{labels}}}{tempo}{meter}(?:TI{track}(?:B{change}(?:{events}{holes})b)+t)+{fills}E")


def split(ids: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """The documents."""
    assert ids.dtype == np.uint16 and lengths.dtype == np.int32 and lengths.sum() == len(ids)
    return np.split(ids, np.cumsum(lengths)[:-1]) if len(lengths) else []


@dataclass
class Expected:
    """What a file must give."""

    windows: list[Score]  # that pass the filters
    left_out: int  # windows that do not
    reports: list  # of the stretches that gave documents


def expect(content: bytes, options: BuildOptions) -> Expected:
    """What a readable file must give."""
    found = Expected([], 0, [])
    for quantized, windows in _stretches(content, _said_of_scores(options.encoding)):
        kept = [window for window in windows if _passes(window, quantized, options.filters)]
        found.windows += kept
        found.left_out += len(windows) - len(kept)
        found.reports += [quantized.quantization] if kept else []
    return found


def _said_of_scores(encoding: Encoding) -> Encoding:
    """The encoding without what is said of notes beside their meaning."""
    return replace(
        encoding, density=0, density_bins=(), bar_density=0, bar_density_bins=(), infill=False, labels=(), bpe=0
    )


@lru_cache(2000)
def _stretches(content: bytes, encoding: Encoding) -> list[tuple[Score, list[Score]]]:
    """The quantised stretches of a file, each with its windows."""
    try:
        score = read_midi(content, False, encoding.voices, encoding.pedal)
    except ValueError:
        score = read_midi(content, True, encoding.voices, encoding.pedal)
    unknown = [tuple(map(int, meter.split("/"))) for meter in encoding.unknown_meters]
    if encoding.lone_quarter_undeclared and {signature[1:] for signature in score.time_signatures} == {(1, 4)}:
        unknown.append((1, 4))
    stretches = [
        part for part in sections(score, encoding.meter_set, unknown, encoding.steps_per_quarter) if part.num_notes
    ]
    quantized = [quantize_for(stretch, encoding) for stretch in stretches]
    return [(score, _windows(apply_bar_lines(score, encoding.bar_line), encoding)) for score in quantized]


def _windows(sounding: Score, encoding: Encoding) -> list[Score]:
    if not encoding.bars:
        return [sounding]
    bars = int(np.count_nonzero(sounding.bar_starts[:-1] < sounding.last_end_step))
    windows = [slice_bars(sounding, first, encoding.bars) for first in range(0, bars - encoding.bars + 1, encoding.hop)]
    return [window for window in windows if window.tracks]


def _passes(window: Score, stretch: Score, filters: Filters) -> bool:
    values = {
        "piece_bars": [stretch.num_bars],
        "tracks": [len(window.tracks)],
        "notes_per_bar": [window.num_notes / window.num_bars],
        "empty_tracks": [len(stretch.tracks) - len(window.tracks)],
        "pitches": [note.pitch for track in window.tracks if not track.is_drum for note in track],
    }
    for name, found in values.items():
        low, high = getattr(filters, name)
        if any((low is not None and value < low) or (high is not None and value > high) for value in found):
            return False
    return True


def check_file(file: EncodedFile, content: bytes, options: BuildOptions, labels: tuple[int, ...] = ()) -> None:
    """Everything that a file's result must be."""
    if file.damage:
        assert not file.damage.startswith("cannot be encoded"), file.damage  # a fault of ours
        assert (
            not len(file.ids) and not len(file.lengths) and not file.copies and not file.left_out and not file.rescued
        )
        return
    expected = expect(content, options)
    assert sum(file.windows_left_out.values()) == expected.left_out
    if not expected.windows:
        assert file.left_out and file.copies == () and not len(file.ids) and not len(file.lengths)
        return
    assert not file.left_out and file.copies == (len(expected.windows),) * options.copies
    documents = split(file.ids, file.lengths)
    form = grammar(options.encoding, len(labels))
    originals = [put_back(document) for document in documents[: file.copies[0]]]
    for document in documents:
        assert form.fullmatch("".join(_LETTERS[document]))
        _check_fills(document, options)
    for document, window in zip(originals, expected.windows, strict=True):
        check_document(document, options.encoding, labels, window)
    for copy in range(1, options.copies):
        copies = documents[copy * len(originals) : (copy + 1) * len(originals)]
        for document, original in zip(copies, originals, strict=True):
            _check_copy(put_back(document), original, options)
    for name in ("notes_in", "notes_out", "notes_lost", "notes_shortened", "notes_lengthened", "onsets_on_grid"):
        assert file.notes[name] == sum(getattr(report, name) for report in expected.reports)
    counts = [min(len(track), 127) for window in expected.windows for track in window.tracks]
    assert file.density.tolist() == np.bincount(counts, minlength=128).tolist()
    assert file.onset_error.sum() == file.notes["notes_in"]


def check_document(
    document: np.ndarray, encoding: Encoding, labels: tuple[int, ...] = (), window: Score | None = None
) -> None:
    """A document without holes decodes to its window, which encodes to the same ids, by both encoders."""
    decoded = _decoded(document.tobytes(), replace(encoding, hop=1, infill=False, labels=(), bpe=0), labels)
    assert window is None or decoded == window


@lru_cache(20_000)
def _decoded(document: bytes, encoding: Encoding, labels: tuple[int, ...]) -> Score:
    """The score of a document that is what both encoders make of it."""
    ids = np.frombuffer(document, np.uint16)
    score = decode_piece(ids, encoding.steps_per_quarter)
    assert not encoding.bars or score.num_bars == encoding.bars
    assert [*encode_piece(score, encoding, labels).tolist(), v.DOCUMENT_END] == ids.tolist()
    if len(ids) > _LONG:
        return score
    is_density = (ids >= v.DENSITY) & (ids < v.DENSITY + v.NUM_DENSITIES) | (ids >= v.SIZE)
    words = oracle.encode_piece(score, _said_of_scores(encoding), [v.TOKENS[label] for label in labels])
    assert v.to_text(ids[~is_density]) == f"{words} DOCUMENT_END"
    return score


def _check_fills(document: np.ndarray, options: BuildOptions) -> None:
    holes, starts, ends, bars = (
        int(np.count_nonzero(document == token_id)) for token_id in (v.FILL_IN, v.FILL_START, v.FILL_END, v.BAR_START)
    )
    assert holes == starts == ends <= max(bars // 2, 1)
    assert (holes > 0) <= (options.infill > 0) and (holes > 0) >= (options.infill == 1)


def _check_copy(document: np.ndarray, original: np.ndarray, options: BuildOptions) -> None:
    """A copy is the original, moved by a shift of those that fit, its tracks reordered if they may be."""
    (head, *tracks), (original_head, *original_tracks) = map(_parts, (document, original))
    assert head == original_head
    pitches, moved = ([note for track in part for note in _pitches(track)] for part in (original_tracks, tracks))
    assert len(pitches) == len(moved)
    shift = (sum(moved) - sum(pitches)) // max(len(pitches), 1)
    low, high = (
        max(options.transpose[0], -min(pitches, default=0)),
        min(options.transpose[1], 127 - max(pitches, default=0)),
    )
    assert low <= shift <= high or (shift == 0 and (low > high or not pitches))
    wanted = [_shifted(track, shift) for track in original_tracks]
    assert (sorted(wanted) == sorted(tracks)) if options.permute_tracks else wanted == tracks


def _parts(document: np.ndarray) -> list[list[int]]:
    """The head and the tracks of a document, without its DOCUMENT_END."""
    assert document[-1] == v.DOCUMENT_END
    return [part.tolist() for part in np.split(document[:-1], np.flatnonzero(document == v.TRACK_START))]


def _pitches(track: list[int]) -> list[int]:
    return [] if track[1] == _DRUMS else [token_id - v.NOTE_ON for token_id in track if 0 <= token_id - v.NOTE_ON < 128]


def _shifted(track: list[int], shift: int) -> list[int]:
    if track[1] == _DRUMS:
        return track
    return [token_id + shift if v.NOTE_ON <= token_id < v.NOTE_OFF + 128 else token_id for token_id in track]
