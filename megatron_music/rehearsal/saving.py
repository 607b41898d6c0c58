"""What a save and a resume add to a rank: counted on the sharded tensors that ``training.state`` makes of the
engine.
"""

from collections.abc import Iterator
from typing import NamedTuple

from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.mapping import is_main_replica

from megatron_music.rehearsal.recorder import Recorder, Segment
from megatron_music.training.engine import Engine
from megatron_music.training.state import sharded_state


class Saving(NamedTuple):
    """Bytes of one rank."""

    written: int  # into a checkpoint, by this rank
    host_of_save: int  # one tensor at a time is copied to the host
    host_of_async_save: int  # all that this rank writes, while training goes on
    gpu_of_save: int  # beyond what training holds
    gpu_of_resume: int  # likewise: what is loaded lands where it is used
    host_of_resume: int  # one tensor at a time is read
    num_messages: int  # before anything is written


def rehearse_saving(engine: Engine, recorder: Recorder) -> Saving:
    """Prepare a save and a resume; nothing is written or read. Ends what the recorder knows of the step."""
    recorder.segments = [Segment()]
    recorder.ledger.begin()
    before = recorder.ledger.live
    engine.gather_parameters()
    state = sharded_state(engine)
    added = recorder.ledger.peak().num_bytes - before
    held = [shard.data.nbytes for shard in _shards(state)]
    written = [shard.data.nbytes for shard in _shards(state) if is_main_replica(shard.replica_id)]
    return Saving(
        written=sum(written),
        host_of_save=max(written, default=0),
        host_of_async_save=sum(written),
        gpu_of_save=max(added, 0),
        gpu_of_resume=max(recorder.ledger.live - before, 0),
        host_of_resume=max(held, default=0),
        num_messages=len(recorder.segments[-1].messages),
    )


def _shards(tree) -> Iterator[ShardedTensor]:
    for item in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(item, ShardedTensor):
            yield item
        elif isinstance(item, dict | list):
            yield from _shards(item)
