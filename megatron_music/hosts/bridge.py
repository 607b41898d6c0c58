"""The GPT as Megatron-Bridge knows models: a provider, the newer configuration with its builder, and recipes.

Bridge builds the model, trains it and writes its checkpoints; from here come our layers, vocabulary, sizes and the
count of operations. Both forms give the model of ``models/gpt.py``. A
script calls ``pretrain(config=music_gpt_125m_pretrain_config("OUT"), forward_step_func=forward_step)``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from megatron.bridge.models.gpt.gpt_builder import GPTModelBuilder, GPTModelConfig
from megatron.bridge.models.gpt_provider import GPTModelProvider
from megatron.bridge.models.transformer_config import TransformerConfig
from megatron.bridge.training.config import (
    CheckpointConfig,
    ConfigContainer,
    DistributedDataParallelConfig,
    GPTDatasetConfig,
    LoggerConfig,
    OptimizerConfig,
    RNGConfig,
    SchedulerConfig,
    TokenizerConfig,
    TrainingConfig,
    ValidationConfig,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules

from megatron_music.config.errors import ConfigError, closest, either
from megatron_music.config.load import SECTIONS, load_run
from megatron_music.config.run import RunConfig
from megatron_music.config.sections import SPLITS, ModelConfig, ParallelConfig
from megatron_music.data.folders import cache_folder, check_folders, has_tokens
from megatron_music.models.gpt import transformer_config
from megatron_music.models.specs import gpt_block
from megatron_music.parallel.backends import has_gradient_fusion
from megatron_music.profiling.flops import PASSES, forward_flops
from megatron_music.tokens import vocabulary

try:
    from megatron.bridge.utils.instantiate_utils import register_allowed_target_prefix
except ImportError:
    pass  # Bridge before 0.4 rebuilt any class that a file named
else:
    # A configuration or checkpoint of ours names these classes; what else the package holds stays refused.
    register_allowed_target_prefix("megatron_music.hosts.bridge.")


class MusicFlops:
    """Operations of a step for Bridge's TFLOP/s, by the formula ``mcore`` of ``profiling/flops.py``."""

    def _get_num_floating_point_operations(self, batch_size: int) -> float:
        """Of ``batch_size`` whole sequences, forward and backward."""
        length = self.seq_length
        return self._get_num_floating_point_operations_with_runtime_stats(
            batch_size=batch_size, seqlen_sum=batch_size * length, seqlen_squared_sum=batch_size * length**2
        )

    def _get_num_floating_point_operations_with_runtime_stats(
        self,
        *,
        batch_size: int,
        seqlen_sum: int | None = None,
        seqlen_squared_sum: int | None = None,
        cross_seqlen_sum: int | None = None,
        cross_seqlen_product_sum: int | None = None,
    ) -> float:
        """Of the tokens a step really had.

        Args:
            seqlen_sum: tokens; left out: whole sequences.
            seqlen_squared_sum: the sum of each sequence's squared length; left out: of equal sequences.
            cross_seqlen_sum, cross_seqlen_product_sum: of cross attention, which a GPT has not.
        """
        if not batch_size:
            return 0.0
        model = model_of(self)
        layers, attention, logits = forward_flops(model, causal=True)
        tokens = batch_size * model.seq_length if seqlen_sum is None else seqlen_sum
        squares = tokens**2 / batch_size if seqlen_squared_sum is None else seqlen_squared_sum
        linear = (layers - attention + logits) / model.seq_length
        return PASSES * (linear * tokens + attention / model.seq_length**2 * squares)


def music_layers(config, vp_stage: int | None = None) -> TransformerBlockSubmodules:
    """Our layers of this pipeline stage, for ``transformer_layer_spec``."""
    groups = config._pg_collection
    return gpt_block(
        config,
        explicit_attention_mask=config.explicit_attention_mask,
        vp_stage=vp_stage,
        pp_rank=None if groups is None else groups.pp.rank(),
    )


@dataclass
class MusicGPTProvider(MusicFlops, GPTModelProvider):
    """Bridge's GPT provider with our layers and vocabulary.

    Args:
        explicit_attention_mask: the data hides documents from each other (``reset_attention_mask``).
    """

    transformer_layer_spec: Callable = music_layers
    vocab_size: int | None = vocabulary.SIZE
    position_embedding_type: str = "rope"
    # The mean over all unmasked tokens of a global batch, as in our own loop. Asks for ddp.average_in_collective=False.
    calculate_per_token_loss: bool = True
    # megatron-core's fused loss rounds the gradient of the logits to bfloat16, whatever the model's precision.
    cross_entropy_loss_fusion: bool = False
    explicit_attention_mask: bool = False
    # Bridge turns it on wherever Transformer Engine is; megatron-core then demands apex's extension for the output
    # layer.
    gradient_accumulation_fusion: bool = field(default_factory=has_gradient_fusion)


@dataclass(kw_only=True)
class MusicGPTModelConfig(MusicFlops, GPTModelConfig):
    """The same as data alone, for Bridge's builders."""

    builder: ClassVar[str] = "megatron_music.hosts.bridge.MusicGPTModelBuilder"
    vocab_size: int | None = vocabulary.SIZE
    position_embedding_type: str = "rope"
    share_embeddings_and_output_weights: bool = True
    explicit_attention_mask: bool = False

    def __post_init__(self):
        # Bridge writes no functions: a gated layer that is read back would have GELU.
        if self.transformer.gated_linear_unit:
            self.transformer.activation_func = F.silu


class MusicGPTModelBuilder(GPTModelBuilder):
    """Builds stages of a ``MusicGPTModelConfig``."""

    def build_model(
        self,
        pg_collection,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ) -> GPTModel:
        """One pipeline stage, unwrapped; stages and groups as in Bridge's own builder."""
        config = self._model_config
        layers = gpt_block(
            config.transformer,
            explicit_attention_mask=config.explicit_attention_mask,
            vp_stage=vp_stage,
            pp_rank=pg_collection.pp.rank(),
        )
        # A function, as Bridge copies a layer but not a block that it is given.
        builder = GPTModelBuilder(replace(config, transformer_layer_spec=lambda _: layers))
        return builder.build_model(pg_collection, pre_process, post_process, vp_stage)


_TRANSFORMER = (
    "num_layers",
    "hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "ffn_hidden_size",
    "normalization",
    "gated_linear_unit",
    "activation_func",
    "add_bias_linear",
    "attention_backend",
    "attention_dropout",
    "hidden_dropout",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "sequence_parallel",
    "params_dtype",
    "pipeline_dtype",
    "bf16",
    "calculate_per_token_loss",
    "use_cpu_initialization",
)
_SHAPE = ("vocab_size", "seq_length", "position_embedding_type", "rotary_base", "share_embeddings_and_output_weights")


def provider_of(
    model: ModelConfig, parallel: ParallelConfig | None = None, *, dtype: torch.dtype = torch.float32, **options
) -> MusicGPTProvider:
    """The provider of the model that ``build_gpt`` builds.

    Args:
        options: fields of the provider, on top.
    """
    fusion = {"cross_entropy_loss_fusion": dtype == torch.bfloat16}
    return MusicGPTProvider(**{**_transformer(model, parallel, dtype), **fusion, **_shape(model), **options})


def model_config_of(
    model: ModelConfig, parallel: ParallelConfig | None = None, *, dtype: torch.dtype = torch.float32, **options
) -> MusicGPTModelConfig:
    """The same for Bridge's builders; ``options`` are fields of ``MusicGPTModelConfig``."""
    fusion = {"gradient_accumulation_fusion": has_gradient_fusion()}
    transformer = TransformerConfig(**_transformer(model, parallel, dtype), **fusion)
    return MusicGPTModelConfig(transformer=transformer, **{**_shape(model), **options})


def model_of(config: MusicGPTProvider | MusicGPTModelConfig) -> ModelConfig:
    """Our description of what Bridge will build."""
    taken = {*(item.name for item in fields(ModelConfig))} - {"size", "swiglu", "attention_backend"}
    shape = {name: getattr(config, name) for name in taken}
    return ModelConfig(**shape, swiglu=config.gated_linear_unit, attention_backend=config.attention_backend.name)


def _transformer(model: ModelConfig, parallel: ParallelConfig | None, dtype: torch.dtype) -> dict:
    core = transformer_config(model, parallel or ParallelConfig(), dtype)
    return {name: getattr(core, name) for name in _TRANSFORMER}


def _shape(model: ModelConfig) -> dict:
    return {name: getattr(model, name) for name in _SHAPE}


def container_of(run: RunConfig) -> ConfigContainer:
    """A run of ours as Bridge's configuration: the same model, data, batches, optimizer and schedule.

    Bridge differs in what it saves, in the order of samples and in random numbers.

    Raises:
        ValueError: the data cannot be used; one sentence says why.
    """
    train, optimizer = run.train, run.optimizer
    encoding, _ = check_folders(run.data)
    folders = run.data.folders
    prefixes = {split: [str(folder / split) for folder in folders] for split in SPLITS}
    weights = run.data.weights if len(folders) > 1 else None
    run = replace(run, model=replace(run.model, vocab_size=encoding.vocab_size))  # checked again: it must divide
    model = run.model
    dtype = torch.bfloat16 if train.bf16 else torch.float32
    return ConfigContainer(
        model=provider_of(model, run.parallel, dtype=dtype, explicit_attention_mask=run.data.reset_attention_mask),
        train=TrainingConfig(
            train_iters=train.train_iters,
            micro_batch_size=train.micro_batch_size,
            global_batch_size=train.global_batch_size,
        ),
        validation=ValidationConfig(
            eval_interval=train.eval_interval or train.train_iters,
            eval_iters=train.eval_iters if has_tokens(run.data, "valid") else 0,
        ),
        optimizer=OptimizerConfig(
            optimizer="adam",
            lr=optimizer.lr,
            min_lr=optimizer.min_lr,
            weight_decay=optimizer.weight_decay,
            adam_beta1=optimizer.adam_beta1,
            adam_beta2=optimizer.adam_beta2,
            clip_grad=optimizer.clip_grad,
            use_distributed_optimizer=optimizer.use_distributed_optimizer,
            bf16=train.bf16,
            params_dtype=dtype,
        ),
        scheduler=SchedulerConfig(
            lr_decay_style=optimizer.lr_decay_style,
            lr_decay_iters=max(train.train_iters, optimizer.lr_warmup_iters + 1),
            lr_warmup_iters=optimizer.lr_warmup_iters,
            start_weight_decay=optimizer.weight_decay,
            end_weight_decay=optimizer.weight_decay,
            override_opt_param_scheduler=True,
        ),
        ddp=DistributedDataParallelConfig(
            grad_reduce_in_fp32=True,
            use_distributed_optimizer=optimizer.use_distributed_optimizer,
            overlap_grad_reduce=True,
            average_in_collective=False,  # megatron-core's condition for calculate_per_token_loss
        ),
        dataset=GPTDatasetConfig(
            seq_length=model.seq_length,
            random_seed=train.seed,
            # Bridge cannot leave a split out; a split without tokens is never drawn from.
            blend_per_split=[(prefixes[split], weights) if has_tokens(run.data, split) else None for split in SPLITS],
            path_to_cache=str(cache_folder(run.data)),
            reset_position_ids=run.data.reset_position_ids,
            reset_attention_mask=run.data.reset_attention_mask,
            eod_mask_loss=run.data.eod_mask_loss,
            create_attention_mask=run.data.reset_attention_mask,
            skip_getting_attention_mask_from_dataset=not run.data.reset_attention_mask,
            dataloader_type="single",
        ),
        tokenizer=TokenizerConfig(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=str(folders[0] / "tokenizer")),
        logger=LoggerConfig(log_interval=run.logging.log_interval),
        checkpoint=CheckpointConfig(
            save=run.checkpoint.save,
            load=run.checkpoint.save,  # a run found there goes on
            save_interval=run.checkpoint.save_interval or train.train_iters,
            ckpt_format="torch_dist",
        ),
        rng=RNGConfig(seed=train.seed),
        mixed_precision="bf16_mixed" if train.bf16 else None,
    )


# Learning rate and global batch (sequences of 2048) of Brown et al. 2020, arXiv:2005.14165, table 2.1.
_GPT3 = {"125m": (6e-4, 256), "350m": (3e-4, 256), "1.3b": (2e-4, 512), "2.7b": (1.6e-4, 512), "6.7b": (1.2e-4, 1024)}


def _pretrain(recipe: str, defaults: dict, data_path: str | list, named: dict) -> ConfigContainer:
    homes = {item.name: section for section, kind in SECTIONS.items() for item in fields(kind)}
    wanted = {**defaults, **named}
    for name in wanted:
        if name not in homes:
            raise ConfigError(
                f"a recipe has no field {name!r}{closest(name, list(homes))}; use one of {either(list(homes))}"
            )
    overrides = [f"{homes[name]}.{name}={json.dumps(value)}" for name, value in wanted.items()]
    return container_of(load_run(recipe, [f"data.path={json.dumps(data_path)}", *overrides]))


def music_gpt_article_pretrain_config(data_path: str | list, **named) -> ConfigContainer:
    """The GPT-2 of the recipe `article`, in bfloat16.

    Args:
        data_path: a folder made by `megatron-music build tokens`, or [weight, folder, ...].
        named: fields of our recipes: ``train_iters=100``, ``tensor_model_parallel_size=2``, ``save="runs/a"``.
    """
    return _pretrain("article", {"bf16": True}, data_path, named)


def _gpt3(size: str) -> Callable[..., ConfigContainer]:
    lr, global_batch_size = _GPT3[size]
    defaults = {
        "size": size,
        "position_embedding_type": "rope",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "lr": lr,
        "min_lr": lr / 10,
        "weight_decay": 0.1,
        "lr_warmup_iters": 500,
        "micro_batch_size": 4,
        "global_batch_size": global_batch_size,
        "bf16": True,
        "use_distributed_optimizer": True,
    }

    def config(data_path: str | list, **named) -> ConfigContainer:
        return _pretrain("article", defaults, data_path, named)

    config.__name__ = config.__qualname__ = f"music_gpt_{size.replace('.', 'p')}_pretrain_config"
    config.__doc__ = (
        f"The size {size} with the learning rate and batch of GPT-3; as ``music_gpt_article_pretrain_config``."
    )
    return config


music_gpt_125m_pretrain_config = _gpt3("125m")
music_gpt_350m_pretrain_config = _gpt3("350m")
music_gpt_1p3b_pretrain_config = _gpt3("1.3b")
music_gpt_2p7b_pretrain_config = _gpt3("2.7b")
music_gpt_6p7b_pretrain_config = _gpt3("6.7b")
