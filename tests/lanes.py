"""The tests that a new megatron-core can break, in the environment this runs in, and their page in docs/results.

    .venv-latest/bin/python tests/lanes.py latest        as `make test-latest` does
    .venv-image/bin/python tests/lanes.py image          as `make test-image` does

Words behind the lane's name run some of its suites. After each suite docs/results/compatibility/LANE.json is written,
then docs/results/compatibility.md from all files there. The page has the last run of each suite.
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "compatibility"
TITLES = {
    "latest": "`make test-latest`: the newest megatron-core and hosts",
    "image": "`make test-image`: the versions in NVIDIA's default image",
}
SUITES = {
    "GPT": [
        "training/test_parity.py",
        "training/test_state.py",
        "data/test_batches.py",
        "tokens/test_tokenizer.py",
        "training/test_gpt_step.py",
        "models/test_layer_options.py",
        "parallel/test_backends.py",
        "models/test_attention.py",
        "generation/test_decoder.py",
        "checkpoints/test_sharding.py",
    ],
    "Text to music": [
        "models/test_dit.py",
        "training/test_flow_training.py",
        "training/test_flow_parity.py",
        "generation/test_flow_sampling.py",
        "cli/test_generate_audio.py",
    ],
    "Hosts": ["latest"],
}
PACKAGES = (
    "megatron-core",
    "torch",
    "numpy",
    "transformers",
    "diffusers",
    "megatron-bridge",
    "nemo-toolkit",
    "nemo-run",
)


def run_suite(tests: list[str]) -> dict:
    """Counts and seconds of one call of pytest."""
    paths = [f"tests/{name}" for name in tests]
    options = ["-W", "ignore"] if "latest" in tests else []  # the hosts warn while they are imported
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *paths], cwd=ROOT, check=False
        )
        suite = ElementTree.parse(report).getroot().find("testsuite").attrib if report.exists() else {}
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    facts = {
        "date": str(date.today()),
        "versions": versions(),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
    }
    return facts | {"status": done.returncode, "seconds": round(time.monotonic() - started), **counts}


def versions() -> dict[str, str]:
    found = {
        package.metadata["Name"].replace("_", "-"): package.version for package in importlib.metadata.distributions()
    }
    return {"Python": platform.python_version()} | {name: found.get(name, "absent") for name in PACKAGES}


def page(results: dict[str, dict]) -> str:
    """The page's text; every number in it is a run's."""
    lines = [
        "# Compatibility: megatron-core, NVIDIA's image and the hosts",
        "",
        "`make test` runs the whole suite on megatron-core 0.16.1, the newest for Python 3.11. Two more environments,",
        "on Python 3.12, run what another version of megatron-core, NumPy or a host can break. They download several",
        "gigabytes, so no run of `make test` includes them; their last runs are below, written by `tests/lanes.py`.",
        "All of it on CPUs, with gloo.",
        "",
    ]
    for lane, suites in results.items():
        lines += [f"## {TITLES[lane]}", "", "| tests | date | machine | passed | failed | skipped | minutes |"]
        lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
        for name in SUITES:
            lines.append(row(name, suites.get(name)))
        lines += ["", "| package | version |", "| --- | --- |"] if suites else []
        for name in ("Python", *PACKAGES) if suites else ():
            found = dict.fromkeys(suite["versions"][name] for suite in suites.values())
            lines.append(f"| {name} | {', '.join(found)} |")
        lines.append("")
    return "\n".join(lines)


def row(name: str, suite: dict | None) -> str:
    """A suite's line of the table."""
    if suite is None:
        return f"| {name} | not run | | | | | |"
    failed = suite["failures"] + suite["errors"]
    passed = suite["tests"] - failed - suite["skipped"]
    minutes = f"{suite['seconds'] / 60:.1f}"
    return f"| {name} | {suite['date']} | {suite['machine']} | {passed} | {failed} | {suite['skipped']} | {minutes} |"


def read(lane: str) -> dict:
    path = RESULTS / f"{lane}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def main(lane: str, names: list[str]) -> int:
    RESULTS.mkdir(parents=True, exist_ok=True)
    status = 0
    for name in names:
        suite = run_suite(SUITES[name])
        (RESULTS / f"{lane}.json").write_text(json.dumps(read(lane) | {name: suite}, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(page({lane: read(lane) for lane in TITLES}))
        status = max(status, suite["status"])
    return status


if __name__ == "__main__":
    lane, *names = sys.argv[1:] or [""]
    if lane not in TITLES or not set(names) <= set(SUITES):
        sys.exit(f"lanes.py: name one of {', '.join(TITLES)}, and nothing else or some of {', '.join(SUITES)}")
    sys.exit(main(lane, names or list(SUITES)))
