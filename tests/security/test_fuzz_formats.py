"""Damaged and hostile files of every format through the readers of the commands: accepted, or refused with one
sentence.

The short form of ``benchmarks/fuzz_readers.py`` (`make fuzz`), which does twenty thousand of each.
"""

import json
import os
import sys
from pathlib import Path

import fuzz_faulty
import pytest
from fuzz_formats import FORMATS
from fuzz_mutations import KINDS, kind_of, mutant_of
from fuzz_worker import (
    ACCEPTED,
    CRASH,
    FAULTS,
    HANG,
    MEMORY,
    REFUSED,
    SENTENCE,
    TRACEBACK,
    Bench,
    fuzz,
    judged,
)

ROOT = Path(__file__).parent.parent.parent
INPUTS = {
    "checkpoint": 40,
    "hugging face": 60,
    "plan": 150,
    "shard record": 150,
    "job scripts": 100,
}  # of others 300: a few seconds each


@pytest.mark.parametrize("name", FORMATS)
def test_a_good_file_is_accepted(tmp_path, name):
    """Else every damaged one would be refused for a reason of its own."""
    bench = Bench(FORMATS[name], tmp_path)
    before = Path.cwd()
    os.chdir(bench.folder)
    try:
        found = judged(FORMATS[name], bench.folder, bench.folder / bench.names[0])
    finally:
        os.chdir(before)
    assert found["outcome"] == (ACCEPTED if FORMATS[name].is_whole else REFUSED), found


@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_accepted_or_refused_with_one_sentence(name):
    found = fuzz(name, INPUTS.get(name, 300))
    assert found.inputs == INPUTS.get(name, 300)
    assert not found.num_faults, json.dumps(found.faults, indent=1)
    assert found.outcomes[REFUSED] or name == "run folder", (
        "nothing was damaged"
    )  # what a run kept of its past never keeps it from going on


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("memory", MEMORY),
        ("memory at once", MEMORY),
        ("crash", CRASH),
        ("hang", HANG),
        ("traceback", TRACEBACK),
        ("bad sentence", SENTENCE),
        ("refused", REFUSED),
    ],
)
def test_every_fault_of_a_reader_is_noticed_and_costs_one_input(name, outcome):
    found = fuzz(name, 3, table="fuzz_faulty", seconds_per_input=3.0 if name == "hang" else 60.0)
    assert found.outcomes == {outcome: 3} and found.inputs == 3
    assert len(found.faults) == (outcome in FAULTS)  # of one kind the first is told


def test_a_reader_that_cannot_be_started_is_an_error_not_a_pass():
    with pytest.raises(RuntimeError, match="the reader of no such format cannot be started"):
        fuzz("no such format", 3)
    assert "no such format" not in FORMATS and "hang" in fuzz_faulty.FORMATS


@pytest.mark.parametrize("kind", sorted({*KINDS}))
def test_mutants_follow_from_their_number_and_differ(tmp_path, kind):
    """A fault can be had again, and so many inputs are not one input many times."""
    good = {
        "json": b'{"a": [1, {"b": "x"}], "c": 2.5}',
        "jsonl": b'{"a": 1}\n{"a": 2}\n',
        "yaml": b"model:\n  size: tiny\ntrain: {seed: 3}\n",
        "table": b"path,caption\na.wav,slow\nb.wav,fast\n",
        "lines": b"iteration 1 loss 2.5\niteration 2 loss 2.25\n",
    }.get(kind)
    if good is None:
        name = {"gzip": "traces", "sqlite": "traces", "safetensors": "latents", "bytes": "idx"}[kind]
        bench = Bench(FORMATS[name], tmp_path)
        good = next((bench.folder / path).read_bytes() for path in bench.names if kind_of(path.name) == kind)
    made = [mutant_of(kind, [good], number) for number in range(200)]
    assert made == [mutant_of(kind, [good], number) for number in range(200)]
    assert len(set(made)) > 120 and made != [mutant_of(kind, [good], number, seed=1) for number in range(200)]


def test_many_mutants_of_a_text_format_keep_the_format():
    """Those reach what stands behind the parser."""
    good = b'{"a": [1, {"b": "x"}], "c": 2.5, "d": {"e": null, "f": [true]}}'
    kept = 0
    for number in range(300):
        try:
            json.loads(mutant_of("json", [good], number))
            kept += 1
        except (ValueError, RecursionError):
            continue
    assert 100 < kept < 280


def test_the_page_shows_the_last_run_of_every_format():
    """``make fuzz FUZZ_OPTIONS="--json docs/results/fuzz-formats.json --page docs/results/robustness.md"``
    writes both.
    """
    sys.path.append(str(ROOT / "benchmarks"))
    from fuzz_readers import MARK, report

    facts = json.loads((ROOT / "docs" / "results" / "fuzz-formats.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "results" / "robustness.md").read_text(encoding="utf-8")
    assert page.split(MARK)[1].strip() == report(facts)
    assert facts["formats"].keys() >= FORMATS.keys()
