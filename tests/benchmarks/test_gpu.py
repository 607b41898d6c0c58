"""The GPU benchmark on a machine without one: the whole script at its smallest, and what it does when memory is out."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(gpu, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("gpu")
    files = f"--json {folder / 'gpu.json'} --markdown {folder / 'gpu.md'}"
    gpu.main(f"--device cpu --size tiny --steps 2 --warmup 1 --micro-batch 2 --peak 0.5 {files}".split())
    found = json.loads((folder / "gpu.json").read_text())
    assert (folder / "gpu.md").read_text().count("| tiny | 64 |") == len(found["rows"])
    return found


def test_every_cell_is_measured(result):
    cells = [(row["contender"], row["recomputation"], row["outcome"]) for row in result["rows"]]
    theirs = [("GPT2LMHeadModel", kind, "measured") for kind in ("none", "full")]
    ours = [("megatron_music", kind, "measured") for kind in ("none", "selective", "full")]
    assert sorted(cells) == sorted([*theirs, *ours])


def test_the_figures_follow_from_the_median(gpu, result):
    config = gpu.run_config("tiny", 64)
    for row in result["rows"]:
        assert len(row["step_seconds"]) == 2 and row["tokens_per_second"] == pytest.approx(128 / row["median_seconds"])
        flops = gpu.step_flops(config.model, 2, formula="mcore", recomputation=row["recomputation"])
        assert row["mfu"] == pytest.approx(flops.model / row["median_seconds"] / 0.5e12)
        assert row["hfu"] / row["mfu"] == pytest.approx(flops.hardware / flops.model)
        assert row["parameters"] == config.model.parameter_count


def test_recomputation_changes_no_loss(result):
    losses = {row["recomputation"]: row["loss"] for row in result["rows"] if row["contender"] == "megatron_music"}
    assert losses["selective"] == losses["none"] == losses["full"]


def test_recomputation_happens(gpu):
    from megatron_music.parallel import distributed

    calls = {}
    for kind in gpu.RECOMPUTATIONS:
        config = gpu.run_config("tiny", 64, 1, "train.bf16=false")
        distributed.start(config.parallel)
        engine = gpu.our_engine(config, kind)
        calls[kind] = {"core_attention": 0, "mlp": 0}
        layer = engine.modules[0].decoder.layers[0]
        for name, part in (("core_attention", layer.self_attention.core_attention), ("mlp", layer.mlp)):
            part.register_forward_hook(
                lambda *_, name=name, kind=kind: calls[kind].__setitem__(name, calls[kind][name] + 1)
            )
        engine.step(gpu.batches_of(gpu.tokens_of(config, "cpu")))
        distributed.stop()
    assert calls == {
        "none": {"core_attention": 1, "mlp": 1},
        "selective": {"core_attention": 2, "mlp": 1},
        "full": {"core_attention": 2, "mlp": 2},
    }


def test_the_loss_is_right_before_anything_is_timed(gpu, result, monkeypatch):
    assert result["loss_check"]["relative_error"] < 1e-5 and result["loss_check"]["reference"] < 5
    right = gpu.reference_loss
    # Attention that sees one token of the future is found out.
    monkeypatch.setattr(torch.Tensor, "triu", lambda ones, diagonal: ones.cumsum(1) > ones.cumsum(0) + 1)
    with pytest.raises(SystemExit, match="speed means nothing then"):
        gpu.main(["--device", "cpu", "--size", "tiny"])
    monkeypatch.undo()
    monkeypatch.setattr(gpu, "reference_loss", lambda *given: right(*given) * 1.002)
    with pytest.raises(SystemExit, match="speed means nothing then"):
        gpu.main(["--device", "cpu", "--size", "tiny"])


def test_a_column_ends_where_memory_is_out(gpu):
    def build(batch):
        if batch == 4:
            raise torch.OutOfMemoryError("no room for 4")
        return lambda: float(batch)

    rows = list(gpu.measure_column(build, gpu.MICRO_BATCHES, 2, 1, on_cuda=False))
    assert [(row["micro_batch"], row["outcome"]) for row in rows] == [
        (1, "measured"),
        (2, "measured"),
        (4, "out of memory"),
    ]
    assert rows[1]["loss"] == 2.0
    named = {"size": "tiny", "seq_length": 64, "recomputation": "none", "contender": "x"}
    assert "| 4 | out of memory |" in gpu.line(named | rows[2])

    def broken(batch):
        raise RuntimeError("CUDA error: misaligned address\nlong story")

    (row,) = gpu.measure_column(broken, (1, 2), 1, 0, on_cuda=False)
    assert row["outcome"] == "RuntimeError: CUDA error: misaligned address"


def test_a_gpu_is_asked_for_in_one_sentence(gpu, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "there is no CUDA here; use --device cpu --size tiny" in capsys.readouterr().err
