"""What a run cannot be, told before anything is built: one sentence for every contradiction between its fields.

Four questions: of the run alone, of the number of processes, of the GPU by its name, of the GPU itself. Knows neither
torch nor what the machine is like: those who ask say it.
"""

import re

from megatron_music.config.errors import counted, divisors, refuse_unless
from megatron_music.config.sections import Run

# Compute capabilities, from https://developer.nvidia.com/cuda-gpus and its page of legacy GPUs.
COMPUTE_CAPABILITY = {
    "K80": (3, 7),
    "M60": (5, 2),
    "P100": (6, 0),
    "P40": (6, 1),
    "P4": (6, 1),
    "V100": (7, 0),
    "V100S": (7, 0),
    "T4": (7, 5),
    "RTX 6000": (7, 5),
    "RTX 8000": (7, 5),
    "A100": (8, 0),
    "A30": (8, 0),
    "A800": (8, 0),
    "A10": (8, 6),
    "A10G": (8, 6),
    "A16": (8, 6),
    "A40": (8, 6),
    "L4": (8, 9),
    "L40": (8, 9),
    "L40S": (8, 9),
    "H100": (9, 0),
    "H200": (9, 0),
    "H800": (9, 0),
    "GH200": (9, 0),
    "B200": (10, 0),
    "GB200": (10, 0),
    "B300": (10, 3),
    "GB300": (10, 3),
}
BF16_CAPABILITY = (8, 0)


def check_run(config: Run) -> None:
    """Refuse fields that contradict each other on any machine.

    Raises:
        ConfigError: the first contradiction.
    """
    _check_data(config)
    _check_sizes(config)
    _check_sequence(config)
    _check_attention_backend(config)
    _check_overlap(config)
    _check_recompute(config)
    _check_batch(config)


def check_flow_run(config: Run) -> None:
    """The same for the text-to-music models.

    Raises:
        ConfigError: the first contradiction.
    """
    parallel, shape = config.parallel, config.model.shape
    for name, value in (
        ("model.num_attention_heads", shape.num_attention_heads),
        ("the number of heads for the context's keys and values", shape.num_context_groups),
        ("model.ffn_hidden_size", shape.ffn_hidden_size),
    ):
        _check_divides(name, value, parallel.tensor_model_parallel_size)
    refuse_unless(
        parallel.context_parallel_size == 1,
        f"parallel.context_parallel_size is {parallel.context_parallel_size}, which model.kind={config.model.kind} "
        f"does not "
        "have; set parallel.context_parallel_size=1",
    )
    _check_layers(config)
    _check_overlap(config)
    _check_recompute(config)
    _check_batch(config)


def _check_batch(config: Run) -> None:
    train = config.train
    refuse_unless(
        train.global_batch_size % train.micro_batch_size == 0,
        f"train.global_batch_size {train.global_batch_size} is no multiple of train.micro_batch_size "
        f"{train.micro_batch_size}; use a train.micro_batch_size of {divisors(train.global_batch_size)}",
    )


def check_world_size(config: Run, world_size: int) -> None:
    """Refuse a number of processes that the run does not divide over.

    Raises:
        ConfigError: one sentence with what was given and what would work.
    """
    parallel, train = config.parallel, config.train
    model_size = parallel.model_size
    sizes = f"{parallel.tensor_model_parallel_size} x {parallel.pipeline_model_parallel_size}"
    names = "tensor x pipeline"
    if parallel.context_parallel_size > 1:
        sizes, names = f"{sizes} x {parallel.context_parallel_size}", "tensor x pipeline x context"
    refuse_unless(
        world_size % model_size == 0,
        f"{counted(world_size, 'process', 'processes')} cannot be divided by {names} parallel size {sizes}; start a "
        f"multiple of {model_size} "
        f"processes, such as torchrun --nproc_per_node {model_size}",
    )
    data_size = parallel.data_parallel_size(world_size)
    portion = train.micro_batch_size * data_size
    refuse_unless(
        train.global_batch_size % portion == 0,
        f"train.global_batch_size {train.global_batch_size} is not a multiple of train.micro_batch_size x data "
        f"parallel size {train.micro_batch_size} x {data_size}; use a multiple of {portion}, such as "
        f"train.global_batch_size={-(-train.global_batch_size // portion) * portion}",
    )
    if parallel.virtual_pipeline_model_parallel_size is not None:
        # The interleaved schedule passes as many micro batches as there are stages through one chunk before the next.
        num_microbatches, stages = config.num_microbatches(world_size), parallel.pipeline_model_parallel_size
        refuse_unless(
            num_microbatches % stages == 0,
            f"train.global_batch_size {train.global_batch_size} is {num_microbatches} micro batches for each process, "
            f"no "
            f"multiple of parallel.pipeline_model_parallel_size {stages}, as "
            "parallel.virtual_pipeline_model_parallel_size needs; set train.global_batch_size to a multiple of "
            f"{portion * stages}",
        )


def check_gpu(config: Run, name: str) -> None:
    """Refuse a GPU, known by its name alone, that cannot do what the run asks.

    Args:
        name: as a cluster or the driver calls it: V100, gpu:v100:4, Tesla V100-SXM2-32GB. A name that is not in the
            table is let through: when the run starts, the GPU itself is asked.

    Raises:
        ConfigError: one sentence.
    """
    capability = capability_of(name)
    if capability is not None:
        check_capability(config, capability, name)


def capability_of(name: str) -> tuple[int, int] | None:
    """The compute capability of a GPU by its name; None: it is not in the table."""
    words = re.sub(r"[^A-Z0-9]+", " ", name.upper())
    # The longest first: an RTX 6000 Ada is another GPU than an RTX 6000, and stands in no table.
    for known in sorted(COMPUTE_CAPABILITY, key=len, reverse=True):
        if re.search(rf"\b{known}\b(?! ADA)", words):
            return COMPUTE_CAPABILITY[known]
    return None


def check_capability(config: Run, capability: tuple[int, int], name: str) -> None:
    """Refuse a GPU of a compute capability that cannot do what the run asks.

    Raises:
        ConfigError: one sentence.
    """
    refuse_unless(
        not config.train.bf16 or tuple(capability) >= BF16_CAPABILITY,
        f"train.bf16 is true on {name}, whose compute capability {capability[0]}.{capability[1]} is below "
        f"{BF16_CAPABILITY[0]}.{BF16_CAPABILITY[1]} and has no bfloat16; set train.bf16=false or use an A100 or later",
    )


def _check_data(config: Run) -> None:
    refuse_unless(
        not (config.data.reset_position_ids and config.model.position_embedding_type == "rope"),
        "data.reset_position_ids is true with model.position_embedding_type=rope, which reads no position ids; set "
        "data.reset_position_ids=false or model.position_embedding_type=learned_absolute",
    )
    refuse_unless(
        not (config.data.reset_attention_mask and config.parallel.context_parallel_size > 1),
        f"data.reset_attention_mask is true with parallel.context_parallel_size "
        f"{config.parallel.context_parallel_size}, "
        "whose attention takes no mask; set data.reset_attention_mask=false or parallel.context_parallel_size=1",
    )


def _check_sizes(config: Run) -> None:
    model, tensor = config.model, config.parallel.tensor_model_parallel_size
    for name, value in (
        ("model.num_attention_heads", model.num_attention_heads),
        ("model.num_query_groups", model.num_query_groups),
        ("model.ffn_hidden_size", model.ffn_hidden_size),
        ("the vocabulary of", model.vocab_size),
    ):
        _check_divides(name, value, tensor)
    _check_layers(config)


def _check_divides(name: str, value: int, tensor: int) -> None:
    refuse_unless(
        value % tensor == 0,
        f"{name} {value} is not divisible by parallel.tensor_model_parallel_size {tensor}; use one of "
        f"{divisors(value)}",
    )


def _check_layers(config: Run) -> None:
    model = config.model
    pipeline, virtual = (
        config.parallel.pipeline_model_parallel_size,
        config.parallel.virtual_pipeline_model_parallel_size,
    )
    refuse_unless(
        model.num_layers % pipeline == 0,
        f"model.num_layers {model.num_layers} is not divisible by parallel.pipeline_model_parallel_size {pipeline}; "
        f"use one of {divisors(model.num_layers)}",
    )
    layers = model.num_layers // pipeline
    refuse_unless(
        virtual is None or layers % virtual == 0,
        f"a pipeline stage's {counted(layers, 'layer')} cannot be divided by "
        f"parallel.virtual_pipeline_model_parallel_size {virtual}; "
        f"use one of {divisors(layers)}, or a model.num_layers that is divisible by {pipeline} x {virtual}",
    )


def _check_sequence(config: Run) -> None:
    length, parallel = config.model.seq_length, config.parallel
    tensor, context = parallel.tensor_model_parallel_size, parallel.context_parallel_size
    refuse_unless(
        not parallel.sequence_parallel or length % tensor == 0,
        f"model.seq_length {length} is not divisible by parallel.tensor_model_parallel_size {tensor}, as "
        f"parallel.sequence_parallel needs; use a multiple of {tensor} or parallel.sequence_parallel=false",
    )
    if context > 1:
        # Every process takes one part from the front and one from the back, so that causal attention costs all the
        # same.
        part = 2 * context * (tensor if parallel.sequence_parallel else 1)
        refuse_unless(
            length % part == 0,
            f"model.seq_length {length} does not divide into the 2 x {context} parts of parallel.context_parallel_size "
            f"{context}{f' on {tensor} sequence-parallel processes' if parallel.sequence_parallel else ''}; use a "
            f"multiple of "
            f"{part}",
        )


def _check_attention_backend(config: Run) -> None:
    backend, context = config.model.attention_backend, config.parallel.context_parallel_size
    refuse_unless(
        backend in ("auto", "local") or not config.data.reset_attention_mask,
        f"model.attention_backend is {backend}, a kernel of Transformer Engine, and data.reset_attention_mask is "
        f"true, whose "
        "masks Transformer Engine's causal attention ignores; set model.attention_backend=auto or "
        "data.reset_attention_mask=false",
    )
    refuse_unless(
        backend != "local" or context == 1,
        f"model.attention_backend is local and parallel.context_parallel_size is {context}, which needs Transformer "
        f"Engine's "
        "attention; set model.attention_backend=auto or parallel.context_parallel_size=1",
    )


def _check_overlap(config: Run) -> None:
    refuse_unless(
        not config.parallel.overlap_param_gather or config.optimizer.use_distributed_optimizer,
        "parallel.overlap_param_gather is true without the distributed optimizer, which alone gathers parameters; set "
        "optimizer.use_distributed_optimizer=true or parallel.overlap_param_gather=false",
    )


def _check_recompute(config: Run) -> None:
    layers = config.model.num_layers // config.parallel.num_model_chunks
    refuse_unless(
        config.train.recompute_num_layers is None or config.train.recompute_num_layers <= layers,
        f"train.recompute_num_layers {config.train.recompute_num_layers} is more than one part of the model has "
        f"({counted(layers, 'layer')}"
        f"); use 1 to {layers}",
    )
