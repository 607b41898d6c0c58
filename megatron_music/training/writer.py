"""The writer of checkpoint tensors: megatron-core's torch_dist format, written by the process that calls it.

megatron-core's own writer starts a manager process and forks one more for each save, which takes seconds, needs a
``__main__`` guard and hangs when a child dies. The files are the same: megatron-core reads them. Knows nothing of what
the tensors mean.
"""

from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint import FileSystemWriter, save


class InProcessWriter(TorchDistSaveShardedStrategy):
    """Give it to ``dist_checkpointing.save`` as ``sharded_strategy``."""

    def __init__(self):
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict, checkpoint_dir) -> None:
        """Write this rank's tensors into one synced file, and the coordinator's metadata."""
        by_key, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, keep_only_main_replica=True)
        save(
            mcore_to_pyt_state_dict(by_key, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=True),
            # megatron-core has already left out all replicas but one.
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
