"""Every mistake in a recipe or an override is one sentence: what was given, what is allowed, what to do."""

import dataclasses
import re
import subprocess
import sys
import typing

import pytest

from megatron_music.config.checks import check_world_size
from megatron_music.config.errors import ConfigError, divisors
from megatron_music.config.load import load_run, read_run, recipe_names, write_run
from megatron_music.config.run import FlowRunConfig, RunConfig
from megatron_music.config.sections import (
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
)


def test_overrides_lie_on_top_of_the_recipe():
    config = load_run("tiny", ["train.train_iters=7", "data.path=OUT", "parallel.tensor_model_parallel_size=2"])
    assert (config.train.train_iters, config.data.path, config.parallel.tensor_model_parallel_size) == (7, "OUT", 2)
    assert config.train.global_batch_size == 8


def test_values_take_the_type_of_their_field():
    config = load_run(
        "tiny", ["optimizer.lr=1e-3", "optimizer.clip_grad=2", "train.bf16=true", "train.train_iters=1e2"]
    )
    assert (config.optimizer.lr, config.optimizer.clip_grad, config.train.bf16, config.train.train_iters) == (
        1e-3,
        2.0,
        True,
        100,
    )
    assert isinstance(config.optimizer.lr, float) and isinstance(config.train.train_iters, int)
    assert load_run("tiny", ["data.path=[0.3, a, 0.7, b]"]).data.weights == [0.3, 0.7]
    assert load_run("tiny", ["checkpoint.save=null"]).checkpoint.save is None


def test_a_size_fills_in_what_is_left_out():
    assert ModelConfig(size="article").ffn_hidden_size == 2048
    assert ModelConfig(size="demo", num_layers=2).num_layers == 2
    assert ModelConfig(size="demo", hidden_size=64).ffn_hidden_size == 256
    assert ModelConfig(size="demo", num_attention_heads=4).num_query_groups == 4


@pytest.mark.parametrize("recipe", recipe_names())
def test_recipes_are_lawful_and_described(recipe):
    assert recipe_names()[recipe].endswith(".")
    check_world_size(load_run(recipe), 1)


def test_a_written_run_is_read_back(tmp_path):
    config = load_run("article", ["data.path=[1, a, 2, b]", "parallel.tensor_model_parallel_size=4"])
    write_run(config, tmp_path / "config.yaml")
    assert read_run(tmp_path / "config.yaml") == config
    assert load_run(str(tmp_path / "config.yaml")) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lrr=1", ["optimizer.lrr", "did you mean lr?"]),
        ("trian.seed=1", ["'trian'", "did you mean train?"]),
        ("train.seed", ["'train.seed'", "section.field=value"]),
        ("seed=1", ["'seed=1'", "section.field=value"]),
        ("train.seed=1.5", ["train.seed is 1.5", "a whole number"]),
        ("train.seed=true", ["train.seed is True", "a whole number"]),
        ("train.bf16=1", ["train.bf16 is 1", "true or false"]),
        ("train.seed=[", ["'train.seed=['", "YAML"]),
        ("optimizer.lr=fast", ["optimizer.lr is 'fast'", "a number"]),
        ("optimizer.lr=0", ["optimizer.lr is 0", "above 0"]),
        ("optimizer.adam_beta1=2.5", ["optimizer.adam_beta1 is 2.5", "from 0 up to, not with, 1"]),
        ("optimizer.adam_beta2=-0.1", ["optimizer.adam_beta2 is -0.1", "from 0 up to, not with, 1"]),
        ("optimizer.min_lr=1", ["optimizer.min_lr", "optimizer.lr"]),
        ("optimizer.lr_decay_style=cosin", ["'cosin'", "cosine or constant", "did you mean cosine?"]),
        ("model.size=dmeo", ["'dmeo'", "did you mean demo?"]),
        ("model.size=custom", ["model.num_layers is missing", "model.size="]),
        ("model.hidden_size=65", ["model.hidden_size 65", "model.num_attention_heads 4"]),
        ("model.num_query_groups=3", ["model.num_query_groups 3", "1, 2, 4"]),
        ("model.hidden_dropout=1", ["model.hidden_dropout is 1", "1"]),
        ("data.path=[a, b]", ["data.path", "[weight, folder"]),
        ("data.reset_position_ids=true", ["data.reset_position_ids", "learned_absolute"]),
        ("parallel.sequence_parallel=true", ["parallel.sequence_parallel", "parallel.tensor_model_parallel_size=2"]),
        ("parallel.tensor_model_parallel_size=3", ["model.num_attention_heads 4", "1, 2, 4"]),
        ("parallel.pipeline_model_parallel_size=4", ["model.num_layers 2", "1, 2"]),
        ("train.micro_batch_size=3", ["train.global_batch_size 8", "1, 2, 4, 8"]),
        ("checkpoint.save_interval=-1", ["checkpoint.save_interval is -1", "=0"]),
    ],
)
def test_a_mistake_is_one_sentence(override, words):
    with pytest.raises(ConfigError) as caught:
        load_run("tiny", [override])
    sentence = str(caught.value)
    assert all(word in sentence for word in words), sentence
    assert "\n" not in sentence and ";" in sentence


@pytest.mark.parametrize(
    ("world_size", "overrides", "words"),
    [
        (3, ["parallel.tensor_model_parallel_size=2"], ["3 processes", "2 x 1", "--nproc_per_node 2"]),
        (3, [], ["train.global_batch_size 8", "2 x 3", "train.global_batch_size=12"]),
    ],
)
def test_a_number_of_processes_that_does_not_divide_is_refused(world_size, overrides, words):
    with pytest.raises(ConfigError) as caught:
        check_world_size(load_run("tiny", overrides), world_size)
    assert all(word in str(caught.value) for word in words), caught.value


def test_sequence_parallel_needs_a_sequence_that_divides():
    with pytest.raises(ConfigError, match=r"model.seq_length 63"):
        RunConfig(
            model=ModelConfig(size="tiny", seq_length=63),
            parallel=ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
        )


def test_unknown_recipes_and_damaged_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"did you mean demo?"):
        load_run("dem")
    (tmp_path / "list.yaml").write_text("- 1\n")
    (tmp_path / "flat.yaml").write_text("model: 3\n")
    (tmp_path / "broken.yaml").write_text("model: [\n")
    for name in ("list", "flat", "broken"):
        with pytest.raises(ConfigError, match=f"{name}.yaml"):
            load_run(str(tmp_path / f"{name}.yaml"))
    with pytest.raises(ConfigError, match=r"none.yaml"):
        read_run(tmp_path / "none.yaml")


def test_consequences_of_the_number_of_processes():
    config = load_run("tiny", ["parallel.tensor_model_parallel_size=2", "train.global_batch_size=16"])
    assert config.parallel.data_parallel_size(8) == 4
    assert config.num_microbatches(8) == 2


def test_folders_and_weights():
    assert DataConfig("a").weights is None
    assert [str(folder) for folder in DataConfig([1, "a", 3, "b"]).folders] == ["a", "b"]


def test_configuration_needs_no_torch():
    program = "import sys, megatron_music.config.load; assert not {'torch', 'megatron'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


NUMBERS = [
    (recipe, f"{section.name}.{item.name}", item)
    for recipe, run in (("tiny", RunConfig), ("demo-dit", FlowRunConfig))
    for section in dataclasses.fields(run)
    for item in dataclasses.fields(section.type)
    if {int, float} & set(typing.get_args(item.type) or (item.type,))
]


@pytest.mark.parametrize(("recipe", "name", "item"), NUMBERS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_number_that_is_not_finite_or_far_too_large_is_refused_by_its_name(recipe, name, item):
    is_float = float in (typing.get_args(item.type) or (item.type,))
    values = (
        [".inf", ".nan", "-.inf", "inf", "1" + "0" * 400]
        if is_float
        else ["1e30", ".inf", ".nan", "1" + "0" * 400, "1e13"]
    )
    for value in values:
        with pytest.raises(ConfigError, match=f"^{re.escape(name)} ") as caught:
            load_run(recipe, [f"{name}={value}"])
        assert "; " in str(caught.value)


def test_fields_that_are_set_in_python_are_checked_too():
    with pytest.raises(ConfigError, match=r"optimizer.lr is nan; use a finite number, such as 0.0003"):
        OptimizerConfig(lr=float("nan"))
    with pytest.raises(ConfigError, match=r"model.num_layers is 1000.*; use a whole number of at most"):
        ModelConfig(size="demo", num_layers=10**30)


def test_divisors_of_large_numbers_are_found_at_once():
    assert divisors(12) == "1, 2, 3, 4, 6, 12" and divisors(16) == "1, 2, 4, 8, 16" and divisors(1) == "1"
    assert divisors(2**40).endswith(f", {2**40}") and divisors(999_999_999_989) == "1, 999999999989"


@pytest.mark.parametrize("weight", [".inf", ".nan", "true", "0", "1" + "0" * 400])
def test_weights_of_a_blend_are_finite_and_above_0(weight):
    with pytest.raises(ConfigError, match="with weights above 0"):
        load_run("tiny", [f"data.path=[{weight}, a, 1, b]"])


@pytest.mark.parametrize("recipe", ["tiny", "demo-dit"])
@pytest.mark.parametrize("kind", ["[1]", "{}", "null", "7", "ditt"])
def test_a_kind_that_is_none_is_refused_by_name(recipe, kind):
    with pytest.raises(ConfigError, match=r"^model.kind is .*; use text2muq or dit"):
        load_run(recipe, [f"model.kind={kind}"])


@pytest.mark.parametrize("value", ["1" + "0" * 5000, "2024-13-45", "[" * 2000])
def test_values_that_yaml_itself_cannot_make_are_refused(value):
    with pytest.raises(ConfigError, match="quote it"):
        load_run("tiny", [f"train.seed={value}"])


def test_a_key_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("model: {size: tiny}\ntrain: {1: 2}\n")
    with pytest.raises(ConfigError, match=r"unknown key train.1; use"):
        load_run(str(tmp_path / "run.yaml"))
