"""Stage 1: from words to one embedding of music, by flow matching.

The embedding is a sequence of one position, which attends to the words. Shapes: B samples, E embedding, L words. Knows
nothing about flow matching's path, about texts or their encoder. The parallel groups of megatron-core must exist.
"""

import math

import torch
from torch import Tensor

from megatron_music.config.flow_sizes import Text2MuQSize
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.flow_layers import FlowTransformerConfig
from megatron_music.models.flow_transformer import (
    FlowTransformer,
    flow_config,
    whole_linear,
    whole_mlp,
)

_LONGEST_PERIOD = 10_000.0  # over 2 pi, of 1000 sigma: Vaswani et al. 2017, arXiv:1706.03762, section 3.5


class Text2MuQ(FlowTransformer):
    """This rank's part of the model: a noisy embedding to its velocity.

    Args:
        options: see FlowTransformer.
    """

    def __init__(self, config: FlowTransformerConfig, size: Text2MuQSize, **options):
        super().__init__(config, size, **options)
        if self.pre_process:
            self.input_layer = whole_linear(config, size.embedding_size, size.hidden_size)
            self.time_embedder = whole_mlp(config, size.time_features, size.hidden_size)
        if self.post_process:
            self.output_layer = whole_linear(config, size.hidden_size, size.embedding_size)

    def prepare(self, context_BLC: Tensor) -> Tensor:
        """What the layers make of the words, [B, layers of this stage, L, K]: once for all steps of a request."""
        context_LBC = context_BLC.to(self.config.params_dtype).transpose(0, 1)
        return self.key_values(context_LBC).permute(2, 0, 1, 3)

    def forward(
        self,
        noisy_BE: Tensor,
        *,
        sigma_B: Tensor,
        context_BLC: Tensor | None = None,
        keeps_BL: Tensor | None = None,
        prepared_BNLK: Tensor | None = None,
    ) -> Tensor:
        """The velocity at sigma.

        Args:
            noisy_BE: embeddings with noise.
            sigma_B: float32, by its name, as for AudioDiT.
            context_BLC: what the text encoder makes of each word.
            keeps_BL: bool, True for words, False for filling; at least one a sample. Left out: all.
            prepared_BNLK: what ``prepare`` made of the words, in their place.

        Returns:
            [B, E] on the last pipeline stage; elsewhere what the next one is sent. Every stage is given the same.
        """
        dtype = self.config.params_dtype
        hidden_SBH = None
        if self.pre_process:
            time_BF = time_features(sigma_B, self.size.time_features).to(dtype)
            hidden_SBH = (self.input_layer(noisy_BE.to(dtype)) + self.time_embedder(time_BF))[None]
        context = context_BLC.to(dtype).transpose(0, 1) if prepared_BNLK is None else prepared_BNLK.permute(1, 2, 0, 3)
        hidden_SBH = self.transform(hidden_SBH, 1, context, None if keeps_BL is None else ~keeps_BL)
        return self.output_layer(hidden_SBH[0]) if self.post_process else hidden_SBH


def to_unit_variance(embedding_BE: Tensor) -> Tensor:
    """Embeddings of length 1 as the model meets them: of length sqrt(E), so that a number is about as large as noise
    is.
    """
    return embedding_BE * embedding_BE.shape[-1] ** 0.5


def time_features(sigma_B: Tensor, num_features: int) -> Tensor:
    """Cosines and sines of 1000 sigma at frequencies from 1 down to 1 / 10,000, [B, num_features] in float32."""
    half = num_features // 2
    steps = torch.arange(half, dtype=torch.float32, device=sigma_B.device) / half
    phase = 1000 * sigma_B.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * steps)
    return torch.cat([phase.cos(), phase.sin()], dim=1)


def build_text2muq(
    size: Text2MuQSize,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    train: TrainConfig | None = None,
    **options,
) -> Text2MuQ:
    """This rank's part of the model.

    Args:
        train: what is recomputed in training; left out: nothing.
        options: see FlowTransformer.

    Raises:
        ConfigError: see ``flow_config``.
    """
    return Text2MuQ(flow_config(size, parallel, dtype, train), size, **options)
