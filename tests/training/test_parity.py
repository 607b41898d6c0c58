"""The headline: one model, one checkpoint, and the same loss and gradients however it is split.

Every layout starts from a checkpoint that one process saved after two steps, resharded on load, and takes four steps.
Wrong factors hide from a forward test and from a norm, so every parameter's gradient is compared, on every rank that
holds a piece or a copy of it.
"""

import json
from pathlib import Path

import pytest
from parity_worker import LAYOUTS, run_all
from tiny_gpt import launch, tiny_dataset

from megatron_music.parallel import distributed

WORKER = Path(__file__).parents[1] / "parity_worker.py"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("parity")
    tiny_dataset(folder / "data")
    results = run_all(folder, 1)
    distributed.stop()
    for world_size in (2, 4):
        launch(world_size, WORKER, folder)
        results += json.loads((folder / f"results-{world_size}.json").read_text())
    return {(result["model"], result["layout"]): result for result in results}


CASES = [(model, str(layout)) for layouts in LAYOUTS.values() for model, layout in layouts]


@pytest.mark.parametrize(("model", "layout"), CASES)
def test_every_layout_trains_the_same(results, model, layout):
    expected = results[model, str(((1, 1, 1), False, False))]
    found = results[model, layout]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)
    assert len(found["gradients"]) == len(expected["gradients"]) > 8
    assert {key: error for key, error in found["gradients"].items() if not error < 1e-5} == {}


def test_the_four_steps_are_four_different_ones(results):
    for model in dict(LAYOUTS[1]):
        losses = results[model, str(((1, 1, 1), False, False))]["loss"]
        assert len(set(losses)) == 4
