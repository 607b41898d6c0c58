"""The shards of a build under datatrove's executors. The one owner of datatrove; plain Slurm needs none of this.

Plan first and merge afterwards, each once; ``OUT.building`` must lie where every machine sees it::

    megatron-music build plan MIDI_DIR -o OUT

    # encode.py
    from datatrove.executor import LocalPipelineExecutor
    from megatron_music.data.cluster import datatrove_step

    if __name__ == "__main__":
        LocalPipelineExecutor([datatrove_step("OUT")], tasks=64, workers=8, logging_dir="logs/OUT").run()

    megatron-music build merge OUT

``SlurmPipelineExecutor`` and ``RayPipelineExecutor`` take the same step; only the local executor has been run. Run the
executor again to do ranks that failed: what they finished is kept. datatrove passes over ranks that ``logging_dir``
calls complete, so each build needs a ``logging_dir`` of its own.
"""

import os
from collections.abc import Iterable, Iterator

from datatrove.pipeline.base import PipelineStep

from megatron_music.data.shard import encode_shard


def datatrove_step(out: str | os.PathLike, workers: int = 1) -> PipelineStep:
    """A pipeline step that encodes the shards of its rank.

    Args:
        out: the dataset's name, as ``plan_build`` was given it.
        workers: processes of each rank; as many as the executor gives it cores.
    """
    return EncodeShards(os.path.abspath(out), workers)


class EncodeShards(PipelineStep):
    """``encode_shard`` for datatrove. Documents from a step before it pass through untouched."""

    name = "MIDI shards"
    type = "Encoder"

    def __init__(self, out: str, workers: int):
        super().__init__()
        self.out, self.workers = out, workers

    def run(self, data: Iterable | None = None, rank: int = 0, world_size: int = 1) -> Iterator:
        yield from data or ()
        for name, count in encode_shard(self.out, rank, world_size, self.workers).items():
            self.stat_update(name, value=count, unit="task")
