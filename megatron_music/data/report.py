"""The report of a dataset: where it lies, and its figures in words.

Imports no torch, so that `inspect` answers at once.
"""

import json
import os
from pathlib import Path

SPLITS = ("train", "valid", "test")
REPORT_FILE = "report.json"
QUARANTINE_FILE = "quarantine.jsonl"


def read_report(out: str | os.PathLike) -> dict:
    """``report.json`` of a dataset.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = Path(out, REPORT_FILE)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        describe(report, out)
        return report
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no report of `megatron-music build tokens` ({error!r}); build the dataset again") from None


def describe(report: dict, out: str | os.PathLike) -> str:
    """The report as a few lines of text."""
    files, rates, notes = report["files"], report["rates"], report["quantization"]
    encoding = report["encoding"]
    window = f"{encoding['bars']} bars, hop {encoding['hop']}" if encoding["bars"] else "whole pieces"
    lines = [
        f"files    {files['used']:,} of {files['found']:,} used ({files['copies']:,} copies), "
        f"{files['quarantined']:,} in quarantine",
        *(f"         {count:,} left out: {reason}" for reason, count in files["left_out"].items()),
        f"windows  {window}; {encoding['steps_per_quarter']} steps a quarter; bar lines: {encoding['bar_line']}",
        f"notes    {notes.get('notes_in', 0):,} read, {notes.get('notes_lost', 0):,} lost, "
        f"onsets moved {notes['mean_onset_error_steps']:.3f} steps on average",
        f"rate     {rates['files_per_second']:,.0f} files/s, {rates['tokens_per_second'] / 1e6:.2f} M tokens/s "
        f"with {rates['workers']} worker{'s' if rates['workers'] > 1 else ''}",
        "         files  documents      tokens       bytes",
    ]
    for split in SPLITS:
        row = report["splits"][split]
        lines.append(
            f"{split:5} {row['files']:>8,} {row['documents']:>10,} {row['tokens']:>11,} {row['bytes']:>11,}"
        )
    if files["quarantined"]:
        lines.append(f"damaged files and why: {Path(out, QUARANTINE_FILE)}")
    return "\n".join(lines)
