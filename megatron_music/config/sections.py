"""A whole run as frozen dataclasses, with one sentence for every contradiction.

Facts are fields, under Megatron's names; what follows from them is a property or a method. Imports neither torch
nor megatron-core; recipes/ reads the files.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from megatron_music.config.errors import (
    ConfigError,
    closest,
    divisors,
    either,
    refuse_unless,
)
from megatron_music.config.gpt_sizes import SIZES, gpt_parameter_count
from megatron_music.tokens import vocabulary

MANY = 2**40  # of steps, samples or seconds: the most that a whole number may be, where its field sets no lower limit
ATTENTION_BACKENDS = (
    "auto",
    "flash",
    "fused",
    "unfused",
    "local",
)  # Transformer Engine's kernels under megatron-core's names; PyTorch's attention
WIDE = 2**20  # of a model's widths, its vocabulary and the processes of a run


def setting(default, meaning: str, *, at_most: int = MANY):
    """A field of a section with its default and its meaning, the one place where it is written down.

    Args:
        at_most: the largest whole number it takes, far above any that can be trained.
    """
    return field(default=default, metadata={"meaning": meaning, "at_most": at_most})


def check_numbers(section: str, config) -> None:
    """Refuse numbers of a section that are not finite, and whole numbers above the limit of their field."""
    for item in fields(config):
        name, value = f"{section}.{item.name}", getattr(config, item.name)
        if isinstance(value, float):
            usual = item.default if isinstance(item.default, float) else 1.0
            refuse_unless(math.isfinite(value), f"{name} is {value}; use a finite number, such as {usual}")
        elif isinstance(value, int) and value > item.metadata["at_most"]:
            raise ConfigError(f"{name} is {value}; use a whole number of at most {item.metadata['at_most']}")


def positive(section: str, config, *names: str) -> None:
    """Refuse fields of a section that are not above 0."""
    for name in names:
        value = getattr(config, name)
        refuse_unless(value > 0, f"{section}.{name} is {value}, which is not above 0; set {section}.{name}=1 or more")


def choice(section: str, config, name: str, allowed: Sequence[str]) -> None:
    """Refuse a field of a section that is none of a few."""
    value = getattr(config, name)
    refuse_unless(value in allowed, f"{section}.{name} is {value!r}; use {either(allowed)}{closest(value, allowed)}")


@dataclass(frozen=True)
class ModelConfig:
    """The GPT. Omitted fields come from ``size``; ``size: custom`` requires all of them."""

    size: str = setting("custom", f"a named shape ({either(tuple(SIZES))}), or custom, which gives every field below")
    num_layers: int | None = setting(None, "transformer layers", at_most=2**14)
    hidden_size: int | None = setting(None, "width of the residual stream", at_most=WIDE)
    num_attention_heads: int | None = setting(None, "attention heads of a layer; divides hidden_size", at_most=WIDE)
    num_query_groups: int | None = setting(
        None, "key/value heads, fewer for grouped-query attention; if omitted: num_attention_heads", at_most=WIDE
    )
    ffn_hidden_size: int | None = setting(
        None, "width of the feed-forward layer; if omitted: 4 x hidden_size", at_most=4 * WIDE
    )
    seq_length: int | None = setting(None, "tokens of a training sequence", at_most=2**24)
    position_embedding_type: str = setting("rope", "rope or learned_absolute")
    rotary_base: int = setting(10000, "base of the rotary frequencies, of rope")
    normalization: str = setting("LayerNorm", "LayerNorm or RMSNorm")
    swiglu: bool = setting(False, "a gated feed-forward layer with SiLU; else GELU")
    add_bias_linear: bool = setting(True, "a bias in every linear layer but the output layer")
    share_embeddings_and_output_weights: bool = setting(True, "one matrix for the token embedding and the output layer")
    attention_dropout: float = setting(0.0, "share of attention weights dropped in training, from 0 up to 1")
    hidden_dropout: float = setting(0.0, "share of each layer's output dropped in training, from 0 up to 1")
    attention_backend: str = setting(
        "auto", "of Transformer Engine: auto, flash, fused or unfused; local: PyTorch's attention"
    )
    vocab_size: int = setting(
        vocabulary.SIZE,
        "token ids; a run takes that of its data, which is larger where tokens are merged",
        at_most=WIDE,
    )

    def __post_init__(self):
        check_numbers("model", self)
        choice("model", self, "size", (*SIZES, "custom"))
        shape = asdict(SIZES[self.size]) if self.size in SIZES else {}
        if self.hidden_size is not None:
            shape["ffn_hidden_size"] = 4 * self.hidden_size
        if self.num_attention_heads is not None:
            shape["num_query_groups"] = self.num_attention_heads
        for name in (
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "num_query_groups",
            "ffn_hidden_size",
            "seq_length",
        ):
            if getattr(self, name) is None:
                refuse_unless(
                    name in shape,
                    f"model.{name} is missing; set it, or name a size: model.size={either(tuple(SIZES))}",
                )
                object.__setattr__(self, name, shape[name])
        positive("model", self, "num_layers", "hidden_size", "num_attention_heads", "num_query_groups")
        positive("model", self, "ffn_hidden_size", "seq_length", "vocab_size", "rotary_base")
        choice("model", self, "position_embedding_type", ("rope", "learned_absolute"))
        choice("model", self, "normalization", ("LayerNorm", "RMSNorm"))
        choice("model", self, "attention_backend", ATTENTION_BACKENDS)
        refuse_unless(
            self.hidden_size % self.num_attention_heads == 0,
            f"model.hidden_size {self.hidden_size} does not divide into model.num_attention_heads "
            f"{self.num_attention_heads}; use a multiple, such as {self.num_attention_heads * 64}",
        )
        refuse_unless(
            self.num_attention_heads % self.num_query_groups == 0,
            f"model.num_attention_heads {self.num_attention_heads} does not divide into model.num_query_groups "
            f"{self.num_query_groups}; use one of {divisors(self.num_attention_heads)}",
        )
        for name in ("attention_dropout", "hidden_dropout"):
            refuse_unless(
                0 <= getattr(self, name) < 1,
                f"model.{name} is {getattr(self, name)}; use a share from 0 up to, not with, 1",
            )

    @property
    def parameter_count(self) -> int:
        """Parameters of the whole model, whatever it is split over."""
        without = ("size", "attention_dropout", "hidden_dropout", "rotary_base", "attention_backend")
        names = [item.name for item in fields(self) if item.name not in without]
        return gpt_parameter_count(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class DataConfig:
    """Where the tokens lie and how documents packed into one sequence are kept apart."""

    path: str | list | None = setting(
        None, "a folder made by `build tokens`, or [weight, folder, weight, folder, ...] for a blend"
    )
    reset_attention_mask: bool = setting(False, "no attention across a document end")
    reset_position_ids: bool = setting(False, "positions count from 0 after a document end")
    eod_mask_loss: bool = setting(
        True, "no loss where the input is a document end: the next document cannot be predicted"
    )
    cache_path: str | None = setting(
        None,
        "folder of the index cache; if omitted: `cache` in checkpoint.save, for a run that is not saved "
        "~/.cache/megatron-music",
    )

    def __post_init__(self):
        if isinstance(self.path, list):
            lawful = len(self.path) >= 2 and len(self.path) % 2 == 0
            numbers = [
                weight for weight in self.path[::2] if isinstance(weight, int | float) and not isinstance(weight, bool)
            ]
            lawful = lawful and len(numbers) == len(self.path[::2]) and all(0 < weight <= MANY for weight in numbers)
            refuse_unless(
                lawful and all(isinstance(folder, str) for folder in self.path[1::2]),
                f"data.path is {self.path}; use one folder, or [weight, folder, weight, folder, ...] with weights "
                f"above 0 and finite",
            )

    @property
    def folders(self) -> list[Path]:
        """The dataset folders."""
        return [Path(folder) for folder in (self.path[1::2] if isinstance(self.path, list) else [self.path])]

    @property
    def weights(self) -> list[float] | None:
        """One weight a folder, or None for a single folder."""
        return [float(weight) for weight in self.path[::2]] if isinstance(self.path, list) else None


@dataclass(frozen=True)
class ParallelConfig:
    """How the model is split. What remains of the processes is data parallel."""

    tensor_model_parallel_size: int = setting(1, "processes that each layer is split over", at_most=WIDE)
    pipeline_model_parallel_size: int = setting(1, "stages that the layers are split into", at_most=WIDE)
    virtual_pipeline_model_parallel_size: int | None = setting(
        None, "chunks of a stage, interleaved; if omitted: one, not interleaved", at_most=WIDE
    )
    context_parallel_size: int = setting(1, "parts of each sequence; above 1 it needs Transformer Engine", at_most=WIDE)
    sequence_parallel: bool = setting(
        False, "split the sequence outside of tensor-parallel layers too, which saves activation memory"
    )
    overlap_grad_reduce: bool | None = setting(
        None, "reduce gradients during the backward pass; if omitted: where there is CUDA"
    )
    overlap_param_gather: bool = setting(False, "gather updated parameters during the next forward pass")
    ddp_bucket_size: int | None = setting(
        None, "parameters reduced at once where it is overlapped; if omitted: megatron-core's"
    )
    distributed_timeout_minutes: int = setting(
        10, "a process that waits this long for another ends the run", at_most=365 * 24 * 60
    )

    def __post_init__(self):
        check_numbers("parallel", self)
        positive(
            "parallel", self, "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"
        )
        positive("parallel", self, "distributed_timeout_minutes")
        if self.ddp_bucket_size is not None:
            positive("parallel", self, "ddp_bucket_size")
        virtual = self.virtual_pipeline_model_parallel_size
        refuse_unless(
            virtual is None or virtual > 1,
            f"parallel.virtual_pipeline_model_parallel_size is {virtual}, where nothing is interleaved; set 2 or "
            f"more, or "
            "omit it",
        )
        refuse_unless(
            virtual is None or self.pipeline_model_parallel_size > 1,
            f"parallel.virtual_pipeline_model_parallel_size is {virtual} with "
            f"parallel.pipeline_model_parallel_size=1, where "
            "there is no pipeline; set parallel.pipeline_model_parallel_size=2 or more, or omit it",
        )
        refuse_unless(
            not self.sequence_parallel or self.tensor_model_parallel_size > 1,
            "parallel.sequence_parallel is true with parallel.tensor_model_parallel_size=1, where there is nothing to "
            "split; set parallel.tensor_model_parallel_size=2 or more, or parallel.sequence_parallel=false",
        )
        refuse_unless(
            not self.overlap_param_gather or self.overlap_grad_reduce is not False,
            "parallel.overlap_param_gather is true with parallel.overlap_grad_reduce=false, on which it builds; set "
            "parallel.overlap_grad_reduce=true or parallel.overlap_param_gather=false",
        )

    @property
    def model_size(self) -> int:
        """Processes that hold the model once."""
        return self.tensor_model_parallel_size * self.pipeline_model_parallel_size * self.context_parallel_size

    @property
    def num_model_chunks(self) -> int:
        """Parts that the layers are cut into, one after another."""
        return self.pipeline_model_parallel_size * (self.virtual_pipeline_model_parallel_size or 1)

    def data_parallel_size(self, world_size: int) -> int:
        return world_size // self.model_size


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up; no weight decay on biases and norms."""

    lr: float = setting(3e-4, "the highest learning rate, after warm-up")
    min_lr: float = setting(0.0, "the learning rate at the last step, of lr_decay_style=cosine")
    weight_decay: float = setting(0.1, "decoupled weight decay, not of biases and norms")
    adam_beta1: float = setting(0.9, "decay of the mean of gradients")
    adam_beta2: float = setting(0.95, "decay of the mean of squared gradients")
    clip_grad: float = setting(1.0, "the largest norm of the whole gradient; 0: no clipping")
    lr_warmup_iters: int = setting(0, "steps over which the learning rate rises from 0")
    lr_decay_style: str = setting("cosine", "cosine or constant")
    use_distributed_optimizer: bool = setting(False, "split the optimizer's state over the data-parallel processes")

    def __post_init__(self):
        check_numbers("optimizer", self)
        positive("optimizer", self, "lr")
        choice("optimizer", self, "lr_decay_style", ("cosine", "constant"))
        refuse_unless(
            0 <= self.min_lr <= self.lr,
            f"optimizer.min_lr {self.min_lr} is not between 0 and optimizer.lr {self.lr}; lower it or raise "
            f"optimizer.lr",
        )
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            refuse_unless(
                0 <= value < 1, f"optimizer.{name} is {value}; use a decay from 0 up to, not with, 1, such as 0.9"
            )
        for name in ("weight_decay", "clip_grad", "lr_warmup_iters"):
            value = getattr(self, name)
            refuse_unless(value >= 0, f"optimizer.{name} is {value}, below 0; set optimizer.{name}=0 to do without")


@dataclass(frozen=True)
class TrainConfig:
    """How long, in which portions and in which precision."""

    train_iters: int = setting(1000, "optimizer steps of the whole run")
    micro_batch_size: int = setting(1, "sequences in one forward pass of one process", at_most=2**30)
    global_batch_size: int = setting(1, "sequences in one optimizer step of all processes", at_most=2**30)
    seed: int = setting(1234, "seed of the initial weights, the order of the data, and dropout")
    bf16: bool = setting(False, "train in bfloat16 with float32 main weights; needs an A100 or later; else float32")
    float32_matmul_precision: str = setting(
        "high", "of float32 products on a GPU: highest (float32), high (TF32) or medium, as PyTorch names them"
    )
    eval_interval: int = setting(0, "steps between evaluations; 0: only after the last step")
    eval_iters: int = setting(10, "global batches in one evaluation; 0: no evaluation")
    loss_spike_factor: float = setting(
        0.0, "skip a step whose loss is above this many times the recent median; 0: only NaN and infinity"
    )
    max_skipped_steps: int = setting(10, "the run ends after this many skipped steps in a row")
    max_starts_without_progress: int = setting(
        3, "after this many starts without a new checkpoint the next is refused; 0: never"
    )
    recompute_granularity: str | None = setting(
        None, "recompute activations in the backward pass: full (whole layers) or selective (core attention)"
    )
    recompute_method: str | None = setting(
        None, "of full: uniform, all layers (if omitted), or block, the first of each part"
    )
    recompute_num_layers: int | None = setting(
        None, "of full: layers in one portion (uniform) or in all (block); if omitted: 1"
    )

    def __post_init__(self):
        check_numbers("train", self)
        positive("train", self, "train_iters", "micro_batch_size", "global_batch_size", "max_skipped_steps")
        refuse_unless(
            self.loss_spike_factor == 0 or self.loss_spike_factor > 1,
            f"train.loss_spike_factor is {self.loss_spike_factor}; use a factor above 1, such as 3, or 0 to skip only "
            f"what "
            "is no number",
        )
        for name in ("seed", "eval_interval", "eval_iters", "max_starts_without_progress"):
            value = getattr(self, name)
            refuse_unless(value >= 0, f"train.{name} is {value}, below 0; set train.{name}=0 or more")
        refuse_unless(
            self.seed < 2**32,
            f"train.seed is {self.seed}, and random generators take 32 bits; set train.seed below {2**32}",
        )
        choice("train", self, "float32_matmul_precision", ("highest", "high", "medium"))
        if self.recompute_granularity is not None:
            choice("train", self, "recompute_granularity", ("full", "selective"))
        for name, default in (("recompute_method", "uniform"), ("recompute_num_layers", 1)):
            if self.recompute_granularity == "full" and getattr(self, name) is None:
                object.__setattr__(self, name, default)
            value = getattr(self, name)
            refuse_unless(
                value is None or self.recompute_granularity == "full",
                f"train.{name} is {value} with train.recompute_granularity={self.recompute_granularity or 'null'}, "
                f"which does "
                f"not read it; set train.recompute_granularity=full or omit train.{name}",
            )
        if self.recompute_granularity == "full":
            choice("train", self, "recompute_method", ("uniform", "block"))
            positive("train", self, "recompute_num_layers")


@dataclass(frozen=True)
class CheckpointConfig:
    """Where a run is written, and where it starts."""

    save: str | None = setting(None, "the run's folder; a run found there is resumed. If omitted: nothing is written")
    load: str | None = setting(
        None, "another run's folder or checkpoint, to start from its weights and optimizer at iteration 0"
    )
    save_interval: int = setting(0, "steps between checkpoints; 0: only after the last step")
    async_save: bool = setting(False, "train on while a checkpoint is written; takes the memory of a copy on the CPU")
    most_recent_k: int = setting(0, "how many checkpoints to keep; 0: all")
    keep_every: int = setting(0, "keep those at multiples of this for good; 0: none")

    def __post_init__(self):
        check_numbers("checkpoint", self)
        for name, remedy in (
            ("save_interval", "save at the end"),
            ("most_recent_k", "keep all"),
            ("keep_every", "keep none for good"),
        ):
            value = getattr(self, name)
            refuse_unless(value >= 0, f"checkpoint.{name} is {value}, below 0; set checkpoint.{name}=0 to {remedy}")


@dataclass(frozen=True)
class LoggingConfig:
    """What a run reports while it trains. metrics.jsonl always has one line per step."""

    log_interval: int = setting(10, "steps between lines on stderr")
    tensorboard: bool = setting(True, "write TensorBoard events into the run's folder")
    wandb_project: str | None = setting(None, "project of Weights & Biases; if omitted: nothing is sent")
    peak_tflops: float | None = setting(
        None, "of one GPU, dense, in the run's precision, for mfu; if omitted: by the GPU's name"
    )
    sample_pieces: int = setting(0, "pieces generated and measured at each evaluation, at most 8")

    def __post_init__(self):
        check_numbers("logging", self)
        positive("logging", self, "log_interval")
        refuse_unless(
            self.peak_tflops is None or 0 < self.peak_tflops < float("inf"),
            f"logging.peak_tflops is {self.peak_tflops}; use a number above 0, such as 989, or omit it",
        )
        refuse_unless(
            0 <= self.sample_pieces <= 8,
            f"logging.sample_pieces is {self.sample_pieces}; use 0 (none) to 8, or `generate midi` for more",
        )


class Run:
    """A whole run, whatever it trains: the sections that all kinds of runs have."""

    model: Any
    data: Any
    parallel: ParallelConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig

    def num_microbatches(self, world_size: int) -> int:
        """Number of micro batches that one process runs in one step."""
        return self.train.global_batch_size // (
            self.train.micro_batch_size * self.parallel.data_parallel_size(world_size)
        )


SPLITS = ("train", "valid", "test")
