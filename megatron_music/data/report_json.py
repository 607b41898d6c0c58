"""``report.json`` of a dataset, put together from what its merge has counted."""

import json
import os
from dataclasses import asdict
from pathlib import PurePath

import numpy as np

from megatron_music import __version__
from megatron_music.config.sections import SPLITS
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.hashes import HASHES
from megatron_music.data.shard_totals import Tally
from megatron_music.data.split_writer import SplitWriter
from megatron_music.data.splits import DROPPED
from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding

MAX_HISTOGRAM_BINS = 40


def assemble_report(
    tally: Tally,
    fingerprint: str,
    options: BuildOptions,
    encoding: Encoding,
    sources: list[str],
    writers: list[SplitWriter],
    id_counts: np.ndarray,
    entropy: float,
    labelled: int,
    bpe: dict | None,
    levels: dict,
) -> dict:
    """The report, but for its rates, and with the hashes of tokens and text alone.

    Quantisation, DENSITY and onset errors speak of all music that was encoded, dropped copies too; all else of the
    dataset.

    Args:
        encoding: with what the build has found: bins, labels, merges.
        id_counts: how often each id occurs in the dataset before merging (int64).
        entropy: of a token of train, in nats, if every token came alone.
        labelled: files with at least one label.
        bpe: what merging gave.
        levels: of DENSITY: how many were asked for, and what each has.
    """
    is_used = tally.splits != DROPPED
    files = {
        "found": len(tally.splits),
        "used": int(is_used.sum()),
        "copies": tally.copies,
        "near_copies": tally.near_copies,
        "dropped_copies": int((tally.documents[:, 0] > 0).sum() - is_used.sum()),
        "quarantined": tally.quarantined,
        "rescued": tally.rescued,
        **({"labelled": labelled} if encoding.labels else {}),
        "left_out": dict(sorted(tally.left_out.items())),
    }
    asked = options.as_json()
    del asked["encoding"]
    report = {
        "megatron_music": __version__,
        "fingerprint": fingerprint,
        "encoding": asdict(encoding),
        "options": asked,
        "files": files,
        "meters": _meters(tally),
        "split_by": tally.split_by,
        "windows_left_out": dict(sorted(tally.windows_left_out.items())),
        "splits": {split: _split(tally, number, writers[number]) for number, split in enumerate(SPLITS)},
        "sources": [_source(tally, number, name, options) for number, name in enumerate(sources)],
        "quantization": _quantization(tally),
        "unheld": {
            kind: {"events": tally.unheld[kind], "files": tally.unheld_files[kind]} for kind in sorted(tally.unheld)
        },
        "histograms": {
            "document_tokens": histogram([writer.documents_of_length for writer in writers]),
            "instruments": _instruments(id_counts),
            "density": tally.density.tolist(),
            "onset_error": tally.onset_error.tolist(),
        },
        "unigram_entropy_nats": entropy,
        "bpe": bpe,
        "density_levels": levels,
        HASHES: {name: found for writer in writers for name, found in writer.hashes.items()},
    }
    return json.loads(json.dumps(report))  # as a reader of the file has it


def _meters(tally: Tally) -> dict:
    """Files by the meter in force longest, the most frequent first."""
    ordered = sorted(tally.meters.items(), key=lambda row: (-row[1], row[0]))
    return {
        "files": dict(ordered),
        "left_out": {meter: tally.meters_left_out[meter] for meter, _ in ordered if tally.meters_left_out[meter]},
        "undeclared": {meter: tally.meters_undeclared[meter] for meter, _ in ordered if tally.meters_undeclared[meter]},
        "changing": tally.changing,
    }


def _split(tally: Tally, number: int, writer: SplitWriter) -> dict:
    of_split = tally.splits == number
    return {
        "files": int(of_split.sum()),
        "documents": int(tally.kept_documents()[of_split].sum()),
        "tokens": writer.tokens,
        "bytes": writer.bin_bytes,
        **({"text_bytes": writer.text_bytes} if writer.wants_text else {}),
    }


def _source(tally: Tally, number: int, name: str, options: BuildOptions) -> dict:
    of_source = tally.sources == number
    tokens = int(tally.kept_tokens[of_source].sum())
    return {
        "name": PurePath(os.path.abspath(name)).name,
        "found": int(of_source.sum()),
        "used": int((tally.splits[of_source] != DROPPED).sum()),
        "documents": int(tally.kept_documents()[of_source].sum()),
        "tokens": tokens,
        "bytes": 2 * tokens if "megatron" in options.formats else 0,
    }


def _quantization(tally: Tally) -> dict:
    return {
        **tally.notes,
        "mean_onset_error_steps": tally.onset_error_sum / max(tally.notes["notes_in"], 1),
        "max_onset_error_steps": tally.max_onset_error,
        "files_judged": tally.judged_files,
        "files_by_chance": tally.chance_files,
    }


def _instruments(id_counts: np.ndarray) -> dict[str, int]:
    """Tracks of each instrument: every track has one INST."""
    ids = range(vocabulary.INST, vocabulary.INST + vocabulary.NUM_INSTRUMENTS)
    return {vocabulary.TOKENS[i].removeprefix("INST="): int(id_counts[i]) for i in ids if id_counts[i]}


def histogram(counts_by_length: list[np.ndarray]) -> dict[str, list[int]]:
    """At most MAX_HISTOGRAM_BINS bins of equal, round width; bin k is edges[k] to edges[k + 1] - 1."""
    longest = max(map(len, counts_by_length))
    counts = sum(np.pad(counts, (0, longest - len(counts))) for counts in counts_by_length)
    first, last = np.flatnonzero(counts)[[0, -1]].tolist()
    width = next(w for w in _round_numbers() if last // w - first // w < MAX_HISTOGRAM_BINS)
    edges = np.arange(first // width, last // width + 2) * width
    sums = np.concatenate([[0], np.cumsum(counts)])[np.minimum(edges, longest)]
    return {"edges": edges.tolist(), "counts": np.diff(sums).tolist()}


def _round_numbers():
    """1, 2, 5, 10, 20, 50, ..."""
    size = 1
    while True:
        yield from (size, 2 * size, 5 * size)
        size *= 10


def entropy_nats(counts: np.ndarray) -> float:
    """Entropy of what occurs so often, in nats; 0 of nothing."""
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum())
