"""How long operators and messages take at the least on a GPU: at the rates that ``profiling.predict`` reaches.

An operator takes the longer of its arithmetic and of its memory traffic, a message its bytes over the slowest link of
its group. Launches, waiting for other ranks and messages that collide are not in it.
"""

from typing import NamedTuple

from megatron_music.config.sections import Run
from megatron_music.profiling.peaks import peak_of
from megatron_music.profiling.predict import CLUSTERS, FITTED, Cluster
from megatron_music.rehearsal.collectives import POINT_TO_POINT, Message


class Speed(NamedTuple):
    """Rates per second of one GPU."""

    gpu: str
    products: float  # floating-point operations
    memory: float  # bytes
    in_node: float
    between_nodes: float
    gpus_per_node: int

    def operator_seconds(self, flops: float, moved: int) -> float:
        return max(flops / self.products, moved / self.memory)

    def message_seconds(self, message: Message, ranks: list[int]) -> float:
        """Of a message in a group of these ranks."""
        is_in_node = len({rank // self.gpus_per_node for rank in ranks}) == 1
        rate = self.in_node if is_in_node else self.between_nodes
        if message.operation in POINT_TO_POINT:
            return message.num_bytes / rate
        return message.ring_bytes(len(ranks)) / rate


def cluster_of(gpu: str) -> Cluster:
    """What joins GPUs of a name; of an H100 where it is not known."""
    known = peak_of(gpu, "fp16")
    return CLUSTERS.get(known.gpu if known else gpu, CLUSTERS["h100"])


def speed_of(run: Run, gpu: str) -> Speed:
    """The speed of a run on a GPU; on an H100 where the GPU's, or its peak in the run's precision, is not known."""
    cluster = cluster_of(gpu)
    try:
        cluster.precision(run)
    except ValueError:
        cluster = CLUSTERS["h100"]
    return Speed(
        cluster.gpu,
        cluster.precision(run).tflops * 1e12 * FITTED.products,
        cluster.memory * FITTED.memory,
        cluster.in_node * FITTED.in_node,
        cluster.between_nodes * FITTED.between_nodes,
        cluster.gpus_per_node,
    )
