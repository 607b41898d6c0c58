"""The time of a step by what a rehearsal counted, in place of the formulas of ``profiling.predict``."""

from megatron_music.profiling.predict import FITTED, Cluster, Prediction, Shares
from megatron_music.rehearsal.collectives import POINT_TO_POINT
from megatron_music.rehearsal.job import Job
from megatron_music.rehearsal.one_rank import Rehearsed

_LAYERS = ("forward", "recomputation", "backward")


def predict_from(job: Job, cluster: Cluster, shares: Shares = FITTED) -> Prediction:
    """The seconds of one step, with the same rates and the same schedule as ``predict_step``.

    Operations, memory traffic and messages are those of the first stage; ``output_layer`` is what the last stage has
    beside them. Half of a causal layer's scores count, and each operator reads and writes for itself, as PyTorch
    without compilation does.

    Args:
        job: with a rank of the first and of the last stage.

    Raises:
        ValueError: the GPU's peak in the run's precision is not known.
    """
    parallel, run = job.run.parallel, job.run
    first = next(rank for rank in job.ranks if rank.role.pipeline == 0)
    last = next(rank for rank in job.ranks if rank.role.pipeline == parallel.pipeline_model_parallel_size - 1)
    products_rate, memory_rate = cluster.precision(run).tflops * 1e12 * shares.products, cluster.memory * shares.memory
    within, between = cluster.in_node * shares.in_node, cluster.between_nodes * shares.between_nodes
    stages, virtual = parallel.pipeline_model_parallel_size, parallel.virtual_pipeline_model_parallel_size or 1
    tensor, data = parallel.tensor_model_parallel_size, parallel.data_parallel_size(job.num_gpus)

    products, memory = _products(first) / products_rate, _moved(first, _LAYERS) / memory_rate
    tensor_messages = _ring_bytes(first, "tensor", tensor) / (within if tensor <= cluster.gpus_per_node else between)
    stage_messages = (
        shares.stage_messages
        * sum(
            message.num_bytes * times
            for message, times in first.counted_messages()
            if message.operation in POINT_TO_POINT
        )
        / between
    )
    per_micro_batch = (products + memory + tensor_messages + stage_messages) / first.num_microbatches
    head = (
        (_products(last) / products_rate + _moved(last, _LAYERS) / memory_rate) - (products + memory)
        if stages > 1
        else 0.0
    )
    return Prediction(
        products=products,
        memory=memory,
        tensor_messages=tensor_messages,
        stage_messages=stage_messages,
        bubble=(stages - 1) / virtual * per_micro_batch,
        output_layer=max(head, 0.0) / first.num_microbatches,  # hidden behind the other stages' but for one micro batch
        gradients=_ring_bytes(first, "data", data) / (within if job.num_gpus <= cluster.gpus_per_node else between),
        optimizer=_moved(first, ("update",)) / memory_rate,
    )


def _products(rank: Rehearsed) -> float:
    return sum(value for (part, _), value in rank.flops().items() if part in _LAYERS)


def _moved(rank: Rehearsed, parts: tuple[str, ...]) -> float:
    return sum(value for part, value in rank.moved().items() if part in parts)


def _ring_bytes(rank: Rehearsed, group: str, size: int) -> float:
    """Bytes that one rank of a group sends in a step."""
    return sum(
        message.ring_bytes(size) * times
        for message, times in rank.counted_messages()
        if message.group == group and message.operation not in POINT_TO_POINT
    )
