"""The fields of a run are written down once, and what is printed of a run can be edited and trained."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from tiny_gpt import tiny_dataset

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run, recipe_names
from megatron_music.config.reference import as_yaml, meaning_of, page
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import TrainConfig
from megatron_music.training.loop import DONE, train

DOCS = Path(__file__).parents[2] / "docs"
SECTIONS = {item.type for run in (RunConfig, FlowRunConfig) for item in dataclasses.fields(run)}


@pytest.mark.parametrize("kind", sorted(SECTIONS, key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_field_of_a_run_says_what_it_means(kind):
    for item in dataclasses.fields(kind):
        assert len(meaning_of(item)) > 5, f"{kind.__name__}.{item.name} has no meaning; make it with config.setting"


def test_the_page_of_fields_is_what_the_code_says():
    assert (DOCS / "configuration.md").read_text() == page(), (
        "run python -m megatron_music.config.reference > docs/configuration.md"
    )


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_recipe_is_the_same_run_again_with_every_field(name, tmp_path, capsys):
    assert main(["recipes", name]) == 0
    text = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(text)
    run = load_run(name)
    assert load_run(str(tmp_path / "mine.yaml")) == run
    tree = yaml.safe_load(text)
    assert tree.pop("description") == recipe_names()[name] and tree == dataclasses.asdict(run)
    lines = text.splitlines()
    for section in tree:
        for key in tree[section]:
            assert any(re.match(rf"  {key}: .*# \w", line) for line in lines), f"{section}.{key} has no comment"
    assert main(["recipes", name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"description": recipe_names()[name], **tree}


def test_a_printed_recipe_is_edited_and_trained(tmp_path):
    text = as_yaml(load_run("tiny", ["model.num_layers=1", "train.eval_iters=0"]))
    assert "  train_iters: 20 " in text and "(default 1000)" in text
    edited = text.replace("train_iters: 20 ", "train_iters: 2 ").replace("tensorboard: true", "tensorboard: false")
    data = tiny_dataset(tmp_path / "data")
    (tmp_path / "mine.yaml").write_text(
        edited.replace("  path: null", f"  path: {data}", 1).replace("  save: null", f"  save: {tmp_path / 'run'}")
    )
    run = load_run(str(tmp_path / "mine.yaml"))
    assert (run.train.train_iters, run.data.path) == (2, str(data))
    assert train(run) == DONE and (tmp_path / "run" / "iter_0000002").is_dir()


def test_recipes_are_listed_in_aligned_columns(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    begins = {line.index(recipe_names()[line.split()[0]]) for line in lines}
    assert len(begins) == 1 and len(lines) == len(recipe_names())
    assert main(["recipes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == recipe_names()
    assert main(["recipes", "dem"]) == 2 and "did you mean demo?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("train.lr=1", "optimizer.lr"),
        ("train.iters=1", "train.train_iters"),
        ("lr=1", "optimizer.lr"),
        ("iters=1", "train.train_iters"),
        ("train.hidden_sise=1", "model.hidden_size"),
        ("optimizer.weight_decy=1", "weight_decay"),
        ("model.micro_batch_size=1", "train.micro_batch_size"),
        ("checkpoint.path=x", "data.path"),
    ],
)
def test_hints_look_across_sections(override, meant):
    with pytest.raises(ConfigError, match=re.escape(f"(did you mean {meant}?)")):
        load_run("demo", [override])


def test_hints_of_text_to_music_know_its_sections():
    with pytest.raises(ConfigError, match=r"did you mean flow.ema_decay\?"):
        load_run("demo-dit", ["train.ema_decay=0.9"])


def test_a_seed_that_numpy_does_not_take_is_refused_by_name():
    assert TrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    with pytest.raises(ConfigError, match=r"train.seed is 4294967296"):
        TrainConfig(seed=2**32)


def test_help_of_train_says_where_the_fields_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "megatron-music recipes RECIPE" in " ".join(capsys.readouterr().out.split())
