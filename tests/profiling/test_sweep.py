"""A sweep: its plan, rows measured by real processes, rows that fail for every reason there is, going on, and its
tables.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from running import PATIENCE_SECONDS, children_of, is_running, wait_until
from tiny_gpt import tiny_dataset

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.sections import ParallelConfig
from megatron_music.parallel import distributed
from megatron_music.profiling.flops import step_flops
from megatron_music.profiling.gpu_monitor import GpuMonitor
from megatron_music.profiling.sweep import (
    FAILED,
    IMPOSSIBLE,
    MEASURED,
    OUT_OF_MEMORY,
    WAITING,
    Outcome,
    figures_of,
    outcome_of,
    plan_sweep,
    read_sweep,
    scaling,
    write_outcome,
)
from megatron_music.training import measure

BATCHES = ("train.micro_batch_size", ["1", "2", "3"])
TENSOR = ("parallel.tensor_model_parallel_size", ["1", "2"])
# 824 GB in one matrix: no machine of a test has them.
HUGE = "--vary=model.hidden_size=64,262144"


def planned(folder: Path, **options):
    return plan_sweep(
        folder, "tiny", [], **{"vary": [TENSOR, BATCHES], "num_gpus": [1, 2], "steps": 2, "warmup": 1} | options
    )


def fill(sweep, seconds_of) -> None:
    """Made-up outcomes, of a GPU with a known peak."""
    for row in sweep.rows:
        if not row.impossible:
            run = sweep.run(row)
            batch = run.train.global_batch_size
            flops, seen = step_flops(run.model, batch).model, {"gpu_utilization": 0.5, "power_w": 600.0}
            outcome = Outcome(
                MEASURED,
                "",
                tuple(seconds_of(row)),
                batch * run.model.seq_length,
                flops,
                "mcore",
                1.5,
                "NVIDIA H100 80GB HBM3",
                seen,
            )
            write_outcome(sweep, row, outcome)


def test_a_plan_has_every_combination_and_why_some_cannot_be(tmp_path):
    sweep = planned(tmp_path / "sweep", sequences_per_gpu=[4])
    assert [(row.num_gpus, *row.settings.values()) for row in sweep.rows] == [
        (gpus, tensor, micro, str(4 * gpus)) for gpus in (1, 2) for tensor in "12" for micro in "123"
    ]
    assert [row.number for row in sweep.rows if row.impossible is None] == [0, 1, 6, 7, 9, 10]
    assert (
        "1 process cannot be divided" in sweep.rows[3].impossible
        and "no multiple of train.micro_batch_size 3" in sweep.rows[2].impossible
    )
    assert asdict(read_sweep(tmp_path / "sweep")) == asdict(sweep)
    assert (
        sweep.run(sweep.rows[7]).train.global_batch_size == 8 and sweep.run(sweep.rows[7]).train.micro_batch_size == 2
    )
    assert [outcome_of(sweep, row).status for row in sweep.rows[1:3]] == [WAITING, IMPOSSIBLE]
    assert planned(tmp_path / "sweep", sequences_per_gpu=[4]).rows == sweep.rows, "the same plan goes on"
    with pytest.raises(ValueError, match="holds another sweep; name another folder"):
        planned(tmp_path / "sweep", sequences_per_gpu=[8])


def test_a_gpu_that_cannot_compute_in_bf16(tmp_path):
    sweep = planned(tmp_path / "sweep", vary=[("train.bf16", ["false", "true"])], num_gpus=[1], gpu="v100")
    assert [row.impossible is None for row in sweep.rows] == [True, False] and "V100" in sweep.rows[
        1
    ].impossible.upper()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"vary": [BATCHES, BATCHES]}, "train.micro_batch_size varies twice"),
        ({"vary": [("train.global_batch_size", ["8"])], "sequences_per_gpu": [4]}, "sets it too; omit one"),
        (
            {"vary": [("train.micro_batch", ["1", "2"])]},
            r"none of the 4 settings can be; the first: unknown key train.micro_batch .did you mean micro_batch_size",
        ),
        (
            {"vary": [("train.micro_batch_size", ["many"])]},
            "none of the 2 settings can be; the first: train.micro_batch_size is 'many'",
        ),
    ],
)
def test_plans_that_cannot_be(tmp_path, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        planned(tmp_path / "sweep", **options)
    assert not (tmp_path / "sweep").exists()


def test_the_article_s_two_tables(tmp_path, capsys):
    """Table 2: speeds and shares by equation 3, the best row marked; table 1: tokens a second by GPUs, batch and
    precision.
    """
    options = {
        "vary": [("train.bf16", ["false", "true"]), ("train.micro_batch_size", ["1", "2"])],
        "num_gpus": [1, 2],
        "sequences_per_gpu": [4],
    }
    sweep = planned(tmp_path / "sweep", **options)
    # Twice the GPUs take a tenth longer; two sequences at once a fifth less; bf16 half.
    speed = {
        (row.number): (1.1 if row.num_gpus == 2 else 1)
        * (0.8 if row.settings["train.micro_batch_size"] == "2" else 1)
        * (0.5 if row.settings["train.bf16"] == "true" else 1)
        for row in sweep.rows
    }
    fill(sweep, lambda row: [9.0 * speed[row.number], speed[row.number], speed[row.number]])
    figures = figures_of(sweep)
    assert [row.row for row in figures if row.is_best] == [3]
    best, single = figures[3], figures[0]
    run = sweep.run(sweep.rows[3])
    assert best.seconds == pytest.approx(0.4) and best.tokens_per_second == pytest.approx(
        4 * run.model.seq_length / 0.4
    )
    model, hardware = step_flops(run.model, 4), step_flops(run.model, 4, formula="paper-eq3", recomputation="full")
    assert best.tflops == pytest.approx(model.model / 0.4 / 1e12) and best.mfu == best.hfu == pytest.approx(
        best.tflops / 989
    )
    assert best.eq3_tflops == pytest.approx(hardware.hardware / 0.4 / 1e12) and best.eq3_share == pytest.approx(
        best.eq3_tflops / 989
    )
    assert single.tflops > 0 and single.mfu == pytest.approx(single.tflops / 494.5), "in fp32 of the TF32 peak"
    assert figures_of(sweep, peak_tflops=67.0)[0].mfu == pytest.approx(single.tflops / 67)
    rows = [(row.precision, row.num_gpus, row.row, round(row.efficiency, 3)) for row in scaling(figures)]
    assert rows == [("fp32", 1, 1, 1.0), ("fp32", 2, 5, 0.909), ("bf16", 1, 3, 1.0), ("bf16", 2, 7, 0.909)]

    assert main(["sweep", str(tmp_path / "sweep"), "--report", "--plot", str(tmp_path / "sweep.png")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.endswith("best")] == [said[4]] and "50%" in said[4] and "600" in said[4]
    assert "medians of 2 steps on NVIDIA H100" in said[-1] and (tmp_path / "sweep.png").stat().st_size > 10_000
    assert main(["sweep", str(tmp_path / "sweep"), "--report", "--csv"]) == 0
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(lines) == 8 and float(lines[3]["TFLOP/s"]) == best.tflops and float(lines[0]["MFU"]) == single.mfu
    assert main(["sweep", str(tmp_path / "sweep"), "--report", "--json", "--gpu", "a100"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][3]["mfu"] == pytest.approx(best.tflops / 312)


def test_rows_are_measured_kept_and_gone_on_with(tmp_path, capsys):
    """Real processes, alone and two under torchrun: what fits, what has no room, what cannot be; and again after a part
    is lost.
    """
    folder = tmp_path / "sweep"
    fields = [
        "model.num_attention_heads=2",
        "model.seq_length=64",
        "train.global_batch_size=4",
        "train.micro_batch_size=1",
    ]
    command = [
        "sweep",
        "tiny",
        *fields,
        "-o",
        str(folder),
        HUGE,
        "--num-gpus=1,2",
        "--vary=parallel.tensor_model_parallel_size=1,2",
        "--steps=3",
        "--warmup=1",
    ]
    assert main(command) == 0
    sweep, said = read_sweep(folder), capsys.readouterr().out
    statuses = [outcome_of(sweep, row).status for row in sweep.rows]
    assert statuses == [
        MEASURED,
        IMPOSSIBLE,
        OUT_OF_MEMORY,
        IMPOSSIBLE,
        MEASURED,
        MEASURED,
        OUT_OF_MEMORY,
        OUT_OF_MEMORY,
    ], said
    assert "out of memory: " in said and "rows 1, 3 impossible: 1 process cannot be divided" in said
    found = outcome_of(sweep, sweep.rows[5])
    run = sweep.run(sweep.rows[5])
    assert len(found.step_seconds) == 3 and found.device == "CPU" and found.memory_gb > 0.1 and found.gpu is None
    assert (
        found.tokens_per_step == 4 * 64
        and found.flops == step_flops(run.model, 4).model
        and set(found.versions) > {"torch", "megatron_core"}
    )
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    (folder / "rows" / "000.json").unlink()
    assert main(["sweep", str(folder), "--report"]) == 0 and "not run" in capsys.readouterr().out
    assert main(["sweep", str(folder)]) == 0
    changed = {path.name for path in (folder / "rows").iterdir() if path.stat().st_mtime_ns != before[path.name]}
    assert changed == {"000.json", "000.log"}, "what is done is not done again"


@pytest.mark.parametrize("without_room_is_first", [True, False])
def test_the_rank_without_room_has_the_last_word(tmp_path, monkeypatch, without_room_is_first):
    """The others, whose connection it closed, end before it has said so or after it."""
    sweep = planned(tmp_path / "sweep", vary=[], num_gpus=[1])
    row, no_room = sweep.rows[0], "tried to allocate 2 TiB"

    def fail(*_, **__):  # the other rank's word comes while this one is at work
        write_outcome(
            sweep, row, Outcome(OUT_OF_MEMORY, no_room) if without_room_is_first else Outcome(FAILED, "closed")
        )
        raise RuntimeError("closed") if without_room_is_first else torch.OutOfMemoryError(no_room)

    monkeypatch.setattr(measure, "measure", fail)
    if without_room_is_first:
        with pytest.raises(RuntimeError, match="closed"):
            main(["sweep", str(tmp_path / "sweep"), "--row", "0"])
    else:
        assert main(["sweep", str(tmp_path / "sweep"), "--row", "0"]) == 1
    assert outcome_of(sweep, row)[:2] == (OUT_OF_MEMORY, no_room)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(distributed.cpu_backend, "install", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(
        ConfigError, match="process 2 of this machine and sees 1 GPU; start 1 or fewer processes per node"
    ):
        distributed.start(ParallelConfig())


def test_a_row_on_data_of_its_own(tmp_path):
    data, folder = tiny_dataset(tmp_path / "data"), tmp_path / "sweep"
    assert main(["sweep", "tiny", f"data.path={data}", "-o", str(folder), "--steps=2", "--warmup=0"]) == 0
    sweep = read_sweep(folder)
    assert outcome_of(sweep, sweep.rows[0]).status == MEASURED


def test_a_row_that_does_not_end_and_one_that_is_killed(tmp_path, capsys):
    """Each costs itself: the time limit, and what the kernel does when memory is short. They are tried again."""
    folder = tmp_path / "sweep"
    assert main(["sweep", "tiny", "-o", str(folder), "--steps=1000000", "--time-limit=1"]) == 1
    assert "failed: no end within 1 s; raise --time-limit" in capsys.readouterr().out
    running = subprocess.Popen(
        [sys.executable, "-m", "megatron_music", "sweep", str(folder)], stdout=subprocess.PIPE, text=True
    )
    child = children_of(running.pid, 1)[0]
    second = subprocess.run(
        [sys.executable, "-m", "megatron_music", "sweep", str(folder)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 2 and "is being measured by another process" in second.stderr
    os.kill(child, signal.SIGKILL)
    said, _ = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 1 and "killed from outside, as the kernel does when memory is short; see" in said


@pytest.mark.parametrize(
    ("workers", "kind"), [(0, signal.SIGINT), (1, signal.SIGTERM), (2, signal.SIGINT), (2, signal.SIGHUP)]
)
def test_an_interrupt_ends_the_processes_of_a_row(tmp_path, workers, kind):
    """While the launcher starts, while it starts its workers, and while they do."""
    running, folder = _endless_sweep(tmp_path)
    launcher = children_of(running.pid, 1)[0]
    below = [launcher, *children_of(launcher, workers)]
    running.send_signal(kind)
    _, said = running.communicate(timeout=PATIENCE_SECONDS)
    assert running.returncode == 1 and "stopped; files that were finished stay" in said
    assert not any(is_running(pid) for pid in below)
    assert sorted(path.name for path in (folder / "rows").iterdir()) == ["000.log", "000.yaml"]


def test_the_processes_of_a_row_end_with_a_sweep_that_is_killed(tmp_path):
    running, _ = _endless_sweep(tmp_path)
    launcher = children_of(running.pid, 1)[0]
    below = [launcher, *children_of(launcher, 2)]
    running.kill()
    running.communicate()
    wait_until(lambda: not any(is_running(pid) for pid in below))


def _endless_sweep(tmp_path: Path) -> tuple[subprocess.Popen, Path]:
    folder = tmp_path / "sweep"
    assert main(["sweep", "tiny", "-o", str(folder), "--steps=1000000", "--num-gpus=2", "--plan"]) == 0
    command = [sys.executable, "-m", "megatron_music", "sweep", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True), folder


def test_more_processes_than_a_row_has(tmp_path, monkeypatch, capsys):
    """An array's job has as many as the largest row: the rest end at once. Too few are refused."""
    folder = tmp_path / "sweep"
    assert main(["sweep", "tiny", "-o", str(folder), "--steps=1", "--num-gpus=1,2", "--plan"]) == 0
    assert "sbatch --array=0-1 launch/benchmark_sweep.sbatch" in capsys.readouterr().out
    for name, value in {"RANK": "5", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert main(["sweep", str(folder), "--row", "1"]) == 0 and not (folder / "rows" / "001.json").exists()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (
        main(["sweep", str(folder), "--row", "1"]) == 2
        and "row 1 is of 2 processes, and the launcher started 1" in capsys.readouterr().err
    )
    assert main(["sweep", str(folder), "--row", "2"]) == 2 and "has rows 0 to 1" in capsys.readouterr().err
    assert main(["sweep", str(folder)]) == 2 and "starts the processes of each row itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tiny"], "tiny is no sweep's folder; give one, or a recipe and -o SWEEP"),
        (["FOLDER", "train.seed=1"], "is planned already, and its settings stay"),
        (["FOLDER", "--vary=train.seed=1,2"], "is planned already, and its settings stay"),
        (["tiny", "-o", "FOLDER", "--report"], "--row and --report are of a planned sweep"),
        (["tiny", "-o", "OTHER", "--steps=0"], "--steps is 0; use a number above 0"),
        (["tiny", "-o", "OTHER", "--warmup=-1"], "--warmup is -1; use steps from 0"),
        (["tiny", "-o", "FOLDER/plan.json"], "is a file; name a folder"),
        (["demo-dit", "-o", "OTHER"], "data.path is not set, and a text-to-music model is measured on its data alone"),
        (["FOLDER", "--report", "--plot", "x.txt"], "x.txt does not end in .png, .svg"),
        (["FOLDER", "--report", "--peak", "-1"], "--peak is -1.0; use a number above 0"),
    ],
)
def test_wrong_use_is_one_sentence(tmp_path, capsys, words, sentence):
    planned(tmp_path / "sweep")
    words = [
        word.replace("FOLDER", str(tmp_path / "sweep")).replace("OTHER", str(tmp_path / "other")) for word in words
    ]
    assert main(["sweep", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1 and not (tmp_path / "other").exists()


def test_damaged_folders(tmp_path, capsys):
    sweep = planned(tmp_path / "sweep", vary=[], num_gpus=[1])
    sweep.path(sweep.rows[0], "json").write_text("{")
    assert (
        main(["sweep", str(tmp_path / "sweep"), "--report"]) == 1
        and "remove it to measure the row again" in capsys.readouterr().out
    )
    (tmp_path / "sweep" / "plan.json").write_text('{"format": 99}')
    assert (
        main(["sweep", str(tmp_path / "sweep"), "--report"]) == 2
        and "is no plan of this version" in capsys.readouterr().err
    )


def test_two_sweeps_are_compared_row_by_row(tmp_path, capsys):
    first, second = (planned(tmp_path / name, vary=[BATCHES], num_gpus=[1]) for name in ("first", "second"))
    fill(first, lambda row: [1.0, 1.01, 0.99] * 5)
    fill(second, lambda row: [1.0, 0.99, 1.01] * 5 if row.number else [1.2, 1.21, 1.19] * 5)
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["verdict"] for row in answer["rows"]] == [
        "the second is 20.0% above",
        "no difference shown",
    ] and answer["left_out"] == 1
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second")]) == 0
    assert "left out, since measured in one alone or in none: 1" in capsys.readouterr().out
    planned(tmp_path / "third", vary=[], num_gpus=[1])
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "third")]) == 2
    assert "have no setting that both have measured" in capsys.readouterr().err


NVIDIA_SMI = """\
#!/bin/sh
echo "$@" > "$(dirname "$0")/asked"
echo "90, 40, 30720, 500.5"
echo "70, 20, 40960, [N/A]"
echo "80, 3"
exec sleep 60
"""


def test_the_monitor_reads_what_nvidia_smi_says(tmp_path, monkeypatch):
    """A stand-in on PATH, ended with the monitor; nothing where there is none, or no GPU."""
    script = tmp_path / "nvidia-smi"
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with GpuMonitor("GPU-1234") as monitor:
        _wait_for(tmp_path / "asked")
        time.sleep(0.2)
    assert monitor.figures == {
        "gpu_utilization": 0.8,
        "memory_utilization": 0.3,
        "memory_used_gib": 40.0,
        "power_w": 500.5,
        "samples": 2,
    }
    assert "--id=GPU-1234" in (tmp_path / "asked").read_text() and "utilization.gpu" in (tmp_path / "asked").read_text()
    with GpuMonitor(None) as monitor:
        pass
    assert monitor.figures is None
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with GpuMonitor("0") as monitor:
        pass
    assert monitor.figures is None


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_value_given_twice_is_one_row_and_a_list_is_one_value(tmp_path):
    words = ["sweep", "tiny", "--plan", "-o"]
    assert main([*words, str(tmp_path / "twice"), "--vary", "train.micro_batch_size=1,2,2,1"]) == 0
    assert [row.settings["train.micro_batch_size"] for row in read_sweep(tmp_path / "twice").rows] == ["1", "2"]
    assert main([*words, str(tmp_path / "blends"), "--vary", "data.path=[0.5,a,0.5,b], [0.9,a,0.1,b],c"]) == 0
    assert [row.settings["data.path"] for row in read_sweep(tmp_path / "blends").rows] == [
        "[0.5,a,0.5,b]",
        "[0.9,a,0.1,b]",
        "c",
    ]


def test_a_row_that_cannot_start_says_the_last_line_of_its_log_and_nothing_of_medians(tmp_path, capsys, monkeypatch):
    """Its process ends before this package is imported, as where a library of the system is broken."""
    sweep = planned(tmp_path / "sweep", vary=[], num_gpus=[1])
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nprint('first\\nlibcuda.so is broken', file=sys.stderr, flush=True)\nos._exit(3)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(["sweep", str(tmp_path / "sweep")]) == 1
    said = capsys.readouterr().out
    assert (
        f"row 0 failed: ended with status 3 (libcuda.so is broken); see {sweep.path(sweep.rows[0], 'log')}" in said
        and "medians" not in said
    )


def test_a_sweep_that_has_measured_nothing_has_no_legend_of_what_was_measured(tmp_path, capsys):
    planned(tmp_path / "sweep", vary=[], num_gpus=[1])
    assert main(["sweep", str(tmp_path / "sweep"), "--report"]) == 0
    said = capsys.readouterr().out
    assert "not run" in said and "medians" not in said and "nothing yet" not in said
