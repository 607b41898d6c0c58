"""Damaged and hostile inputs of every format through the readers of the commands: each is accepted, or refused with one
sentence.

    python benchmarks/fuzz_readers.py [--formats midi,idx,...] [--inputs 20000] [--seconds 120] [--workers 1] [--seed 0] [--json FILE] [--page FILE.md]

The formats, their readers and what is a fault are in ``tests/fuzz_formats.py`` and ``tests/fuzz_worker.py``. Each
format's inputs are read by a process with 2 GiB of memory beyond what its libraries take and 20 s for each input.
``--seconds`` ends a format before its inputs are all done; the table says how many were. ``--json`` adds the formats of
this run to those of earlier ones in the file, if machine and versions are the same. ``--page`` writes the table between
the page's marks `<!-- fuzzing -->`. Exit status 1 where there is a fault: `python tests/fuzz_worker.py FORMAT NUMBER`
does one input again.
"""

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from functools import partial
from importlib.metadata import version
from pathlib import Path

from machine import machine
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from fuzz_formats import FORMATS
from fuzz_worker import FAULTS, MEMORY_BYTES, SECONDS_PER_INPUT, fuzz

MARK = "<!-- fuzzing -->"
PACKAGES = ("numpy", "torch", "megatron-core", "transformers", "safetensors", "soundfile", "PyYAML", "miditoolkit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=120.0, help="of a format, whatever is left of its inputs")
    parser.add_argument("--workers", type=int, default=1, help="formats at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--page", type=Path, default=None)
    options = parser.parse_args()
    names = options.formats.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"{unknown[0]!r} is no format; use {', '.join(FORMATS)}")
    with tqdm(total=len(names) * options.inputs, disable=None) as bar, ThreadPoolExecutor(options.workers) as threads:
        read = partial(fuzz, inputs=options.inputs, seed=options.seed, time_limit=options.seconds, progress=bar.update)
        results = dict(zip(names, threads.map(read, names), strict=True))
    run = {
        "date": date.today().isoformat(),
        "inputs": options.inputs,
        "seconds_per_format": options.seconds,
        "seed": options.seed,
    }
    bounds = {"seconds_per_input": SECONDS_PER_INPUT, "memory_bytes": MEMORY_BYTES}
    facts = {"machine": machine(), "versions": {package: version(package) for package in PACKAGES}} | bounds
    formats = {name: vars(result) | {"outcomes": dict(result.outcomes)} | run for name, result in results.items()}
    if options.json and options.json.exists():
        earlier = json.loads(options.json.read_text())
        if all(earlier[key] == value for key, value in facts.items()):
            formats = earlier["formats"] | formats
    facts["formats"] = {name: formats[name] for name in FORMATS if name in formats}
    print(report(facts))
    if options.json:
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if options.page:
        before, mark, rest = options.page.read_text(encoding="utf-8").partition(MARK)
        options.page.write_text(f"{before}{mark}\n{report(facts)}\n{mark}{rest.partition(MARK)[2]}", encoding="utf-8")
    for name, result in results.items():
        for fault in result.faults:
            print(
                f"\n{name} {fault['number']} ({fault['file']}): {fault['outcome']}: {fault.get('place', '')!a} "
                f"{fault['reason'][:300]!a}"
            )
    if faults := sum(result.num_faults for result in results.values()):
        sys.exit(f"{faults} inputs were neither accepted nor refused with a sentence")


def report(facts: dict) -> str:
    """Markdown: what was run, and a row for each format."""
    versions = ", ".join(f"{package} {number}" for package, number in facts["versions"].items())
    lines = [
        f"`python benchmarks/fuzz_readers.py`: {facts['machine']}; {versions}. At most {facts['seconds_per_input']:g} "
        f"s of an input; "
        "[fuzz-formats.json](fuzz-formats.json) has the date and the limits of each format.",
        "",
        "| format | inputs | accepted | refused | " + " | ".join(FAULTS) + " | seconds | slowest input | memory |",
        "| --- |" + " ---: |" * (6 + len(FAULTS)),
    ]
    for name, result in facts["formats"].items():
        outcomes = result["outcomes"]
        counts = " | ".join(f"{outcomes.get(outcome, 0):,}" for outcome in ("accepted", "refused", *FAULTS))
        lines.append(
            f"| {name} | {sum(outcomes.values()):,} | {counts} | {result['seconds']:.0f} | "
            f"{result['slowest_seconds']:.2f} s "
            f"| {result['memory_bytes'] >> 20} MiB |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
