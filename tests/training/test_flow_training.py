"""Both text-to-music models through the loop of the GPT: batches, averages, checkpoints, layouts, kills."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_gpt import launch, tiny_dataset, tiny_run
from tiny_latents import FRAMES, RECIPE, flow_run, tiny_latents
from training_runs import read_metrics, wait_for_iteration

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sections import FlowConfig
from megatron_music.config.sections import TrainConfig
from megatron_music.data.latents import LatentDataset
from megatron_music.flow.ema import WeightAverage
from megatron_music.generation.load_models import load_flow_model, load_model
from megatron_music.parallel import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.flow_step import flow_batches, place_of
from megatron_music.training.loop import DONE, train

KINDS = ("text2muq", "dit")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_latents(tmp_path_factory.mktemp("flow") / "data")


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for kind in KINDS:
        assert train(flow_run(data, f"model.kind={kind}", f"checkpoint.save={folder / kind}")) == DONE
    return {kind: folder / kind for kind in KINDS}


def batches(data: Path, kind: str = "dit", flow: FlowConfig | None = None, **options):
    given = {"consumed_samples": 0, "data_parallel_rank": 0, "data_parallel_size": 1, **options}
    return flow_batches(
        LatentDataset(data, "train"), kind, flow or FlowConfig(), TrainConfig(micro_batch_size=2), **given
    )


def test_each_epoch_has_every_item_once_in_an_order_of_its_own():
    epochs = [[place_of(number, 21, 5) for number in range(21 * epoch, 21 * (epoch + 1))] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(21)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [place_of(number, 21, 5) for number in range(21)] == epochs[0], "and always the same one"
    assert [place_of(number, 21, 6) for number in range(21)] != epochs[0]
    assert [place_of(number, 4, None) for number in range(6)] == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_samples_do_not_depend_on_the_layout_or_on_stops(data, kind):
    alone = batches(data, kind)
    whole = [next(alone) for _ in range(6)]
    resumed = next(batches(data, kind, consumed_samples=8))
    pair = [batches(data, kind, data_parallel_rank=rank, data_parallel_size=2) for rank in range(2)]
    shared = [next(pair[number % 2]) for number in range(6)]
    for name in whole[0]:
        assert torch.equal(whole[4][name], resumed[name]), name
        for one, other in zip(whole, shared, strict=True):
            assert torch.equal(one[name], other[name]), name


def test_a_batch_is_on_the_path(data):
    dataset, found = LatentDataset(data, "train"), next(batches(data))
    latents = torch.from_numpy(np.stack([dataset[place_of(number, len(dataset), 1234)].latents for number in range(2)]))
    sigma = found["sigma_B"][:, None, None]
    torch.testing.assert_close(found["noisy"] - sigma * found["velocity"], latents)
    assert (
        found["noisy"].shape == (2, 8, FRAMES)
        and found["text_BLC"].shape == (2, 5, 24)
        and found["keeps_BL"].dtype == torch.bool
    )


def test_regression_learns_the_data_from_nothing(data):
    dataset, found = LatentDataset(data, "train"), next(batches(data, flow=FlowConfig(objective="regression")))
    latents = torch.from_numpy(np.stack([dataset[place_of(number, len(dataset), 1234)].latents for number in range(2)]))
    assert not found["noisy"].any() and torch.equal(found["sigma_B"], torch.ones(2))
    assert torch.equal(found["velocity"], -latents)


def test_a_share_of_the_samples_loses_its_condition(data):
    def keeps_some(chance: float) -> list[bool]:
        found = batches(data, flow=FlowConfig(condition_dropout=chance))
        return [bool(music.any()) for _ in range(50) for music in next(found)["music_BE"]]

    assert all(keeps_some(0)) and not any(keeps_some(1))
    assert 25 < 100 - sum(keeps_some(0.4)) < 55
    unshuffled = batches(data, flow=FlowConfig(condition_dropout=1), shuffles=False)
    assert next(unshuffled)["music_BE"].any(), "an evaluation keeps all conditions"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_says_so(runs, kind):
    lines = read_metrics(runs[kind])
    steps = [line for line in lines if "loss" in line]
    assert [line["iteration"] for line in steps] == list(range(1, 21))
    assert {"iteration", "loss", "grad_norm", "learning_rate", "consumed_samples", "epoch"} == set(steps[0])
    assert steps[-1]["epoch"] == pytest.approx(160 / 21)
    assert np.mean([line["loss"] for line in steps[-8:]]) < np.mean([line["loss"] for line in steps[:8]])


@pytest.mark.parametrize("kind", KINDS)
def test_mfu_of_such_a_run(runs, kind, capsys):
    """`mfu RUN` counts as the run itself did while it trained."""
    lines = [json.loads(line) for line in (runs[kind] / "metrics.jsonl").read_text().splitlines()]
    capsys.readouterr()
    assert main(["mfu", str(runs[kind]), "--peak", "0.5", "--warmup", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    counts = [line["tflops_per_gpu"] * line["step_seconds"] for line in lines if "loss" in line]
    assert (
        counts == pytest.approx([found["flow"]["model_tflops_per_gpu"] * found["step_seconds"]] * len(counts))
        and len(counts) > 4
    )
    assert found["flow"]["mfu"] == found["flow"]["hfu"] == pytest.approx(found["flow"]["model_tflops_per_gpu"] / 0.5)
    assert found["num_gpus"] == 1 and "mcore" not in found
    assert main(["mfu", str(runs[kind]), "--peak", "0.5", "--warmup", "2", "--recomputation", "full"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{kind}, ") and "position" in said and "all attention: no position is hidden" in said


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_holds_for_other_samples(data, kind, tmp_path):
    changes = ("train.train_iters=120", "train.eval_interval=120", "checkpoint.save_interval=120", "flow.ema_decay=0.9")
    train(flow_run(data, f"model.kind={kind}", f"checkpoint.save={tmp_path}", *changes))
    [last] = [line["valid_loss"] for line in read_metrics(tmp_path) if "valid_loss" in line]
    found = flow_batches(
        LatentDataset(data, "valid"),
        kind,
        FlowConfig(),
        TrainConfig(micro_batch_size=8),
        consumed_samples=0,
        data_parallel_rank=0,
        data_parallel_size=1,
        shuffles=False,
    )
    assert last < 0.8 * next(found)["velocity"].square().mean(), "what a model that answers nothing loses"


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_cut_short_goes_on_to_the_same_numbers(runs, data, kind, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs[kind], folder)
    shutil.rmtree(folder / "iter_0000020")
    assert train(flow_run(data, f"model.kind={kind}", f"checkpoint.save={folder}")) == DONE
    assert read_metrics(folder) == read_metrics(runs[kind])
    for averaged in (True, False):
        assert same_weights(weights_of(runs[kind], averaged), weights_of(folder, averaged))


@pytest.mark.parametrize("kind", KINDS)
def test_latents_that_moved_are_resumed_on_to_the_same_bits(runs, data, kind, tmp_path):
    shutil.copytree(data, tmp_path / "moved latents")
    shutil.copytree(runs[kind], tmp_path / "moved run")
    shutil.rmtree(tmp_path / "moved run" / "iter_0000020")
    moved = flow_run(tmp_path / "moved latents", f"model.kind={kind}", f"checkpoint.save={tmp_path / 'moved run'}")
    assert train(moved) == DONE
    assert read_metrics(tmp_path / "moved run") == read_metrics(runs[kind])
    for averaged in (True, False):
        assert same_weights(weights_of(runs[kind], averaged), weights_of(tmp_path / "moved run", averaged))


def test_latents_that_changed_are_refused_on_resume(runs, data, tmp_path):
    """Other samples of the same encoders, at another path and in place of those that were trained on."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(runs["dit"], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "iter_0000020")
    other = tiny_latents(tmp_path / "other", seed=1)
    save = f"checkpoint.save={tmp_path / 'run'}"
    refused("are other data than it was trained on", lambda: train(flow_run(other, save)))
    shutil.rmtree(tmp_path / "data")
    other.rename(tmp_path / "data")
    refused(
        "start a new run from these weights with checkpoint.load=", lambda: train(flow_run(tmp_path / "data", save))
    )
    assert read_metrics(tmp_path / "run") == read_metrics(runs["dit"])


def weights_of(run: Path, averaged: bool = True) -> dict[str, torch.Tensor]:
    try:
        model, _ = load_flow_model(find_checkpoint(run), averaged=averaged)
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    finally:
        distributed.stop()


def same_weights(some: dict, others: dict) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_kill_9_is_survived(runs, data, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "flow.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "megatron_music", "train", str(tmp_path / "flow.yaml"), f"data.path={data}"]
    process = subprocess.Popen(
        [*command, f"checkpoint.save={folder}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for_iteration(process, folder, 13)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run([*command, f"checkpoint.save={folder}"], capture_output=True).returncode == 0
    assert read_metrics(folder) == read_metrics(runs["dit"])


def test_the_average_is_of_the_weights_after_each_step(data):
    config = flow_run(
        data, "model.text_size=24", "model.embedding_size=12", "model.latent_channels=8", "model.latent_length=16"
    )
    distributed.start(config.parallel)
    try:
        from megatron_music.training.tasks import task_of

        engine = Engine(config, task_of(config))
        (module,) = engine.modules
        beside = WeightAverage(module.named_parameters(), decay=0.999)
        source = engine.task.train_batches(0)
        for skipped in (False, False, True, False):
            engine.step(source, judge=lambda loss, norm, skipped=skipped: "for the test" if skipped else None)
            if not skipped:
                beside.update(module.named_parameters())
        (average,) = engine.averages
        assert average.step == 3 and same_weights(average.weights, beside.weights)
        assert not same_weights(average.weights, dict(module.named_parameters()))
    finally:
        distributed.stop()


def test_without_an_average_the_last_weights_are_sampled_from(data, tmp_path):
    assert (
        train(
            flow_run(
                data,
                "model.kind=text2muq",
                "flow.ema_decay=0",
                "train.train_iters=3",
                f"checkpoint.save={tmp_path / 'run'}",
            )
        )
        == DONE
    )
    assert same_weights(weights_of(tmp_path / "run", True), weights_of(tmp_path / "run", False))


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_train_alike_and_their_checkpoints_are_one_models(runs, data, kind, tmp_path):
    """Three steps from the same weights: losses, the weights and their average, whatever they are split over."""
    common = [f"model.kind={kind}", f"checkpoint.load={runs[kind]}", "train.train_iters=3", "train.eval_iters=0"]
    assert train(flow_run(data, *common, f"checkpoint.save={tmp_path / 'one'}")) == DONE
    wanted = [line["loss"] for line in read_metrics(tmp_path / "one")]
    recipe = data.parent / "flow.yaml"
    layouts = {
        "tensor": ["parallel.tensor_model_parallel_size=2", "parallel.sequence_parallel=true"],
        "pipeline": ["parallel.pipeline_model_parallel_size=2"],
        "data": ["optimizer.use_distributed_optimizer=true", "parallel.overlap_param_gather=true"],
    }
    (tmp_path / "jobs.json").write_text(
        json.dumps(
            [
                [f"data.path={data}", *common, *layout, f"checkpoint.save={tmp_path / name}"]
                for name, layout in layouts.items()
            ]
        )
    )
    launch(2, Path(__file__).parents[1] / "flow_training_worker.py", recipe, tmp_path / "jobs.json")
    for name in layouts:
        assert [line["loss"] for line in read_metrics(tmp_path / name)] == pytest.approx(wanted, rel=1e-5), name
        for averaged in (True, False):
            found, right = (weights_of(tmp_path / run, averaged) for run in (name, "one"))
            assert found.keys() == right.keys()
            for parameter in right:
                torch.testing.assert_close(
                    found[parameter], right[parameter], atol=2e-5, rtol=1e-4, msg=f"{name} {parameter}"
                )


def test_bf16_keeps_its_average_in_fp32(data, tmp_path):
    assert (
        train(flow_run(data, "train.bf16=true", "train.train_iters=4", f"checkpoint.save={tmp_path / 'run'}")) == DONE
    )
    found = weights_of(tmp_path / "run")
    assert any(not torch.equal(value, value.bfloat16().float()) for value in found.values())
    losses = [line["loss"] for line in read_metrics(tmp_path / "run") if "loss" in line]
    assert len(losses) == 4 and all(np.isfinite(losses))


def test_runs_that_cannot_be(runs, data, tmp_path):
    refused(
        f"model.latent_channels is 4 and that of {data} is 8", lambda: train(flow_run(data, "model.latent_channels=4"))
    )
    refused("data.path is not set", lambda: train(flow_run(data, "data.path=null")))
    refused(
        "was trained with flow.sigma=uniform, not logit_normal",
        lambda: train(flow_run(data, "flow.sigma=logit_normal", f"checkpoint.save={runs['dit']}")),
    )
    refused("is of a text2muq, not of a dit", lambda: train(flow_run(data, f"checkpoint.load={runs['text2muq']}")))
    refused(
        "is of a model with num_layers 2, not 4",
        lambda: train(flow_run(data, "model.num_layers=4", f"checkpoint.load={runs['dit']}")),
    )
    other = tiny_latents(tmp_path / "other")
    index = json.loads((other / "index.json").read_text())
    index["encoders"]["text"]["sha256"] = "1" * 64
    (other / "index.json").write_text(json.dumps(index))
    refused("was trained on data of other encoders", lambda: train(flow_run(other, f"checkpoint.load={runs['dit']}")))
    refused("is of a dit, not of a GPT", lambda: load_model(find_checkpoint(runs["dit"])))
    gpt = tmp_path / "gpt"
    tokens = tiny_dataset(tmp_path / "tokens")
    assert train(tiny_run(tokens, "train.train_iters=1", "train.eval_iters=0", f"checkpoint.save={gpt}")) == DONE
    refused("is of a GPT", lambda: load_flow_model(find_checkpoint(gpt)))
    refused("is of a gpt, not of a dit", lambda: train(flow_run(data, f"checkpoint.load={gpt}")))


def refused(words: str, run) -> None:
    with pytest.raises(ConfigError) as error:
        run()
    assert words in str(error.value) and "\n" not in str(error.value)
    distributed.stop()


@pytest.mark.parametrize("kind", ["prepend", "adaln"])
def test_the_published_model_s_conditions_train_too(data, tmp_path, kind):
    changes = (
        f"model.global_conditioning={kind}",
        "model.conditions=stable-audio",
        "flow.objective=v",
        "train.train_iters=4",
        f"checkpoint.save={tmp_path}",
    )
    assert train(flow_run(data, *changes)) == DONE
    assert len([line for line in read_metrics(tmp_path) if "loss" in line]) == 4
    found = next(batches(data, flow=FlowConfig(objective="v", condition_dropout=1), hears_music=False))
    assert "music_BE" not in found and not found["keeps_BL"].any(), "of a sample without a condition nothing is a word"
    model, _ = load_flow_model(find_checkpoint(tmp_path))
    names = ("text_BLC", "keeps_BL", "seconds_start_B", "seconds_total_B")
    conditions = model.conditions(**{name: found[name] for name in names})
    assert not conditions["context_BLC"].any() and conditions["global_BG"].any()
    distributed.stop()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            ("model.kind=text2muq", "model.conditions=stable-audio"),
            "model.conditions is stable-audio, which a text2muq does not",
        ),
        (("model.kind=text2muq", "model.global_conditioning=adaln"), "adaln, which a text2muq does not have"),
        (("model.global_conditioning=film",), "prepend"),
        (
            ("model.global_conditioning=adaln", "model.hidden_size=72", "model.num_attention_heads=9"),
            "divides 6 x model.hidden_size",
        ),
    ],
)
def test_conditions_that_a_model_cannot_have(data, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        flow_run(data, *changes)
