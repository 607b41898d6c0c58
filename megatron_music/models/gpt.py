"""The GPT: megatron-core's GPTModel in our sizes, over our vocabulary. The parallel groups of megatron-core
must exist.
"""

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_music.config.sections import ModelConfig, ParallelConfig, TrainConfig
from megatron_music.models.specs import gpt_block, why_own_layers
from megatron_music.parallel.backends import attention_backend


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    dtype: torch.dtype = torch.float32,
    train: TrainConfig | None = None,
) -> TransformerConfig:
    """megatron-core's description of the same model.

    Args:
        train: what is recomputed in training; left out: nothing.
    """
    is_interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        normalization=model.normalization,
        gated_linear_unit=model.swiglu,
        activation_func=F.silu if model.swiglu else F.gelu,
        add_bias_linear=model.add_bias_linear,
        attention_backend=AttnBackend[model.attention_backend],
        attention_dropout=model.attention_dropout,
        hidden_dropout=model.hidden_dropout,
        tensor_model_parallel_size=parallel.tensor_model_parallel_size,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
        context_parallel_size=parallel.context_parallel_size,
        sequence_parallel=parallel.sequence_parallel,
        # With batched messages the interleaved schedule of megatron-core gives wrong gradients without a word.
        overlap_p2p_comm=is_interleaved,
        batch_p2p_comm=not is_interleaved,
        recompute_granularity=train.recompute_granularity if train else None,
        recompute_method=train.recompute_method if train else None,
        recompute_num_layers=train.recompute_num_layers if train else None,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        # The loss of a step is the mean over all its unmasked tokens, wherever they lie: the schedule sums losses
        # and finalize_model_grads divides by the number of tokens of all micro batches and ranks.
        calculate_per_token_loss=True,
        # On the CPU every rank draws the whole matrix and keeps its part, so tensor parallelism does not change
        # the initial model.
        use_cpu_initialization=not torch.cuda.is_available(),
        # Needs a kernel of apex.
        gradient_accumulation_fusion=False,
    )


def build_gpt(
    model: ModelConfig,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    pre_process: bool | None = None,
    post_process: bool | None = None,
    explicit_attention_mask: bool = False,
    train: TrainConfig | None = None,
    vp_stage: int | None = None,
) -> GPTModel:
    """This rank's part of the GPT.

    Args:
        pre_process: holds the embedding; left out: on the first pipeline stage.
        post_process: holds the output layer; left out: on the last pipeline stage.
        explicit_attention_mask: the model will be given attention masks (True hides).
        train: what is recomputed in training; left out: nothing.
        vp_stage: which of this rank's chunks, where the pipeline is interleaved.

    Returns:
        A GPTModel. It maps token ids [B, S] and position ids [B, S] to logits [B, S, vocabulary of this
        tensor-parallel rank], and with labels [B, S] to the loss of every token [B, S].

    Raises:
        ConfigError: a ``model.attention_backend`` that cannot be had here, or a Transformer Engine that cannot be
            imported.
    """
    config = transformer_config(model, parallel, dtype, train)
    own_layers_because = why_own_layers(config, explicit_attention_mask)
    stage = {"ignore_virtual": False, "vp_stage": vp_stage}
    with attention_backend(model.attention_backend, own_layers_because):
        return GPTModel(
            config,
            gpt_block(config, explicit_attention_mask=explicit_attention_mask, vp_stage=vp_stage),
            vocab_size=model.vocab_size,
            max_sequence_length=model.seq_length,
            pre_process=parallel_state.is_pipeline_first_stage(**stage) if pre_process is None else pre_process,
            post_process=parallel_state.is_pipeline_last_stage(**stage) if post_process is None else post_process,
            share_embeddings_and_output_weights=model.share_embeddings_and_output_weights,
            position_embedding_type=model.position_embedding_type,
            rotary_base=model.rotary_base,
            vp_stage=vp_stage,
        )
