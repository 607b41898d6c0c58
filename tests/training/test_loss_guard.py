"""Steps that must not change the weights: found, skipped, counted, and too many of them end the run."""

import json
import math
from dataclasses import replace

import pytest
import torch
from faults_worker import state_of
from tiny_gpt import tiny_dataset, tiny_run
from training_runs import NEVER_THE_SAME

from megatron_music.config.errors import REQUEUE
from megatron_music.training import loop
from megatron_music.training.loop import DONE, FAILED, train
from megatron_music.training.loss_guard import (
    ENOUGH,
    WINDOW,
    GuardState,
    iterations_as_words,
    reason_to_skip,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("guard") / "data")


def lines_of(folder) -> list[dict]:
    return [
        json.loads(line, parse_constant=pytest.fail) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def steps_of(folder) -> list[dict]:
    """The steps without what the clock decides."""
    return [
        {key: line[key] for key in line if key not in NEVER_THE_SAME}
        for line in lines_of(folder)
        if "learning_rate" in line
    ]


def strike(monkeypatch, factors: dict[int, float]) -> None:
    """Multiply the loss of some iterations, counted over the whole process; 4 micro batches make one."""
    build, passes = loop.task_of, [0]

    def faulty_task(config):
        task = build(config)

        def forward_step(batches, model):
            output, loss_function = task.forward_step(batches, model)
            if not torch.is_grad_enabled():
                return output, loss_function
            passes[0] += 1
            factor = factors.get(-(-passes[0] // 4))

            def faulty(tensor):
                loss, *rest = loss_function(tensor)
                report = {key: value * torch.tensor([factor, 1]) for key, value in rest[-1].items()}
                return loss * factor, *rest[:-1], report

            return output, loss_function if factor is None else faulty

        return replace(task, forward_step=forward_step)

    monkeypatch.setattr(loop, "task_of", faulty_task)


def test_reasons():
    calm = GuardState(tuple([2.0] * ENOUGH))
    assert reason_to_skip(calm, 5.9, 1.0, 3) is None
    assert "above 3 times 2.0000" in reason_to_skip(calm, 6.1, 1.0, 3)
    assert reason_to_skip(calm, 6.1, 1.0, 0) is None
    assert reason_to_skip(GuardState((2.0,) * (ENOUGH - 1)), 6.1, 1.0, 3) is None
    assert "loss is nan" in reason_to_skip(calm, math.nan, 1.0, 0)
    assert "norm of its gradients is inf" in reason_to_skip(calm, 1.0, math.inf, 0)


def test_the_state_is_a_value_that_json_keeps():
    state = GuardState()
    for iteration in range(1, 2 * WINDOW):
        state = state.after(iteration, 1 / iteration, "why" if iteration % 7 == 0 else None)
    assert len(state.recent_losses) == WINDOW and state.skipped == 14 and state.in_a_row == ()
    state = state.after(100, 9.0, "why").after(101, 9.0, "why")
    assert state.in_a_row == (100, 101) and 9.0 not in state.recent_losses
    assert GuardState.from_json(json.loads(json.dumps(state.as_json()))) == state
    assert iterations_as_words((7,)) == "7" and iterations_as_words((7, 8, 9)) == "7 to 9"


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("optimizer.use_distributed_optimizer=true",),
        ("train.bf16=true",),
        ("train.bf16=true", "optimizer.use_distributed_optimizer=true"),
    ],
)
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_step_that_is_no_number_leaves_everything_as_it_was(data, tmp_path, monkeypatch, capfd, options, factor):
    run = (
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=4",
        "checkpoint.save_interval=1",
        "train.eval_iters=0",
    )
    strike(monkeypatch, {2: factor})
    states = []

    class Watched(loop.Engine):
        def step(self, *arguments, **named):
            result = super().step(*arguments, **named)
            states.append([tensor.clone() for tensor in state_of(self)])
            return result

    monkeypatch.setattr(loop, "Engine", Watched)
    assert train(tiny_run(data, *run, *options)) == DONE
    steps = steps_of(tmp_path / "run")
    assert [step.get("skipped", 0) for step in steps] == [0, 1, 0, 0]
    assert "loss" not in steps[1] and "loss" in steps[2] and steps[2]["learning_rate"] > 0
    assert capfd.readouterr().err.count("step 2 was skipped, since its loss is") == 1
    # The weights and moments after the skipped step are those before it, bit for bit.
    before, after, later = states[:3]
    assert len(before) > 30 and all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert not all(torch.equal(*pair) for pair in zip(before, later, strict=True))
    assert checkpoints(tmp_path / "run") == [1, 3, 4]
    facts = [json.loads((tmp_path / "run" / f"iter_000000{number}" / "state.json").read_text()) for number in (1, 3)]
    assert [fact["optimizer_step"] for fact in facts] == [1, 2]
    assert [fact["guard"]["skipped"] for fact in facts] == [0, 1]


def checkpoints(folder) -> list[int]:
    """The iterations that are saved in a run's folder."""
    return sorted(int(path.name[5:]) for path in folder.glob("iter_*"))


def test_a_leap_of_the_loss_is_skipped_and_a_resumed_run_judges_the_same(data, tmp_path, monkeypatch):
    options = ("train.train_iters=16", "train.loss_spike_factor=2", "train.eval_iters=0", "model.hidden_dropout=0.1")
    leaps = {4: 3.0, 13: 3.0, 14: 3.0, 15: 1.5}
    with monkeypatch.context() as patch:
        strike(patch, leaps)
        assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'calm'}", *options)) == DONE
    # Stopped at 12, before two leaps: the window and the count go on from there.
    with monkeypatch.context() as patch:
        strike(patch, leaps)
        write = loop.Metrics.write

        def write_and_ask(self, iteration, **values):
            write(self, iteration, **values)
            if iteration == 11:
                loop.signal.raise_signal(loop.signal.SIGUSR1)

        patch.setattr(loop.Metrics, "write", write_and_ask)
        assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", *options)) == REQUEUE
    assert checkpoints(tmp_path / "run") == [10, 12]
    strike(monkeypatch, {iteration - 12: factor for iteration, factor in leaps.items()})
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", *options)) == DONE
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "calm")
    # At 4 too few steps are known, and 1.5 times the loss is no leap.
    assert [step["iteration"] for step in steps_of(tmp_path / "run") if "skipped" in step] == [13, 14]
    assert json.loads((tmp_path / "run" / "iter_0000016" / "state.json").read_text())["guard"]["skipped"] == 2


def test_too_many_in_a_row_end_the_run_and_save_nothing(data, tmp_path, monkeypatch, capfd):
    strike(monkeypatch, dict.fromkeys(range(3, 20), math.nan))
    options = (f"checkpoint.save={tmp_path / 'run'}", "train.max_skipped_steps=4", "checkpoint.save_interval=2")
    assert train(tiny_run(data, *options)) == FAILED
    assert "4 steps in a row had to be skipped (3 to 6)" in capfd.readouterr().err
    assert (tmp_path / "run" / "latest").read_text() == "iter_0000002\n"
    assert len(steps_of(tmp_path / "run")) == 6


def test_a_checkpoint_due_at_a_skipped_step_is_saved_after_the_next_good_one(data, tmp_path, monkeypatch):
    strike(monkeypatch, dict.fromkeys((3, 4), math.nan))
    options = (
        f"checkpoint.save={tmp_path / 'run'}",
        "checkpoint.save_interval=3",
        "train.train_iters=7",
        "train.eval_iters=0",
    )
    assert train(tiny_run(data, *options)) == DONE
    assert checkpoints(tmp_path / "run") == [5, 6, 7]


def test_a_run_whose_last_step_is_skipped_has_not_finished_and_can_be_resumed(data, tmp_path, monkeypatch, capfd):
    options = (
        f"checkpoint.save={tmp_path / 'run'}",
        "checkpoint.save_interval=2",
        "train.train_iters=6",
        "train.eval_iters=1",
    )
    with monkeypatch.context() as patch:
        strike(patch, dict.fromkeys((5, 6), math.nan))
        assert train(tiny_run(data, *options)) == FAILED
    said = capfd.readouterr().err
    assert "2 steps in a row had to be skipped (5 to 6)" in said and "iter_0000004" in said and "finished;" not in said
    assert checkpoints(tmp_path / "run") == [2, 4] and (tmp_path / "run" / "latest").read_text() == "iter_0000004\n"
    assert train(tiny_run(data, *options)) == DONE
    assert train(tiny_run(data, f"checkpoint.save={tmp_path / 'calm'}", *options[1:])) == DONE
    assert steps_of(tmp_path / "run") == steps_of(tmp_path / "calm") and checkpoints(tmp_path / "run") == [2, 4, 6]


def test_a_run_that_is_not_saved_fails_on_a_skipped_last_step_too(data, monkeypatch, capfd):
    strike(monkeypatch, {2: math.nan})
    assert train(tiny_run(data, "train.train_iters=2", "train.eval_iters=0")) == FAILED
    assert "1 step in a row had to be skipped (2): no checkpoint was saved" in capfd.readouterr().err


def test_a_stop_at_a_skipped_step_waits_for_the_next_good_one(data, tmp_path, monkeypatch, capfd):
    strike(monkeypatch, dict.fromkeys((3, 4, 5), math.nan))
    write = loop.Metrics.write

    def write_and_ask(self, iteration, **values):
        write(self, iteration, **values)
        if iteration == 3:
            loop.signal.raise_signal(loop.signal.SIGUSR1)

    monkeypatch.setattr(loop.Metrics, "write", write_and_ask)
    options = (
        f"checkpoint.save={tmp_path / 'run'}",
        "checkpoint.save_interval=1",
        "train.train_iters=9",
        "train.eval_iters=0",
    )
    assert train(tiny_run(data, *options)) == REQUEUE
    assert "stopped; iteration 6 is saved" in capfd.readouterr().err
    assert checkpoints(tmp_path / "run") == [1, 2, 6]


@pytest.mark.parametrize("steps", [1, 6])
def test_a_learning_rate_that_ruins_the_weights_ends_with_a_failure(data, tmp_path, capfd, steps):
    options = (
        "optimizer.lr=1e30",
        "optimizer.lr_decay_style=constant",
        f"train.train_iters={steps}",
        f"checkpoint.save={tmp_path / 'run'}",
    )
    assert train(tiny_run(data, *options)) == FAILED
    said = capfd.readouterr().err
    assert "the evaluation after step" in said and "lower optimizer.lr" in said and "finished;" not in said
    assert checkpoints(tmp_path / "run") == []
    assert all(
        math.isfinite(value) for line in lines_of(tmp_path / "run") for value in line.values() if value is not None
    )
