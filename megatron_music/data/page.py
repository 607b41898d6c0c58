"""``inspect --html``: a dataset on one self-contained page that needs no network, no script and no font of its own.

Reads the ``.bin`` through its ``.idx`` with numpy, so that the page is there at once: never imports torch,
megatron-core or matplotlib.
"""

import os
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from megatron_music.data.index_file import HEADER_BYTES, check_index
from megatron_music.music.instruments import PALETTE_CSS
from megatron_music.reports.dataset import (
    FILES_FILE,
    OLDER,
    QUARANTINE_FILE,
    bpe_in_words,
    encoding_in_words,
    files_in_words,
    is_older,
    notes_in_words,
    number_in_words,
    read_report,
    size_in_words,
    split_totals,
)
from megatron_music.reports.dataset_charts import Chart, charts
from megatron_music.reports.dataset_words import split_by_in_words, warnings
from megatron_music.reports.html_charts import draw_chart, draw_roll, text
from megatron_music.reports.unheld import unheld_in_words
from megatron_music.storage.reading import LINE_BYTES, open_regular, parse_json, refusing
from megatron_music.storage.writing import write_whole
from megatron_music.tokens.bpe import read_bpe
from megatron_music.tokens.mmmtrack import decode_piece
from megatron_music.tokens.tokenizer_folder import read_encoding

QUARANTINE_LINES = 20
ROLLS = "A few documents of train as the model sees them: time to the right, pitch upwards, one colour per track."
STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f8fa;--ink:#1f2328;--soft:#57606a;--line:#d8dee4;--row:#f1f3f6;--warn:#bc4c00}
@media(prefers-color-scheme:dark){:root{--paper:#14171c;--card:#1c2128;--ink:#e6e8eb;--soft:#a3adb8;--line:#353c45;--row:#191d23;--warn:#f0883e}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main,footer{max-width:68rem;margin:0 auto;padding:1.25rem clamp(.9rem,4vw,2rem)}
header{padding-top:2.5rem;padding-bottom:0}
h1{font-size:clamp(1.5rem,5vw,2.1rem);line-height:1.2;margin:0 0 .4rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:0 0 .2rem}h3{font-size:1rem;margin:0}
p{margin:.2rem 0 .8rem}figcaption,.soft,caption,footer{color:var(--soft);font-size:.9rem}
ul.facts{list-style:none;display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.75rem;padding:0;
  margin:1.2rem 0 0}
ul.facts li{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.7rem .9rem;
  color:var(--soft);font-size:.85rem}
ul.facts b{display:block;color:var(--ink);font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
ul.settings{list-style:none;display:flex;flex-wrap:wrap;gap:.4rem;padding:0;margin:.5rem 0 0;font-size:.85rem;
  color:var(--soft)}
ul.settings li{border:1px solid var(--line);border-radius:1rem;padding:.1rem .7rem}
ul.warnings{list-style:none;padding:0;margin:1rem 0 0}
ul.warnings li{border:1px solid var(--warn);border-left-width:.35rem;border-radius:.4rem;padding:.55rem .9rem;margin:0 0 .6rem}
section,figure{margin:0 0 2.4rem;min-width:0}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(27rem,100%),1fr));gap:0 2.2rem}
.wide{overflow-x:auto;margin:.6rem 0 2.4rem}section .wide{margin-bottom:0}table{border-collapse:collapse;width:100%;
  font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;padding:.6rem 0 .25rem}
.data th,.data td{padding:.32rem .9rem .32rem 0;border-bottom:1px solid var(--line);text-align:left;
  vertical-align:top}
.data thead th{color:var(--soft);font-weight:500}.data tbody th{font-weight:400}
.data td.n,.data th.n{text-align:right;white-space:nowrap}
.data .path{overflow-wrap:anywhere;font-family:ui-monospace,monospace;font-size:.8rem;}
@media(max-width:40rem){.stack thead{display:none}.stack td{display:block}.stack td:first-child{border-bottom:0;
  padding-bottom:0}}
.bars{table-layout:fixed}.bars th{font-weight:400;text-align:right;width:min(9.8rem,35%);
  padding:.12rem .7rem .12rem 0;line-height:1.25;overflow-wrap:anywhere}
.bars td{padding:.12rem 0}.bars td:last-child{width:5.8rem;padding-left:.6rem;color:var(--soft);font-size:.86rem;
  white-space:nowrap}
.bars .bar span{display:block;height:.95rem;min-width:1px;border-radius:0 .15rem .15rem 0}
.plot{display:grid;grid-template-columns:3.2rem 1fr;margin-top:1.7rem;font-size:.78rem;color:var(--soft);
  font-variant-numeric:tabular-nums}
.black{fill:var(--row)}rect.black:hover{opacity:1}
.canvas{position:relative;height:13rem}.canvas svg{display:block;width:100%;height:100%;overflow:visible}
.plot span{position:absolute;white-space:nowrap}.y{position:relative}.y span{right:.55rem;transform:translateY(-50%)}
.x{grid-column:2;position:relative;height:1.35rem;margin-top:.2rem}.x span{transform:translateX(-50%)}
.unit{grid-column:2;text-align:center;margin:0}
.grid{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.median{stroke:var(--ink);stroke-width:1.2;stroke-dasharray:5 4;vector-effect:non-scaling-stroke}
.plot .said{top:-1.15rem;margin:0 .4rem;padding:0 .25rem;color:var(--ink);background:var(--paper)}
rect:hover{opacity:.75}
.roll .plot{margin-top:.7rem}.roll .canvas{height:11rem;border:1px solid var(--line);border-width:0 1px 1px 0}.roll .x span{transform:none;
  padding-left:.15rem}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:.3rem 0 0 3.2rem;padding:0;font-size:.85rem;
  color:var(--soft)}
.key i{display:inline-block;width:.8rem;height:.8rem;border-radius:.2rem;margin-right:.4rem;vertical-align:-.05rem}
code{font-size:.85em;overflow-wrap:anywhere}
"""


def write_page(folder: str | os.PathLike, path: str | os.PathLike, documents: int = 4) -> None:
    """Write a dataset's figures, tables, damaged files and a few piano rolls as one HTML file.

    Args:
        folder: a dataset.
        path: the page; what is there already is replaced when the new one is whole.
        documents: how many documents of train are drawn, taken evenly from its beginning to its end.

    Raises:
        ValueError: the dataset has no report or no tokenizer, or its files are damaged.
        OSError: the page cannot be written.
    """
    with refusing(folder, "build the dataset again"):
        content = page(folder, documents).encode()
    write_whole(Path(path), content)


def page(folder: str | os.PathLike, documents: int = 4) -> str:
    """The page as text; see ``write_page``."""
    folder = Path(folder)
    report = read_report(folder)
    name = text(folder.resolve().name)
    drawn = {chart.name: chart for chart in charts(report)}
    body = [
        f'<header><p class="soft">Music as tokens: a dataset of megatron_music {text(report["megatron_music"])}'
        f"{_built(report)}</p><h1>{name}</h1>{_settings(report)}{_facts(report)}{_warnings(report)}</header><main>",
        f'<p class="soft">{OLDER}</p>' if is_older(report) else "",
        _section("Piano rolls", _rolls(folder, documents), ROLLS),
        _pair(_chart(drawn, "splits") + _splits_table(report), _chart(drawn, "sources") + _sources_table(report)),
        _pair(_chart(drawn, "document_tokens"), _chart(drawn, "density")),
        _pair(_chart(drawn, "instruments"), _chart(drawn, "onset_error") + _notes(report)),
        _pair(_chart(drawn, "exclusions"), _files(report), _chart(drawn, "meters")),
        _unheld(report),
        _quarantine(folder),
        _section(
            "Encoding", _table(["setting", "value"], encoding_in_words(report["encoding"])), _training_words(report)
        ),
        f"</main><footer><p>Fingerprint of files and options: <code>{text(report['fingerprint'])}</code></p></footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{name}: a dataset of music as tokens</title><style>{PALETTE_CSS}{STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def read_documents(folder: str | os.PathLike, split: str, count: int) -> list[tuple[int, np.ndarray]]:
    """A few documents of a split, evenly from the first to the last, as (number, ids).

    Raises:
        ValueError: a file is damaged.
    """
    index, tokens = Path(folder, f"{split}.idx"), Path(folder, f"{split}.bin")
    total = check_index(Path(folder, split))
    if not total:
        return []
    try:
        lengths = np.memmap(index, "<i4", "r", HEADER_BYTES, (total,))
        offsets = np.memmap(index, "<i8", "r", HEADER_BYTES + lengths.nbytes, (total,))
        chosen = np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64)).tolist()
        read = [(k, np.fromfile(tokens, "<u2", int(lengths[k]), offset=int(offsets[k]))) for k in chosen]
        if any(len(ids) != lengths[k] for k, ids in read):
            raise ValueError(f"{tokens.name} is shorter than it says")
        return read
    except ValueError as error:
        raise ValueError(f"{index} is damaged ({error}); build the dataset again") from None


def _rolls(folder: Path, documents: int) -> str:
    encoding = read_encoding(folder / "tokenizer")
    if not Path(folder, "train.idx").exists():
        return '<p class="soft">This dataset has no .bin and .idx to draw from.</p>'
    unmerge = read_bpe(folder / "tokenizer").decode if encoding.bpe else np.asarray
    rolls = [
        draw_roll(decode_piece(unmerge(ids), encoding.steps_per_quarter), f"document {number:,} of train")
        for number, ids in read_documents(folder, "train", documents)
    ]
    return f'<div class="pair">{"".join(rolls)}</div>'


def _built(report: dict) -> str:
    finished = report["rates"].get("finished")
    return f', built <time datetime="{text(finished)}">{text(finished.partition("T")[0])}</time>' if finished else ""


def _settings(report: dict) -> str:
    """The encoding and the other options of the build, as a row of labels."""
    said = [
        f"{what}: {how}" if what not in ("windows", "grid") else how
        for what, how in encoding_in_words(report["encoding"])
    ]
    asked = report.get("options", {})
    said += [
        words
        for name, plain, words in (
            ("split_by", "", split_by_in_words(report)),
            ("seed", 0, f"seed {asked.get('seed')}"),
            ("copies", 1, f"{asked.get('copies')} copies of training windows"),
            ("infill", 0.0, f"{asked.get('infill', 0):.0%} with bars to fill in"),
            ("drop_duplicates", False, "duplicates dropped"),
        )
        if asked.get(name, plain) != plain
    ]
    return '<ul class="settings">' + "".join(f"<li>{text(words)}</li>" for words in said) + "</ul>"


def _warnings(report: dict) -> str:
    said = "".join(f"<li>{text(words[0].upper() + words[1:])}.</li>" for words in warnings(report))
    return f'<ul class="warnings">{said}</ul>' if said else ""


def _list_words(report: dict) -> str:
    return (
        f"{FILES_FILE} has a line for every file: its split, its documents, and why it was left out."
        if "meters" in report
        else ""
    )


def _facts(report: dict) -> str:
    totals, files = split_totals(report), report["files"]
    size, _, unit = size_in_words(totals).partition(" of ")
    facts = [
        (f"{totals['documents']:,}", "windows, each a document"),
        (f"{totals['tokens']:,}", "tokens"),
        (size, f"of token {unit}" if unit == "ids" else f"of {unit}"),
        (f"{files['used']:,}", f"of {files['found']:,} MIDI files used"),
        (f"{files['quarantined']:,}", "damaged files in quarantine"),
    ]
    return (
        '<ul class="facts">'
        + "".join(f"<li><b>{text(number)}</b>{text(word)}</li>" for number, word in facts)
        + "</ul>"
    )


def _training_words(report: dict) -> str:
    words = []
    if report.get("bpe"):
        words.append(f"Merged tokens (BPE): {bpe_in_words(report['bpe'])}.")
    if report.get("unigram_entropy_nats"):
        entropy = f"{report['unigram_entropy_nats']:.3f} nats"
        words.append(
            f"Unigram entropy of train: {entropy} per token. A model that learns anything about token order reaches a "
            f"lower loss."
        )
    return " ".join(words)


def _splits_table(report: dict) -> str:
    totals = split_totals(report)
    names = [name for name in ("files", "documents", "tokens", "bytes", "text_bytes") if name in totals]
    heads = {"documents": "windows", "text_bytes": "as text"}
    rows = [[split, *(row[name] for name in names)] for split, row in report["splits"].items()]
    rows.append(["all", *(totals[name] for name in names)])
    return _table(["split", *(heads.get(name, name) for name in names)], rows)


def _sources_table(report: dict) -> str:
    names = ("name", "found", "used", "documents", "tokens")
    rows = [[row[name] for name in names] for row in report.get("sources", ())]
    return _table(["data set", "found", "used", "windows", "tokens"], rows) if rows else ""


def _files(report: dict) -> str:
    return _section("Files", _table(["outcome", "files"], files_in_words(report)), _list_words(report))


def _notes(report: dict) -> str:
    return _section("Notes", _table(["notes", "count"], notes_in_words(report["quantization"])))


def _unheld(report: dict) -> str:
    rows = unheld_in_words(report)
    return (
        _section("Not represented in the tokens", _table(["content of the files", "count", "in files"], rows))
        if rows
        else ""
    )


def _quarantine(folder: Path) -> str:
    try:
        with open_regular(folder / QUARANTINE_FILE) as file:
            lines = [
                parse_json(line) for line in islice(iter(partial(file.readline, LINE_BYTES), b""), QUARANTINE_LINES)
            ]
            more = sum(block.count(b"\n") for block in iter(partial(file.read, LINE_BYTES), b""))
        rows = "".join(
            f'<tr><td class="path">{text(line["path"])}</td><td>{text(line["reason"])}</td></tr>' for line in lines
        )
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / QUARANTINE_FILE} is damaged ({error!r}); build the dataset again") from None
    if not rows:
        return ""
    rest = (
        f"The first {len(lines)}; {more:,} more are in {QUARANTINE_FILE}." if more else f"All, from {QUARANTINE_FILE}."
    )
    head = '<thead><tr><th scope="col">file</th><th scope="col">reason</th></tr></thead>'
    table = f'<div class="wide"><table class="data stack">{head}<tbody>{rows}</tbody></table></div>'
    return _section("Damaged files", table, rest)


def _table(heads: list[str], rows: list) -> str:
    """A table; numbers stand to the right."""
    right = [all(isinstance(row[place], int | float) for row in rows) for place in range(len(heads))]
    marks = ['class="n"' if number else "" for number in right]
    head = "".join(f'<th scope="col" {mark}>{text(word)}</th>' for mark, word in zip(marks, heads, strict=True))
    body = "".join(
        f'<tr><th scope="row">{text(row[0])}</th>'
        + "".join(
            f"<td {mark}>{text(number_in_words(value))}</td>" for mark, value in zip(marks[1:], row[1:], strict=True)
        )
        + "</tr>"
        for row in rows
    )
    rows_of_it = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table class="data">{rows_of_it}</table></div>'


def _chart(drawn: dict[str, Chart], name: str) -> str:
    return draw_chart(drawn[name]) if name in drawn else ""


def _pair(*parts: str) -> str:
    """Parts side by side where there is room; those that are empty take none."""
    return f'<div class="pair">{"".join(f"<div>{part}</div>" for part in parts if part)}</div>'


def _section(title: str, content: str, words: str = "") -> str:
    said = f'<p class="soft">{text(words)}</p>' if words else ""
    return f"<section><h2>{text(title)}</h2>{said}{content}</section>"
