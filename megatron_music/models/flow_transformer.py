"""The transformer that both text-to-music models are built on: megatron-core's TransformerBlock, in any layout.

Shapes: B samples, S positions, H hidden, T tokens of the context, C their width. Every pipeline stage is given the
    context
and makes its own copy of what embeds it; the positions enter on the first stage and leave on the last.
"""

import hashlib
import math

import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.tensor_parallel.mappings import (
    gather_from_sequence_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_block import (
    TransformerBlock,
    TransformerBlockSubmodules,
    get_num_layers_to_build,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_music.config.errors import divisors, refuse_unless
from megatron_music.config.flow_sizes import FlowSize
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.flow_layers import (
    FlowTransformerConfig,
    flow_layer,
    modulation_tokens,
)
from megatron_music.models.layers import SequenceParallelNorm


def flow_config(
    size: FlowSize, parallel: ParallelConfig, dtype: torch.dtype = torch.float32, train: TrainConfig | None = None
) -> FlowTransformerConfig:
    """The description of a model of this size in this layout.

    Args:
        train: what is recomputed in training; left out: nothing.

    Raises:
        ConfigError: the layout splits what cannot be split, or needs what this model does not have.
    """
    tensor = parallel.tensor_model_parallel_size
    shares = {
        "attention heads": size.num_attention_heads,
        "heads for the context's keys and values": size.num_context_groups,
        "inner features of the feed-forward layer": size.ffn_hidden_size,
    }
    for name, number in shares.items():
        refuse_unless(
            number % tensor == 0,
            f"parallel.tensor_model_parallel_size is {tensor}, which does not divide the {number} {name}; "
            f"use {divisors(math.gcd(*shares.values()))}",
        )
    refuse_unless(
        parallel.context_parallel_size == 1,
        f"parallel.context_parallel_size is {parallel.context_parallel_size}, which the models of sound do not have; "
        "set it to 1",
    )
    is_interleaved = parallel.virtual_pipeline_model_parallel_size is not None
    return FlowTransformerConfig(
        num_layers=size.num_layers,
        hidden_size=size.hidden_size,
        num_attention_heads=size.num_attention_heads,
        ffn_hidden_size=size.ffn_hidden_size,
        context_size=size.context_size,
        num_context_groups=size.num_context_groups,
        attention_bias=size.attention_bias,
        normalization="LayerNorm",
        gated_linear_unit=size.gated_linear_unit,
        activation_func=F.silu if size.gated_linear_unit else F.gelu,
        add_bias_linear=True,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=parallel.pipeline_model_parallel_size,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline_model_parallel_size,
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
        # The loss of a step is the mean over all its samples, wherever they lie.
        calculate_per_token_loss=True,
        use_cpu_initialization=not torch.cuda.is_available(),
        # Needs a kernel of apex.
        gradient_accumulation_fusion=False,
    )


def padded_length(num_positions: int, parallel: ParallelConfig | TransformerConfig) -> int:
    """Positions with what fills them up to what sequence parallelism can split; schedules call it ``seq_length``."""
    share = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
    return -(-num_positions // share) * share


class FlowTransformer(MegatronModule):
    """This rank's layers, and how positions come into them and out of them in any layout.

    Args:
        pre_process, post_process: holds what comes before the layers, and after; left out: by the pipeline stage.
        vp_stage: which of this rank's chunks, where the pipeline is interleaved.
    """

    def __init__(
        self,
        config: FlowTransformerConfig,
        size: FlowSize,
        *,
        pre_process: bool | None = None,
        post_process: bool | None = None,
        vp_stage: int | None = None,
    ):
        super().__init__(config=config)
        # What megatron-core's schedules and finalize_model_grads ask of a model.
        self.model_type, self.share_embeddings_and_output_weights = ModelType.encoder_or_decoder, False
        stage = {"ignore_virtual": False, "vp_stage": vp_stage}
        self.pre_process = parallel_state.is_pipeline_first_stage(**stage) if pre_process is None else pre_process
        self.post_process = parallel_state.is_pipeline_last_stage(**stage) if post_process is None else post_process
        self.size, self.vp_stage = size, vp_stage
        self._copies: list[str] = []  # of modules that every stage holds
        num_layers = get_num_layers_to_build(config, vp_stage=vp_stage)
        self.decoder = TransformerBlock(
            config,
            TransformerBlockSubmodules(
                layer_specs=[flow_layer(size.has_self_attention, size.is_modulated)] * num_layers,
                layer_norm=SequenceParallelNorm,
            ),
            post_layer_norm=False,
            pre_process=self.pre_process,
            post_process=self.post_process,
            vp_stage=vp_stage,
        )
        for place, layer in enumerate(self.decoder.layers):
            layer.cross_attention.place_in_stage = place
        self.rotary = None
        if size.rotary_percent is not None:
            self.rotary = RotaryEmbedding(
                config.kv_channels, size.rotary_percent, use_cpu_initialization=config.use_cpu_initialization
            )

    def set_input_tensor(self, input_tensor: list[Tensor] | Tensor) -> None:
        """Take what the stage before has sent; megatron-core's schedules call this."""
        self.decoder.set_input_tensor(input_tensor[0] if isinstance(input_tensor, list) else input_tensor)

    def copied_on_stages(self, name: str, module: torch.nn.Module) -> None:
        """Add a module that every pipeline stage holds, alike from the start, and that counts once.

        Its weights are drawn from their names and not from the run's seed, which differs between stages.
        """
        self.add_module(name, module)
        self._copies.append(name)
        for inner, parameter in module.named_parameters():
            # For finalize_model_grads: add these up over stages.
            parameter.pipeline_parallel = True
            # For the distributed optimizer: buckets of their own, as for a tied embedding, so that every stage reduces
            # and cuts them alike before they are added up.
            parameter.shared_embedding = True
            # For the norm of all gradients: counted on the first stage.
            parameter.shared = not self.pre_process
            if parameter.is_meta:
                continue
            digest = hashlib.blake2b(f"{name}.{inner}".encode(), digest_size=4).digest()
            generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest, "little"))
            drawn = torch.zeros(parameter.shape)
            if not inner.endswith("bias"):
                drawn.normal_(0, parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 1, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)

    def key_values(self, context_TBC: Tensor) -> Tensor:
        """What every layer of this stage makes of the context: [N layers, T, B, K], to be given in its place.

        It depends on the context alone: where one context serves many steps, this saves them the work.
        """
        return torch.stack([layer.cross_attention.key_values(context_TBC) for layer in self.decoder.layers])

    def transform(
        self,
        hidden_SBH: Tensor | None,
        num_positions: int,
        context_TBC: Tensor,
        hides_BT: Tensor | None,
        modulation_BM: Tensor | None = None,
    ):
        """The layers of this stage.

        Args:
            hidden_SBH: on the first stage; elsewhere the stage before has sent it.
            num_positions: S on every stage, without filling.
            context_TBC: or what ``key_values`` made of it.
            hides_BT: bool, True where a token of the context is only filling.
            modulation_BM: what modulates the layers of a size that ``is_modulated``.

        Returns:
            [S, B, H] on the last stage; elsewhere what the next one is sent.
        """
        length = padded_length(num_positions, self.config)
        if modulation_BM is not None:
            tokens_BNC = modulation_BM.unflatten(1, (modulation_tokens(self.config), -1))
            context_TBC = torch.cat([context_TBC, tokens_BNC.transpose(0, 1)])
        if self.pre_process:
            hidden_SBH = F.pad(hidden_SBH, (0, 0, 0, 0, 0, length - num_positions))
            if self.config.sequence_parallel:
                hidden_SBH = scatter_to_sequence_parallel_region(hidden_SBH)
        hides_positions = None
        if length > num_positions and self.size.has_self_attention:
            hides_positions = (torch.arange(length, device=context_TBC.device) >= num_positions)[None, None, None]
        hidden_SBH = self.decoder(
            hidden_states=hidden_SBH,
            attention_mask=hides_positions,
            context=context_TBC,
            context_mask=None if hides_BT is None else hides_BT[:, None, None],
            rotary_pos_emb=None if self.rotary is None else self.rotary(length),
        )
        if not self.post_process:
            return hidden_SBH
        if self.config.sequence_parallel:
            # What follows is the same on every rank, and so is its gradient: to be cut, not added up. megatron-core's
            # default adds it up, which multiplies every gradient before this by the number of ranks.
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, tensor_parallel_output_grad=False)
        return hidden_SBH[:num_positions]

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None) -> dict:
        """As megatron-core's, where of the stages' copies the first stage's is the one that is saved."""
        found = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if not self.pre_process:
            stage = parallel_state.get_pipeline_model_parallel_rank() + 1 + 1000 * (self.vp_stage or 0)
            for name, item in found.items():
                if name.removeprefix(prefix).partition(".")[0] in self._copies:
                    item.replica_id = (stage, *item.replica_id[1:])
        return found


def whole_linear(config: TransformerConfig, inputs: int, outputs: int, *, bias: bool = True) -> torch.nn.Linear:
    """A linear layer that every tensor-parallel rank holds whole."""
    device = None if config.use_cpu_initialization else torch.cuda.current_device()
    return torch.nn.Linear(inputs, outputs, bias=bias, dtype=config.params_dtype, device=device)


def whole_mlp(config: TransformerConfig, inputs: int, outputs: int, *, bias: bool = True) -> torch.nn.Sequential:
    """Two linear layers with SiLU between them, whole on every tensor-parallel rank."""
    first, last = whole_linear(config, inputs, outputs, bias=bias), whole_linear(config, outputs, outputs, bias=bias)
    return torch.nn.Sequential(first, torch.nn.SiLU(), last)
