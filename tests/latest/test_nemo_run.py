"""The door of NeMo-Run, through its own command: `nemorun music pretrain`."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tiny_gpt import tiny_dataset

COMMAND = [str(Path(sys.executable).with_name("nemorun")), "music", "pretrain"]


def nemorun(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "NEMORUN_HOME": str(folder), "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*COMMAND, *arguments, "--yes"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_recipe_with_fields_on_top_is_resolved_and_not_run(tmp_path):
    text = nemorun(
        tmp_path,
        "--factory",
        "article",
        "data.path=OUT",
        "train.train_iters=100",
        "model.num_layers=3",
        "--dryrun",
    )
    for found in ("path='OUT'", "train_iters=100", "num_layers=3", "size='article'", "min_lr=3e-05"):
        assert found in text
    assert "Dry run" in text and not list(tmp_path.rglob("metrics.jsonl"))


def test_a_run_trains_and_leaves_a_checkpoint(tmp_path):
    tiny_dataset(tmp_path / "data")
    nemorun(
        tmp_path,
        "--factory",
        "tiny",
        f"data.path={tmp_path / 'data'}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=3",
        "logging.tensorboard=false",
    )
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["iteration"] for step in steps if "loss" in step] == [1, 2, 3]
