"""What a GPT's layers are made of: a Transformer Engine that is installed, broken or told which attention to use."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_gpt import tiny_dataset

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run
from megatron_music.config.sections import ModelConfig, ParallelConfig
from megatron_music.models.gpt import build_gpt
from megatron_music.models.layers import SDPACoreAttention
from megatron_music.parallel import backends, distributed
from megatron_music.parallel.backends import (
    VARIABLES,
    attention_backend,
    has_gradient_fusion,
    why_no_transformer_engine,
)

BROKEN = {
    "a symbol is missing": "raise OSError('libtransformer_engine.so: undefined symbol: "
    "cublasLtGroupedMatrixLayoutInit_internal')",
    "the metapackage alone": "raise RuntimeError('Could not find shared object file')",
    "a library is missing": "raise ImportError('libcudart.so.13: cannot open shared object file')",
}


def install(folder: Path, name: str, text: str) -> Path:
    """A package that Python finds in the folder."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text + "\n")
    return folder


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    def add(name: str, text: str = "") -> None:
        monkeypatch.syspath_prepend(install(tmp_path / "site", name, text))
        importlib.invalidate_caches()

    before = set(sys.modules)
    yield add
    for name in set(sys.modules) - before:
        if name.startswith(("transformer_engine", "fused_weight_gradient")):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setattr(backends, "_set_here", {})
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # for monkeypatch to know them, and to put them back
        monkeypatch.delenv(name)


@pytest.fixture
def one_process():
    distributed.start(ParallelConfig())
    distributed.seed_for_building(3)
    yield
    distributed.stop()


def build(**changes):
    return build_gpt(ModelConfig(size="tiny", **changes), ParallelConfig())


def attention_of(model):
    return model.decoder.layers[0].self_attention.core_attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_without_a_visible_gpu_the_layers_are_ours_though_transformer_engine_is_installed(one_process, on_path):
    assert why_no_transformer_engine() == "Transformer Engine is not installed"
    on_path("transformer_engine")
    assert why_no_transformer_engine() == "no CUDA device is visible"
    assert isinstance(attention_of(build()), SDPACoreAttention)
    with pytest.raises(ConfigError, match=r"context_parallel_size is 2.*no CUDA device is visible"):
        distributed.start(ParallelConfig(context_parallel_size=2))


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_transformer_engine_is_one_sentence_that_names_it(tmp_path, text):
    site = install(tmp_path / "site", "transformer_engine", f"{text}")
    data = tiny_dataset(tmp_path / "data")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "megatron_music",
            "train",
            "tiny",
            f"data.path={data}",
            f"checkpoint.save={tmp_path / 'run'}",
            "train.train_iters=1",
        ],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if (
        done.returncode == 0
    ):  # megatron-core takes an ImportError for a Transformer Engine that is absent, and so may we without CUDA
        assert "ImportError" in text and not torch.cuda.is_available()
        return
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert (
        "Transformer Engine is installed but cannot be imported" in done.stderr
        and text.split("'")[1][:30] in done.stderr
    )
    ours = [line for line in done.stderr.splitlines() if line.startswith("megatron-music:")]
    assert len(ours) == 1 and "make room, or check" not in ours[0]


def test_on_a_gpu_a_broken_transformer_engine_is_refused_rather_than_replaced(on_path, monkeypatch):
    on_path("transformer_engine", BROKEN["a library is missing"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"cannot be imported \(ImportError: libcudart"):
        why_no_transformer_engine()


def test_other_errors_are_not_taken_for_transformer_engines():
    with pytest.raises(OSError, match=r"^No space left$"), backends.naming_transformer_engine():
        raise OSError("No space left")


@pytest.mark.parametrize("name", VARIABLES)
def test_variables_of_transformer_engine_stop_no_model_and_stay_as_they_were(one_process, monkeypatch, name):
    monkeypatch.setenv(name, "0")
    build()
    assert {key: os.environ[key] for key in VARIABLES if key in os.environ} == {name: "0"}


@pytest.mark.parametrize(("backend", "values"), [("flash", "100"), ("fused", "010"), ("unfused", "001")])
def test_a_chosen_backend_is_set_for_transformer_engine_and_no_longer_than_for_that_model(backend, values):
    from megatron.core.transformer.enums import AttnBackend

    assert backend in AttnBackend.__members__
    for _ in range(2):
        with attention_backend(backend, None):
            assert not [name for name in VARIABLES if name in os.environ], "megatron-core sets them itself"
        assert "".join(os.environ[name] for name in VARIABLES) == values
        with attention_backend("fused" if backend == "flash" else "flash", None):
            pass
    with attention_backend("auto", None):
        pass
    assert not [name for name in VARIABLES if name in os.environ]


def test_an_environment_that_contradicts_the_chosen_backend_is_refused(monkeypatch):
    monkeypatch.setenv("NVTE_FLASH_ATTN", "0")
    with attention_backend("fused", None):
        pass
    with (
        pytest.raises(
            ConfigError, match=r"NVTE_FLASH_ATTN=0 is in the environment.*is flash.*set model.attention_backend=auto"
        ),
        attention_backend("flash", None),
    ):
        pass


def test_an_environment_that_leaves_no_attention_is_refused(monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, "0")
    with pytest.raises(ConfigError, match=r"are all 0.*unset one"), attention_backend("auto", None):
        pass
    with attention_backend("local", "model.attention_backend is local"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without CUDA")
def test_a_kernel_of_transformer_engine_is_refused_for_layers_of_ours(one_process):
    with pytest.raises(
        ConfigError, match=r"model.attention_backend is flash.*not installed; set model.attention_backend=auto"
    ):
        build(attention_backend="flash")
    assert isinstance(attention_of(build(attention_backend="local")), SDPACoreAttention)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.attention_backend=cudnn"], "use auto, flash, fused, unfused or local"),
        (["model.attention_backend=flash", "data.reset_attention_mask=true"], "data.reset_attention_mask=false"),
        (["model.attention_backend=local", "parallel.context_parallel_size=2"], "parallel.context_parallel_size=1"),
    ],
)
def test_backends_that_a_run_cannot_have(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_run("tiny", overrides)


def test_fused_gradients_need_an_extension_that_imports(on_path):
    assert not has_gradient_fusion()
    on_path("fused_weight_gradient_mlp_cuda", "raise ImportError('undefined symbol: _ZN3c104cuda9SetDeviceEi')")
    assert not has_gradient_fusion()
    (Path(sys.path[0]) / "fused_weight_gradient_mlp_cuda" / "__init__.py").write_text("")
    assert has_gradient_fusion()
