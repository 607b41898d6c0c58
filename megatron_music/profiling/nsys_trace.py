"""The sqlite that ``nsys export`` makes of a report. Tables exist only for what was traced; columns differ between versions of nsys."""

import os
import re
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from megatron_music.profiling.timeline import Timeline, timeline_of

# nsys's default is one row for a whole CUDA graph, not one for each of its kernels.
_TABLES = {
    "CUPTI_ACTIVITY_KIND_KERNEL": None,
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": "CUDA graph",
    "CUPTI_ACTIVITY_KIND_MEMCPY": "memcpy",
    "CUPTI_ACTIVITY_KIND_MEMSET": "memset",
}
# torch's emit_nvtx adds a number to each call: "aten::to, op_id = 998949", "aten::mm, seq = 7, op_id = 3".
_CALL_NUMBER = re.compile(r", (?:op_id|seq) = ")


def read_nsys(path: Path) -> list[Timeline]:
    """Each process and GPU of an export, in the order of the GPUs.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fspath(path))}?mode=ro", uri=True)) as base:
            tables = {row[0] for row in base.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")}
            texts = dict(base.execute("SELECT id, value FROM StringIds")) if "StringIds" in tables else {}
            pieces: dict[tuple[int, int], list] = defaultdict(list)  # by GPU and process
            num_graphs: dict[tuple[int, int], int] = defaultdict(int)
            for table, fixed in _TABLES.items():
                if table not in tables:
                    continue
                for owner, label, span in _rows(base, table, fixed, texts):
                    pieces[owner].append((label, [span]))
                    num_graphs[owner] += fixed == "CUDA graph"
            ranges = _nvtx(base, tables, texts)
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} cannot be read as nsys's sqlite ({error}); export it again: nsys export --type sqlite") from None
    processes = [process for _, process in pieces]
    found = []
    for gpu, process in sorted(pieces):
        rank = path.stem if len(pieces) == 1 else f"{path.stem}:{process}"
        if processes.count(process) > 1:
            rank += f":gpu{gpu}"
        own = pieces[gpu, process]
        found.append(timeline_of(rank, "GPU", own, ranges.get(process, {}), num_graphs=num_graphs[gpu, process]))
    return found


def _rows(base: sqlite3.Connection, table: str, fixed: str | None, texts: dict):
    """Owner, name and interval in microseconds of each row."""
    columns = {row[1] for row in base.execute(f"PRAGMA table_info({table})")}
    name = next((column for column in ("demangledName", "shortName", "name") if column in columns), None)
    process = next((column for column in ("globalPid", "globalTid") if column in columns), None)
    gpu = "deviceId" if "deviceId" in columns else "0"
    wanted = f"SELECT start, \"end\", {gpu}, {process or '0'}, {name if fixed is None and name else 'NULL'} FROM {table}"  # fixed names
    for start, end, device, owner, text in base.execute(wanted):
        if start is not None and end is not None and end > start:
            yield (device or 0, _process(owner) if process else 0), fixed or str(texts.get(text, text)), (start / 1e3, end / 1e3)


def _nvtx(base: sqlite3.Connection, tables: set[str], texts: dict) -> dict[int, dict[str, list]]:
    found: dict[int, dict[str, list]] = defaultdict(lambda: defaultdict(list))
    if "NVTX_EVENTS" not in tables:
        return found
    columns = {row[1] for row in base.execute("PRAGMA table_info(NVTX_EVENTS)")}
    chosen = [column if column in columns else "NULL" for column in ("text", "textId", "globalTid")]
    wanted = f"SELECT start, \"end\", {', '.join(chosen)} FROM NVTX_EVENTS WHERE eventType IN (59, 60) AND \"end\" IS NOT NULL"  # fixed names
    for start, end, text, identifier, owner in base.execute(wanted):
        name = _CALL_NUMBER.split(str(text or texts.get(identifier, identifier)), maxsplit=1)[0]
        found[_process(owner)][name].append((start / 1e3, end / 1e3))
    return found


def _process(owner: int | None) -> int:
    """The process id within nsys's global ids: bits 24 to 47."""
    return (owner >> 24) & 0xFFFFFF if owner is not None else 0
