"""Two runs beside each other: a difference that is there is found, one that is not is not, and the interval holds."""

import json

import numpy as np
import pytest

from megatron_music.cli.entry import main
from megatron_music.profiling.compare import difference, largest_loss_difference


def steps(seconds: float, seed: int, count: int = 80, noise: float = 0.05) -> np.ndarray:
    """Times of consecutive steps that drift, as a busy machine's do: each takes half of its deviation over to
    the next.
    """
    random = np.random.default_rng(seed)
    drift, found = 0.0, []
    for _ in range(count):
        drift = 0.5 * drift + random.normal(0, noise)
        found.append(seconds * np.exp(drift))
    return np.array(found)


def test_a_difference_beyond_the_noise_is_found():
    found = difference("step seconds", steps(1.0, 0), steps(1.2, 1))
    assert found.low < 0.2 < found.high and found.low > 0
    assert found.verdict.startswith("the second is") and found.verdict.endswith("above")
    assert difference("step seconds", steps(1.2, 0), steps(1.0, 1)).verdict.endswith("below")


def test_the_same_speed_is_mostly_no_difference():
    """Of 100 pairs of equal runs whose steps depend on each other few are told apart; single steps would tell many
    more.
    """
    told = [
        difference("s", steps(1.0, seed), steps(1.0, 1000 + seed)).verdict != "no difference shown"
        for seed in range(100)
    ]
    assert np.mean(told) <= 0.15


def test_the_same_run_twice_and_the_same_answer_twice():
    run = steps(1.0, 0)
    found = difference("s", run, run)
    assert found.share == 0 and found.verdict == "no difference shown"
    assert difference("s", run, steps(1.1, 1)) == difference("s", run, steps(1.1, 1))


def test_few_steps_have_no_interval():
    found = difference("s", [1.0] * 7, [2.0] * 50)
    assert found.low is None and "needs 8" in found.verdict and found.share == 1.0
    with pytest.raises(ValueError, match="the second run has no s"):
        difference("s", [1.0], [])


def test_losses():
    assert largest_loss_difference({1: 2.0, 2: 1.0}, {2: 1.5, 1: 2.0, 3: 9.0}) == (2, 0.5)
    assert largest_loss_difference({1: 2.0}, {2: 2.0}) is None


def write_run(path, seconds) -> str:
    lines = [{"iteration": step + 1, "loss": 2.0 + step, "step_seconds": time} for step, time in enumerate(seconds)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_the_command(tmp_path, capsys):
    first = write_run(tmp_path / "a.jsonl", [9.0] * 10 + list(steps(1.0, 0)))
    second = write_run(tmp_path / "b.jsonl", [1.0] * 10 + list(steps(1.3, 1)))
    assert main(["compare", first, second]) == 0
    told = capsys.readouterr().out
    assert "above" in told and "the losses differ most at iteration 1, by 0.00%" in told
    assert main(["compare", first, second, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["step_seconds"]["num_first"] == 80
        and 0 < found["step_seconds"]["low"] < 0.3 < found["step_seconds"]["high"]
    )
    assert main(["compare", first, str(tmp_path / "missing")]) == 2
    assert "missing cannot be read" in capsys.readouterr().err
    assert main(["compare", first, second, "--warmup", "1000"]) == 2
    assert "some of the first 1,000 iterations" in capsys.readouterr().err
