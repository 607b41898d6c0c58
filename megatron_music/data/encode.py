"""One MIDI file to token ids: read, take the 4/4 parts, quantise, cut into windows, encode.

Knows nothing about ``.bin/.idx`` and never imports torch, so that worker processes start fast.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_music.data.options import BuildOptions
from megatron_music.music.grid import four_four_sections, quantize
from megatron_music.music.midi import read_midi
from megatron_music.music.score import QuantizationReport, Score
from megatron_music.tokens import vocabulary
from megatron_music.tokens.folder import Encoding
from megatron_music.tokens.mmmtrack import encode_piece, encode_windows, window_starts


@dataclass(frozen=True)
class OldEncodedFile:
    """What one file gave.

    Args:
        digest: SHA-256 of the bytes, hexadecimal; empty if the file could not be read.
        ids: all documents one after another, each with its DOCUMENT_END (uint16).
        lengths: tokens in each document (int32).
        quantizations: one for each 4/4 part that was encoded.
        damage: why the file goes to quarantine, or empty.
        left_out: why a good file gave no document, or empty.
    """

    path: str
    digest: str
    ids: np.ndarray
    lengths: np.ndarray
    quantizations: tuple[QuantizationReport, ...] = ()
    damage: str = ""
    left_out: str = ""


_NO_IDS, _NO_LENGTHS = np.empty(0, np.uint16), np.empty(0, np.int32)


def encode_file(path: Path, encoding: Encoding) -> OldEncodedFile:
    """Encode one file; whatever is wrong with it is said in the result, never raised."""
    digest = ""
    try:
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        score = read_midi(content)
        ids, lengths, quantizations, left_out = encode_score(score, encoding)
    except OSError as error:
        return OldEncodedFile(str(path), digest, _NO_IDS, _NO_LENGTHS, damage=f"cannot be read: {error.strerror}")
    except ValueError as error:
        return OldEncodedFile(str(path), digest, _NO_IDS, _NO_LENGTHS, damage=str(error))
    except Exception as error:  # a fault of ours or of a parser costs this file, never the build
        reason = f"cannot be encoded ({type(error).__name__}: {error})"
        return OldEncodedFile(str(path), digest, _NO_IDS, _NO_LENGTHS, damage=reason)
    return OldEncodedFile(str(path), digest, ids, lengths, quantizations, left_out=left_out)


def encode_files(paths: Sequence[Path], encoding: Encoding) -> list[OldEncodedFile]:
    """Encode several files: the unit of work of a worker process."""
    return [encode_file(path, encoding) for path in paths]


def encode_score(
    score: Score, encoding: Encoding
) -> tuple[np.ndarray, np.ndarray, tuple[QuantizationReport, ...], str]:
    """Documents of every 4/4 part of a score: ids, lengths, quantisation reports, and why there are none."""
    sections = [section for section in four_four_sections(score) if section.num_notes]
    if not sections:
        return _NO_IDS, _NO_LENGTHS, (), "no part in 4/4"
    all_ids, all_lengths, reports = [], [], []
    for section in sections:
        quantized = quantize(section, encoding.steps_per_quarter)
        if encoding.bars:
            starts = window_starts(quantized, encoding.bars, encoding.hop, encoding.bar_line)
            ids, lengths = encode_windows(quantized, starts, encoding.bars, encoding.bar_line, encoding.density_bins)
        else:
            ids = encode_piece(quantized, encoding.bar_line, encoding.density_bins)
            lengths = np.array([len(ids)], np.int32)
        if len(lengths):
            all_ids.append(np.insert(ids, np.cumsum(lengths), vocabulary.DOCUMENT_END))
            all_lengths.append(lengths + 1)
            reports.append(quantized.quantization)
    if not all_ids:
        return _NO_IDS, _NO_LENGTHS, (), f"no part in 4/4 of {encoding.bars} bars"
    return np.concatenate(all_ids), np.concatenate(all_lengths), tuple(reports), ""


@dataclass(frozen=True)
class EncodedFile:
    digest: str
    content: str
    ids: np.ndarray
    lengths: np.ndarray
    copies: tuple[int, ...] = ()
    damage: str = ""
    left_out: str = ""
    rescued: bool = False
    windows_left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)
    density: np.ndarray = field(default_factory=lambda: np.zeros(128, np.int64))
    onset_error: np.ndarray = field(default_factory=lambda: np.zeros(10, np.int64))


def encode_content(content: bytes, options: BuildOptions, label_ids: tuple[int, ...] = ()) -> EncodedFile:
    digest = hashlib.sha256(content).hexdigest()
    try:
        ids, lengths, quantizations, left_out = encode_score(read_midi(content), options.encoding)
    except ValueError as error:
        return EncodedFile(digest, "", _NO_IDS, _NO_LENGTHS, damage=str(error))
    notes = {"onset_error_sum": 0.0, "max_onset_error": 0.0}
    for report in quantizations:
        for name in ("notes_in", "notes_out", "notes_lost", "notes_shortened", "notes_lengthened", "onsets_on_grid"):
            notes[name] = notes.get(name, 0) + getattr(report, name)
        notes["onset_error_sum"] += report.mean_onset_error * report.notes_in
        notes["max_onset_error"] = max(notes["max_onset_error"], report.max_onset_error)
    copies = (len(lengths),) if len(lengths) else ()
    return EncodedFile(digest, digest[:32], ids, lengths, copies, left_out=left_out, notes=notes)
