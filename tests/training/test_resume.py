"""A run that is killed, stopped or cut short goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gpt import tiny_dataset, tiny_run
from training_runs import read_metrics, wait_for_iteration

from megatron_music.config.errors import REQUEUE
from megatron_music.training import state
from megatron_music.training.loop import DONE, FAILED, train
from megatron_music.training.metrics import Metrics

# Dropout makes the losses depend on the random generators, too.
OVERRIDES = (
    "train.train_iters=40",
    "checkpoint.save_interval=10",
    "model.hidden_dropout=0.1",
    "model.attention_dropout=0.1",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(tiny_run(data, f"checkpoint.save={folder}", *OVERRIDES)) == DONE
    return read_metrics(folder)


def start(data: Path, folder: Path) -> subprocess.Popen:
    arguments = [f"data.path={data}", f"checkpoint.save={folder}", "logging.tensorboard=false", *OVERRIDES]
    command = [sys.executable, "-m", "megatron_music", "train", "tiny", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_an_undisturbed_run_reports_every_step(undisturbed):
    steps = [line for line in undisturbed if "loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, 41))
    assert set(steps[0]) == {"iteration", "loss", "grad_norm", "learning_rate", "consumed_samples", "epoch"}
    assert [line["iteration"] for line in undisturbed if "valid_loss" in line] == [10, 20, 30, 40]
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert steps[0]["learning_rate"] == pytest.approx(0.0005) and steps[1]["learning_rate"] == pytest.approx(0.001)


def test_kill_9_and_start_again_gives_the_same_losses(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(data, folder)
    # Past the checkpoint at 20 and before the one at 30: five steps are lost and done again.
    wait_for_iteration(process, folder, 25)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL and (folder / "latest").is_file()
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 26, "lo')
    assert start(data, folder).wait() == DONE
    assert read_metrics(folder) == undisturbed


def test_sigterm_saves_and_asks_to_be_requeued(data, undisturbed, tmp_path):
    folder = tmp_path / "run"
    process = start(data, folder)
    wait_for_iteration(process, folder, 13)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == REQUEUE
    done = read_metrics(folder)[-1]["iteration"]
    assert (folder / "latest").read_text() == f"iter_{done:07d}\n"
    assert start(data, folder).wait() == DONE
    assert read_metrics(folder) == undisturbed


def test_a_run_and_its_data_that_moved_go_on_with_the_same_losses(data, undisturbed, tmp_path):
    """As after scratch was cleared: another path of both is no other run, and no other data."""
    shutil.copytree(data, tmp_path / "data")
    process = start(tmp_path / "data", tmp_path / "run")
    wait_for_iteration(process, tmp_path / "run", 13)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == REQUEUE
    (tmp_path / "elsewhere").mkdir()
    for name in ("data", "run"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert start(tmp_path / "elsewhere" / "data", tmp_path / "elsewhere" / "run").wait() == DONE
    assert read_metrics(tmp_path / "elsewhere" / "run") == undisturbed
    assert not (tmp_path / "data").exists() and not (tmp_path / "run").exists()


@pytest.mark.parametrize("cut", ["before the rename", "before latest"])
def test_a_save_that_is_cut_short_leaves_the_one_before(data, undisturbed, tmp_path, monkeypatch, cut):
    folder = tmp_path / "run"
    publish = state.publish

    def cut_short(unfinished, place):
        if place.name == "iter_0000020":
            if cut == "before latest":
                unfinished.rename(place)
            raise KeyboardInterrupt
        publish(unfinished, place)

    monkeypatch.setattr(state, "publish", cut_short)
    with pytest.raises(KeyboardInterrupt):
        train(tiny_run(data, f"checkpoint.save={folder}", *OVERRIDES))
    assert (folder / "latest").read_text() == "iter_0000010\n"
    monkeypatch.undo()
    assert train(tiny_run(data, f"checkpoint.save={folder}", *OVERRIDES)) == DONE
    assert read_metrics(folder) == undisturbed
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith((".", "iter"))) == [
        f"iter_{iteration:07d}" for iteration in (10, 20, 30, 40)
    ]


def test_a_finished_run_has_nothing_left_to_do(data, tmp_path):
    config = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=2")
    assert train(config) == DONE
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train(config) == DONE
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


def test_tensorboard_tells_the_same(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=3", "logging.tensorboard=true")
    assert train(config) == DONE
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)


def test_a_stop_on_an_evaluation_step_keeps_its_line(data, undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    write = Metrics.write

    def write_and_ask(self, iteration, **values):
        write(self, iteration, **values)
        if iteration == 9:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Metrics, "write", write_and_ask)
    run = tiny_run(data, f"checkpoint.save={folder}", *OVERRIDES)
    assert train(run) == REQUEUE
    assert (folder / "latest").read_text() == "iter_0000010\n" and "valid_loss" in read_metrics(folder)[-1]
    monkeypatch.undo()
    assert train(run) == DONE
    assert read_metrics(folder) == undisturbed


def test_a_stopped_run_without_a_folder_does_not_ask_to_be_requeued(data, monkeypatch):
    write = Metrics.write

    def write_and_ask(self, iteration, **values):
        write(self, iteration, **values)
        if iteration == 2:  # once: a second signal takes its usual course
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Metrics, "write", write_and_ask)
    assert train(tiny_run(data, *OVERRIDES)) == FAILED
