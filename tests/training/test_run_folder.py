"""Whose a run's folder is: everything is checked before anything is written."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from shims import NODE_LOCAL, shimmed
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.storage.holding import Busy
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import write_tokenizer_folder
from megatron_music.training import gpt_task
from megatron_music.training.loop import DONE, train
from megatron_music.training.run_folder import held_folder, starting_point


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("folder") / "data")


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done") / "run"
    assert train(tiny_run(data, f"checkpoint.save={folder}", "train.train_iters=2")) == DONE
    return folder


def test_its_own_run_goes_on_and_another_starts_from_it(data, done, tmp_path):
    assert starting_point(tiny_run(data, f"checkpoint.save={done}")) == (done / "iter_0000002", True)
    assert starting_point(tiny_run(data, f"checkpoint.load={done}", f"checkpoint.save={tmp_path / 'new'}")) == (
        done / "iter_0000002",
        False,
    )
    assert starting_point(tiny_run(data, f"checkpoint.save={tmp_path / 'new'}")) == (None, False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.seed=5", "train.seed=1234, not 5"),
        ("train.global_batch_size=16", "train.global_batch_size=8, not 16"),
        ("model.num_layers=4", "num_layers"),
    ],
)
def test_a_run_goes_on_only_as_it_was(data, done, override, said):
    with pytest.raises(ConfigError, match=said):
        starting_point(tiny_run(data, f"checkpoint.save={done}", override))


def test_another_length_is_told(data, done, capsys):
    starting_point(tiny_run(data, f"checkpoint.save={done}", "train.train_iters=5"))
    assert "train.train_iters is 5, and was 2" in capsys.readouterr().err


def test_data_of_another_encoding_is_refused(data, done, tmp_path):
    other = tiny_dataset(tmp_path / "data")
    write_tokenizer_folder(other / "tokenizer", Encoding(steps_per_quarter=12))
    with pytest.raises(ConfigError, match="was trained on the encoding"):
        starting_point(tiny_run(other, f"checkpoint.load={done}"))
    with pytest.raises(ConfigError, match="encoding steps_per_quarter=4, and the data have steps_per_quarter=12; name"):
        starting_point(tiny_run(other, f"checkpoint.save={done}"))


def test_what_is_refused_leaves_nothing(data, done, tmp_path):
    before = sorted(data.iterdir())
    for override in ("checkpoint.load=" + str(tmp_path / "nowhere"), f"checkpoint.load={done}"):
        with pytest.raises(ValueError):
            train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", override, "model.num_layers=4"))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").touch()
    with pytest.raises(ConfigError, match="holds something that is no run"):
        train(tiny_run(data, f"checkpoint.save={tmp_path / 'thesis'}"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["chapter1", "thesis"]
    assert sorted(data.iterdir()) == before


def test_a_folder_has_one_run_at_a_time(data, tmp_path):
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1")
    with held_folder(tmp_path / "run"), pytest.raises(Busy, match="is in use by a run that is under way"):
        train(run)
    assert train(run) == DONE


def test_a_start_that_was_killed_while_it_checked_does_not_keep_the_next_out(data, tmp_path):
    (tmp_path / "run" / "cache" / "0123").mkdir(parents=True)
    (tmp_path / "run" / "cache" / "0123" / "index.npy").write_bytes(b"half")
    (tmp_path / "run" / ".config.yaml.0123456789abcdef.tmp").write_bytes(b"mod")
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1")) == DONE


def test_a_stop_while_a_run_starts_is_told_to_be_resumable(data, tmp_path):
    words = [f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=2", "train.eval_iters=0"]
    running = subprocess.Popen(
        [sys.executable, "-m", "megatron_music", "train", "tiny", *words], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run").is_dir() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=900)
    assert running.returncode == 75 and "the same command" in said
    assert main(["train", "tiny", *words]) == 0


@pytest.mark.parametrize("kind", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_every_signal_that_stops_a_run_saves_it(data, tmp_path, kind):
    words = [
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=100000",
        "train.eval_iters=0",
    ]
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); signal.signal(signal.SIGHUP, "
        "signal.SIG_DFL); "
    )
    program += f"from megatron_music.cli.entry import main; raise SystemExit(main(['train', 'tiny', *{words!r}]))"
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(kind)
    _, said = running.communicate(timeout=900)
    assert running.returncode == 75 and "is saved in" in said and (tmp_path / "run" / "latest").is_file()


def test_a_signal_that_is_ignored_does_not_stop_a_run(data, tmp_path):
    """As under nohup, and of a job that a script runs in the background."""
    words = [f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=40", "train.eval_iters=0"]
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    )
    program += f"from megatron_music.cli.entry import main; raise SystemExit(main(['train', 'tiny', *{words!r}]))"
    running = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.stat().st_size) and running.poll() is None:
        time.sleep(0.01)
    for kind in (signal.SIGINT, signal.SIGHUP):
        running.send_signal(kind)
    _, said = running.communicate(timeout=900)
    assert running.returncode == 0, said


def test_of_two_starts_the_second_goes_on_from_what_the_first_has_saved(data, tmp_path):
    """The newest checkpoint is looked for when the folder is held, not before."""
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=2", "checkpoint.save_interval=1")
    assert train(run) == DONE
    before = (tmp_path / "run" / "metrics.jsonl").read_text()
    with held_folder(tmp_path / "run"):
        second = subprocess.Popen(
            [sys.executable, "-m", "megatron_music", "train", str(tmp_path / "run" / "config.yaml")],
            stderr=subprocess.PIPE,
            text=True,
        )
        _, said = second.communicate(timeout=900)
    assert second.returncode == 2 and "is in use by a run" in said
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("flock", [errno.ENOLCK, NODE_LOCAL])
def test_a_run_and_its_pieces_on_a_file_system_without_locks_or_fsync(data, tmp_path, flock):
    environment = shimmed(flock=flock, fsync=errno.EINVAL, node="node1")
    words = [f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1", "train.eval_iters=0"]
    for command in (
        ["train", "tiny", *words],
        ["generate", "midi", str(tmp_path / "run"), "-o", str(tmp_path / "new")],
    ):
        run = subprocess.run(
            [sys.executable, "-m", "megatron_music", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0 and "could not be written" not in run.stderr, run.stderr
    assert (tmp_path / "run" / "latest").read_text() == "iter_0000001\n" and (tmp_path / "new" / "001.mid").is_file()
    assert not list((tmp_path / "run").glob(".*")) and not list((tmp_path / "new").glob(".*"))
    hold = "import sys, time; from pathlib import Path; from megatron_music.training.run_folder import held_folder\n"
    hold += "with held_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path / "run"], env=environment, stdout=subprocess.PIPE
    ) as other:
        try:
            other.stdout.readline()
            command = [sys.executable, "-m", "megatron_music", "train", str(tmp_path / "run" / "config.yaml")]
            run = subprocess.run(
                command, env=environment | {"SHIM_NODE": "node2"}, capture_output=True, text=True, check=False
            )
            assert (
                run.returncode == 2
                and f"is in use by a run that is under way (process {other.pid} on 'node1')" in run.stderr
            )
        finally:
            other.kill()


def trained(data, folder, *overrides):
    assert train(tiny_run(data, f"checkpoint.save={folder}", "train.train_iters=2", *overrides)) == DONE
    return folder


def test_moved_data_go_on_and_other_data_at_the_same_path_are_refused(tmp_path, capsys):
    run = trained(tiny_dataset(tmp_path / "data"), tmp_path / "run")
    (tmp_path / "data").rename(tmp_path / "moved data")
    capsys.readouterr()
    moved = tiny_run(tmp_path / "moved data", f"checkpoint.save={run}", "train.train_iters=2")
    assert starting_point(moved) == (run / "iter_0000002", True) and capsys.readouterr().err == ""
    tiny_dataset(tmp_path / "data", seed=1)
    with pytest.raises(
        ConfigError, match=r"the data in .*data are other data than it was trained on.*checkpoint.load="
    ):
        starting_point(tiny_run(tmp_path / "data", f"checkpoint.save={run}"))


def test_data_that_differ_in_their_notes_alone_are_refused(data, tmp_path):
    """Transposed music has an index of the same bytes."""
    shutil.copytree(data, tmp_path / "data")
    run = trained(tmp_path / "data", tmp_path / "run")
    tokens = bytearray((tmp_path / "data" / "train.bin").read_bytes())
    tokens[10] ^= 1
    (tmp_path / "data" / "train.bin").write_bytes(tokens)
    with pytest.raises(ConfigError, match="are other data"):
        starting_point(tiny_run(tmp_path / "data", f"checkpoint.save={run}"))


def test_a_blend_goes_on_with_its_own_weights_and_order(data, tmp_path):
    other = tiny_dataset(tmp_path / "other", seed=1)
    run = trained(f"[1,{data},1,{other}]", tmp_path / "run")
    for same in (f"[1,{data},1,{other}]", f"[0.5,{data},0.5,{other}]"):
        assert starting_point(tiny_run(same, f"checkpoint.save={run}"))[1]
    for changed, said in (
        (f"[0.9,{data},0.1,{other}]", "the weights of data.path are 0.9 and 0.1, and were 0.5 and 0.5"),
        (f"[1,{other},1,{data}]", "in another order"),
        (f"[1,{data},1,{data}]", "other data"),
        (data, "has 1 folders, and had 2"),
    ):
        with pytest.raises(ConfigError, match=said):
            starting_point(tiny_run(changed, f"checkpoint.save={run}"))


def without_record(checkpoint) -> None:
    """As an earlier version wrote it."""
    facts = json.loads((checkpoint / "manifest.json").read_text())
    del facts["files"]["data.json"]
    (checkpoint / "data.json").unlink()
    (checkpoint / "manifest.json").write_text(json.dumps(facts))


def test_a_run_of_an_earlier_version_goes_on_with_a_note(data, tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(gpt_task, "record_of", lambda data: {})
        run = trained(data, tmp_path / "run")
    (newest,) = run.glob("iter_*")
    without_record(newest)
    assert starting_point(tiny_run(data, f"checkpoint.save={run}"))[1]
    assert "does not record its data" in capsys.readouterr().err
    shutil.copytree(data, tmp_path / "copy")
    with pytest.raises(ConfigError, match=r"data.path is .*copy.*, and was"):
        starting_point(tiny_run(tmp_path / "copy", f"checkpoint.save={run}"))


def test_another_learning_rate_or_mask_is_told(data, done, capsys):
    starting_point(tiny_run(data, f"checkpoint.save={done}", "optimizer.lr=0.1", "data.eod_mask_loss=false"))
    said = capsys.readouterr().err
    assert "optimizer.lr is 0.1, and was" in said and "data.eod_mask_loss is False, and was True" in said


@pytest.mark.parametrize(
    "end",
    [
        b"\xff\xfe\x80",
        b'{"iteration": 3, "loss": \xc3',
        b"\0" * 4096,
        b"[" * 100_000,
        b'{"iteration": "x"}\n[1]\n"a"\n7',
    ],
)
def test_a_log_that_ends_in_anything_does_not_keep_its_run_from_going_on(data, done, tmp_path, end):
    run = tmp_path / "run"
    shutil.copytree(done, run)
    before = (run / "metrics.jsonl").read_bytes()
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(end)
    assert train(tiny_run(data, f"checkpoint.save={run}", "train.train_iters=3", "train.eval_iters=0")) == DONE
    after = (run / "metrics.jsonl").read_bytes()
    assert after.startswith(before) and [json.loads(line)["iteration"] for line in after.splitlines()][-1] == 3


def test_a_pipe_in_place_of_the_log_is_refused(data, done, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(done, run)
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    with pytest.raises(
        ConfigError, match=r"metrics.jsonl cannot be written to .it is not a regular file.; move it away"
    ):
        train(tiny_run(data, f"checkpoint.save={run}", "train.train_iters=3"))


def test_a_run_of_relative_data_is_resumed_from_another_folder(tmp_path, monkeypatch, capsys):
    """Its data are known by what they hold; of a run of an earlier version, the path is told as it was given."""
    home, away = tmp_path / "home", tmp_path / "away"
    away.mkdir(parents=True)
    data, run = tiny_dataset(home / "data60"), tmp_path / "run"
    monkeypatch.chdir(home)
    assert train(tiny_run("data60", f"checkpoint.save={run}", "train.train_iters=1")) == DONE
    monkeypatch.chdir(away)
    assert starting_point(tiny_run("../home/data60", f"checkpoint.save={run}"))[1]
    other = tiny_dataset(away / "data60", seed=5)
    with pytest.raises(ConfigError, match="the data in data60 are other data than it was trained on"):
        starting_point(tiny_run("data60", f"checkpoint.save={run}"))
    without_record(run / "iter_0000001")
    said = f"data.path is {data}, and was data60, from the folder that the run was started in"
    with pytest.raises(ConfigError, match=said):
        starting_point(tiny_run(data, f"checkpoint.save={run}"))
    assert str(other) not in capsys.readouterr().err


def test_two_trainings_that_start_at_once_do_the_work_once(data, tmp_path):
    """The second finds the folder taken, or everything done: it does not begin again over the first's checkpoints."""
    words = [
        "train",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=20",
        "train.eval_iters=0",
    ]
    both = [
        subprocess.Popen([sys.executable, "-m", "megatron_music", *words], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=900)[1] for process in both]
    assert sorted(process.returncode for process in both) in ([0, 0], [0, 2])
    assert "".join(said).count("training from new weights") == 1 and "Traceback" not in "".join(said)
    assert any(
        word in "".join(said) for word in ("is in use by a run that is under way", "already finished at iteration 20")
    )
