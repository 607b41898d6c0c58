"""Whose a run's folder is: everything is checked before anything is written."""

import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.config import ConfigError
from megatron_music.tokens.folder import Encoding, write_tokenizer_folder
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
        done / "iter_0000002", False
    )  # fmt: skip
    assert starting_point(tiny_run(data, f"checkpoint.save={tmp_path / 'new'}")) == (None, False)


@pytest.mark.parametrize(("override", "said"), [
    ("train.seed=5", "train.seed=1234, not 5"),
    ("train.global_batch_size=16", "train.global_batch_size=8, not 16"),
    ("model.num_layers=4", "num_layers"),
])  # fmt: skip
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
    with pytest.raises(ConfigError, match="data.path"):
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
    with held_folder(tmp_path / "run", run):
        with pytest.raises(ConfigError, match="is in use by a run that is under way"):
            train(run)
    assert train(run) == DONE
