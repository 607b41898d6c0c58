"""Checkpoints: a whole training state on disk, loaded again in any parallel layout.

``RUN/iter_0000123`` is one: the tensors as megatron-core's dist_checkpointing writes them, ``state.json``,
``config.yaml``, the files that the model is used with (``tokenizer/`` of a GPT, ``encoders/`` of a model of sound), and
``manifest.json`` over all of it. It is written beside its place and renamed into it, so a save that is killed leaves
the one before untouched.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

from megatron_music.checkpoints.folder import (
    CONFIG,
    STATE,
    checkpoint_name,
    prepare,
    publish,
    read_latest,
    remove,
)
from megatron_music.checkpoints.manifest import write_manifest
from megatron_music.checkpoints.sharding import (
    ShardedWeight,
    sharded_weights,
    share_out,
)
from megatron_music.checkpoints.state import check_same_model, read_state
from megatron_music.checkpoints.weights import AVERAGE, _pieces, load_tensors
from megatron_music.checkpoints.writer import TensorsWriter
from megatron_music.config.load import read_run, write_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import Run
from megatron_music.parallel import distributed
from megatron_music.tokens import vocabulary
from megatron_music.training.engine import Engine
from megatron_music.training.loss_guard import GuardState
from megatron_music.training.optimizer import (
    MAIN_PARAMETER,
    get_step,
    own_state,
    set_step,
)


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    iteration: int = 0
    consumed_samples: int = 0
    guard: GuardState = GuardState()


class Save:
    """A checkpoint on its way to the disk: begun and finished by all processes together, written by each alone.

    Args:
        folder: the run's folder.
        progress: how far the run has come.
        tensors: the sharded tensors, a tree.
        facts: what else ``state.json`` says.
        config: the run's.
        files: what else lies in the checkpoint, by path below it.
        copies: copy the tensors now, so that training may go on while they are written.
    """

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        tensors: dict,
        facts: dict,
        config: Run,
        files: dict[str, bytes],
        *,
        copies: bool,
    ):
        self.checkpoint = folder / checkpoint_name(progress.iteration)
        self.iteration = progress.iteration
        self.config, self.files = config, files
        self.unfinished = distributed.on_main(lambda: prepare(folder, progress.iteration))
        self.facts = {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            **facts,
            "layout": _layout(),
        }
        if isinstance(config, RunConfig):
            self.facts["vocabulary"] = {"name": vocabulary.NAME, "hash": vocabulary.HASH}
        self.writer = TensorsWriter(tensors, self.unfinished, copies=copies)

    def write(self) -> tuple[list, dict[str, str]]:
        """Write this process's tensors. Speaks to no other process: a thread may do it."""
        return self.writer.write()

    def finish(self, write: Callable) -> Path:
        """Complete the checkpoint and point ``latest`` at it. Every process must call this.

        Args:
            write: gives the result of ``self.write()``, now or from a thread that has ended.

        Raises:
            WriteFailed, OSError: it could not be written; on every process. ``abandon`` then cleans up.
        """
        gathered = self.writer.gather(write)

        def complete() -> None:
            results, digests = gathered
            self.writer.write_index(results)
            (self.unfinished / STATE).write_text(json.dumps(self.facts, indent=1) + "\n", encoding="utf-8")
            write_run(self.config, self.unfinished / CONFIG)
            for name, content in self.files.items():
                (self.unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                (self.unfinished / name).write_bytes(content)
            write_manifest(self.unfinished, digests)
            publish(self.unfinished, self.checkpoint)

        distributed.on_main(complete)
        return self.checkpoint

    def abandon(self) -> None:
        """Remove what there is of a checkpoint that could not be finished. For the main process."""
        shutil.rmtree(self.unfinished, ignore_errors=True)
        if self.checkpoint.exists() and read_latest(self.checkpoint.parent)[0] != self.checkpoint:
            remove(self.checkpoint)


def begin_save(folder: Path, engine: Engine, progress: Progress, *, copies: bool) -> Save:
    """The whole state of a run as it is now, to be written. Every process must call this.

    Args:
        copies: see ``Save``.
    """
    engine.gather_parameters()
    tensors = sharded_state(engine)
    keeps_main = any(MAIN_PARAMETER in kinds for kinds in tensors["optimizer"].values())
    has_main = distributed.sum_over_processes([float(keeps_main)])[0] > 0
    steps = distributed.sum_over_processes([float(get_step(engine.optimizer))])[0] / dist.get_world_size()
    facts = {
        "optimizer_step": int(steps),
        "schedule": {"num_steps": engine.schedule.num_steps},
        "guard": progress.guard.as_json(),
        "has_main_parameters": has_main,
    }
    if engine.averages:
        facts["average_step"] = engine.averages[0].step
    return Save(folder, progress, tensors, facts, engine.config, engine.task.files, copies=copies)


def sharded_state(engine: Engine) -> dict:
    """The whole state of a run as this process holds it: a tree of sharded tensors, of which it writes the main
    replicas.
    """
    weights = sharded_weights(engine.modules)
    tensors = {"model": _pieces(weights), "optimizer": _sharded_optimizer(weights, engine), "rng": _sharded_rng_state()}
    if engine.averages:
        tensors["average"] = _sharded_average(weights, engine)
    replicated = [tensors["model"], tensors.get("average", {})]
    if not engine.config.optimizer.use_distributed_optimizer:
        replicated.append(tensors["optimizer"])
    share_out(list(_leaves(replicated)))
    return tensors


def save_checkpoint(folder: Path, engine: Engine, progress: Progress) -> Path:
    """Write a checkpoint and point ``latest`` at it. Every process must call this.

    Returns:
        The checkpoint's folder.
    """
    save = begin_save(folder, engine, progress, copies=False)
    return save.finish(save.write)


def save_weights(folder: Path, module, config: Run, files: dict[str, bytes]) -> Path:
    """Write a model as a run that has not begun: its checkpoint holds weights alone, and no optimizer.

    `generate` reads it, and ``checkpoint.load`` starts a run from it. Every process must call this.

    Args:
        module: the bare model, as ``config`` describes it.
        files: beside the weights, by their path in the checkpoint.

    Returns:
        The checkpoint's folder, ``iter_0000000``.
    """
    weights = _pieces(sharded_weights([module]))
    save = Save(folder, Progress(), {"model": weights}, {"weights_only": True}, config, files, copies=False)
    checkpoint = save.finish(save.write)
    distributed.on_main(lambda: write_run(config, folder / CONFIG))
    return checkpoint


def load_checkpoint(checkpoint: Path, engine: Engine, *, resume: bool) -> Progress:
    """Load weights and optimizer, saved in whatever layout, into this one. Every process must call this.

    From a checkpoint of weights alone, the optimizer starts anew.

    Args:
        resume: go on with the same run: also its schedule and random generators; the latter exactly in the same
            layout, and seeded anew by the iteration in another.

    Returns:
        How far the run had come; the very start unless ``resume``.

    Raises:
        ValueError: another model, another vocabulary, or no checkpoint.
    """
    facts = distributed.on_main(lambda: read_state(checkpoint))
    check_same_model(read_run(checkpoint / CONFIG).model, engine.config.model, checkpoint)
    weights = sharded_weights(engine.modules)
    if facts.get("weights_only"):
        assert not resume, "starting_point refuses to go on with weights alone"
        load_tensors({"model": _pieces(weights)}, checkpoint)
        # Where the optimizer keeps float32 copies of the weights, they are still of the model as it was built.
        engine.optimizer.reload_model_params()
        if engine.averages:
            engine.begin_averages()
        return Progress()
    # What is loaded lands where it is used: nothing of the state is there twice, on the device or beside it.
    optimizer = _sharded_optimizer(weights, engine)
    request = {"model": _pieces(weights), "optimizer": optimizer}
    if not facts["has_main_parameters"]:
        for kinds in optimizer.values():
            kinds.pop(MAIN_PARAMETER, None)
    has_averages = bool(engine.averages) and "average_step" in facts
    if has_averages:
        request["average"] = _sharded_average(weights, engine)
    restores_generators = resume and facts["layout"] == _layout()
    if restores_generators:
        request["rng"] = _sharded_rng_state()
    loaded = load_tensors(request, checkpoint)
    if not facts["has_main_parameters"]:
        engine.optimizer.reload_model_params()
    set_step(engine.optimizer, facts["optimizer_step"])
    if has_averages:
        for average in engine.averages:
            average.step = facts["average_step"]
    elif engine.averages:
        engine.begin_averages()
    if not resume:
        return Progress()
    engine.schedule.num_steps = 0
    engine.schedule.step(increment=facts["schedule"]["num_steps"])
    if restores_generators:
        _set_rng_state(loaded["rng"])
    else:
        distributed.seed_for_training(engine.config.train.seed, facts["iteration"])
    return Progress(facts["iteration"], facts["consumed_samples"], GuardState.from_json(facts["guard"]))


def _sharded_optimizer(weights: dict[str, ShardedWeight], engine: Engine) -> dict[str, dict[str, list[ShardedTensor]]]:
    """This process's part of the optimizer's state, in the optimizer's own memory, by name and kind."""
    state = own_state(engine.optimizer)
    of_weights = {name: state.pop(weight.tensor) for name, weight in weights.items() if weight.tensor in state}
    assert not state, "a parameter in training is missing from the model's sharded state"
    return {
        name: {
            kind: weights[name].beside(f"optimizer.state.{kind}", tensor, part.start, is_replicated=part.is_replicated)
            for kind, tensor in part.tensors.items()
        }
        for name, part in of_weights.items()
    }


def _sharded_average(weights: dict[str, ShardedWeight], engine: Engine) -> dict[str, list[ShardedTensor]]:
    """The averages of the weights, in their own memory, by the same names."""
    return {
        f"{chunk}.{name}": weights[f"{chunk}.{name}"].beside(AVERAGE, tensor.view(-1), is_replicated=True)
        for chunk, average in enumerate(engine.averages)
        for name, tensor in average.weights.items()
    }


def _leaves(tree: dict | list) -> Iterator[ShardedTensor]:
    for item in tree.values() if isinstance(tree, dict) else tree:
        yield from [item] if isinstance(item, ShardedTensor) else _leaves(item)


def _layout() -> dict:
    return {
        "world_size": dist.get_world_size(),
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        # A random generator's state is of another shape on another kind of device.
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
    }


def _sharded_rng_state() -> dict[str, ShardedTensor]:
    """The states of this process's random generators, each a row of one tensor of all processes."""
    states = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state()}
    states |= {f"tracker.{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    place = (0, dist.get_rank(), dist.get_world_size())
    return {
        name: ShardedTensor.from_rank_offsets(f"rng.{name}", state[None].cpu(), place) for name, state in states.items()
    }


def _set_rng_state(rows: dict[str, torch.Tensor]) -> None:
    states = {name: row[0].clone() for name, row in rows.items()}
    torch.set_rng_state(states["cpu"])
    torch.cuda.set_rng_state(states["cuda"])
    of_tracker = {name.removeprefix("tracker."): state for name, state in states.items() if name.startswith("tracker.")}
    get_cuda_rng_tracker().set_states(of_tracker)
