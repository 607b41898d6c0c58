"""The roles of a job, rehearsed in a few processes of this machine."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from megatron_music.config.checks import capability_of, check_gpu, check_world_size
from megatron_music.config.errors import ConfigError
from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import Run
from megatron_music.data.latents import LatentDataset
from megatron_music.profiling.peaks import peak_of
from megatron_music.rehearsal.batches import WORDS
from megatron_music.rehearsal.one_rank import Rehearsed, rehearse_rank
from megatron_music.rehearsal.roles import Role, distinct_roles, role_of
from megatron_music.rehearsal.waits import Gpu
from megatron_music.rehearsal.worker import begin_worker
from megatron_music.training.run_folder import with_facts_of_data


class RankFailed(Exception):
    """A rank raised what it would have raised on the cluster.

    Attributes:
        details: its traceback, as text.
    """

    def __init__(self, sentence: str, details: str):
        super().__init__(sentence)
        self.details = details


class Job(NamedTuple):
    """A rehearsed step."""

    run: Run
    num_gpus: int
    gpu: str
    gpu_memory_gb: float | None
    ranks: list[Rehearsed]  # by rank


class _Failure(NamedTuple):
    role: Role
    is_refused: bool  # a run that cannot be, told in one sentence
    sentence: str
    details: str


def rehearse(
    run: Run,
    num_gpus: int,
    *,
    gpu: str | None = "h100",
    gpu_memory_gb: float | None = None,
    ranks: Sequence[int] | None = None,
    whole: bool = False,
    workers: int | None = None,
    done: Callable[[Role], None] = lambda role: None,
) -> Job:
    """Rehearse one step of a job.

    Args:
        gpu: a name of ``profiling.peaks``, or what torch calls a GPU; None: not known, an H100 whose memory is not
            compared.
        gpu_memory_gb: of one GPU, 10^9 bytes; None: what is known of it.
        ranks: which ones; None: one of each role.
        whole: run every micro batch, also those of the schedule's steady state.
        workers: processes; None: as many as this one may use cores. 1: none beside this one.
        done: called after each role.

    Raises:
        ConfigError: the run cannot be; with the rank where only some find it so.
        RankFailed: a rank raised something else, or its process was killed.
    """
    run, words = with_facts(run)
    check_world_size(run, num_gpus)
    check_gpu(run, gpu or "")
    device = _device(gpu, gpu_memory_gb)
    parallel = run.parallel
    roles = (
        distinct_roles(parallel, num_gpus)
        if ranks is None
        else [role_of(rank, parallel, num_gpus) for rank in sorted(set(ranks))]
    )
    workers = min(
        workers or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        len(roles),
    )
    calls = [(run, role, num_gpus, device, whole, words) for role in roles]
    found: list[Rehearsed] = []
    if workers == 1:
        for call in calls:
            found.append(_checked(_rehearsed(*call)))
            done(call[1])
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=begin_worker) as pool:
            waiting = [pool.submit(_rehearsed, *call) for call in calls]
            try:
                for future in waiting:  # in their order, so that of several failures that of the first rank is raised
                    found.append(_checked(future.result()))
                    done(found[-1].role)
            except BrokenProcessPool:
                raise RankFailed(
                    f"a process that rehearses a rank was killed, mostly for want of memory; use fewer than --workers "
                    f"{workers}",
                    "",
                ) from None
            finally:
                for future in waiting:
                    future.cancel()
    found.sort(key=lambda rehearsed: rehearsed.role.rank)
    return Job(run, num_gpus, device.name, device.memory / 1e9 if device.memory else None, found)


def with_facts(run: Run) -> tuple[Run, int]:
    """The run with what its data decide of the model, where they are on this machine, and the states of a caption.

    Raises:
        ValueError: data that do not go with the run.
    """
    is_flow = isinstance(run, FlowRunConfig)
    folders = [] if run.data.path is None else [Path(run.data.path)] if is_flow else run.data.folders
    if not folders or not all(folder.is_dir() for folder in folders):
        return run, WORDS
    return with_facts_of_data(run), LatentDataset(run.data.path, "train").info.text_length if is_flow else WORDS


def _device(gpu: str | None, gpu_memory_gb: float | None) -> Gpu:
    if gpu is None:
        return Gpu("the GPU", memory=int((gpu_memory_gb or 0) * 1e9))
    known = peak_of(gpu, "fp16")
    gigabytes = gpu_memory_gb or (known.memory_gb if known else None)
    return Gpu(gpu, capability_of(gpu) or (9, 0), int((gigabytes or 0) * 1e9))


def _rehearsed(run: Run, role: Role, num_gpus: int, device: Gpu, whole: bool, words: int) -> Rehearsed | _Failure:
    try:
        return rehearse_rank(run, role, num_gpus, device, whole=whole, words=words)
    except Exception as error:  # whatever it is, the cluster's rank would have raised it
        name = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        frame = traceback.extract_tb(error.__traceback__)[-1]
        sentence = (str(error).strip().splitlines() or [f"{frame.line} ({frame.filename}:{frame.lineno})"])[0]
        return _Failure(role, isinstance(error, ValueError), f"{name}{sentence}", traceback.format_exc())


def _checked(outcome: Rehearsed | _Failure) -> Rehearsed:
    if isinstance(outcome, Rehearsed):
        return outcome
    sentence = f"{outcome.role}: {outcome.sentence}"
    if outcome.is_refused:
        raise ConfigError(sentence)
    raise RankFailed(sentence, outcome.details)
