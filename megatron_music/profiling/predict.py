"""The time of a training step of a GPT on a cluster that is not at hand, from the configuration and a few measured
rates.

A step is the sum of what a rank waits for: matrix products at a share of the GPU's peak; norms, activations and softmax
at a share of its memory's speed; tensor-parallel messages within the node; messages between pipeline stages; the
pipeline's bubble; the reduction of gradients; the optimizer. The shares are fitted to the ten runs of arXiv:2104.04473,
table 1 (A100, unfused attention); for other GPUs they are carried over, which is an extrapolation.
"""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np

from megatron_music.config.checks import check_world_size
from megatron_music.config.errors import ConfigError
from megatron_music.config.run import RunConfig
from megatron_music.profiling.flops import forward_flops
from megatron_music.profiling.memory import estimate_memory, fit, parameters_of_stage
from megatron_music.profiling.peaks import PEAKS, Precision, precision_of


class Cluster(NamedTuple):
    """Rates of one kind of GPU and what joins them, in bytes a second of one GPU and one direction."""

    gpu: str
    memory: float
    in_node: float  # NVLink
    between_nodes: float  # InfiniBand
    gpus_per_node: int = 8

    def precision(self, run: RunConfig) -> Precision:
        """What a run computes in here, with the peak that goes with it.

        Raises:
            ValueError: the GPU's peak in the run's precision is not known.
        """
        return precision_of(
            PEAKS[self.gpu], bf16=run.train.bf16, float32_matmul_precision=run.train.float32_matmul_precision
        )


# Of the DGX of each kind, as recalled from data sheets; GB200 and GB300 as of eight GPUs a node, which understates
# them.
CLUSTERS = {
    cluster.gpu: cluster
    for cluster in (
        Cluster("v100", 0.9e12, 150e9, 12.5e9),
        Cluster("a100", 2.039e12, 300e9, 25e9),
        Cluster("a100-40gb", 1.555e12, 300e9, 25e9),
        Cluster("h100", 3.35e12, 450e9, 50e9),
        Cluster("h200", 4.8e12, 450e9, 50e9),
        Cluster("b200", 7.7e12, 900e9, 50e9),
        Cluster("b300", 7.7e12, 900e9, 100e9),
        Cluster("gb200", 8e12, 900e9, 50e9),
        Cluster("gb300", 8e12, 900e9, 100e9),
    )
}


class Shares(NamedTuple):
    """What is reached of each rate, and how often a message between stages is paid for."""

    products: float
    memory: float
    in_node: float
    between_nodes: float
    stage_messages: float


# Fitted to all ten rows; tests/profiling/test_predict.py fits them again, to each nine too.
FITTED = Shares(0.68, 1.0, 0.7, 1.0, 6.0)
# Searched, in this order of fields.
GRID = (
    np.arange(0.60, 0.86, 0.01),
    (0.8, 0.9, 1.0),
    (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    (0.6, 0.8, 1.0),
    (1.0, 2.0, 4.0, 6.0),
)
# Passes over memory in a forward pass, in elements for each of hidden size: norms, dropout and residuals, which every
# tensor-parallel rank does whole without sequence parallelism; then what is split; then reads and writes of the scores.
WHOLE_PASSES, SPLIT_PASSES, SCORE_PASSES = 12, 10, 5.5
LOGIT_BYTES = 30  # of each logit, forward and backward, in float32
OPTIMIZER_BYTES = 30  # of each parameter: gradient, moments, both copies, read and written
FLOAT32_OPTIMIZER_BYTES = 28  # likewise, without the copy in bf16


class Prediction(NamedTuple):
    """Seconds of a step by what they are spent on; they add up."""

    products: float
    memory: float
    tensor_messages: float
    stage_messages: float
    bubble: float
    output_layer: float
    gradients: float
    optimizer: float

    @property
    def seconds(self) -> float:
        return sum(self)


def predict_step(run: RunConfig, num_gpus: int, cluster: Cluster, shares: Shares = FITTED) -> Prediction:
    """The seconds of one step.

    Raises:
        ConfigError: the run does not divide over so many GPUs.
        ValueError: the GPU's peak in the run's precision is not known.
    """
    check_world_size(run, num_gpus)
    precision = cluster.precision(run)
    element = precision.element_bytes
    model, parallel, micro = run.model, run.parallel, run.train.micro_batch_size
    tensor, stages = parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size
    virtual, data = parallel.virtual_pipeline_model_parallel_size or 1, parallel.data_parallel_size(num_gpus)
    num_microbatches, recomputation = run.num_microbatches(num_gpus), run.train.recompute_granularity
    products_rate, memory_rate = precision.tflops * 1e12 * shares.products, cluster.memory * shares.memory
    within = cluster.in_node * shares.in_node
    between = cluster.between_nodes * shares.between_nodes
    tensor_rate = within if tensor <= cluster.gpus_per_node else between

    layers, attention, logits = (micro * operations for operations in forward_flops(model, causal=False))
    passes = {None: 3, "selective": 3, "full": 4}[recomputation]
    again = attention if recomputation == "selective" else 0.0
    tokens, hidden = micro * model.seq_length, model.hidden_size
    softmax = element * SCORE_PASSES * model.num_attention_heads * model.seq_length**2 * micro / tensor
    whole = element * WHOLE_PASSES * tokens * hidden / (tensor if parallel.sequence_parallel else 1)
    once = whole + element * SPLIT_PASSES * tokens * hidden / tensor + softmax
    moved = model.num_layers * (passes * once + (softmax if recomputation == "selective" else 0.0))
    # Two reductions of a layer's output forward and two backward, and as many as are recomputed; sequence parallelism
    # gathers the inputs once more for the backward pass.
    reductions = (6 if recomputation == "full" else 4) + (1 if parallel.sequence_parallel else 0)
    message = element * tokens * hidden
    sent = model.num_layers * reductions * 2 * (tensor - 1) / tensor * message

    share = num_microbatches / stages
    products = share * (passes * layers + again) / tensor / products_rate
    memory = share * moved / memory_rate
    tensor_messages = share * sent / tensor_rate
    crossing = 0.0 if stages == 1 else shares.stage_messages * 2 * virtual * message / tensor / between
    stage_messages = num_microbatches * crossing
    bubble = (stages - 1) / virtual * ((products + memory + tensor_messages) / num_microbatches + crossing)
    head = (3 * logits / products_rate + LOGIT_BYTES * tokens * model.vocab_size / memory_rate) / tensor
    parameters = parameters_of_stage(run, 0)
    optimizer_bytes = OPTIMIZER_BYTES if run.train.bf16 else FLOAT32_OPTIMIZER_BYTES
    gradient_rate = within if num_gpus <= cluster.gpus_per_node else between
    return Prediction(
        products=products,
        memory=memory,
        tensor_messages=tensor_messages,
        stage_messages=stage_messages,
        bubble=bubble,
        # The last stage has it beside its layers; hidden behind the others' but for one micro batch.
        output_layer=head * (num_microbatches if stages == 1 else 1),
        gradients=2 * (data - 1) / data * element * parameters / gradient_rate,
        optimizer=optimizer_bytes * parameters / memory_rate / (data if run.optimizer.use_distributed_optimizer else 1),
    )


def fit_shares(runs: list[tuple[RunConfig, int, float]], cluster: Cluster) -> Shares:
    """The shares of ``GRID`` whose predictions are nearest to measured seconds, in squares of logarithms.

    Args:
        runs: each with its number of GPUs and the seconds of a step.
    """
    candidates = [Shares(*map(float, shares)) for shares in product(*GRID)]
    # What is predicted is linear in the inverses of the shares: one prediction at each corner gives all.
    terms = np.array([_terms(run, num_gpus, cluster) for run, num_gpus, _ in runs])
    weights = np.array([_weights(shares) for shares in candidates])
    measured = np.log([seconds for *_, seconds in runs])
    errors = np.log(weights @ terms.T) - measured
    return candidates[int((errors**2).mean(1).argmin())]


def _weights(shares: Shares) -> list[float]:
    products, memory, in_node, between, messages = shares
    return [1 / products, 1 / memory, 1 / in_node, 1 / between, messages / between]


def _terms(run: RunConfig, num_gpus: int, cluster: Cluster) -> list[float]:
    """The seconds of each rate at a share of 1."""
    huge = 1e12

    def only(**one: float) -> float:
        return predict_step(run, num_gpus, cluster, Shares(huge, huge, huge, huge, 0.0)._replace(**one)).seconds

    return [
        only(products=1.0),
        only(memory=1.0),
        only(in_node=1.0),
        only(between_nodes=1.0),
        only(between_nodes=1.0, stage_messages=1.0) - only(between_nodes=1.0),
    ]


class Layout(NamedTuple):
    """One way to split a run."""

    run: RunConfig
    prediction: Prediction
    memory_gb: float  # of the fullest rank


def search(
    run: RunConfig, num_gpus: int, cluster: Cluster, gpu_memory_gb: float
) -> tuple[list[Layout], dict[str, int]]:
    """All layouts that can be and fit, the fastest first, and how many were left out for what reason.

    Tried are tensor sizes within a node, pipeline sizes with and without chunks, micro batches to 16 and what is
    recomputed; sequence parallelism goes with tensor parallelism and selective recomputation, the distributed optimizer
    always.
    """
    found, left_out = [], {"impossible": 0, "out of memory": 0}
    tensors = [size for size in (1, 2, 4, 8, 16) if size <= min(cluster.gpus_per_node, num_gpus)]
    pipelines = [size for size in range(1, run.model.num_layers + 1) if num_gpus % size == 0]
    for tensor, pipeline, virtual, micro, again in product(
        tensors, pipelines, (None, 2, 3, 4), (1, 2, 4, 8, 16), (None, "selective", "full")
    ):
        if virtual is not None and pipeline == 1:
            continue
        try:
            tried = with_layout(run, tensor, pipeline, virtual, micro, again)
            stages = estimate_memory(tried, num_gpus)
        except ConfigError:
            left_out["impossible"] += 1
            continue
        if not fit(stages, gpu_memory_gb).fits:
            left_out["out of memory"] += 1
            continue
        found.append(Layout(tried, predict_step(tried, num_gpus, cluster), max(stage.total for stage in stages) / 1e9))
    return sorted(found, key=lambda layout: layout.prediction.seconds), left_out


def with_layout(
    run: RunConfig,
    tensor: int,
    pipeline: int,
    virtual: int | None,
    micro_batch_size: int,
    recompute_granularity: str | None,
) -> RunConfig:
    """The same run, split otherwise.

    Raises:
        ConfigError: the split contradicts the model.
    """
    return replace(
        run,
        parallel=replace(
            run.parallel,
            tensor_model_parallel_size=tensor,
            pipeline_model_parallel_size=pipeline,
            virtual_pipeline_model_parallel_size=virtual,
            sequence_parallel=tensor > 1 and recompute_granularity != "full",
        ),
        optimizer=replace(run.optimizer, use_distributed_optimizer=True),
        train=replace(
            run.train,
            micro_batch_size=micro_batch_size,
            recompute_granularity=recompute_granularity,
            recompute_method=None,
            recompute_num_layers=None,
        ),
    )


class Scaled(NamedTuple):
    """A run on more GPUs, with as many more sequences a step."""

    num_gpus: int
    global_batch_size: int
    seconds: float
    tokens_per_second: float
    efficiency: float  # tokens a second of a GPU, of those on the fewest


def scale(run: RunConfig, numbers: list[int], cluster: Cluster) -> list[Scaled]:
    """Weak scaling: the same layout and the same sequences for each GPU, on ever more of them.

    Args:
        numbers: of GPUs; ``run`` is of the first.

    Raises:
        ConfigError: the run does not divide over one of them.
    """
    found: list[Scaled] = []
    for number in numbers:
        batch = run.train.global_batch_size * number // numbers[0]
        larger = replace(run, train=replace(run.train, global_batch_size=batch))
        seconds = predict_step(larger, number, cluster).seconds
        speed = batch * run.model.seq_length / seconds
        first = found[0].tokens_per_second / found[0].num_gpus if found else speed / number
        found.append(Scaled(number, batch, seconds, speed, speed / number / first))
    return found
