"""A table as a person reads it, as Markdown, or as CSV for another program. Knows nothing about what is in it."""

import csv
import io
from collections.abc import Sequence

FORMS = ("text", "markdown", "csv")
ABSENT = "-"  # to people; an empty field of CSV


def format_table(columns: dict[str, str], rows: Sequence[dict], form: str = "text") -> str:
    """Rows as lines, without a last line end.

    Args:
        columns: the key of each column and how its numbers are written for people, as for ``format``; empty: as ``str`` does.
        rows: a value for each key; a missing one or None is left empty. CSV has them in full, whatever the format.
        form: ``text``, ``markdown`` or ``csv``.

    Raises:
        ValueError: another form.
    """
    if form == "csv":
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if row.get(key) is None else row[key] for key in columns] for row in rows])
        return file.getvalue().rstrip("\n")
    if form not in FORMS:
        raise ValueError(f"a table's form is {form!r}; use one of {', '.join(FORMS)}")
    cells = format_cells(columns, rows)
    is_number = [any(isinstance(row.get(key), int | float) for row in rows) for key in columns]
    heads = [key.replace("_", " ") for key in columns]
    if form == "markdown":
        rules = ["---:" if right else "---" for right in is_number]
        return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rules, *cells])
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    aligned = [
        "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, is_number, strict=True))
        for line in [heads, *cells]
    ]
    return "\n".join(line.rstrip() for line in aligned)


def format_cells(columns: dict[str, str], rows: Sequence[dict]) -> list[list[str]]:
    """What stands in each row's cells, for people."""
    return [[_cell(row.get(key), how) for key, how in columns.items()] for row in rows]


def _cell(value, how: str) -> str:
    if value is None:
        return ABSENT
    return format(value, how) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
