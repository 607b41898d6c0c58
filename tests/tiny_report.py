"""A report and a dataset made by hand, for what people look at."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_music.data.index_file import IndexWriter
from megatron_music.tokens import vocabulary
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder

# One bar of two voices: C5 and D5 over a long C3.
DUET = (
    "PIECE_START "
    "TRACK_START INST=SOPRANO BAR_START "
    "NOTE_ON=72 TIME_DELTA=8 NOTE_OFF=72 NOTE_ON=74 TIME_DELTA=8 NOTE_OFF=74 BAR_END TRACK_END "
    "TRACK_START INST=32 BAR_START NOTE_ON=48 TIME_DELTA=16 NOTE_OFF=48 BAR_END TRACK_END "
    "DOCUMENT_END"
)


def tiny_report(**changes) -> dict:
    """The report of a build of two data sets, one of them with a name that means mischief."""
    return {
        "megatron_music": "0.1.0",
        "fingerprint": "2bb40d65",
        "encoding": json.loads(json.dumps(asdict(Encoding(velocity=True, density=3, density_bins=(4, 9))))),
        "options": {},
        "files": {
            "found": 1409,
            "used": 1302,
            "copies": 3,
            "near_copies": 11,
            "dropped_copies": 2,
            "quarantined": 26,
            "rescued": 4,
            "left_out": {"no part in 4/4": 70, "no window of 4 bars": 9},
        },
        "windows_left_out": {"fewer than 2 tracks": 1530},
        "splits": {
            "train": {"files": 1170, "documents": 17760, "tokens": 4545563, "bytes": 9091126},
            "valid": {"files": 70, "documents": 1368, "tokens": 373445, "bytes": 746890},
            "test": {"files": 62, "documents": 884, "tokens": 218789, "bytes": 437578},
        },
        "sources": [
            {"name": "chorales", "found": 500, "used": 500, "documents": 5000, "tokens": 1200000, "bytes": 2400000},
            {
                "name": "<b>$x$|songs",
                "found": 909,
                "used": 802,
                "documents": 15012,
                "tokens": 3937797,
                "bytes": 7875594,
            },
        ],
        "quantization": {
            "notes_in": 402794,
            "notes_out": 402035,
            "notes_lost": 759,
            "notes_shortened": 581,
            "notes_lengthened": 12153,
            "onsets_on_grid": 127961,
            "mean_onset_error_steps": 0.18327,
            "max_onset_error_steps": 0.5,
        },
        "histograms": {
            "document_tokens": {
                "edges": list(range(0, 550, 50)),
                "counts": [10, 90, 700, 2500, 5400, 6800, 2700, 1000, 700, 112],
            },
            "instruments": {"0": 41322, "DRUMS": 9000, "SOPRANO": 4479, **{str(p): p for p in range(40, 70)}},
            "density": [0, 5, 9, 20, 30, 20, 9, 5, *[0] * 119, 2],
            "onset_error": [180000, 23000, 22000, 25000, 22000, 21000, 24000, 23000, 20000, 21000],
        },
        "unigram_entropy_nats": 3.812,
        "bpe": {"merges": 2048, "tokens_before": 10275594, "tokens_after": 5137797},
        "rates": {"seconds": 9.9, "workers": 2, "files_per_second": 142.8, "tokens_per_second": 520694.0},
        **changes,
    }


def older_report() -> dict:
    """What version 0.1.0 wrote at first."""
    report = tiny_report(
        encoding={"steps_per_quarter": 4, "bars": 4, "hop": 1, "bar_line": "carry", "density_bins": []},
        files={"found": 12, "used": 11, "copies": 0, "quarantined": 1, "left_out": {}},
    )
    for name in ("options", "windows_left_out", "sources", "histograms", "unigram_entropy_nats", "bpe"):
        del report[name]
    return report


def write_report(folder: Path, report: dict) -> Path:
    """A folder with this report and nothing else."""
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def tiny_dataset(folder: Path, report: dict | None = None, documents: int = 6, quarantine: tuple = ()) -> Path:
    """What a page is made from: a report, a tokenizer folder, a train split of duets, damaged files as (path,
    reason).
    """
    write_report(folder, report or tiny_report())
    write_tokenizer_folder(folder / "tokenizer", Encoding())
    ids = vocabulary.to_ids(DUET).astype("<u2")
    (folder / "train.bin").write_bytes(ids.tobytes() * documents)
    index = IndexWriter(folder / "train.idx", documents)
    index.add(np.full(documents, len(ids), np.int32))
    index.finish()
    lines = [json.dumps({"path": path, "reason": reason}) + "\n" for path, reason in quarantine]
    (folder / "quarantine.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
