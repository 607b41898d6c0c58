"""Damaged and hostile inputs of every format through the readers of the commands: each is accepted, or refused with one sentence.

    python benchmarks/fuzz_formats.py [--formats midi,idx,...] [--inputs 20000] [--seconds 60] [--seed 0] [--json FILE]

The formats, their readers and what is a fault are in ``tests/fuzz_formats.py`` and ``tests/fuzz_worker.py``. Each format's inputs are read
by a process with 2 GiB of memory beyond what its libraries take and 20 s for each input. ``--seconds`` ends a format before its inputs are
all done; the table says how many were. Exit status 1 where there is a fault: `python tests/fuzz_worker.py FORMAT NUMBER` does one input again.
"""

import argparse
import json
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from machine import machine
from tqdm import tqdm

sys.path.append(str(Path(__file__).parent.parent / "tests"))
from fuzz_formats import FORMATS  # noqa: E402
from fuzz_worker import FAULTS, MEMORY_BYTES, SECONDS_PER_INPUT, Result, fuzz  # noqa: E402

PACKAGES = ("numpy", "torch", "megatron-core", "transformers", "safetensors", "soundfile", "PyYAML", "miditoolkit")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of a format, whatever is left of its inputs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    names = options.formats.split(",")
    if unknown := [name for name in names if name not in FORMATS]:
        parser.error(f"{unknown[0]!r} is no format; use {', '.join(FORMATS)}")
    results = {}
    for name in names:
        with tqdm(total=options.inputs, desc=name, disable=None) as bar:
            results[name] = fuzz(name, options.inputs, seed=options.seed, time_limit=options.seconds, progress=bar.update)
    print(table(results))
    for name, result in results.items():
        for fault in result.faults:
            print(f"\n{name} {fault['number']} ({fault['file']}): {fault['outcome']}: {fault.get('place', '')} {fault['reason'][:300]}")
    if options.json:
        facts = {
            "machine": machine(), "versions": {package: version(package) for package in PACKAGES}, "seed": options.seed, "inputs": options.inputs,
            "seconds_per_format": options.seconds, "seconds_per_input": SECONDS_PER_INPUT, "memory_bytes": MEMORY_BYTES,
            "command": " ".join(["python", "benchmarks/fuzz_formats.py", *sys.argv[1:]]),
            "formats": {name: asdict(result) for name, result in results.items()},
        }  # fmt: skip
        options.json.write_text(json.dumps(facts, indent=1) + "\n")
    if faults := sum(result.num_faults for result in results.values()):
        sys.exit(f"{faults} inputs were neither accepted nor refused with a sentence")


def table(results: dict[str, Result]) -> str:
    """Markdown: a row for each format."""
    rows = ["| format | inputs | accepted | refused | " + " | ".join(FAULTS) + " | seconds | slowest input | memory |", "| --- |" + " ---: |" * (6 + len(FAULTS))]
    for name, result in results.items():
        counts = " | ".join(f"{result.outcomes[outcome]:,}" for outcome in ("accepted", "refused", *FAULTS))
        rows.append(f"| {name} | {result.inputs:,} | {counts} | {result.seconds:.0f} | {result.slowest_seconds:.2f} s | {result.memory_bytes >> 20} MiB |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
