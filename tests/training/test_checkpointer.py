"""Saving beside the training, keeping some, a full disk, and starts that get nowhere."""

import json
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.folder import checkpoints_of
from megatron_music.checkpoints.manifest import read_manifest
from megatron_music.storage.reading import hash_of_file
from megatron_music.training import state
from megatron_music.training.loop import DONE, FAILED, _recorder, train
from megatron_music.training.metrics import Metrics

OPTIONS = ("train.train_iters=12", "checkpoint.save_interval=4", "train.eval_iters=0", "model.hidden_dropout=0.1")

DISTRIBUTED = "optimizer.use_distributed_optimizer=true"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("saver") / "data")


@pytest.fixture(scope="module")
def sync(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sync") / "run"
    assert train(tiny_run(data, f"checkpoint.save={folder}", *OPTIONS)) == DONE
    return folder


@pytest.fixture(scope="module")
def sync_distributed(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sync_distributed") / "run"
    assert train(tiny_run(data, f"checkpoint.save={folder}", *OPTIONS, DISTRIBUTED)) == DONE
    return folder


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def tensor_files(folder: Path) -> dict[str, str]:
    """The digest of every file of tensors in every checkpoint, as its manifest says and as it is."""
    found = {}
    for place in checkpoints_of(folder):
        for name, facts in read_manifest(place).items():
            assert facts["sha256"] == hash_of_file(place / name)
            if name.endswith(".distcp"):
                found[f"{place.name}/{name}"] = facts["sha256"]
    return found


@pytest.mark.parametrize("optimizer", ["sync", "sync_distributed"])
def test_training_goes_on_while_a_checkpoint_is_written(data, tmp_path, monkeypatch, request, optimizer):
    """The write of the first checkpoint waits until the third step after it; if steps waited for it, neither
    would end.
    """
    sync = request.getfixturevalue(optimizer)
    folder, reached, latest_then = tmp_path / "run", threading.Event(), []
    write_line, write_tensors = Metrics.write, state.Save.write

    def write_and_release(self, iteration, **values):
        write_line(self, iteration, **values)
        if iteration == 7:
            latest_then.append((folder / "latest").exists() or any(folder.glob("iter_*")))
            reached.set()

    def blocked(self):
        assert threading.current_thread() is not threading.main_thread()
        assert reached.wait(timeout=120), "no step happened meanwhile"
        return write_tensors(self)

    monkeypatch.setattr(Metrics, "write", write_and_release)
    monkeypatch.setattr(state.Save, "write", blocked)
    options = (*OPTIONS, DISTRIBUTED) if optimizer == "sync_distributed" else OPTIONS
    assert train(tiny_run(data, f"checkpoint.save={folder}", "checkpoint.async_save=true", *options)) == DONE
    assert latest_then == [False]  # nothing is named before it is complete
    assert losses(folder) == losses(sync)
    assert tensor_files(folder) == tensor_files(sync) and len(tensor_files(folder)) == 3
    assert find_checkpoint(folder) == folder / "iter_0000012"
    assert list(folder.glob(".*")) == []


def test_a_write_that_fails_in_the_background_is_loud_and_leaves_the_one_before(data, tmp_path, monkeypatch, capfd):
    folder, write_tensors = tmp_path / "run", state.Save.write

    def faulty(self):
        if self.iteration == 8:
            raise OSError(5, "Input/output error")
        return write_tensors(self)

    monkeypatch.setattr(state.Save, "write", faulty)
    assert train(tiny_run(data, f"checkpoint.save={folder}", "checkpoint.async_save=true", *OPTIONS)) == DONE
    assert "the checkpoint after iteration 8 could not be written" in capfd.readouterr().err
    assert [path.name for path in checkpoints_of(folder)] == ["iter_0000012", "iter_0000004"]


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_run_keeps_what_it_was_told_to(data, tmp_path, asynchronous):
    keep = ("checkpoint.save_interval=1", "checkpoint.most_recent_k=2", "checkpoint.keep_every=5")
    run = (f"checkpoint.save={tmp_path / 'run'}", *OPTIONS, f"checkpoint.async_save={asynchronous}", *keep)
    assert train(tiny_run(data, *run)) == DONE
    assert [path.name[-2:] for path in checkpoints_of(tmp_path / "run")] == ["12", "11", "10", "05"]
    assert list((tmp_path / "run").glob(".*")) == []


@contextmanager
def small_disk(folder: Path, size: int):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(
            f"NOT TESTED: a full disk, since this machine lets nobody mount one ({mounted.stderr.decode().strip()})"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize("asynchronous", ["false", "true"])
def test_a_full_disk_leaves_the_checkpoint_before_and_the_training_goes_on(data, sync, tmp_path, capfd, asynchronous):
    size = sum(facts["size"] for facts in read_manifest(sync / "iter_0000004").values())
    with small_disk(tmp_path / "disk", size + size // 2) as disk:
        run = tiny_run(data, f"checkpoint.save={disk / 'run'}", f"checkpoint.async_save={asynchronous}", *OPTIONS)
        assert train(run) == FAILED
        said = capfd.readouterr().err
        assert said.count("the training goes on") == 2 and "No space left on device" in said
        assert "after iteration 12 could not be written" in said and "the run ends without its last steps" in said
        assert find_checkpoint(disk / "run") == disk / "run" / "iter_0000004"
        assert [path.name for path in (disk / "run").glob("*iter_*")] == ["iter_0000004"]
        assert losses(disk / "run") == losses(sync)
        lines = [json.loads(line) for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
        assert [line["iteration"] for line in lines if "save_failed" in line] == [8, 12]
        subprocess.run(["mount", "-o", f"remount,size={20 * size}", disk], check=True)
        assert train(run) == DONE
        assert losses(disk / "run") == losses(sync)
        assert tensor_files(disk / "run") == tensor_files(sync)


def test_metrics_wait_for_room(tmp_path, capfd):
    with small_disk(tmp_path / "disk", 16384) as disk:
        metrics = Metrics(disk, iteration=0, total=9, log_interval=9, tensorboard=False, speaks=True)
        record = _recorder(metrics)
        record(1, loss=1.0)
        with suppress(OSError):
            (disk / "rest").write_bytes(b"0" * 99999)
        for iteration in range(2, 250):
            record(iteration, loss=1.0)
        assert "No space left on device" in capfd.readouterr().err
        (disk / "rest").unlink()
        record(250, loss=1.0)
        metrics.close()
        lines = [json.loads(line)["iteration"] for line in (disk / "metrics.jsonl").read_text().splitlines()]
        assert lines == list(range(1, 251))


def test_starts_that_get_nowhere_end(data, tmp_path, monkeypatch, capfd):
    folder = tmp_path / "run"
    run = tiny_run(data, f"checkpoint.save={folder}", *OPTIONS)
    write_line = Metrics.write

    def crash_at(crash):
        def write(self, iteration, **values):
            write_line(self, iteration, **values)
            if iteration == crash:
                raise RuntimeError("a fault at one place of the data")

        monkeypatch.setattr(Metrics, "write", write)

    crash_at(2)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            train(run)
    crash_at(6)  # one that gets further: counted anew from there
    for _ in range(3):
        with pytest.raises(RuntimeError):
            train(run)
    assert json.loads((folder / "starts.json").read_text()) == {"iteration": 4, "starts": 2}
    with pytest.raises(RuntimeError):
        train(run)
    before = (folder / "metrics.jsonl").read_text()
    assert train(run) == FAILED
    said = capfd.readouterr().err
    assert f"{folder} was started 3 times from iteration 4" in said and f"remove {folder / 'starts.json'}" in said
    assert (folder / "metrics.jsonl").read_text() == before
    monkeypatch.undo()
    assert train(tiny_run(data, f"checkpoint.save={folder}", "train.max_starts_without_progress=0", *OPTIONS)) == DONE


def test_removing_the_record_of_starts_is_the_remedy(data, tmp_path):
    folder = tmp_path / "run"
    run = tiny_run(data, f"checkpoint.save={folder}", *OPTIONS)
    folder.mkdir()
    (folder / "config.yaml").write_text("")
    (folder / "starts.json").write_text('{"iteration": 0, "starts": 3}')
    assert train(run) == FAILED
    (folder / "starts.json").unlink()
    assert train(run) == DONE
    for _ in range(5):  # a finished run does not start
        assert train(run) == DONE
    (folder / "starts.json").write_text("no JSON")
    assert train(run) == DONE
