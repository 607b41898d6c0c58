"""Names from strangers on a terminal, in Markdown and in CSV: they are shown, and steer nothing."""

import ast
import csv
import io
import json
from pathlib import Path

import pytest
from bounded import run_command
from tiny import tiny_score, write_corpus

from megatron_music import cli
from megatron_music.config.log import shown
from megatron_music.music.midi import write_midi
from megatron_music.reports.tables import format_table

ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e\r\udcff"


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_what_steers_a_terminal_is_shown_as_text():
    assert shown("two\nlines") == "two\nlines" and shown("Gr\u00fc\u00dfe") == "Gr\u00fc\u00dfe"
    assert is_harmless(shown(f"a {ESCAPES} b\nc")) and "\\x1b[2J" in shown(ESCAPES)


def test_names_in_errors_and_tables_do_not_reach_the_terminal_raw(tmp_path):
    event = {"ph": "X", "cat": "kernel", "name": f"gemm{ESCAPES[:-1]}", "ts": 1, "dur": 2}
    (tmp_path / "x.json").write_text(json.dumps({"traceEvents": [event], "distributedInfo": {"rank": ESCAPES[:-1]}}))
    checkpoint = tmp_path / "gift"
    checkpoint.mkdir()
    (checkpoint / "manifest.json").write_text(
        json.dumps({"version": 1, "files": {f"a{ESCAPES[:-1]}": {"size": 1, "sha256": "0"}}})
    )
    odd = tmp_path / f"x{ESCAPES[:3]}\x1b[31m.mid"
    odd.write_bytes(b"no MIDI")
    commands = [
        ["trace", tmp_path / "x.json"],
        ["trace", tmp_path / "x.json", "--markdown"],
        ["generate", "midi", checkpoint, "-o", tmp_path / "out"],
        ["trace", odd],
        ["tokenize", odd],
        ["plot", odd, "-o", tmp_path / "x.png"],
        ["train", f"recipe{ESCAPES[:-1]}"],
        [f"no{ESCAPES[:4]}"],
        ["trace", b"name-\xff\x1b[31m"],
        ["tokenize", b"name-\xff\x1b[31m"],
    ]
    for command in commands:
        done = run_command(*command)
        assert is_harmless(done.stdout) and is_harmless(done.stderr), (command, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr


def test_a_message_of_the_logger_is_shown_as_text(capsys):
    from megatron_music.config.log import logger

    logger.warning("the file %s", f"a{ESCAPES}b")
    assert is_harmless(capsys.readouterr().err)


KERNEL = "void at::FillFunctor<float>(a | b)\n<script>alert(1)</script> [x](http://y) \\| &amp; `c`"


def test_markdown_keeps_a_name_in_its_cell():
    table = format_table({"kernel": "", "seconds": ".1f"}, [{"kernel": KERNEL, "seconds": 1.0}], "markdown")
    head, rule, row = table.split("\n")
    assert row.count("|") - row.count("\\|") == 3 == head.count("|")
    assert "<" not in row and "&lt;float>" in row and "\\[x\\]" in row and "&amp;amp;" in row
    assert (
        row == r"| void at::FillFunctor&lt;float>(a \| b)\\n&lt;script>alert(1)&lt;/script> \[x\](http://y) \\\| "
        r"&amp;amp; \`c\` | 1.0 |"
    )


@pytest.mark.parametrize("cell", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\tx", "\rx", '=HYPERLINK("http://x")', "-x"])
def test_a_spreadsheet_takes_a_name_for_no_formula(cell):
    ((_,), (found,)) = csv.reader(io.StringIO(format_table({"name": ""}, [{"name": cell}], "csv"), newline=""))
    assert found == "'" + cell.replace("\r", r"\r")


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [(-1.5, "-1.5"), (-3, "-3"), ("-1.5", "-1.5"), ("+2e3", "+2e3"), ("plain", "plain"), (None, ""), (True, "True")],
)
def test_numbers_stay_numbers_in_csv(cell, wanted):
    ((_, _), (found, _)) = csv.reader(io.StringIO(format_table({"name": "", "x": ""}, [{"name": cell, "x": 1}], "csv")))
    assert found == wanted


def prints(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def test_commands_print_text_through_what_escapes_it():
    """JSON and tables escape by themselves; everything else has names in it sooner or later."""
    modules = [
        path for path in sorted(Path(cli.__file__).parent.glob("*.py")) if path.name != "entry.py"
    ]  # prints errors only
    found = [(path.name, ast.unparse(call)) for path in modules for call in prints(path)]
    safe = ("print()", "print(json.dumps(", "print(format_table(", "print('\\n' + format_table(")
    assert len(found) > 15 and [call for call in found if not call[1].startswith(safe)] == []


def test_names_in_results_do_not_reach_the_terminal_raw(tmp_path):
    write_corpus(tmp_path / "midi")
    midi, odd = min((tmp_path / "midi").glob("*.mid")), f"x{ESCAPES[:3]}\x1b[31m"
    tokens = tmp_path / "tokens.txt"
    tokens.write_text(run_command("tokenize", midi).stdout)
    commands = [
        ["plot", midi, "-o", tmp_path / f"{odd}.png"],
        ["detokenize", tokens, "-o", tmp_path / f"{odd}.mid"],
        ["launch", "-o", tmp_path / odd],
        ["sweep", "tiny", "-o", tmp_path / f"sweep{odd}", "--plan"],
    ]
    for command in commands:
        done = run_command(*command)
        assert done.returncode == 0 and "\\x1b[31m" in done.stdout, (command, done.stdout, done.stderr)
        assert is_harmless(done.stdout) and is_harmless(done.stderr), (command, done.stdout, done.stderr)


def test_the_heads_of_a_table_are_shown_as_text():
    for form in ("text", "markdown", "csv"):
        table = format_table({f"n{ESCAPES}": "", "x": ""}, [{f"n{ESCAPES}": "a", "x": 1}], form)
        assert is_harmless(table) and "\\x1b" in table, form


def test_a_cell_of_csv_keeps_its_lines_and_tabs_and_steers_nothing():
    table = format_table({"name": ""}, [{"name": f"a\tb\nc{ESCAPES}"}], "csv")
    ((_,), (found,)) = csv.reader(io.StringIO(table, newline=""))
    assert found.startswith("a\tb\nc") and is_harmless(table.replace("\t", "")) and "\\x1b[2J" in found


def test_a_sweep_from_a_stranger_steers_no_terminal(tmp_path):
    sweep, odd = tmp_path / "sweep", ESCAPES[:-1]
    assert run_command("sweep", "tiny", "-o", sweep, "--vary", "train.micro_batch_size=1,2", "--plan").returncode == 0
    plan = json.loads((sweep / "plan.json").read_text())
    for row in plan["rows"]:
        row["settings"][f"train.{odd}"] = odd
    (sweep / "plan.json").write_text(json.dumps(plan | {"name": odd}))
    outcome = {
        "status": "measured",
        "step_seconds": [1.0],
        "tokens_per_step": 1.0,
        "flops": 1e9,
        "device": odd,
        "memory_gb": odd,
        "gpu": {"power_w": odd},
    }
    for number, made in enumerate((outcome, {"status": odd, "reason": odd})):
        (sweep / "rows" / f"{number:03}.json").write_text(json.dumps(made))
    for form in ([], ["--markdown"], ["--csv"], ["--json"]):
        done = run_command("sweep", sweep, "--report", *form)
        assert is_harmless(done.stdout) and is_harmless(done.stderr), (form, done.stdout, done.stderr)
        assert done.stdout and "Traceback" not in done.stderr, done.stderr


def test_a_page_of_a_name_that_is_no_text_is_written(tmp_path):
    write_midi(tiny_score(), tmp_path / "a.mid")
    done = run_command(
        "render", tmp_path / "a.mid", "-o", tmp_path / "a.wav", "--html", bytes(tmp_path) + b"/n\xff\x1b.html"
    )
    assert done.returncode == 0, done.stderr
    assert is_harmless(done.stdout) and "n\\udcff" in next(tmp_path.glob("n*.html")).read_text(encoding="utf-8")
