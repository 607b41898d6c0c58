"""The sqlite that ``nsys export`` makes of a report. Tables exist only for what was traced; columns differ between
versions of nsys.

Only tables are read, no views and no computed columns, and only so far as a file of its size can hold rows.
"""

import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from megatron_music.profiling.timeline import Spans, Timeline, span_of, timeline_of

# nsys's default is one row for a whole CUDA graph, not one for each of its kernels.
_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": None,
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "CUDA graph",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "memcpy",
    "CUPTI_ACTIVITY_KIND_MEMSET": "memset",
}
# torch's emit_nvtx adds a number to each call: "aten::to, op_id = 998949", "aten::mm, seq = 7, op_id = 3".
_CALL_NUMBER = re.compile(r", (?:op_id|seq) = ")
_LONGEST_VALUE = 1 << 20  # bytes of one cell
_STEPS_PER_BYTE = 8  # of sqlite's machine; a row has 20 bytes and more, and takes 20 steps
_STEPS_BETWEEN_LOOKS = 1_000_000


def read_nsys(path: Path) -> list[Timeline]:
    """Each process and GPU of an export, in the order of the GPUs.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path.absolute()))}?mode=ro", uri=True)) as connection:
            base = _Export(connection, path.stat().st_size)
            texts = base.texts()
            pieces: dict[tuple[int, int], Spans] = defaultdict(Spans)  # by GPU and process
            num_graphs: dict[tuple[int, int], int] = defaultdict(int)
            num_left_out = 0
            for table, fixed in _TABLES.items():
                for owner, label, span in _rows(base, table, fixed, texts):
                    if span is None:
                        num_left_out += 1
                    elif span[1] > span[0]:
                        pieces[owner].add(label, *span)
                        num_graphs[owner] += fixed == "CUDA graph"
            ranges = _nvtx(base, texts)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read as nsys's sqlite ({error}); export it again: nsys export --type sqlite"
        ) from None
    processes = [process for _, process in pieces]
    found = []
    for gpu, process in sorted(pieces):
        rank = path.stem if len(pieces) == 1 else f"{path.stem}:{process}"
        if processes.count(process) > 1:
            rank += f":gpu{gpu}"
        own = pieces[gpu, process].arrays().items()
        of_process = ranges[process].arrays() if process in ranges else {}
        found.append(
            timeline_of(rank, "GPU", own, of_process, num_graphs=num_graphs[gpu, process], num_left_out=num_left_out)
        )
        num_left_out = 0  # told once
    return found


class _Export:
    """An open file of sqlite that somebody else made.

    Args:
        num_bytes: the size of the file, which bounds what is read of it.
    """

    def __init__(self, connection: sqlite3.Connection, num_bytes: int):
        self._connection = connection
        connection.text_factory = lambda content: content.decode("utf-8", "replace")
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        self._looks = 2 + num_bytes * _STEPS_PER_BYTE // _STEPS_BETWEEN_LOOKS
        self._characters = num_bytes
        connection.set_progress_handler(self._look, _STEPS_BETWEEN_LOOKS)
        self._tables = {
            name
            for name, statement in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            if "virtual" not in str(statement)[:40].lower()
        }

    def _look(self) -> bool:
        """Whether to break off: its rows would fill a larger file."""
        self._looks -= 1
        return self._looks < 0

    def columns(self, table: str) -> set[str]:
        """A table's own columns; none of a view, a virtual table, or where it is absent."""
        return (
            {row[1] for row in self._connection.execute(f"PRAGMA table_info({table})")}
            if table in self._tables
            else set()
        )

    def rows(self, query: str) -> Iterator[tuple]:
        """
        Raises:
            sqlite3.Error: it is damaged, or made to have no end.
            ValueError: it holds more text than it has bytes.
        """
        for row in self._connection.execute(query):
            self._characters -= sum(len(value) for value in row if isinstance(value, str | bytes))
            if self._characters < 0:
                raise ValueError("it holds more text than it has bytes")
            yield row

    def texts(self) -> dict:
        """What its ids of strings stand for."""
        if not {"id", "value"} <= self.columns("StringIds"):
            return {}
        return {number: text for number, text in self.rows("SELECT id, value FROM StringIds") if isinstance(text, str)}


def _rows(
    base: _Export, table: str, fixed: str | None, texts: dict
) -> Iterator[tuple[tuple[int, int], str, tuple[float, float] | None]]:
    """Owner, name and interval in microseconds of each row; no interval where the row has none."""
    columns = base.columns(table)
    if not {"start", "end"} <= columns:
        return
    name = next((column for column in ("demangledName", "shortName", "name") if column in columns), None)
    process = next((column for column in ("globalPid", "globalTid") if column in columns), None)
    gpu = "deviceId" if "deviceId" in columns else "0"
    # fixed names
    wanted = f'SELECT start, "end", {gpu}, {process or "0"}, {name if fixed is None and name else "NULL"} FROM {table}'
    for start, end, device, owner, text in base.rows(wanted):
        is_whole = isinstance(device, int | None) and isinstance(owner, int | None)
        span = _span(start, end) if is_whole else None
        yield (
            (device or 0, _process(owner) if process else 0) if is_whole else (0, 0),
            fixed or str(texts.get(text, text)),
            span,
        )


def _nvtx(base: _Export, texts: dict) -> dict[int, Spans]:
    found: dict[int, Spans] = defaultdict(Spans)
    columns = base.columns("NVTX_EVENTS")
    if not {"start", "end", "eventType"} <= columns:
        return found
    chosen = [column if column in columns else "NULL" for column in ("text", "textId", "globalTid")]
    # fixed names
    wanted = (
        f'SELECT start, "end", {", ".join(chosen)} FROM NVTX_EVENTS WHERE eventType IN (59, 60) AND "end" IS NOT NULL'
    )
    for start, end, text, identifier, owner in base.rows(wanted):
        span = _span(start, end)
        if span is not None and isinstance(owner, int | None):
            found[_process(owner)].add(
                _CALL_NUMBER.split(str(text or texts.get(identifier, identifier)), maxsplit=1)[0], *span
            )
    return found


def _span(start: Any, end: Any) -> tuple[float, float] | None:
    """An interval in microseconds from two numbers of nanoseconds; None where they are none."""
    if not (isinstance(start, int | float) and isinstance(end, int | float)):
        return None
    return span_of(start / 1e3, end / 1e3)


def _process(owner: int | None) -> int:
    """The process id within nsys's global ids: bits 24 to 47."""
    return (owner >> 24) & 0xFFFFFF if owner is not None else 0
