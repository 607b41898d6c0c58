"""The door of Megatron-Bridge, against its real classes.

Without Transformer Engine a package of Bridge cannot be imported whole; bridge_import.py says what stands in. Bridge's
training loop runs the page's script, on CPUs; nothing has run on a GPU.
"""

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_gpt import launch, tiny_dataset

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import SECTIONS
from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.hosts import bridge
from megatron_music.parallel.backends import has_gradient_fusion
from megatron_music.tokens import vocabulary

WORKER = Path(__file__).parent / "bridge_worker.py"
LAYOUTS = ("TP1", "TP2", "TP2 SP", "PP2")
OTHER = ModelConfig(
    size="tiny",
    num_query_groups=2,
    swiglu=True,
    add_bias_linear=False,
    normalization="RMSNorm",
    position_embedding_type="learned_absolute",
    share_embeddings_and_output_weights=False,
    rotary_base=500,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    path = tmp_path_factory.mktemp("bridge") / "results.json"
    launch(2, WORKER, path)
    return json.loads(path.read_text())


@pytest.mark.parametrize("form", ["provider", "builder"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bridge_builds_our_model_in_every_layout(results, form, layout):
    expected, found = results["ours TP1"], results[f"{form} {layout}"]
    losses = [rank["loss"] for rank in found if rank["loss"] is not None]
    assert len(losses) == (1 if layout == "PP2" else 2)
    assert losses == pytest.approx([expected[0]["loss"]] * len(losses), rel=1e-6)
    assert all(rank["gradients"] < 1e-5 for rank in found)
    assert {key for rank in found for key in rank["keys"]} == set(expected[0]["keys"])


@pytest.mark.parametrize("model", [ModelConfig(size="125m"), OTHER])
def test_the_model_is_the_one_described(model):
    for config in (bridge.provider_of(model), bridge.model_config_of(model)):
        assert bridge.model_of(config).parameter_count == model.parameter_count
        config.finalize()
        assert bridge.model_of(config) == ModelConfig(**{**vars(model), "size": "custom"})


@pytest.mark.parametrize("model", [ModelConfig(size="125m"), OTHER])
def test_operations_are_counted_as_bridge_counts_its_own_gpt(model):
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.training.utils import flop_utils

    num_floating_point_operations = flop_utils.num_floating_point_operations
    counts = [{}]
    # Bridge 0.5 counts another model's batch as whole sequences, whatever their tokens.
    if "_get_num_floating_point_operations_with_runtime_stats" in Path(flop_utils.__file__).read_text():
        counts.append({"seqlen_sum": 3000, "seqlen_squared_sum": 2048 * 3000})
    ours = bridge.provider_of(model)
    names = {item.name for item in fields(GPTModelProvider)} & {*bridge._TRANSFORMER, *bridge._SHAPE}
    plain = GPTModelProvider(**{name: getattr(ours, name) for name in names})
    plain.finalize()
    for options in counts:
        expected = num_floating_point_operations(SimpleNamespace(model=plain, peft=None), 4, **options)
        for config in (ours, bridge.model_config_of(model)):
            found = num_floating_point_operations(SimpleNamespace(model=config, peft=None), 4, **options)
            assert found == pytest.approx(expected, rel=1e-12)
    by_tokens = ours._get_num_floating_point_operations_with_runtime_stats(batch_size=4)
    assert ours._get_num_floating_point_operations(4) == by_tokens
    assert ours._get_num_floating_point_operations(0) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def test_a_recipe_is_a_whole_configuration(data):
    from megatron.bridge.training.config import ConfigContainer, runtime_config_update

    config = bridge.music_gpt_350m_pretrain_config(str(data), train_iters=7, global_batch_size=8, save="runs/a")
    assert isinstance(config, ConfigContainer)
    runtime_config_update(config)  # what pretrain() does first
    assert (config.model.num_layers, config.model.hidden_size, config.model.vocab_size) == (24, 1024, vocabulary.SIZE)
    assert (config.train.train_iters, config.train.global_batch_size, config.optimizer.lr) == (7, 8, 3e-4)
    assert config.model.bf16 and config.optimizer.use_distributed_optimizer
    assert config.dataset.blend_per_split[0][0] == [str(data / "train")]
    assert config.checkpoint.save == "runs/a"


def test_every_recipe_counts_what_its_name_says(data):
    for name, millions in (("125m", 86), ("350m", 303), ("1p3b", 1210), ("2p7b", 2520), ("6p7b", 6445)):
        model = getattr(bridge, f"music_gpt_{name}_pretrain_config")(str(data)).model
        assert round(bridge.model_of(model).parameter_count / 1e6) == pytest.approx(millions, rel=0.01)
    assert bridge.model_of(bridge.music_gpt_article_pretrain_config(str(data)).model).num_layers == 6


def test_a_recipe_refuses_what_it_does_not_know(data, tmp_path):
    with pytest.raises(ConfigError, match=r"no field 'train_iter' \(did you mean train_iters\?\)"):
        bridge.music_gpt_125m_pretrain_config(str(data), train_iter=3)
    with pytest.raises(ConfigError, match="build tokens"):
        bridge.music_gpt_125m_pretrain_config(str(tmp_path))
    names = [item.name for kind in SECTIONS.values() for item in fields(kind)]
    assert len(names) == len(set(names))  # a field's name alone says its section


def test_a_configuration_written_by_bridge_is_read_back(data, tmp_path):
    from megatron.bridge.training.config import ConfigContainer
    from megatron.bridge.utils.instantiate_utils import (
        InstantiationException,
        instantiate,
    )

    config = bridge.music_gpt_125m_pretrain_config(str(data), tensor_model_parallel_size=2)
    config.to_yaml(str(tmp_path / "config.yaml"))
    again = ConfigContainer.from_yaml(str(tmp_path / "config.yaml"))
    assert type(again.model) is bridge.MusicGPTProvider and again.model == config.model
    assert again.model.transformer_layer_spec is bridge.music_layers
    with pytest.raises(InstantiationException, match="not in the allowlist"):
        instantiate({"_target_": "megatron_music.config.load.load_run", "recipe": "tiny"})


def test_gradient_accumulation_is_fused_only_where_apexs_extension_is():
    """Bridge's own default asks for Transformer Engine, under which megatron-core then demands the extension."""
    for config in (bridge.provider_of(OTHER), bridge.model_config_of(OTHER).transformer, bridge.MusicGPTProvider()):
        assert config.gradient_accumulation_fusion is has_gradient_fusion()


@pytest.mark.parametrize("backend", ["auto", "fused", "local"])
def test_the_attention_backend_goes_with_the_model(backend):
    model = replace(OTHER, attention_backend=backend)
    for config in (bridge.provider_of(model), bridge.model_config_of(model)):
        assert config.attention_backend.name == backend and bridge.model_of(config).attention_backend == backend


@pytest.fixture(scope="module")
def script() -> str:
    """The page's, as printed."""
    page = (Path(__file__).parent.parent.parent / "docs" / "megatron-bridge.md").read_text()
    (script,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pretrain(" in text]
    return script


def test_the_script_of_the_page_trains_saves_and_evaluates(script, tmp_path):
    """Run as its first line says, on a dataset; ``without_cuda`` says what stands in for CUDA."""
    tiny_dataset(tmp_path / "OUT", documents={"train": 300, "valid": 40, "test": 40})
    (tmp_path / "train.py").write_text(script)
    words = script.splitlines()[0].removeprefix("# torchrun ").split()
    paths = [str(WORKER.parent / "without_cuda"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    losses = [float(loss) for loss in re.findall(r"iteration +\d+/ +3 .*lm loss: ([\d.E+-]+)", done.stdout)]
    assert len(losses) == 3 and 0 < losses[2] < losses[0], done.stdout
    for split in ("validation", "test"):
        assert re.search(rf"{split} .*lm loss value: [\d.E+-]+", done.stdout), done.stdout
    assert (tmp_path / "runs" / "a" / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_the_script_of_the_page_runs_nothing_where_a_process_imports_it(script):
    """megatron-core's checkpoint writer spawns processes, which import the script again."""
    body = ast.parse(script).body
    assert [type(node) for node in body if not isinstance(node, ast.Import | ast.ImportFrom | ast.Assign)] == [ast.If]
    assert ast.unparse(body[-1].test) == "__name__ == '__main__'"


def test_the_newer_form_is_read_back_with_its_builder():
    from megatron.bridge.models.common import ModelConfig as BridgeModelConfig

    config = bridge.model_config_of(OTHER, ParallelConfig(2))
    again = BridgeModelConfig.from_dict(config.as_dict())
    assert again == config
    assert again.get_builder_cls() is bridge.MusicGPTModelBuilder
