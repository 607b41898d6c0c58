"""Two processes and a fault of one: skipped steps, failed saves, signals and kills, under a real torchrun."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from faults_worker import LAYOUTS
from tiny_gpt import launch, tiny_dataset
from training_runs import read_metrics, wait_for_iteration

WORKER = Path(__file__).parents[1] / "faults_worker.py"
OVERRIDES = (
    "train.train_iters=40",
    "checkpoint.save_interval=10",
    "model.hidden_dropout=0.1",
    "logging.tensorboard=false",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture(scope="module")
def found(data) -> list[dict]:
    launch(2, WORKER, data.parent)
    return [json.loads((data.parent / f"found-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("what", ["loss", "gradients"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_skipped_on_all_processes_alike(found, layout, what):
    for of_rank in found:
        case = of_rank[f"{layout}, {what}"]
        assert case["skipped"] and case["same"] and case["healthy"] and case["moved"], case
        # In tensor parallelism process 0 tells the loss of both, and hears of process 1 by the gradients.
        assert ("its loss" if what == "loss" and "tensor" not in layout else "the norm") in case["skipped"]


@pytest.mark.parametrize("kind", ["sync save", "async save"])
def test_a_save_that_one_process_cannot_write_fails_on_all(found, kind):
    for of_rank in found:
        (first, *_), (second, names, newest), (third, *later) = of_rank[kind]["failures"]
        assert first is None and third is None and "process 1: [Errno 27]" in second
        assert names == ["iter_0000001"] and newest == "iter_0000001"
        assert later == [["iter_0000001", "iter_0000003"], "iter_0000003"]
        assert of_rank[kind]["recorded"] == [[2, {"save_failed": 1}]]
        assert (of_rank[kind]["found"], of_rank[kind]["resumed"]) == ("iter_0000001", 1)


def torchrun(data: Path, folder: Path, *overrides: str, max_restarts: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["--max-restarts", str(max_restarts), "-m", "megatron_music", "train", "tiny"]
    with open(folder.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [*command, f"data.path={data}", f"checkpoint.save={folder}", *OVERRIDES, *overrides],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )


def process_of(launcher: subprocess.Popen, rank: int) -> psutil.Process:
    (found,) = (
        process
        for process in psutil.Process(launcher.pid).children(recursive=True)
        if process.environ().get("RANK") == str(rank) and "megatron_music" in process.cmdline()
    )
    return found


def ended(launcher: subprocess.Popen, folder: Path) -> int:
    try:
        return launcher.wait(timeout=900)
    except subprocess.TimeoutExpired:
        os.killpg(launcher.pid, signal.SIGKILL)
        pytest.fail("the processes hang:\n" + folder.with_suffix(".log").read_text()[-3000:])


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert ended(torchrun(data, folder), folder) == 0
    return read_metrics(folder)


def test_kill_9_of_one_process_and_torchrun_goes_on(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    launcher = torchrun(data, folder, "checkpoint.async_save=true", max_restarts=3)
    for rank, iteration in ((1, 13), (0, 25)):
        wait_for_iteration(launcher, folder, iteration)
        process_of(launcher, rank).send_signal(signal.SIGKILL)
    assert ended(launcher, folder) == 0
    log = folder.with_suffix(".log").read_text()
    assert log.count("exitcode: -9") == 2, log[-3000:]
    assert read_metrics(folder) == undisturbed
    assert sorted(path.name[-2:] for path in folder.glob("*iter_*")) == ["10", "20", "30", "40"]


def test_a_signal_to_one_process_stops_both_after_a_checkpoint(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    launcher = torchrun(data, folder, "checkpoint.async_save=true")
    wait_for_iteration(launcher, folder, 12)
    process_of(launcher, 1).send_signal(signal.SIGUSR1)
    assert ended(launcher, folder) == 1  # torchrun's own status for any but 0
    assert "exitcode  : 75" in folder.with_suffix(".log").read_text()
    done = read_metrics(folder)[-1]["iteration"]
    assert done < 40 and (folder / "latest").read_text() == f"iter_{done:07d}\n"
    assert ended(torchrun(data, folder), folder) == 0
    assert read_metrics(folder) == undisturbed
