"""The report of a dataset: where it lies, and its figures in words, in the terminal and as Markdown.

Imports no torch and no matplotlib, so that `inspect` answers at once.
"""

import os
import re
from pathlib import Path

from megatron_music.config.errors import counted
from megatron_music.config.sections import SPLITS
from megatron_music.music.instruments import instrument_name
from megatron_music.music.names import printable
from megatron_music.reports.dataset_charts import charts, excluded_files, megabytes
from megatron_music.reports.dataset_words import (
    left_out_in_words,
    meters_in_words,
    reason_in_words,
    split_by_in_words,
    warnings,
)
from megatron_music.reports.unheld import PEDAL_NOTES, unheld_in_words
from megatron_music.storage.reading import read_json
from megatron_music.storage.writing import write_whole

REPORT_FILE = "report.json"
MARKDOWN_FILE = "report.md"
QUARANTINE_FILE = "quarantine.jsonl"
FILES_FILE = "files.jsonl"
FIGURES = "figures"
BAR_LINES = {"carry": "carried over (carry)", "clip": "cut there (clip)", "split": "struck again (split)"}
_EMOJI = re.compile(r":([\w+-]+:)")  # GitHub draws such a word
OLDER = "An older version wrote this report, which counted less: no data sets, near copies or histograms."


def read_report(out: str | os.PathLike) -> dict:
    """``report.json`` of a dataset; that of an older version is good, and holds less.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    path = Path(out, REPORT_FILE)
    try:
        report = read_json(path)
        markdown(report)
        describe(report, out)
        return report
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{path} is missing; name a folder made by `megatron-music build tokens`") from None
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
    ) as error:
        why = f"is no report of `megatron-music build tokens` ({error!r})"
        raise ValueError(f"{path} {why}; build the dataset again") from None


def describe(report: dict, out: str | os.PathLike) -> str:
    """The report as a few aligned lines of text."""
    files, rates, notes = report["files"], report["rates"], report["quantization"]
    windows_left_out = report.get("windows_left_out", {}).items()
    encoding = [(what, _visible(text)) for what, text in encoding_in_words(report["encoding"])]
    lines = [
        f"files    {files['used']:,} of {files['found']:,} used, {files['quarantined']:,} in quarantine"
        + (f", {files['rescued']:,} rescued (read after clamping their bytes)" if files.get("rescued") else ""),
        f"copies   {_copies(files)}",
        *(
            f"         {counted(count, 'file')} left out: {_visible(reason)}"
            for reason, count in left_out_in_words(report)
        ),
        *(f"{name:8} {_visible(said)}" for name, said in _of_all_files(report) if said),
        f"windows  {'; '.join(text if what in ('windows', 'grid') else f'{what}: {text}' for what, text in encoding)}",
        *(f"         {counted(count, 'window')} left out: {_visible(why)}" for why, count in windows_left_out),
        f"notes    {notes.get('notes_in', 0):,} read, {notes.get('notes_lost', 0):,} lost, "
        f"onsets moved {notes['mean_onset_error_steps']:.3f} steps on average",
    ]
    lines += pedal_in_words(report)
    if report.get("bpe"):
        lines.append(f"bpe      {bpe_in_words(report['bpe'])}")
    if "labelled" in files:
        lines.append(f"labels   {files['labelled']:,} of {files['used']:,} used files have one")
    lines.append(
        f"rate     {_rate(rates['files_per_second'], ',.0f')} files/s, "
        f"{_rate(rates['tokens_per_second'] / 1e6, '.2f')} M tokens/s "
        f"with {counted(rates['workers'], 'worker')}{rates.get('of', '') and ', merging alone'}"
    )
    rows = [(split, report["splits"][split]) for split in SPLITS]
    sources = [(_visible(row["name"]), row) for row in report.get("sources", ())]
    width = min(max(len(name) for name, _ in (*rows, *sources)), 32)
    for heading, table in (("split", rows), ("source", sources)):
        if table:
            lines += ["", f"{heading:{width}}      files  documents          tokens           bytes"]
        lines += [
            f"{_shortened(name, width):{width}} {row.get('files', row.get('used')):>10,} {row['documents']:>10,} "
            f"{row['tokens']:>15,} {row['bytes']:>15,}"
            for name, row in table
        ]
    text_bytes = sum(row.get("text_bytes", 0) for _, row in rows)
    if text_bytes:
        lines += ["", f"as text  {text_bytes:,} bytes"]
    if "meters" in report:
        lines += ["", f"every file, its split and why it was left out: {Path(out, FILES_FILE)}"]
    if files["quarantined"]:
        lines += ["" if "meters" not in report else None, f"damaged files and why: {Path(out, QUARANTINE_FILE)}"]
    lines += [f"{'' if number else chr(10)}warning: {_visible(said)}" for number, said in enumerate(warnings(report))]
    if is_older(report):
        lines += ["", OLDER]
    return "\n".join(line for line in lines if line is not None)


def markdown(report: dict) -> str:
    """The report as Markdown, for a reader who never saw the tool; it links the pictures of ``reports.svg_charts``."""
    files, notes, totals = report["files"], report["quantization"], split_totals(report)
    used = f"{files['used']:,} of {files['found']:,} MIDI files"
    lines = [
        "# A dataset of music as tokens",
        "",
        f"{used} became {totals['documents']:,} windows of {totals['tokens']:,} tokens "
        f"({size_in_words(totals)}), written by megatron_music {_cell(report['megatron_music'])}. A window is a "
        "stretch of bars of one file, and one document of the dataset; a token is one event of the music, such as a "
        "note "
        "that begins.",
        "",
    ]
    if is_older(report):
        lines += [OLDER, ""]
    for said in warnings(report):
        lines += [f"> **Warning:** {_cell(said)}.", ""]
    pictures = {chart.name: chart for chart in charts(report)}

    def section(title: str, *pictured: str) -> None:
        lines.extend([f"## {title}", ""])
        for name in pictured:
            if name in pictures:
                lines.extend([pictures[name].caption, "", f"![{pictures[name].title}]({FIGURES}/{name}.svg)", ""])

    section("Splits", "splits")
    lines += _table(
        ["split", "files", "windows", "tokens", "bytes", "bytes as text"],
        [
            [s, r["files"], r["documents"], r["tokens"], r["bytes"], r.get("text_bytes")]
            for s, r in report["splits"].items()
        ]
        + [["all", *(totals.get(name) for name in ("files", "documents", "tokens", "bytes", "text_bytes"))]],
    )
    if report.get("sources"):
        section("Data sets", "sources")
        names = ("name", "found", "used", "documents", "tokens", "bytes")
        rows = [[row[name] for name in names] for row in report["sources"]]
        lines += _table(["data set", "files found", "files used", "windows", "tokens", "bytes"], rows)
    section("Files", "exclusions", "meters")
    lines += _table(["outcome", "files"], files_in_words(report))
    for name, said in _of_all_files(report):
        if said:
            lines += [f"{name.capitalize()}: {_cell(said)}.", ""]
    if "meters" in report:
        lines += [f"`{FILES_FILE}` has a line for every file: its split, its documents, and why it was left out.", ""]
    if report.get("windows_left_out"):
        lines += _table(["windows left out by filters", "windows"], list(report["windows_left_out"].items()))
    if files["quarantined"]:
        lines += [f"`{QUARANTINE_FILE}` names each damaged file and the reason.", ""]
    section("Encoding")
    lines += _table(["setting", "value"], encoding_in_words(report["encoding"]))
    if report.get("bpe"):
        lines += [f"Merged tokens (BPE): {bpe_in_words(report['bpe'])}.", ""]
    if report.get("unigram_entropy_nats"):
        lines += [
            f"Unigram entropy of train: {report['unigram_entropy_nats']:.3f} nats per token. A model that learns "
            f"anything "
            "about token order reaches a lower loss.",
            "",
        ]
    section("Notes", "onset_error")
    lines += _table(["notes", "count"], notes_in_words(notes))
    if report.get("unheld"):
        section("Not represented in the tokens")
        lines += _table(["content of the files", "count", "in files"], unheld_in_words(report))
    if {"document_tokens", "instruments", "density"} & pictures.keys():
        section("Histograms", "document_tokens", "density", "instruments")
    if "instruments" in pictures:
        rows = sorted(report["histograms"]["instruments"].items(), key=lambda row: (-row[1], row[0]))
        lines += _table(["instrument", "token", "tracks"], [[instrument_name(v), f"INST={v}", n] for v, n in rows[:20]])
        if len(rows) > 20:
            rest = sum(number for _, number in rows[20:])
            lines += [f"The 20 most frequent of {len(rows)} instruments; the others have {counted(rest, 'track')}.", ""]
    lines += [f"Fingerprint of files and options: `{_cell(report['fingerprint'])}`.", ""]
    return "\n".join(lines)


def write_markdown(report: dict, folder: str | os.PathLike) -> None:
    """Write ``report.md`` into the dataset."""
    write_whole(Path(folder, MARKDOWN_FILE), markdown(report).encode())


def is_older(report: dict) -> bool:
    """Whether the report was written by a version that counted less."""
    return "histograms" not in report or "sources" not in report


def split_totals(report: dict) -> dict[str, int]:
    """Files, documents, tokens and bytes of all splits together."""
    rows = list(report["splits"].values())
    names = [
        name for name in ("files", "documents", "tokens", "bytes", "text_bytes") if all(name in row for row in rows)
    ]
    return {name: sum(row[name] for row in rows) for name in names}


def size_in_words(totals: dict[str, int]) -> str:
    """Megabytes of ids; of text, where a build wrote text alone."""
    if totals["bytes"] or not totals.get("text_bytes"):
        return f"{megabytes(totals['bytes'] / 1e6)} of ids"
    return f"{megabytes(totals['text_bytes'] / 1e6)} of text"


def encoding_in_words(encoding: dict) -> list[tuple[str, str]]:
    """What a reader should know of the encoding, as (what, how)."""
    windows = f"{counted(encoding['bars'], 'bar')}, hop {encoding['hop']}" if encoding["bars"] else "whole pieces"
    rows = [
        ("windows", windows),
        ("grid", f"{encoding['steps_per_quarter']} steps per quarter note"),
        ("notes across bar lines", BAR_LINES.get(encoding["bar_line"], encoding["bar_line"])),
    ]
    if tuple(encoding.get("meters", ("4/4",))) != ("4/4",):
        rows.append(("meters", ", ".join(encoding["meters"])))
    if encoding.get("lone_quarter_undeclared"):
        rows.append(("meter read as if not declared", "1/4 where it is a file's only meter"))
    if encoding.get("unknown_meters"):
        rows.append(("meters read as if not declared", ", ".join(encoding["unknown_meters"])))
    for name, what in (("voices", "voices"), ("pedal", "sustain pedal")):
        if encoding.get(name, "auto") != "auto":
            rows.append((what, encoding[name]))
    for name in ("velocity", "tempo", "infill"):
        if encoding.get(name):
            rows.append((name, "written"))
    for name, unit in (("density", "track"), ("bar_density", "bar")):
        if encoding.get(name):
            bins = ", ".join(map(str, encoding.get(f"{name}_bins", ()))) or "none"
            rows.append((f"density of a {unit}", f"{counted(encoding[name], 'level')}, cut at {bins} notes"))
    for label, names in encoding.get("labels", ()):
        rows.append((f"label {label}", counted(len(names), "name")))
    if encoding.get("bpe"):
        rows.append(("merged tokens", f"{encoding['bpe']:,}"))
    return rows


def _of_all_files(report: dict) -> list[tuple[str, str]]:
    """What is said of all files together, as (what, in words); words are empty where there is nothing to say."""
    return [("meters", meters_in_words(report.get("meters", {}))), ("splits", split_by_in_words(report))]


def files_in_words(report: dict) -> list[tuple[str, int]]:
    """What became of the files found, and what is known of those used, as (what, how many)."""
    files = report["files"]
    rows = [("found", files["found"]), ("used", files["used"])]
    for name, text in (
        ("copies", "used, byte-for-byte copies of an earlier file"),
        ("near_copies", "used, same notes as an earlier file in other bytes"),
        ("rescued", "read only after their bytes were clamped"),
        ("labelled", "used, with a label"),
    ):
        if name in files:
            rows.append((text, files[name]))
    return rows + [(f"left out: {reason_in_words(reason, report)}", count) for reason, count in excluded_files(report)]


def notes_in_words(notes: dict) -> list[tuple[str, int | float]]:
    """What quantising did to the notes, as (what, how many)."""
    rows = [
        ("read", "notes_in"),
        ("written", "notes_out"),
        ("lost: the same pitch begins at the same step", "notes_lost"),
        ("shortened: their pitch is struck again", "notes_shortened"),
        ("lengthened to one step", "notes_lengthened"),
        ("onsets exactly on the grid", "onsets_on_grid"),
    ]
    counts = [(text, notes.get(name, 0)) for text, name in rows]
    moved = [("mean shift of an onset, steps", "mean"), ("largest shift of an onset, steps", "max")]
    return [*counts, *((text, float(notes[f"{name}_onset_error_steps"])) for text, name in moved)]


def pedal_in_words(report: dict) -> list[str]:
    """A line on the notes that the sustain pedal holds, if it does."""
    notes, unheld = report["quantization"].get("notes_in", 0), report.get("unheld", {})
    lines = []
    for is_applied, does in ((True, "makes"), (False, "would make")):
        count = unheld.get(PEDAL_NOTES[is_applied], {}).get("events", 0)
        if count:
            lines.append(f"pedal    {does} {min(count / max(notes, 1), 1):.1%} of the notes longer by a step or more")
    return lines


def number_in_words(value: object) -> str:
    """A value of a table: whole numbers with commas, others with three places, words as they are, nothing for None."""
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
    return "" if value is None else str(value)


def bpe_in_words(bpe: dict) -> str:
    """How much merging shortened the dataset."""
    gain = bpe["tokens_before"] / max(bpe["tokens_after"], 1)
    tokens = f"{bpe['tokens_before']:,} tokens became {bpe['tokens_after']:,}"
    return f"{counted(bpe['merges'], 'merge')}, {tokens}, {gain:.2f} times fewer"


def _rate(per_second: float, how: str) -> str:
    """A rate in the given format; one that would come out as zero has two digits: 0.25, 0.0035."""
    said = format(per_second, how)
    return said if float(said.replace(",", "")) else f"{per_second:.2g}"


def _copies(files: dict) -> str:
    parts = [f"{files['copies']:,} byte for byte"]
    if "near_copies" in files:
        parts.append(f"{files['near_copies']:,} with the same notes")
    if files.get("dropped_copies"):
        parts.append(f"{files['dropped_copies']:,} left out")
    return ", ".join(parts)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _visible(text: object) -> str:
    """A name on one line, which strangers' files may fill with control characters."""
    return printable(str(text))


def _cell(value: object) -> str:
    """A value in a Markdown table: numbers with commas, strangers' names without their own markup."""
    if isinstance(value, str):
        value = "".join(f"\\{letter}" if letter in "\\`*_[]<>|#$~&" else letter for letter in _visible(value))
        value = _EMOJI.sub(r"\\:\1", value)
    return number_in_words(value)


def _table(heads: list[str], rows: list) -> list[str]:
    """Lines of a Markdown table, numbers to the right; a column without any value is left out."""
    used = [place for place in range(len(heads)) if any(row[place] is not None for row in rows)]
    is_number = [all(isinstance(row[place], int | float | None) for row in rows) for place in used]
    lines = [[heads[place] for place in used], ["---:" if number else "---" for number in is_number]]
    lines += [[_cell(row[place]) for place in used] for row in rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]
