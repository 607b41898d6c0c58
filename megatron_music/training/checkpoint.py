"""Checkpoints: a whole training state on disk, loaded again in any parallel layout.

``RUN/latest`` names the newest complete checkpoint of a run, ``RUN/iter_0000123`` is one: the tensors as
megatron-core's dist_checkpointing writes them, ``state.json``, ``config.yaml`` and ``tokenizer/``. A checkpoint is
written beside its place and renamed into it, so a save that is killed leaves the one before untouched.
Knows nothing about the loop.
"""

import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing import ShardedObject
from megatron.core.dist_checkpointing.optimizer import make_sharded_optimizer_tensor
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch.distributed.checkpoint.api import CheckpointException

from megatron_music.config import ConfigError, ModelConfig, ParallelConfig
from megatron_music.models.gpt import build_gpt
from megatron_music.recipes import read_run, write_run
from megatron_music.tokens import vocabulary
from megatron_music.training import distributed
from megatron_music.training.engine import Engine
from megatron_music.training.optimizer import MAIN_PARAMETER, MOMENTS, get_state, get_step, set_state
from megatron_music.training.writer import InProcessWriter

LATEST, STATE, CONFIG, TOKENIZER = "latest", "state.json", "config.yaml", "tokenizer"


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    iteration: int = 0
    consumed_samples: int = 0


def find_checkpoint(path: str | os.PathLike) -> Path:
    """The checkpoint folder that ``path`` means: itself, or the newest of the run it names.

    Raises:
        ConfigError: there is none.
    """
    path = Path(path)
    if (path / LATEST).is_file():
        path = path / (path / LATEST).read_text(encoding="utf-8").strip()
    if not (path / STATE).is_file():
        raise ConfigError(f"{path} holds no checkpoint; name a run's folder or one of its iter_ folders")
    return path


def save_checkpoint(folder: Path, engine: Engine, progress: Progress) -> Path:
    """Write a checkpoint and point ``latest`` at it. Every process must call this.

    Returns:
        The checkpoint's folder.
    """
    checkpoint = folder / f"iter_{progress.iteration:07d}"
    unfinished = folder / f".{checkpoint.name}.unfinished"
    distributed.on_main(lambda: _make_empty(unfinished, folder))
    engine.gather_parameters()
    weights = _weights(engine.modules)
    tensors = {"model": weights, "rng": _sharded_rng_state()}
    state = get_state(engine.optimizer)
    tensors["optimizer"] = _sharded_optimizer(weights, state)
    has_main = distributed.sum_over_processes([float(any(MAIN_PARAMETER in value for value in state.values()))])[0] > 0
    steps = distributed.sum_over_processes([float(get_step(engine.optimizer))])[0] / dist.get_world_size()
    dist_checkpointing.save(tensors, str(unfinished), sharded_strategy=InProcessWriter())

    def finish() -> None:
        facts = {
            "iteration": progress.iteration,
            "consumed_samples": progress.consumed_samples,
            "optimizer_step": int(steps),
            "schedule": {"num_steps": engine.schedule.num_steps},
            "layout": _layout(),
            "has_main_parameters": has_main,
            "vocabulary": {"name": vocabulary.NAME, "hash": vocabulary.HASH},
        }
        (unfinished / STATE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        write_run(engine.config, unfinished / CONFIG)
        (unfinished / TOKENIZER).mkdir()
        for name, content in engine.task.tokenizer_files.items():
            (unfinished / TOKENIZER / name).write_bytes(content)
        publish(unfinished, checkpoint)

    # All have written by now: dist_checkpointing ends with the coordinator gathering every rank's result.
    distributed.on_main(finish)
    return checkpoint


def publish(unfinished: Path, checkpoint: Path) -> None:
    """Put a finished folder in its place, then point ``latest`` at it; a kill at any point leaves a good ``latest``."""
    for path in [*unfinished.rglob("*"), unfinished]:
        _sync(path)
    if checkpoint.exists():
        # Left by a run killed between the two steps below: complete, but never pointed at.
        shutil.rmtree(checkpoint)
    unfinished.rename(checkpoint)
    _sync(checkpoint.parent)
    write_atomically(checkpoint.parent / LATEST, lambda path: path.write_text(checkpoint.name + "\n", encoding="utf-8"))


def load_checkpoint(checkpoint: Path, engine: Engine, *, resume: bool) -> Progress:
    """Load weights and optimizer, saved in whatever layout, into this one. Every process must call this.

    Args:
        resume: go on with the same run: also its schedule and random generators; the latter exactly in the same
            layout, and seeded anew by the iteration in another.

    Returns:
        How far the run had come; the very start unless ``resume``.

    Raises:
        ValueError: another model, another vocabulary, or no checkpoint.
    """
    facts = read_state(checkpoint)
    check_same_model(read_run(checkpoint / CONFIG).model, engine.config.model, checkpoint)
    weights = _weights(engine.modules)
    request = {"model": weights, "optimizer": _sharded_optimizer(weights, _blank_state(engine, facts))}
    restores_generators = resume and facts["layout"] == _layout()
    if restores_generators:
        request["rng"] = _sharded_rng_state()
    # The parameters of the model stand in the request by identity: remember them before they become tensors.
    parameters = {name: item.data for name, item in weights.items()}
    loaded = _load_tensors(request, checkpoint)
    _load_weights(engine.modules, loaded["model"])
    state = {parameters[name]: tensors for name, tensors in loaded["optimizer"].items()}
    set_state(engine.optimizer, state, facts["optimizer_step"])
    if not resume:
        return Progress()
    engine.schedule.num_steps = 0
    engine.schedule.step(increment=facts["schedule"]["num_steps"])
    if restores_generators:
        _set_rng_state(loaded["rng"])
    else:
        distributed.seed_for_training(engine.config.train.seed, facts["iteration"])
    return Progress(facts["iteration"], facts["consumed_samples"])


def load_model_for_inference(checkpoint_dir: str | os.PathLike, tp: int = 1):
    """The model of a checkpoint, weights only, ready to generate.

    Starts the processes' groups (one process needs no launcher) and, without CUDA, the CPU adapter;
    ``distributed.stop()`` ends both. The tokenizer lies in ``tokenizer/`` of ``find_checkpoint(checkpoint_dir)``.

    Args:
        checkpoint_dir: a run's folder or one of its checkpoints, saved in any layout.
        tp: tensor-parallel size, the number of processes.

    Returns:
        A GPTModel in eval mode, and the RunConfig it was trained with.

    Raises:
        ValueError: no checkpoint, another vocabulary, or a ``tp`` that does not divide the model.
    """
    checkpoint = find_checkpoint(checkpoint_dir)
    read_state(checkpoint)
    config = read_run(checkpoint / CONFIG)
    config = replace(config, parallel=ParallelConfig(tensor_model_parallel_size=tp))
    distributed.start(config.parallel)
    distributed.seed_for_building(config.train.seed)
    is_half = config.train.bf16 and torch.cuda.is_available()
    model = build_gpt(config.model, config.parallel, dtype=torch.bfloat16 if is_half else torch.float32)
    if torch.cuda.is_available():
        model = model.cuda(torch.cuda.current_device())
    _load_weights([model], _load_tensors({"model": _weights([model])}, checkpoint)["model"])
    return model.eval(), config


def _load_tensors(request: dict, checkpoint: Path) -> dict:
    try:
        return dist_checkpointing.load(request, str(checkpoint))
    except (Exception, CheckpointException) as error:  # many kinds for one thing, and torch's is no Exception
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{checkpoint} cannot be loaded ({reason}); name an earlier iter_ folder of the run") from error


def _weights(modules: list) -> dict:
    """The sharded state of a model's chunks by chunk and name, without the states that only FP8 fills.

    The names stay in this process: on disk a layer goes by its number in the whole model.
    """
    return {
        f"{chunk}.{name}": item
        for chunk, module in enumerate(modules)
        for name, item in module.sharded_state_dict(metadata={"singleton_local_shards": False}).items()
        if not name.endswith("_extra_state")
    }


def _load_weights(modules: list, weights: dict) -> None:
    for chunk, module in enumerate(modules):
        prefix = f"{chunk}."
        own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        module.load_state_dict(own, strict=False)


def _sharded_optimizer(weights: dict, state: dict) -> dict:
    """The optimizer's tensors split as the parameters are, by parameter name."""
    return {
        name: {
            kind: make_sharded_optimizer_tensor(item, tensor, prefix=f"optimizer.state.{kind}")
            for kind, tensor in state[item.data].items()
        }
        for name, item in weights.items()
        if item.data in state
    }


def _blank_state(engine: Engine, facts: dict) -> dict:
    names = [*MOMENTS, MAIN_PARAMETER] if facts["has_main_parameters"] and engine.config.train.bf16 else MOMENTS
    return {
        parameter: {name: torch.zeros_like(parameter, dtype=torch.float32) for name in names}
        for module in engine.modules
        for parameter in module.parameters()
    }


def _layout() -> dict[str, int]:
    return {
        "world_size": dist.get_world_size(),
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
    }


def _sharded_rng_state() -> ShardedObject:
    state = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(), "tracker": get_cuda_rng_tracker().get_states()}
    return ShardedObject("rng_state", state, (dist.get_world_size(),), (dist.get_rank(),), replica_id=0)


def _set_rng_state(state: dict) -> None:
    torch.set_rng_state(state["cpu"])
    torch.cuda.set_rng_state(state["cuda"])
    get_cuda_rng_tracker().set_states(state["tracker"])


def read_state(checkpoint: Path) -> dict:
    """What a checkpoint says of itself: iteration, consumed_samples, layout, vocabulary.

    Raises:
        ConfigError: it cannot be read, or is of another vocabulary.
    """
    try:
        facts = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        name, digest = facts["vocabulary"]["name"], facts["vocabulary"]["hash"]
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{checkpoint / STATE} cannot be read ({error}); name another checkpoint") from None
    if digest != vocabulary.HASH:
        raise ConfigError(
            f"{checkpoint} was trained on the vocabulary {name} ({digest[:12]}), while this version reads {vocabulary.NAME} "
            f"({vocabulary.HASH[:12]}); train anew or install the version that made it"
        )
    return facts


def check_same_model(found: ModelConfig, wanted: ModelConfig, where: Path) -> None:
    """Refuse the weights of another model.

    Raises:
        ConfigError: the first field that differs.
    """
    names = ["num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"]
    names += ["position_embedding_type", "rotary_base", "normalization", "swiglu", "add_bias_linear"]
    names += ["share_embeddings_and_output_weights"]
    if wanted.position_embedding_type == "learned_absolute":
        names.append("seq_length")
    for name in names:
        if getattr(found, name) != getattr(wanted, name):
            raise ConfigError(
                f"{where} is of a model with model.{name}={getattr(found, name)}, not {getattr(wanted, name)}; "
                f"set model.{name}={getattr(found, name)} or name another folder"
            )


def _make_empty(unfinished: Path, folder: Path) -> None:
    # Those of saves that were killed, too.
    for old in folder.glob(".iter_*.unfinished"):
        shutil.rmtree(old)
    unfinished.mkdir(parents=True)


def write_atomically(path: Path, write) -> None:
    """Let ``write`` fill a temporary file, and put it in the place of ``path``."""
    temporary = path.with_name(f".{path.name}.tmp")
    write(temporary)
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
