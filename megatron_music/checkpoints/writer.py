"""The writer of checkpoint tensors: megatron-core's torch_dist format, in three parts.

Planning is done together by all processes, writing by each alone, and finishing together again. So the middle part can
wait for a thread of its own while training goes on. megatron-core's own writer starts a manager process and forks one
more for each save, which takes seconds, needs a ``__main__`` guard and hangs when a child dies. The files are the same:
megatron-core reads them.
"""

import io
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.utils import _DistWrapper

from megatron_music.storage.reading import hash_of_file
from megatron_music.storage.writing import sync

BACKEND, VERSION = "torch_dist", 1


class WriteFailed(RuntimeError):
    """Some process could not write its part; every process hears the same."""


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU; from a GPU into page-locked memory, under way when this returns."""
    return torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda).copy_(tensor, non_blocking=True)


class TensorsWriter:
    """One save of one process's part of a state.

    Making it is the planning, and takes every process: afterwards the state may change where ``copies`` is true.

    Args:
        state: nested dictionaries of megatron-core's sharded tensors; other values are refused.
        folder: an empty folder that every process sees.
        copies: copy the tensors to the CPU now, so that training may change them before they are written.
    """

    def __init__(self, state: dict, folder: Path, *, copies: bool):
        self.folder = folder
        tensors, self.common = save_preprocess(state)
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(tensors, keep_only_main_replica=True)
        for shards in by_key.values():
            for shard in shards:
                if not isinstance(shard, ShardedTensor):
                    raise TypeError(
                        f"{shard.key} is a {type(shard).__name__}; a checkpoint holds tensors alone, no pickles"
                    )
                if copies:
                    shard.data = _copy(shard.data.detach())
        if copies and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        self.together = _DistWrapper(None, True, 0)
        # With nothing left to copy, ``write`` must not ask for a GPU: in a new thread the current one is the machine's
        # first, and each process would open a context there.
        options = {"per_thread_copy_ahead": 0} if copies else {}
        self.storage = FileSystemWriter(
            folder, sync_files=False, **options
        )  # synced below: some file systems have no fsync
        # megatron-core has already left out all replicas but one.
        self.planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        self.metadata = None
        self.plan = self.planner.finish_plan(self._plan(mcore_to_pyt_state_dict(by_key, False)))

    def write(self) -> tuple[list, dict[str, str]]:
        """Write this process's file and hash it. Speaks to no other process.

        Returns:
            What lies where, and the SHA-256 of each file by name.
        """
        try:
            written = self.storage.write_data(self.plan, self.planner).value()
        except RuntimeError as error:
            # torch's archives complain of a position where the disk has complained of something before.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        names = {result.storage_data.relative_path for result in written}
        for name in names:
            sync(self.folder / name)
        return written, {name: hash_of_file(self.folder / name) for name in names}

    def gather(self, write) -> tuple[list, dict[str, str]] | None:
        """Let every process hand in what ``write`` returned or raised. Every process must call this.

        Args:
            write: gives the result of ``self.write()``, now or from a thread that has ended.

        Returns:
            On the main process what lies where, and all digests; None on the others.

        Raises:
            WriteFailed: some process could not write; on all of them.
        """
        on_main = []
        try:
            self.together.all_reduce("write", write, on_main.extend)
        except CheckpointException as error:
            for cause, _ in error.failures.values():
                if not isinstance(cause, Exception):
                    raise cause from None  # a person has asked to stop
            ranks = ", ".join(f"process {rank}: {cause}" for rank, (cause, _) in sorted(error.failures.items()))
            raise WriteFailed(ranks) from next(
                (cause for cause, _ in error.failures.values() if isinstance(cause, OSError)), None
            )
        if not self.together.is_coordinator:
            return None
        digests = {name: value for _, of_process in on_main for name, value in of_process.items()}
        return [results for results, _ in on_main], digests

    def write_index(self, results: list) -> None:
        """Write the files that say what lies where. For the main process, after ``gather``."""
        # Through memory: a full disk is then an OSError as everywhere else.
        common = io.BytesIO()
        torch.save(self.common, common)
        (self.folder / COMMON_STATE_FNAME).write_bytes(common.getvalue())
        self.storage.finish(self.metadata, results)
        save_config(CheckpointingConfig(BACKEND, VERSION), str(self.folder))

    def _plan(self, tensors: dict):
        def of_this_process():
            self.planner.set_up_planner(tensors, self.storage.storage_meta(), self.together.is_coordinator)
            self.storage.set_up_storage_writer(self.together.is_coordinator, rank=dist.get_rank(), use_collectives=True)
            return self.storage.prepare_local_plan(self.planner.create_local_plan())

        def of_all(plans):
            plans, self.metadata = self.planner.create_global_plan(plans)
            return self.storage.prepare_global_plan(plans)

        return self.together.reduce_scatter("plan", of_this_process, of_all)
