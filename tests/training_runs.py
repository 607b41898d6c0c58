"""A run under way as tests watch it: its metrics, and waiting for an iteration."""

import json
import os
import subprocess
import time
from pathlib import Path

# What the clock and the machine's memory decide.
NEVER_THE_SAME = ("step_seconds", "tokens_per_second", "tflops_per_gpu", "mfu", "process_memory_gib", "cuda_memory_gib")


def read_metrics(folder: Path) -> list[dict]:
    """The lines of a run's metrics without what is never the same twice."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in line if key not in NEVER_THE_SAME} for line in lines]


def wait_for_iteration(process: subprocess.Popen, folder: Path, iteration: int) -> None:
    """Until the metrics tell of an iteration; fails when the run ends before."""
    while True:
        with open(folder / "metrics.jsonl") if (folder / "metrics.jsonl").is_file() else open(os.devnull) as file:
            lines = [line for line in file if line.endswith("\n")]
        if lines and json.loads(lines[-1])["iteration"] >= iteration:
            return
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.005)
