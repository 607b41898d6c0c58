"""Estimates the memory of training a GPT on each rank, for any layout: weights, gradients, optimizer, activations.

From the configuration alone. Weights, gradients and optimizer are exact up to the padding of megatron-core's buffers.
Activations are those saved for the backward pass at the fullest moment of the schedule, as megatron-core's layers with
fused attention save them (arXiv:2205.05198, table 2, counts each operation by itself, so a tensor that two of them
share is counted twice there). Not
counted: temporary buffers, fragmentation, the CUDA context and NCCL's buffers, which take a few GB more.

Transformer Engine's layers, which `train` uses where they are installed, are counted from their code: a fused norm
saves its input and its output, which is one tensor less for each RMSNorm; the other parts of a layer save the same.
This was not measured. docs/profiling.md says what a public log shows of it.
"""

from typing import NamedTuple

from megatron_music.config.checks import check_world_size
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import ModelConfig

ADAM_BYTES = 8  # two moments in float32
MAIN_BYTES = 4  # the float32 copy of bf16 weights; and gradients, which are float32 always

HEADROOM = 0.1  # of a GPU, for what is not counted


class Stage(NamedTuple):
    """What one rank of a pipeline stage holds, in bytes; all its tensor-parallel ranks hold as much."""

    stage: int  # from 0
    parameters: int  # elements, not bytes
    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def at_rest(self) -> float:
        """What lives as long as the run, which is counted exactly."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.at_rest + self.activations


class Fit(NamedTuple):
    """Whether the fullest rank has room."""

    gpu_memory_gb: float | None
    share: float | None  # of it that is taken
    fits: bool | None  # None: it is not known how much there is
    sentence: str


def fit(stages: list[Stage], gpu_memory_gb: float | None) -> Fit:
    """The fullest stage beside a GPU's memory, 10^9 bytes; ``HEADROOM`` of it is left to what is not counted."""
    most = max(stages, key=lambda stage: stage.total)
    said = f"at most {most.total / 1e9:.2f} GB, on stage {most.stage}"
    uncounted = "temporary buffers, fragments, the CUDA context and NCCL's buffers are not counted"
    if gpu_memory_gb is None:
        return Fit(None, None, None, f"{said}; {uncounted}")
    share = most.total / 1e9 / gpu_memory_gb
    fits = share <= 1 - HEADROOM
    verdict = "fits" if fits else "does not fit" if share > 1 else "is too close to fit"
    return Fit(gpu_memory_gb, share, fits, f"{said}, {share:.0%} of {gpu_memory_gb:g} GB: it {verdict}; {uncounted}")


def estimate_memory(run: RunConfig, num_gpus: int, *, transformer_engine: bool = False) -> list[Stage]:
    """The memory of one rank of each pipeline stage.

    Args:
        transformer_engine: its layers in place of this package's.

    Raises:
        ConfigError: the run does not divide over so many GPUs.
    """
    check_world_size(run, num_gpus)
    parallel, bf16 = run.parallel, run.train.bf16
    weight_bytes = 2 if bf16 else 4
    # Each of the data-parallel ranks keeps a part of the optimizer's state where it is distributed.
    shares = parallel.data_parallel_size(num_gpus) * parallel.context_parallel_size
    shares = shares if run.optimizer.use_distributed_optimizer else 1
    found = []
    for stage in range(parallel.pipeline_model_parallel_size):
        parameters = parameters_of_stage(run, stage)
        found.append(
            Stage(
                stage=stage,
                parameters=parameters,
                weights=float(weight_bytes * parameters),
                gradients=float(MAIN_BYTES * parameters),
                optimizer=(ADAM_BYTES + (MAIN_BYTES if bf16 else 0)) * parameters / shares,
                activations=_activations(run, stage, run.num_microbatches(num_gpus), transformer_engine),
            )
        )
    return found


def host_copy(stages: list[Stage], run: RunConfig, num_gpus: int) -> float:
    """Bytes of host memory that one process needs for a save beside training (``checkpoint.async_save``).

    A checkpoint holds weights, moments and float32 weights once, whatever optimizer there is, and the data-parallel
    processes copy a share each. A save that training waits for copies one tensor at a time, and loading writes into
    what training holds.
    """
    saved = (2 + ADAM_BYTES + MAIN_BYTES) if run.train.bf16 else 4 + ADAM_BYTES
    shares = run.parallel.data_parallel_size(num_gpus) * run.parallel.context_parallel_size
    return saved * max(stage.parameters for stage in stages) / shares


def checkpoint_memory(stages: list[Stage], run: RunConfig, num_gpus: int) -> str:
    """What saving and resuming need beside training, as a sentence."""
    return (
        "resuming needs no more than that; a save with checkpoint.async_save=true takes about "
        f"{host_copy(stages, run, num_gpus) / 1e9:.2f} GB of host memory per process while it is written"
    )


def parameters_of_stage(run: RunConfig, stage: int) -> int:
    """Parameters on one rank of a pipeline stage. A tied embedding lies on the first stage and on the last."""
    model, tensor, stages = (
        run.model,
        run.parallel.tensor_model_parallel_size,
        run.parallel.pipeline_model_parallel_size,
    )
    is_first, is_last = stage == 0, stage == stages - 1
    norm = model.hidden_size * (2 if model.normalization == "LayerNorm" else 1)
    embedding = model.vocab_size * model.hidden_size // tensor
    found = model.num_layers // stages * _layer_parameters(model, norm, tensor)
    if is_first:
        found += embedding
        found += model.seq_length * model.hidden_size if model.position_embedding_type == "learned_absolute" else 0
    if is_last:
        found += norm
        found += 0 if model.share_embeddings_and_output_weights and is_first else embedding
    return found


def _layer_parameters(model: ModelConfig, norm: int, tensor: int) -> int:
    """Of one layer on one tensor-parallel rank: norms, and the biases after what is split by rows, are on each
    whole.
    """
    hidden, bias = model.hidden_size, 1 if model.add_bias_linear else 0
    queries_keys_values = hidden + 2 * _key_value_size(model)
    inner = model.ffn_hidden_size * (2 if model.swiglu else 1)
    split = (hidden + bias) * (queries_keys_values + inner) + hidden * hidden + model.ffn_hidden_size * hidden
    return split // tensor + 2 * bias * hidden + 2 * norm


def _activations(run: RunConfig, stage: int, num_microbatches: int, transformer_engine: bool) -> float:
    """Bytes that wait for the backward pass on one rank of a stage when the most do."""
    parallel, train = run.parallel, run.train
    virtual, stages = parallel.virtual_pipeline_model_parallel_size or 1, parallel.pipeline_model_parallel_size
    layers = run.model.num_layers // parallel.num_model_chunks
    # Passes through one chunk of this stage whose backward pass has not begun.
    ahead = stages - stage - 1
    waiting = min(num_microbatches * virtual, ahead + 1 if virtual == 1 else 2 * ahead + (virtual - 1) * stages + 1)
    kept_of_layer = _kept_of_layer(run, transformer_engine)
    head = _kept_of_head(run, transformer_engine) if stage == stages - 1 else 0.0
    if train.recompute_granularity != "full":
        return waiting * layers * kept_of_layer + head
    boundary = _tokens(run) * run.model.hidden_size * _element_bytes(run) / _sequence_parts(run)
    # What is recomputed has its own input among the boundaries; by then the head, and the layers behind it, have gone.
    if train.recompute_method == "uniform":
        kept = boundary * -(-layers // train.recompute_num_layers)
        recomputed = train.recompute_num_layers * kept_of_layer - boundary
    else:
        others = (layers - train.recompute_num_layers) * kept_of_layer
        kept = train.recompute_num_layers * boundary + others
        recomputed = kept_of_layer - boundary - others
    return waiting * kept + max(head, recomputed)


def _kept_of_layer(run: RunConfig, transformer_engine: bool) -> float:
    """Bytes that one micro batch leaves in one layer that is not recomputed."""
    model, tensor = run.model, run.parallel.tensor_model_parallel_size
    hidden, key_value, tokens = model.hidden_size, _key_value_size(model), _tokens(run)
    # Queries, keys and values lie in one piece, which the values hold; turned by rotary positions they are there twice.
    attention = hidden + 2 * key_value + hidden
    tables = 0.0
    if model.position_embedding_type == "rope":
        attention += hidden + key_value
        tables = (
            4 * tokens / run.train.micro_batch_size * hidden / model.num_attention_heads
        )  # sines and cosines, of both
    # What goes into the activation and comes out; a gated one keeps both halves, the second once more with its offset,
    # what the activation gives, and the product.
    feed_forward = model.ffn_hidden_size * (5 if model.swiglu else 2)
    elements = (
        tokens
        * (2 * _kept_of_norm(model, transformer_engine) / _sequence_parts(run) + (attention + feed_forward) / tensor)
        + tables
    )
    statistics = 2 * _norm_statistics(model) / _sequence_parts(run)
    if run.train.recompute_granularity != "selective":
        statistics += model.num_attention_heads / tensor  # the logarithm of each sum
    masks = 2 * hidden / _sequence_parts(run) if model.hidden_dropout else 0
    return elements * _element_bytes(run) + tokens * (4 * statistics + masks)


def _kept_of_head(run: RunConfig, transformer_engine: bool) -> float:
    """Bytes that one micro batch leaves in the final norm, the output layer and the loss, whose logits are float32."""
    model, tensor = run.model, run.parallel.tensor_model_parallel_size
    elements = _kept_of_norm(model, transformer_engine) / _sequence_parts(run)
    in_float32 = model.vocab_size / tensor + _norm_statistics(model) / _sequence_parts(run)
    return _tokens(run) * (elements * _element_bytes(run) + 4 * in_float32)


def _kept_of_norm(model: ModelConfig, transformer_engine: bool) -> int:
    """Elements per token: what goes in, and what comes out and into the linear layer; PyTorch's RMSNorm keeps one
    between.
    """
    return model.hidden_size * (2 if transformer_engine or model.normalization == "LayerNorm" else 3)


def _norm_statistics(model: ModelConfig) -> int:
    return 2 if model.normalization == "LayerNorm" else 1


def _key_value_size(model: ModelConfig) -> int:
    return model.hidden_size // model.num_attention_heads * model.num_query_groups


def _tokens(run: RunConfig) -> float:
    """Of one micro batch on one context-parallel rank."""
    return run.train.micro_batch_size * run.model.seq_length / run.parallel.context_parallel_size


def _sequence_parts(run: RunConfig) -> int:
    return run.parallel.tensor_model_parallel_size if run.parallel.sequence_parallel else 1


def _element_bytes(run: RunConfig) -> int:
    return 2 if run.train.bf16 else 4
