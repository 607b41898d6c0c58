"""Checkpoints in parts: every process writes and reads its own share, and what lies on disk does not depend on the
shares.
"""

import json
import math
from pathlib import Path

import pytest
import sharding_worker
import torch
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from sharding_worker import LAYOUTS, MODEL, engine_of, losses_of
from tiny_gpt import launch, tiny_dataset
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint import FileSystemReader

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.sharding import blocks_of_range
from megatron_music.checkpoints.writer import TensorsWriter
from megatron_music.parallel import distributed
from megatron_music.training.optimizer import own_state
from megatron_music.training.state import (
    Progress,
    begin_save,
    load_checkpoint,
    save_checkpoint,
)

WORKER = Path(sharding_worker.__file__)


@st.composite
def ranges(draw):
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    return shape, *sorted(draw(st.tuples(*[st.integers(0, math.prod(shape))] * 2)))


@given(ranges())
def test_blocks_of_a_range_are_the_range(case):
    shape, start, end = case
    whole = torch.arange(math.prod(shape)).view(shape)
    blocks = blocks_of_range(shape, start, end)
    cut = [whole[tuple(slice(a, a + n) for a, n in zip(*block, strict=True))].flatten().tolist() for block in blocks]
    assert sum(cut, []) == list(range(start, end)) and [] not in cut
    assert len(blocks) <= max(1, 2 * len(shape) - 1)


def contents(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, whole, by torch alone; without the random generators, of which each process has its
    own.
    """
    index = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    found = {
        key: torch.empty(facts.size, dtype=facts.properties.dtype)
        for key, facts in index.items()
        if not key.startswith("rng.")
    }
    torch_checkpoint.load(found, storage_reader=FileSystemReader(checkpoint), no_dist=True)
    return found


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    assert [
        key for key in expected if found[key].dtype != expected[key].dtype or not torch.equal(found[key], expected[key])
    ] == []


def write_as_before(folder: Path, engine, progress: Progress) -> Path:
    """A checkpoint as it was written when one process wrote the whole state: each process's piece of a state tensor in
    one block.
    """
    save = begin_save(folder, engine, progress, copies=False)
    items = {
        f"{chunk}.{name}": item
        for chunk, module in enumerate(engine.modules)
        for name, item in module.sharded_state_dict(metadata={"singleton_local_shards": False}).items()
        if not name.endswith("_extra_state")
    }
    state, averages = own_state(engine.optimizer), engine.averages[0].weights
    optimizer = {
        name: {
            kind: make_sharded_optimizer_tensor(item, tensor.view_as(item.data), prefix=f"optimizer.state.{kind}")
            for kind, tensor in state[item.data].tensors.items()
        }
        for name, item in items.items()
    }
    average = {
        name: make_sharded_optimizer_tensor(item, averages[name.removeprefix("0.")], prefix="average")
        for name, item in items.items()
    }
    save.writer = TensorsWriter(
        {"model": items, "optimizer": optimizer, "average": average}, save.unfinished, copies=False
    )
    return save.finish(save.write)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def start(folder) -> dict[str, torch.Tensor]:
    """What one process has saved after three steps."""
    tiny_dataset(folder / "data")
    engine = engine_of(folder, *MODEL)
    losses_of(engine, 0, 3)
    save_checkpoint(folder / "start", engine, Progress(3, 24))
    write_as_before(folder / "before", engine, Progress(3, 24))
    distributed.stop()
    return contents(find_checkpoint(folder / "start"))


@pytest.fixture(scope="module")
def results(folder, start) -> list[dict]:
    launch(4, WORKER, folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(4)]


def test_a_state_holds_moments_float32_weights_and_averages(start):
    layers = "decoder.layers.mlp.linear_fc1.weight"
    kinds = ["", "average.", "optimizer.state.exp_avg.", "optimizer.state.exp_avg_sq.", "optimizer.state.fp32_param."]
    assert {kind: tuple(start[f"{kind}{layers}"].shape) for kind in kinds} == dict.fromkeys(kinds, (4, 200, 80))
    assert all(start[f"{kind}{layers}"].abs().max() > 0 for kind in kinds)


@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=lambda number: " ".join(LAYOUTS[number]) or "plain")
def test_every_layout_saves_what_one_process_saved(folder, start, results, number):
    assert_same(contents(find_checkpoint(folder / str(number))), start)


@pytest.mark.parametrize("loaded", range(len(LAYOUTS)), ids=lambda number: " ".join(LAYOUTS[number]) or "plain")
@pytest.mark.parametrize("saved", range(len(LAYOUTS)), ids=lambda number: " ".join(LAYOUTS[number]) or "plain")
def test_every_layout_loads_what_any_other_saved(folder, start, results, saved, loaded):
    assert_same(contents(find_checkpoint(folder / f"{saved}-{loaded}")), start)


def test_a_share_that_ends_within_a_row_is_on_disk(folder, results):
    index = FileSystemReader(find_checkpoint(folder / "0")).read_metadata().state_dict_metadata
    state = [
        facts
        for key, facts in index.items()
        if key.startswith("optimizer.") and facts.size[-2:].numel() > facts.size[-1]
    ]
    cut = [chunk for facts in state for chunk in facts.chunks if chunk.sizes[-1] < facts.size[-1]]
    assert cut, "no share ends within a row: the layouts here test less than they say"


def test_every_process_writes_its_share(folder, results):
    sizes = {path.name: path.stat().st_size for path in find_checkpoint(folder / "large").glob("*.distcp")}
    assert len(sizes) == 4 and max(sizes.values()) < 1.3 * min(sizes.values())


def test_neither_a_save_nor_a_load_holds_the_whole_state(results):
    for found in (rank["memory"] for rank in results):
        # One stored block at a time and the one before it, on their way from or to the file; and random generators.
        bound = 4 * found["largest"] + 500_000
        assert found["save"] < bound and found["load"] < bound
        assert bound < found["state"] / 12


def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(results):
    for case in results[0]["resumed"]:
        assert case["found"] == case["expected"] and len(set(case["expected"])) == 3


def test_a_checkpoint_of_before_loads(folder, start, tmp_path):
    try:
        assert_same(contents(find_checkpoint(folder / "before")), start)
        engine = engine_of(folder, *MODEL, "optimizer.use_distributed_optimizer=true")
        sharding_worker.spoil(engine)
        progress = load_checkpoint(find_checkpoint(folder / "before"), engine, resume=False)
        save_checkpoint(tmp_path, engine, progress)
        assert_same(contents(find_checkpoint(tmp_path)), start)
    finally:
        distributed.stop()
