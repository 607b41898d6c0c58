"""The processes of a run: their start, their parallel groups, their seeds, their end.

One process needs no launcher; several come from torchrun, or whoever sets the same environment variables.
"""

import gc
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_music.config.errors import ConfigError
from megatron_music.config.log import logger
from megatron_music.config.sections import ParallelConfig
from megatron_music.parallel import cpu_backend
from megatron_music.parallel.backends import why_no_transformer_engine

T = TypeVar("T")
_joins = 0  # how often this process has joined the others


def launched_size() -> int:
    """The number of processes of this run, known before they are joined."""
    if dist.is_initialized():
        return dist.get_world_size()
    if "WORLD_SIZE" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ConfigError(
            f"this is one of {os.environ['SLURM_STEP_NUM_TASKS']} tasks of a Slurm step, and RANK, WORLD_SIZE, "
            f"MASTER_ADDR and "
            "MASTER_PORT are not set; start one task a node with torchrun, or set them from SLURM_PROCID and "
            "SLURM_NTASKS"
        )
    return int(os.environ.get("WORLD_SIZE", "1"))


def _name_allocator_settings() -> None:
    """PyTorch before 2.9 knows PYTORCH_ALLOC_CONF by an older name; its allocator reads it when the first GPU
    is used.
    """
    if "PYTORCH_ALLOC_CONF" in os.environ and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", os.environ["PYTORCH_ALLOC_CONF"])


def start(parallel: ParallelConfig) -> None:
    """Join the processes and split them into groups. Call ``stop`` at the end.

    On a machine without CUDA this installs the CPU adapter, which stays until ``stop``. Groups that exist already
    are replaced.

    Raises:
        ConfigError: context parallelism without Transformer Engine, or more processes than GPUs.
    """
    if parallel.context_parallel_size > 1 and (reason := why_no_transformer_engine()):
        raise ConfigError(
            f"parallel.context_parallel_size is {parallel.context_parallel_size}, which needs Transformer Engine's "
            f"attention, "
            f"and {reason}; set parallel.context_parallel_size=1 or run in NVIDIA's container on GPUs"
        )
    global _joins
    on_cuda = not cpu_backend.install()
    if on_cuda:
        _name_allocator_settings()
        torch.cuda.set_device(own_gpu(os.environ, torch.cuda.device_count()))
    if not dist.is_initialized():
        backend = "nccl" if on_cuda else "gloo"
        timeout = timedelta(minutes=parallel.distributed_timeout_minutes)
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            # One process needs no port, hence cannot find one taken.
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        elif _joins or _is_restarted_by_one_torchrun():
            _join_again(backend, timeout)
        else:
            dist.init_process_group(backend, timeout=timeout)
        _joins += 1
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cuda and local_size > 1:
        # torchrun gives every process one thread; divide the cores among them instead.
        torch.set_num_threads(max(1, _num_cores() // local_size))
    _leave_groups()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        distributed_timeout_minutes=parallel.distributed_timeout_minutes,
        create_gloo_process_groups=False,
    )


def own_gpu(environment: Mapping[str, str], count: int) -> int:
    """This process's number among the ``count`` GPUs that it sees.

    Raises:
        ConfigError: there are more processes than GPUs.
    """
    local_rank = int(environment.get("LOCAL_RANK", "0"))
    # Under `srun --gpus-per-task` each task sees its own GPUs alone, numbered from 0. A task that is a torchrun shares
    # its own among several processes, and those keep to the rule.
    is_task = environment.get("SLURM_LOCALID") == str(local_rank) and "SLURM_GPUS_PER_TASK" in environment
    if local_rank >= count > 0 and is_task:
        return local_rank % count
    if local_rank >= count:
        raise ConfigError(
            f"this is process {local_rank + 1} of this machine and sees {count} GPU{'' if count == 1 else 's'}; start "
            f"{count} or fewer "
            "processes per node, and where there are more GPUs let each process see them all (--gpus-per-node, no "
            "CUDA_VISIBLE_DEVICES)"
        )
    return local_rank


def _num_cores() -> int:
    """The CPU cores this process may use; all of the machine where the system has no affinity, as macOS."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _leave_groups() -> None:
    # megatron-core forgets its groups and leaves them open, each with threads and sockets of its own.
    groups = [group for group in getattr(parallel_state, "_global_process_group_list", None) or () if group is not None]
    parallel_state.destroy_model_parallel()
    for group in groups:
        dist.destroy_process_group(group)
    if groups:
        gc.collect()  # a model that was trained over them is a circle that holds them


def _is_restarted_by_one_torchrun() -> bool:
    wanted = {"TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1"}
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return restarted and all(os.environ.get(name) == value for name, value in wanted.items())


def _join_again(backend: str, timeout: timedelta) -> None:
    """Join the processes once more, under names that have not been used in the store they meet at.

    There the addresses of before still stand: of the dead that torchrun has replaced (pytorch issue 135712), and of
    these very processes where they had parted. The count of restarts tells the attempts apart, though only on one node:
    each torchrun counts for itself.
    """
    store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if _is_restarted_by_one_torchrun() else "0"
    store = dist.PrefixStore(f"attempt-{attempt}-{_joins}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def stop() -> None:
    """Leave the groups and the processes, and take the CPU adapter out."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()
    cpu_backend.uninstall()


def seed_for_building(seed: int) -> None:
    """Seed the weights: alike on data-parallel ranks, and apart on pipeline stages, which hold other layers."""
    _seed(seed + 100 * parallel_state.get_pipeline_model_parallel_rank())


def seed_for_training(seed: int, iteration: int) -> None:
    """Seed dropout: apart on data- and context-parallel ranks too, which see other tokens."""
    tokens_rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    rank = 100 * parallel_state.get_pipeline_model_parallel_rank() + 10_000 * tokens_rank
    _seed(seed + rank + 1_000_003 * (iteration + 1))


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    # Also gives each tensor-parallel rank a second generator of its own.
    model_parallel_cuda_manual_seed(seed, force_reset_rng=True)


def is_main() -> bool:
    """Whether this process writes files and speaks."""
    return dist.get_rank() == 0


def tell(sentence: str) -> None:
    """Print a message on stderr, once for all processes, also before they are joined. ``-q`` omits it."""
    if os.environ.get("RANK", "0") == "0":
        logger.info(sentence)


def warn(sentence: str) -> None:
    """Print a warning on stderr, once for all processes, also before they are joined; under ``-q`` too."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(sentence)


def to_device(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A micro batch on this process's device; to a GPU from page-locked memory, so that the copy need not be waited
    for.
    """
    device, pins = torch.cuda.current_device(), torch.cuda.is_available()
    return {
        name: (value.pin_memory() if pins and value.device.type == "cpu" else value).to(device, non_blocking=True)
        for name, value in batch.items()
    }


def on_main(work: Callable[[], T]) -> T:
    """Do ``work`` on the main process alone; every process gets what it returned, or raises what it raised.

    Before the processes are joined, each does it for itself.
    """
    if not dist.is_initialized():
        return work()
    outcome: list = [None, None]
    if is_main():
        try:
            outcome[0] = work()
        except Exception as error:  # whatever it is, the others wait to hear of it
            outcome[1] = error
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def share_work(items: Sequence, work: Callable[[Sequence], list]) -> list:
    """Let each process do ``work`` on its share of the items; every process gets all results, in the items' order.

    Before the processes are joined, each does all of it.

    Raises:
        Exception: what some process raised; on every one.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return work(items)
    size = dist.get_world_size()
    try:
        mine = work(items[dist.get_rank() :: size])
    except Exception as error:  # the others wait to hear of it
        mine = error
    shares: list = [None] * size
    dist.all_gather_object(shares, mine)
    for share in shares:
        if isinstance(share, Exception):
            raise share
    return [shares[index % size][index // size] for index in range(len(items))]


def sum_over_processes(values: list[float]) -> list[float]:
    """The sum of each value over all processes."""
    if dist.get_world_size() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=torch.cuda.current_device())
    dist.all_reduce(total)
    return total.tolist()
