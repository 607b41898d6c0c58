"""Findings about the training run that a job starts: layout, data, checkpoints, memory, time."""

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_music.cli.sbatch import Job
from megatron_music.config.checks import check_gpu, check_world_size
from megatron_music.config.errors import counted
from megatron_music.config.load import load_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import Run
from megatron_music.data.latents_index import INDEX
from megatron_music.profiling.logs import read_log, summarize
from megatron_music.profiling.memory import (
    HEADROOM,
    checkpoint_memory,
    estimate_memory,
    fit,
    parameters_of_stage,
)
from megatron_music.profiling.peaks import peak_of
from megatron_music.reports.findings import NOTE, OK, WRONG, Finding, finding_of


def check_run(
    job: Job, recipe: Sequence[str], gpu: str | None, environment: Mapping[str, str], *, is_kept: bool = True
) -> Iterator[Finding]:
    """Findings about a recipe with its overrides.

    Args:
        is_kept: the run is to be saved; a profiled one is not.
    """
    where = recipe[0]
    try:
        run = load_run(recipe[0], recipe[1:])
    except ValueError as error:
        yield finding_of(error, where)
        return
    sound = True
    for check in (lambda: check_world_size(run, job.num_tasks), lambda: check_gpu(run, gpu or "")):
        try:
            check()
        except ValueError as error:
            sound = False
            yield finding_of(error, where)
    if sound:
        yield Finding(OK, f"{counted(job.num_tasks, 'task')}: {_layout(run, job.num_tasks)}", where)
    per_node = job.tasks_per_node
    if run.parallel.tensor_model_parallel_size > per_node and job.num_nodes > 1:
        yield Finding(
            NOTE,
            f"tensor parallel size {run.parallel.tensor_model_parallel_size} reaches over nodes of "
            f"{counted(per_node, 'task')}, where "
            "every layer waits for the network",
            where,
            f"use {per_node} or less, and pipeline stages over nodes",
        )
    if not run.train.bf16 and gpu and (known := peak_of(gpu, "fp16")) and known.has_bf16:
        yield Finding(
            NOTE,
            f"train.bf16 is false: {gpu} computes in float32, at a fraction of its speed",
            where,
            "add train.bf16=true",
        )
    folders = list(_folders(run))
    yield from _data(run, folders, where)
    yield from _checkpoint_paths(run, where, is_kept)
    yield from check_mounts(
        [*folders, *([Path(run.checkpoint.save)] if run.checkpoint.save and is_kept else [])], where, environment
    )
    if is_kept:
        yield from _saving(job, run, gpu, where)
    if sound and isinstance(run, RunConfig):
        yield from _memory(job, run, where, gpu, environment)


def check_mounts(paths: Sequence[Path], where: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Paths that a container would not see."""
    if environment.get("MEGATRON_MUSIC_RUNTIME", "bare") == "bare":
        return
    mounted = [Path(mount.split(":")[0]).absolute() for mount in mounts(environment) or [os.getcwd()]]
    for path in paths:
        if not any(path.absolute().is_relative_to(folder) for folder in mounted):
            yield Finding(
                WRONG,
                f"{path} lies below no mount, and the container will not see it",
                where,
                "add it to MEGATRON_MUSIC_MOUNTS",
            )


def check_new_folder(name: str, folder: str, where: str) -> Iterator[Finding]:
    """A folder that the job is to write."""
    there = next(path for path in [Path(folder).absolute(), *Path(folder).absolute().parents] if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding(
            WRONG, f"{name}={folder} cannot be written: no permission in {there}", where, "choose another folder"
        )


def mounts(environment: Mapping[str, str]) -> list[str]:
    """The mounts that MEGATRON_MUSIC_MOUNTS lists."""
    return [mount for mount in environment.get("MEGATRON_MUSIC_MOUNTS", "").split(",") if mount]


def _layout(run: Run, world_size: int) -> str:
    parallel = run.parallel
    return (
        f"tensor {parallel.tensor_model_parallel_size} x pipeline {parallel.pipeline_model_parallel_size} x data "
        f"{parallel.data_parallel_size(world_size)}, "
        f"{counted(run.num_microbatches(world_size), 'micro batch', 'micro batches')} per step"
    )


def _folders(run: Run) -> Sequence[Path]:
    if run.data.path is None:
        return []
    return run.data.folders if isinstance(run, RunConfig) else [Path(run.data.path)]


def _data(run: Run, folders: Sequence[Path], where: str) -> Iterator[Finding]:
    if not folders:
        yield Finding(WRONG, "data.path is not set", where, "add data.path=OUT, the folder of `megatron-music build`")
        return
    is_gpt = isinstance(run, RunConfig)
    wanted = ("train.bin", "train.idx", "tokenizer") if is_gpt else (INDEX,)
    is_whole = True
    for folder in folders:
        missing = [name for name in wanted if not (folder / name).exists()]
        if missing:
            is_whole = False
            yield Finding(WRONG, f"{folder} has no {' and no '.join(missing)}", where, "build it, or correct data.path")
        else:
            yield Finding(OK, f"data in {folder}", where)
    # The checks that `train` makes before its first step: whole files, encodings of a blend that agree.
    if is_whole and is_gpt and importlib.util.find_spec("megatron_music.data.folders"):
        from megatron_music.data.folders import check_folders

        try:
            check_folders(run.data)
        except ValueError as error:
            yield finding_of(error, where)
    if is_gpt and run.data.cache_path:
        yield from check_new_folder("data.cache_path", run.data.cache_path, where)


def _checkpoint_paths(run: Run, where: str, is_kept: bool) -> Iterator[Finding]:
    save = run.checkpoint.save
    if save is None and is_kept:
        yield Finding(
            WRONG, "checkpoint.save is not set: what is trained would be lost", where, "add checkpoint.save=RUN"
        )
    elif save is not None and is_kept:
        yield from check_new_folder("checkpoint.save", save, where)
    if run.checkpoint.load and not Path(run.checkpoint.load).is_dir():
        yield Finding(WRONG, f"checkpoint.load={run.checkpoint.load} is missing", where, "correct the path")


def _saving(job: Job, run: Run, gpu: str | None, where: str) -> Iterator[Finding]:
    """The interval of checkpoints and the signal's lead, against the time limit."""
    if job.seconds is None:
        return
    if job.lead_seconds is None:
        yield Finding(
            NOTE,
            "no --signal: at the time limit the steps since the last checkpoint are lost",
            str(job.path),
            "add #SBATCH --signal=B:USR1@300",
        )
    elif isinstance(run, RunConfig):
        size = _checkpoint_gb(run)
        yield Finding(
            NOTE,
            f"a checkpoint of about {size:.2f} GB must be written within half of the {job.lead_seconds} s after the "
            f"signal: {2e3 * size / job.lead_seconds:,.1f} MB/s",
            str(job.path),
        )
    seconds, is_cpu = _step_seconds(run)
    if is_cpu and (gpu or job.gpus_per_node):
        yield Finding(
            NOTE,
            f"the steps in {run.checkpoint.save} were measured on a CPU, so the interval of checkpoints was not "
            f"compared with "
            "the time limit",
            where,
            f"after a first run on {gpu or 'a GPU'} it is",
        )
        return
    if seconds is None:
        yield Finding(
            NOTE,
            "the time of a step is not known, so the interval of checkpoints was not compared with the time limit",
            where,
            "after a first run in checkpoint.save it is",
        )
        return
    between = seconds * run.checkpoint.save_interval
    left = job.seconds - (job.lead_seconds or 0)
    if run.checkpoint.save_interval and between > left:
        yield Finding(
            WRONG,
            f"{counted(run.checkpoint.save_interval, 'step')} of {seconds:.3g} s from checkpoint to checkpoint: more "
            f"than the {left} s "
            "a start has",
            where,
            f"set checkpoint.save_interval={max(1, int(left / seconds / 4))}",
        )
    else:
        yield Finding(OK, f"steps took {seconds:.3g} s; {left / seconds:,.0f} of them in one start", where)


def _checkpoint_gb(run: RunConfig) -> float:
    """Weights, both moments of Adam, and the float32 copy of weights in bf16."""
    parallel = run.parallel
    elements = sum(parameters_of_stage(run, stage) for stage in range(parallel.pipeline_model_parallel_size))
    return elements * parallel.tensor_model_parallel_size * (14 if run.train.bf16 else 12) / 1e9


def _step_seconds(run: Run) -> tuple[float | None, bool]:
    """The median of a run's steps so far, and whether they were measured on a CPU."""
    try:
        log = read_log(Path(run.checkpoint.save or "") / "metrics.jsonl")
        return summarize(log.steps, 10).median, log.facts.get("device") == "CPU"
    except ValueError:
        return None, False


def _memory(job: Job, run: RunConfig, where: str, gpu: str | None, environment: Mapping[str, str]) -> Iterator[Finding]:
    known = peak_of(gpu, "fp16") if gpu else None
    capacity = float(known.memory_gb) if known and known.memory_gb else None
    # NVIDIA's images have Transformer Engine; bare, what this Python has is taken for what the nodes have.
    has_engine = (
        environment.get("MEGATRON_MUSIC_RUNTIME", "bare") != "bare"
        or importlib.util.find_spec("transformer_engine") is not None
    )
    stages = estimate_memory(run, job.num_tasks, transformer_engine=has_engine)
    found = fit(stages, capacity)
    remedy = (
        "raise the parallel sizes, use train.recompute_granularity=selective or full, or the distributed optimizer; "
        "see `megatron-music memory`"
    )
    if found.fits is None:
        yield Finding(NOTE, found.sentence, where, "name the GPU with --gpu to compare")
    elif found.fits:
        yield Finding(OK, found.sentence, where)
    elif has_engine and max(stage.at_rest for stage in stages) / 1e9 <= (1 - HEADROOM) * capacity:
        # What lives as long as the run fits, and Transformer Engine's activations were never measured here.
        yield Finding(
            NOTE,
            f"{found.sentence}; activations under Transformer Engine are an estimate that was not measured",
            where,
            f"if it does not: {remedy}",
        )
    else:
        yield Finding(WRONG, found.sentence, where, remedy)
    if run.checkpoint.save:
        yield Finding(OK, checkpoint_memory(stages, run, job.num_tasks), where)
