"""A cluster of two nodes for the whole session, and jobs on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY")


class Cluster:
    """Slurm's commands as a user gives them."""

    def __init__(self, folder: Path):
        # What a shell has, without what a launcher above us may have left.
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("SLURM_", "SBATCH_", "MEGATRON_MUSIC_"))
        }
        self.environment = {
            **kept,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "MEGATRON_MUSIC_VENV": str(Path(sys.executable).parent.parent),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def run(self, *command: str, check: bool = True, cwd: Path = ROOT, **variables: str) -> str:
        """What a command prints."""
        done = subprocess.run(
            command, cwd=cwd, env=self.environment | variables, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, folder: Path, *arguments: str, **variables: str) -> str:
        """The number of a job that leaves its logs in ``folder``."""
        variables = {"MEGATRON_MUSIC_LOGS": str(folder / "ranks")} | variables
        output = f"--output={folder}/%j.out"
        return self.run("sbatch", "--parsable", output, *arguments, **variables).partition(";")[0]

    def facts(self, job: str) -> dict[str, str]:
        words = self.run("scontrol", "show", "job", "--oneliner", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, seconds: float = 180, until=lambda facts: facts["JobState"] in FINISHED) -> dict[str, str]:
        """The facts of a job once ``until`` holds of them."""
        end = time.monotonic() + seconds
        while not until(facts := self.facts(job)):
            if time.monotonic() > end or facts["JobState"] == "FAILED":  # it will not come to anything else
                self.run("scancel", job, check=False)
                raise AssertionError(f"job {job} is {facts['JobState']} after {seconds} s: {facts}")
            time.sleep(0.3)
        return facts


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(
        ["bash", HERE / "cluster.sh", "up", folder], capture_output=True, text=True, timeout=120, check=False
    )
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield Cluster(folder)
    finally:
        subprocess.run(["bash", HERE / "cluster.sh", "down", folder], check=False)
