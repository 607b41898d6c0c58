"""``benchmarks/kills.py`` tells a command that survives kill -9 from one that does not."""

import random
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from kills import Job, contents, killed, traces, try_kills

SLOW = "import os, shutil, sys, time\nfrom pathlib import Path\nout = Path(sys.argv[2])\n"
# Ten files, one after another: in a folder that is renamed when it is whole, or in place, where what is there is taken
# for whole.
WHOLE = (
    SLOW
    + """
made = out.with_name(out.name + ".unfinished")
shutil.rmtree(made, ignore_errors=True)
made.mkdir()
for number in range(10):
    (made / f"{number}.txt").write_text("x" * 1000)
    time.sleep(0.02)
os.rename(made, out)
"""
)
IN_PLACE = (
    SLOW
    + """
out.mkdir(exist_ok=True)
for number in range(10):
    path = out / f"{number}.txt"
    if not path.exists():
        with open(path, "w") as file:
            file.write("x" * 500)
            file.flush()
            time.sleep(0.02)
            file.write("x" * 500)
"""
)
REFUSES = (
    SLOW
    + """
if any(out.name in path.name for path in out.parent.iterdir()):
    sys.exit("it is there already")
out.mkdir()
for number in range(10):
    (out / f"{number}.txt").write_text("x")
    time.sleep(0.02)
"""
)
LEAVES = WHOLE.replace(
    "shutil.rmtree(made, ignore_errors=True)", "made = made.with_name(f'{made.name}{os.urandom(8).hex()}')"
)


@pytest.mark.parametrize(
    ("program", "fails"), [(WHOLE, None), (IN_PLACE, "different"), (REFUSES, "refused"), (LEAVES, "left_behind")]
)
def test_a_command_that_does_not_survive_a_kill_is_found_out(tmp_path, program, fails):
    found = try_kills("x", Job([], "-o", program=(sys.executable, "-c", program)), tmp_path, 8, random.Random(0))
    assert found["kills"] == 8 and sum(found["moments"].values()) == 8
    assert {name for name in ("different", "refused", "left_behind") if found[name]} == ({fails} if fails else set()), (
        found
    )


def test_a_command_that_was_over_before_its_kill_does_not_count(tmp_path):
    job = Job([], "-o", program=(sys.executable, "-c", WHOLE))
    assert not killed(job, tmp_path / "out", lambda: __import__("time").sleep(3))
    assert traces(tmp_path / "out") == [tmp_path / "out"] and len(contents(tmp_path / "out")) == 10


def test_times_and_rates_alone_are_left_out_of_the_comparison(tmp_path):
    rows = ['{"iteration": 1, "loss": 2.0, "step_seconds": %s}', '{"iteration": 1, "loss": %s, "step_seconds": 1.0}']
    for number, row in enumerate(rows):
        for value in ("1.0", "2.5"):
            (tmp_path / f"{number}-{value}").mkdir()
            (tmp_path / f"{number}-{value}" / "metrics.jsonl").write_text(row % value + "\n")
    assert contents(tmp_path / "0-1.0") == contents(tmp_path / "0-2.5") and contents(tmp_path / "1-1.0") != contents(
        tmp_path / "1-2.5"
    )
