"""Tables as text for a terminal, as Markdown, or as CSV for another program."""

import csv
import io
import re
import shutil
from collections.abc import Callable, Sequence

from megatron_music.music.names import printable

FORMS = ("text", "markdown", "csv")
ABSENT = "-"  # to people; an empty field of CSV
Format = str | Callable[[float], str]
WIDTH_WITHOUT_TERMINAL = 160  # of a table with a long column that goes to a file or another program
_MARKUP = re.compile(r"[\\\\|`*\[\]~]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NARROWEST = 24  # a shortened name is never narrower, however narrow the terminal


def format_table(
    columns: dict[str, Format], rows: Sequence[dict], form: str = "text", *, shorten: str | None = None
) -> str:
    """Rows as lines, without a last line end.

    Args:
        columns: the key of each column, which may be a stranger's word, and the format of its numbers for people, as
            for ``format``; empty: as ``str`` does.
        rows: a value for each key; a missing one or None is left empty. CSV has them in full, whatever the format.
        form: ``text``, ``markdown`` or ``csv``.
        shorten: the column whose long texts lose their middle, in text and Markdown, so that lines fit the terminal.

    Raises:
        ValueError: another form.
    """
    if form == "csv":
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(_csv_cell, columns))
        writer.writerows([[_csv_cell(row.get(key)) for key in columns] for row in rows])
        return file.getvalue().rstrip("\n")
    if form not in FORMS:
        raise ValueError(f"a table's form is {form!r}; use one of {', '.join(FORMS)}")
    cells = format_cells(columns, rows)
    is_number = [any(isinstance(row.get(key), int | float) for row in rows) for key in columns]
    heads = [printable(key.replace("_", " ")) for key in columns]
    if shorten is not None:
        place = list(columns).index(shorten)
        others = sum(
            max(map(len, column)) + 3
            for number, column in enumerate(zip(heads, *cells, strict=True))
            if number != place
        )
        room = max(_NARROWEST, terminal_width() - others - 3)
        for line in cells:
            line[place] = _fitting(line[place], room, _markdown_cell if form == "markdown" else str)
    if form == "markdown":
        rules = ["---:" if right else "---" for right in is_number]
        lines = [[_markdown_cell(cell) for cell in line] for line in (heads, *cells)]
        return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rules, *lines[1:]])
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        for line in [heads, *cells]
    ]
    return "\n".join(line.rstrip() for line in aligned)


def terminal_width() -> int:
    """Columns of the terminal that standard output goes to; ``COLUMNS`` decides where it is set."""
    return shutil.get_terminal_size((WIDTH_WITHOUT_TERMINAL, 0)).columns


def shortened(text: str, width: int) -> str:
    """A text in ``width`` characters: its middle gives way to an ellipsis; its start, which names a kernel,
    keeps more.
    """
    if len(text) <= width:
        return text
    end = (width - 1) // 3
    return f"{text[: width - 1 - end]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - end :]}"


def _fitting(text: str, room: int, written: Callable[[str], str]) -> str:
    """The text shortened until it has room as it is written."""
    width = room
    while len(written(shortened(text, width))) > room and width > 3:
        width -= 1
    return shortened(text, width)


def format_cells(columns: dict[str, Format], rows: Sequence[dict]) -> list[list[str]]:
    """What stands in each row's cells, for people."""
    return [[_cell(row.get(key), how) for key, how in columns.items()] for row in rows]


def _cell(value, how: Format) -> str:
    if value is None:
        return ABSENT
    if callable(how):
        return how(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return format(value, how)
    return printable(str(value))


def _markdown_cell(text: str) -> str:
    """A cell in which nothing is markup: neither HTML, nor the table's own bars, nor a link."""
    return _MARKUP.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def _csv_cell(value):
    """A cell that a spreadsheet takes for what it is: text that would be a formula gets an apostrophe before it;
    numbers stay.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    # What would steer a terminal is escaped; so is \r, which the csv of Python before 3.13 does not quote.
    text = "".join(char if char in "\t\n" else printable(char) for char in value)
    if not value.startswith(_FORMULA):
        return text
    try:
        float(value)
    except ValueError:
        return f"'{text}"
    return text
