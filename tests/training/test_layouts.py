"""Layouts in pairs: overlap with buckets, recomputation with dropout, bfloat16, and checkpoints from each to each.

test_parity.py holds every single way to split; here two processes do what those are put together for.
"""

import json
from pathlib import Path

import layouts_worker
import pytest
import torch
from layouts_worker import CASES, ONE, RECOMPUTED, SAVES, STARTS, engine_of, losses_of
from parity_worker import make_start, run_layout
from tiny_gpt import launch, tiny_dataset

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.config.errors import ConfigError
from megatron_music.parallel import distributed
from megatron_music.training.engine import check_messages
from megatron_music.training.state import load_checkpoint

WORKER = Path(layouts_worker.__file__)
# bfloat16 has 8 bits: sums in another order differ by 2^-8 of the largest, and a few layers pass that on.
LOSS_BOUND, NORM_BOUND, GRADIENT_BOUND = ({"half": bound}.get for bound in (1e-4, 1e-3, 3e-2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def alone(folder) -> dict:
    """One process: the starts, and what every layout is compared with."""
    tiny_dataset(folder / "data")
    found = {"models": {}}
    for model in STARTS:
        make_start(folder, model)
        found["models"][model] = run_layout(folder, model, ONE)
    found["recompute"] = layouts_worker.recompute(folder, ONE)
    distributed.stop()
    return found


@pytest.fixture(scope="module")
def results(folder, alone) -> dict:
    launch(2, WORKER, folder)
    return json.loads((folder / "layouts.json").read_text())


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_every_layout_trains_the_same(alone, results, number):
    model, layout = CASES[number]
    expected, found = alone["models"][model], results["cases"][number]
    assert found["layout"] == str(layout)
    assert found["loss"] == pytest.approx(expected["loss"], rel=LOSS_BOUND(model, 1e-5))
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM_BOUND(model, 1e-5))
    assert len(found["gradients"]) == len(expected["gradients"]) > 8
    assert {key: error for key, error in found["gradients"].items() if not error < GRADIENT_BOUND(model, 1e-5)} == {}


@pytest.mark.parametrize("layout", ["alone", "tensor", "sequence"])
def test_recomputing_changes_nothing_with_dropout(alone, results, layout):
    differences = alone["recompute"] if layout == "alone" else results["recompute"][layout]
    assert differences["again"] == 0 and differences["other seed"] > 0.01
    assert {kind: differences[kind] for kind in RECOMPUTED if not differences[kind] < 1e-6} == {}


PAIRS = [(model, saved, loaded) for model, saved, layouts in SAVES for loaded in layouts]


@pytest.mark.parametrize("number", range(len(PAIRS)), ids=lambda number: " ".join(map(str, PAIRS[number])))
def test_a_checkpoint_of_any_layout_goes_on_in_any_other(results, number):
    found = results["checkpoints"][number]
    assert (found["model"], found["saved"], found["loaded"]) == tuple(map(str, PAIRS[number]))
    assert found["loss"] == pytest.approx(found["expected"], rel=2e-4 if found["model"].startswith("half") else 1e-5)
    assert found["expected"][0] != found["expected"][1]


@pytest.mark.parametrize("number", range(len(SAVES)), ids=lambda number: " ".join(map(str, SAVES[number][:2])))
def test_a_checkpoint_of_two_processes_goes_on_in_one(folder, results, number):
    (found, *_) = [item for item in results["checkpoints"] if item["place"].endswith(f"saved-{number}")]
    try:
        engine = engine_of(folder, found["model"], ONE)
        load_checkpoint(find_checkpoint(found["place"]), engine, resume=True)
        assert losses_of(engine, 3, 5) == pytest.approx(
            found["expected"], rel=2e-4 if found["model"].startswith("half") else 1e-5
        )
    finally:
        distributed.stop()


def test_batched_messages_give_wrong_gradients_to_an_interleaved_pipeline(results):
    # Why check_messages stands in the way. Should this fail with another megatron-core, it may no longer need to.
    assert results["batched"] > 0.1


def test_batched_messages_are_refused(folder, alone):
    config = torch.nn.Module()
    config.virtual_pipeline_model_parallel_size, config.batch_p2p_comm, config.overlap_p2p_comm = 2, True, False
    with pytest.raises(ConfigError, match="wrong gradients; set batch_p2p_comm=False"):
        check_messages(config)
    config.batch_p2p_comm, config.overlap_p2p_comm = False, True
    check_messages(config)


def test_an_evaluation_sees_the_updated_parameters(results):
    plain, overlapped = results["evaluated"]
    assert overlapped == pytest.approx(plain, rel=1e-6)
