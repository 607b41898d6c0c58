"""Traces from strangers: files of some kilobytes that unpack or select without end, and values that are none."""

import gzip
import json
import os
import sqlite3
import struct

import pytest
from bounded import run_bounded, run_command

from megatron_music.profiling.trace import (
    read_trace,
    share_of,
    slowest_kernels,
    slowest_ranges,
)

EVENT = {"ph": "X", "cat": "kernel", "name": "sgemm", "pid": 0, "tid": 7, "ts": 100.0, "dur": 5.0}
READ = """
from pathlib import Path
from megatron_music.profiling.trace import read_trace
try:
    answer([list(timeline.names) for timeline in read_trace(Path(sys.argv[1]))])
except ValueError as error:
    answer(str(error))
"""


def packed(head: str, piece: str, mebibytes: int, tail: str = "") -> bytes:
    """A gzip of a head, of so much of a piece, and of a tail; a stream of gzip is any number of them one after
    another.
    """
    filler = gzip.compress((piece * ((16 << 20) // len(piece))).encode(), 6)
    return gzip.compress(head.encode()) + filler * (mebibytes // 16) + gzip.compress(tail.encode())


BOMBS = {
    "white space": (("[", " ", 256, json.dumps(EVENT) + "]"), [["sgemm"]]),
    "a name without end": (('[{"name": "', "x", 256), "Unterminated string"),
    "text that is no JSON": (("", "x", 256), "Expecting value"),
    "a list in a list": (("[", "[", 64), "nested too deeply"),
    "an object in an object": (("", '{"a":', 64), "nested too deeply"),
    "backslashes": (('[{"name": "', "\\", 64), "Unterminated string"),
    "events that are not read": (
        ("[", '{"ph": "M", "name": "a name of sixty characters, or about so many"},', 32, json.dumps(EVENT)),
        [["sgemm"]],
    ),
    "events that are read": (("[", json.dumps(EVENT) + ",", 32), [["sgemm"]]),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_packed_trace_takes_no_more_memory_than_its_events(tmp_path, bomb):
    parts, wanted = BOMBS[bomb]
    path = tmp_path / "x.json.gz"
    path.write_bytes(packed(*parts))
    assert path.stat().st_size < 3 << 20
    found = run_bounded(READ, path, mib=1600, seconds=200)
    assert found.value == wanted if isinstance(wanted, list) else wanted in found.value, found.value
    assert found.peak_mib < 500


def test_an_escape_that_lies_across_two_pieces_is_read(tmp_path):
    for shift in range(8):
        name = "x" * ((1 << 20) - 60 - shift) + r"\u00e9\\n\\" + r"C:\qq"
        event = json.dumps(EVENT).replace("sgemm", name)
        (tmp_path / "x.json").write_text(f"[{event}]")
        (found,) = read_trace(tmp_path / "x.json")
        (read,) = found.names
        assert len(read) == 64 << 10  # what is longer is cut
        (tmp_path / "y.json").write_text(
            "[" + " " * ((1 << 20) - 90 - shift) + json.dumps(EVENT).replace("sgemm", r"\u00e9\\n\\" + r"C:\qq") + "]"
        )
        assert list(read_trace(tmp_path / "y.json")[0].names) == ["\N{LATIN SMALL LETTER E WITH ACUTE}\\n\\C:\\qq"]


ODD_EVENTS = [
    {"ts": float("nan")},
    {"ts": float("inf")},
    {"ts": "soon"},
    {"ts": 10**400},
    {"ts": 1e308, "dur": 1e308},
    {"ts": None},
    {"ts": []},
    {"dur": float("nan")},
    {"dur": float("-inf")},
    {"dur": "x"},
    {"dur": {}},
    {"name": 3},
    {"name": None},
    {"name": ["x"]},
]
ODD_LABELS = [{"pid": "python"}, {"pid": [[]]}, {"tid": {"a": 1}}, {"pid": float("nan")}, {"pid": "1" * 10**6}]


@pytest.mark.parametrize("category", ["kernel", "cpu_op", "user_annotation"])
def test_events_of_odd_values_are_left_out_and_counted(tmp_path, category):
    path = tmp_path / "x.json"
    good = EVENT | {"cat": "cpu_op" if category == "cpu_op" else "kernel"}
    events = [good, *({**EVENT, "cat": category, **odd} for odd in ODD_EVENTS)]
    path.write_text(json.dumps({"traceEvents": events, "distributedInfo": {"rank": {"a": 1}}}))
    done = run_command("trace", path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"left out, without a name, a start or a length: {len(ODD_EVENTS)} events" in done.stdout


@pytest.mark.parametrize("odd", ODD_LABELS)
def test_processes_and_threads_may_have_any_label(tmp_path, odd):
    (tmp_path / "x.json").write_text(json.dumps([EVENT, {**EVENT, "cat": "cpu_op", **odd}]))
    assert list(read_trace(tmp_path / "x.json")[0].names) == ["sgemm"]
    (tmp_path / "y.json").write_text(json.dumps([{**EVENT, "cat": "cpu_op", **odd}]))
    assert list(read_trace(tmp_path / "y.json")[0].names) == ["sgemm"]


def export(path, kernels=(("sgemm", 0, 5000, 0, 1 << 24),)):
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE StringIds (id INTEGER, value TEXT)")
    base.execute(
        'CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER, "end" INTEGER, deviceId INTEGER, globalPid INTEGER, '
        "demangledName INTEGER)"
    )
    base.execute(
        'CREATE TABLE NVTX_EVENTS (start INTEGER, "end" INTEGER, eventType INTEGER, text TEXT, globalTid INTEGER)'
    )
    for number, (name, *row) in enumerate(kernels):
        base.execute("INSERT INTO StringIds VALUES (?, ?)", (number, name))
        base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?, ?)", (*row, number))
    base.commit()
    return base


ENDLESS = "WITH RECURSIVE endless(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM endless)"


@pytest.mark.parametrize(
    "statement",
    [
        f"CREATE VIEW StringIds AS {ENDLESS} SELECT id, 'text ' || id AS value FROM endless",
        f"CREATE VIEW NVTX_EVENTS AS {ENDLESS} SELECT id AS start, id + 1 AS \"end\", 59 AS eventType, 'x' AS text, 0 "
        f"AS globalTid FROM endless",
        "CREATE TABLE StringIds (id INTEGER, value TEXT AS (hex(zeroblob(100))))",
        'CREATE TABLE NVTX_EVENTS (start INTEGER AS (length(hex(zeroblob(100)))), "end" INTEGER, eventType INTEGER, '
        "text TEXT, globalTid INTEGER)",
        "CREATE VIRTUAL TABLE StringIds USING fts5(id, value)",
    ],
    ids=["view of strings", "view of ranges", "computed text", "computed start", "virtual table"],
)
def test_views_and_computed_columns_are_not_asked(tmp_path, statement):
    path = tmp_path / "x.sqlite"
    base = export(path)
    name = statement.split()[2] if "VIRTUAL" not in statement else "StringIds"
    base.execute(f"DROP TABLE {name}")
    base.execute(statement)
    if "AS (" in statement and "TABLE" in statement:
        column = "id" if name == "StringIds" else "eventType"
        base.executemany(f"INSERT INTO {name} ({column}) VALUES (?)", [(59,)] * 10)
    base.commit()
    base.close()
    found = run_bounded(READ, path, mib=1600, seconds=300)
    assert found.value in ([["0"]], [["sgemm"]]) and found.peak_mib < 300


def test_a_table_whose_pages_are_its_own_children_has_an_end(tmp_path):
    """Twelve levels of pages, each of which has the next one as all its children, are 100 ** 12 rows."""
    path = tmp_path / "x.sqlite"
    base = export(path, [(f"kernel {number}", 0, 5000, 0, 1 << 24) for number in range(3000)])
    (page_size,), (root,) = (
        base.execute("PRAGMA page_size").fetchone(),
        base.execute("SELECT rootpage FROM sqlite_master WHERE name = 'StringIds'").fetchone(),
    )
    base.close()
    content = bytearray(path.read_bytes())
    top = content[(root - 1) * page_size : root * page_size]
    assert top[0] == 5  # an interior page of a table
    (num_cells,) = struct.unpack(">H", top[3:5])
    leaf = struct.unpack(">I", top[8:12])[0]
    num_pages = len(content) // page_size
    chain = [num_pages + 1 + level for level in range(12)]
    for level, _ in enumerate(chain):
        below = chain[level + 1] if level + 1 < len(chain) else leaf
        page = bytearray(top)
        page[8:12] = struct.pack(">I", below)
        for cell in range(num_cells):
            (place,) = struct.unpack(">H", page[12 + 2 * cell : 14 + 2 * cell])
            page[place : place + 4] = struct.pack(">I", below)
        content += page
    content[(root - 1) * page_size : root * page_size] = content[-12 * page_size : -11 * page_size]
    content[28:32] = struct.pack(">I", len(content) // page_size)
    path.write_bytes(content)
    found = run_bounded(READ, path, mib=1600, seconds=300)
    assert "cannot be read as nsys's sqlite" in found.value, found.value


def test_a_text_that_many_rows_share_is_read_so_often_as_the_file_is_large(tmp_path):
    path = tmp_path / "x.sqlite"
    base = export(path)
    base.executemany("INSERT INTO StringIds VALUES (?, ?)", [(number, "a" * 900_000) for number in range(1, 40)])
    base.commit()
    base.close()
    assert list(read_trace(path)[0].names) == ["sgemm"]
    with sqlite3.connect(path) as base:
        base.execute("INSERT INTO StringIds VALUES (100, ?)", ("b" * 2_000_000,))
    with pytest.raises(ValueError, match=r"x.sqlite cannot be read as nsys's sqlite \(string or blob too big\)"):
        read_trace(path)


def test_rows_of_odd_values_are_left_out_and_counted(tmp_path):
    path = tmp_path / "x.sqlite"
    base = export(path)
    odd = [
        (None, 5, 0, 1, 0),
        (5, None, 0, 1, 0),
        ("a", 9, 0, 1, 0),
        (5, b"b", 0, 1, 0),
        (5, 9, "first", 1, 0),
        (5, 9, 0, "text", 0),
        (-9e300, 9e300, 0, 1, 0),
    ]
    base.executemany("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (?, ?, ?, ?, ?)", odd)
    base.execute("INSERT INTO CUPTI_ACTIVITY_KIND_KERNEL VALUES (6000, 7000, 0, ?, ?)", (1 << 24, b"a blob"))
    base.execute("INSERT INTO StringIds VALUES (7, CAST(x'ff41' AS TEXT))")
    base.executemany(
        "INSERT INTO NVTX_EVENTS VALUES (?, ?, 59, ?, ?)",
        [("x", "y", "r", 5), (1, 2, None, "text"), (1, float("inf"), "r", None), (1, 5, "good", 1 << 24)],
    )
    base.commit()
    base.close()
    done = run_command("trace", path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert f"left out, without a name, a start or a length: {len(odd)} events" in done.stdout and "good" in done.stdout


@pytest.mark.parametrize(
    "name", ["odd?name#.sqlite", "odd%41.sqlite", "a b&c=d.sqlite", "?mode=rwc.sqlite", b"bytes-\xff.sqlite"]
)
def test_a_file_of_any_name_is_read_and_none_is_made(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = os.path.join(os.fsencode(folder), os.fsencode(name))
    export(os.fsdecode(path)).close() if isinstance(name, str) else os.rename(_moved(tmp_path), path)
    before = os.listdir(os.fsencode(folder))
    done = run_command("trace", path, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kernels"][0]["kernel"] == "sgemm"
    assert os.listdir(os.fsencode(folder)) == before == [os.fsencode(name)]


def _moved(folder):
    export(folder / "plain.sqlite").close()
    return folder / "plain.sqlite"


def test_a_pipe_and_a_device_are_no_traces(tmp_path):
    os.mkfifo(tmp_path / "x.json")
    for path in (tmp_path / "x.json", "/dev/zero", tmp_path):
        done = run_command("trace", path, seconds=300)
        assert done.returncode == 2 and "is not a regular file" in done.stderr and done.stderr.count("\n") == 1


def test_what_is_read_can_be_added_up(tmp_path):
    (tmp_path / "x.json").write_text(
        json.dumps([EVENT, EVENT | {"ts": 102.0}, EVENT | {"cat": "user_annotation", "name": "step"}])
    )
    (timeline,) = read_trace(tmp_path / "x.json")
    assert share_of(timeline).seconds == pytest.approx(7e-6)
    assert slowest_kernels([timeline])[0]["seconds"] == pytest.approx(1e-5) and slowest_ranges([timeline])[0][
        "seconds"
    ] == pytest.approx(5e-6)
