"""The tests that a new megatron-core can break, in the environment this runs in, and their page in docs/results.

    .venv-latest/bin/python tests/lanes.py latest        as `make test-latest` does
    .venv-image/bin/python tests/lanes.py image          as `make test-image` does

Each writes docs/results/compatibility/LANE.json, then docs/results/compatibility.md from all files there.
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
        "test_parity", "test_checkpoint", "test_batches", "test_tokenizer", "test_gpt_step", "test_layer_options", "test_backends",
        "test_attention", "test_decoder",
    ],
    "Text to music": ["test_dit", "test_flow_training", "test_flow_parity", "test_flow_sampling", "test_generate_audio"],
    "Hosts": ["latest"],
}  # fmt: skip
PACKAGES = ("megatron-core", "torch", "numpy", "transformers", "diffusers", "megatron-bridge", "nemo-toolkit", "nemo-run")


def run_suite(tests: list[str]) -> dict:
    """Counts and seconds of one call of pytest."""
    paths = [f"tests/{name}" if name == "latest" else f"tests/{name}.py" for name in tests]
    options = ["-W", "ignore"] if "latest" in tests else []  # the hosts warn while they are imported
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        done = subprocess.run([sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *paths], cwd=ROOT, check=False)
        suite = ElementTree.parse(report).getroot().find("testsuite").attrib if report.exists() else {}
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    return {"status": done.returncode, "seconds": round(time.monotonic() - started), **counts}


def versions() -> dict[str, str]:
    found = {package.metadata["Name"].replace("_", "-"): package.version for package in importlib.metadata.distributions()}
    return {"Python": platform.python_version()} | {name: found.get(name, "absent") for name in PACKAGES}


def page(results: dict[str, dict]) -> str:
    """The page's text; every number in it is a run's."""
    lines = [
        "# Compatibility: megatron-core, NVIDIA's image and the hosts",
        "",
        "`make test` runs the whole suite on megatron-core 0.16.1, the newest for Python 3.11. Two more environments, on Python 3.12,",
        "run what another version of megatron-core, NumPy or a host can break. They download several gigabytes, so no run of",
        "`make test` includes them; their last runs are below, written by `tests/lanes.py`. All of it on CPUs, with gloo.",
        "",
    ]
    for lane, result in results.items():
        lines += [f"## {TITLES[lane]}", "", f"{result['date']}, {result['machine']}.", "", "| package | version |", "| --- | --- |"]
        lines += [f"| {name} | {version} |" for name, version in result["versions"].items()]
        lines += ["", "| tests | passed | failed | skipped | minutes |", "| --- | ---: | ---: | ---: | ---: |"]
        for name, counts in result["suites"].items():
            failed = counts["failures"] + counts["errors"]
            passed = counts["tests"] - failed - counts["skipped"]
            lines.append(f"| {name} | {passed} | {failed} | {counts['skipped']} | {counts['seconds'] / 60:.1f} |")
        lines.append("")
    return "\n".join(lines)


def main(lane: str) -> int:
    suites = {name: run_suite(tests) for name, tests in SUITES.items()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {
        "date": str(date.today()),
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": versions(),
        "suites": suites,
    }
    (RESULTS / f"{lane}.json").write_text(json.dumps(result, indent=1) + "\n")
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in TITLES if (RESULTS / f"{name}.json").exists()}
    RESULTS.with_suffix(".md").write_text(page(results))
    return max(suite["status"] for suite in suites.values())


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in TITLES:
        sys.exit(f"lanes.py: name one of {', '.join(TITLES)}")
    sys.exit(main(sys.argv[1]))
