"""What a run tells of itself: every step's figures, in the files, on the console, and in Weights & Biases."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.sections import LoggingConfig
from megatron_music.data.folders import num_tokens
from megatron_music.data.indexed import open_split
from megatron_music.profiling.flops import step_flops
from megatron_music.training.loop import DONE, train
from megatron_music.training.metrics import Metrics


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("metrics") / "data")


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_figures_of_a_step(data, tmp_path, capsys):
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=5", "logging.peak_tflops=0.5")
    assert train(run) == DONE
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    tokens = sum(len(document) for document in open_split(data, "train"))
    assert num_tokens(run.data, "train") == tokens
    for line in steps:
        assert line["tflops_per_gpu"] == pytest.approx(step_flops(run.model, 8).model / line["step_seconds"] / 1e12)
        assert line["mfu"] == pytest.approx(line["tflops_per_gpu"] / 0.5)
        assert line["epoch"] == pytest.approx(line["iteration"] * 8 * 64 / tokens)
        # torch alone is more than this, and no test machine has more than that.
        assert 0.05 < line["process_memory_gib"] < 1000
    told = capsys.readouterr().err
    assert "by the formula mcore" in told and "mfu is its share of 0.5 TFLOP/s (logging.peak_tflops)" in told
    assert all(word in told for word in ("| tflops_per_gpu 0", "| mfu ", "| epoch ", "| process_memory_gib "))


def test_without_a_peak_mfu_is_null(data, tmp_path, capsys):
    run = tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1", "train.eval_iters=0")
    assert train(run) == DONE
    (line,) = lines(tmp_path / "run")
    assert line["mfu"] is None and line["tflops_per_gpu"] > 0
    told = capsys.readouterr().err
    assert "mfu is left out, since no peak of the CPU in fp32 is known" in told and "| mfu" not in told


def metrics(folder: Path | None, **options) -> Metrics:
    options = {"iteration": 0, "total": 3, "log_interval": 1, "tensorboard": False, "speaks": True} | options
    return Metrics(folder, **options)


def test_what_is_not_known_is_null_and_no_point_of_a_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = metrics(tmp_path, tensorboard=True)
    record.write(1, loss=2.0, mfu=None)
    record.write_picture(1, "sample", np.full((4, 5, 3), 200, np.uint8))
    record.close()
    assert lines(tmp_path) == [{"iteration": 1, "loss": 2.0, "mfu": None}]
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Tags()["scalars"] == ["loss"]
    (picture,) = board.Images("sample")
    assert (picture.height, picture.width, picture.step) == (4, 5, 1)


@pytest.fixture
def wandb(monkeypatch) -> types.SimpleNamespace:
    """A module in the place of wandb, which writes down what is asked of it."""
    record = types.SimpleNamespace(inits=[], logs=[], finished=0, unreachable=False)

    def finish():
        record.finished += 1

    def init(**options):
        record.inits.append(options)
        if record.unreachable and options["mode"] == "online":
            raise module.Error("no route")
        return types.SimpleNamespace(log=record.logs.append, finish=finish, define_metric=lambda *name, **step: None)

    module = types.ModuleType("wandb")
    module.Error = type("Error", (Exception,), {})
    module.Settings, module.init = dict, init
    module.api = types.SimpleNamespace(api_key=None)
    record.module = module
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return record


def test_wandb_gets_every_line_and_the_configuration(wandb, data, tmp_path):
    folder = tmp_path / "run"
    overrides = [f"checkpoint.save={folder}", "logging.wandb_project=chorales"]
    assert train(tiny_run(data, *overrides, "train.train_iters=2")) == DONE
    assert train(tiny_run(data, *overrides, "train.train_iters=3")) == DONE
    first, second = wandb.inits
    # Nobody is logged in: into files. The second start goes on with the first one's run.
    assert (first["project"], first["mode"], first["config"]["train"]["train_iters"]) == ("chorales", "offline", 2)
    assert first["id"] == second["id"] and second["resume"] == "allow" and first["dir"] == str(folder.resolve())
    known = [{key: value for key, value in line.items() if value is not None} for line in lines(folder)]
    assert wandb.logs == known and wandb.finished == 2


def test_wandb_without_a_network_writes_files(wandb, tmp_path, monkeypatch, capsys):
    wandb.module.api.api_key, wandb.unreachable = "key", True
    metrics(tmp_path, wandb_project="chorales").close()
    assert [options["mode"] for options in wandb.inits] == ["online", "offline"]
    assert "does not answer (no route); its files are in" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_MODE", "disabled")
    metrics(None, wandb_project="chorales").close()
    assert wandb.inits[-1]["mode"] == "disabled" and wandb.inits[-1]["id"] is None


def test_wandb_is_asked_for_by_name_only(wandb, tmp_path):
    metrics(tmp_path).close()
    metrics(tmp_path, wandb_project="chorales", speaks=False).close()
    assert not wandb.inits


def test_without_wandb_one_sentence_says_how_to_get_it(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    command = ["train", "tiny", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}", "logging.wandb_project=x"]
    assert main(command) == 2
    assert f"this command needs wandb; run: {sys.executable} -m pip install wandb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"peak_tflops": 0.0}, "logging.peak_tflops is 0.0; use a number above 0"),
        ({"peak_tflops": float("inf")}, "logging.peak_tflops is inf"),
        ({"sample_pieces": 9}, "logging.sample_pieces is 9; use 0 .none. to 8"),
        ({"sample_pieces": -1}, "logging.sample_pieces is -1"),
    ],
)
def test_what_cannot_be_logged(options, sentence):
    with pytest.raises(ConfigError, match=sentence):
        LoggingConfig(**options)
