"""datatrove's local executor. Its processes start with a fresh interpreter, where pytest's strict warnings do
not hold.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import tiny_score, transposed

from megatron_music.data.build_options import BuildOptions
from megatron_music.data.plan import plan_build
from megatron_music.data.shard import encode_shard, is_finished
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Score

pytest.importorskip("datatrove", reason="datatrove is not installed")

RUN = """
import sys
from datatrove.executor import LocalPipelineExecutor
from megatron_music.data.cluster import datatrove_step
if __name__ == "__main__":
    step = datatrove_step(sys.argv[1])
    LocalPipelineExecutor([step], tasks=3, workers=2, logging_dir=sys.argv[2]).run()
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "midi").mkdir()
    for number in range(10):
        tracks = tuple(transposed(t, number) for t in tiny_score(6).tracks)
        write_midi(Score(tracks, 4), tmp_path / "midi" / f"{number}.mid")
    plan_build([tmp_path / "midi"], tmp_path / "plain", BuildOptions(), 2)
    encode_shard(tmp_path / "plain")
    return plan_build([tmp_path / "midi"], tmp_path / "out", BuildOptions(), 2)


def shards(building: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (building / "shards").iterdir()}


def run(tmp_path) -> subprocess.CompletedProcess:
    (tmp_path / "run.py").write_text(RUN)
    return subprocess.run(
        [sys.executable, "run.py", "out", "logs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


def test_datatrove_writes_the_same_shards(plan, tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert shards(plan.building) == shards(tmp_path / "plain.building")
    assert sorted(path.name for path in (tmp_path / "logs" / "completions").iterdir()) == ["00000", "00001", "00002"]


def test_a_failed_rank_does_only_what_is_left(plan, tmp_path):
    blocked = plan.building / "shards" / "00004.bin"
    blocked.mkdir()  # of rank 1, whose other shard is 1
    done = run(tmp_path)
    assert done.returncode != 0 and "Is a directory" in done.stderr
    finished = [number for number in range(5) if is_finished(plan, number)]
    assert 1 in finished and 4 not in finished and not (tmp_path / "logs" / "completions" / "00001").exists()
    times = {number: (plan.building / "shards" / f"{number:05}.json").stat().st_mtime_ns for number in finished}
    blocked.rmdir()
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert times == {number: (plan.building / "shards" / f"{number:05}.json").stat().st_mtime_ns for number in finished}
    assert shards(plan.building) == shards(tmp_path / "plain.building")
