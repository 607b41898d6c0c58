"""Stage 2: the diffusion transformer over latents of sound, in the shape of Stable Audio Open 1.0.

sigma and one global vector become a position before the latents (prepend conditioning); layers attend to the context.
Shapes: B samples, C latent channels, T frames; context L tokens. Knows nothing about flow matching's path, texts or sound.
The parallel groups of megatron-core must exist.
"""

import math

import torch
from torch import Tensor

from megatron_music.config import ParallelConfig, TrainConfig
from megatron_music.models.flow_layers import FlowTransformerConfig
from megatron_music.models.flow_sizes import DiTSize
from megatron_music.models.flow_transformer import FlowTransformer, flow_config, whole_linear, whole_mlp


class AudioDiT(FlowTransformer):
    """This rank's part of the DiT: noisy latents to velocity.

    Args:
        options: see FlowTransformer.
    """

    def __init__(self, config: FlowTransformerConfig, size: DiTSize, **options):
        super().__init__(config, size, **options)
        width, channels = size.hidden_size, size.latent_channels
        self.copied_on_stages(
            "context_embedder", whole_mlp(config, size.context_input_size, size.context_size, bias=False)
        )
        if self.pre_process:
            # Random frequencies, never trained, of a standard normal distribution in cycles over sigma.
            frequencies = torch.randn(size.time_features // 2, dtype=config.params_dtype)
            if not config.use_cpu_initialization:
                frequencies = frequencies.to(torch.cuda.current_device())
            self.time_frequencies = torch.nn.Parameter(frequencies, requires_grad=False)
            self.time_embedder = whole_mlp(config, size.time_features, width)
            self.global_embedder = whole_mlp(config, size.global_size, width, bias=False)
            self.input_mixer = whole_linear(config, channels, channels, bias=False)
            self.input_layer = whole_linear(config, channels, width, bias=False)
        if self.post_process:
            self.output_layer = whole_linear(config, width, channels, bias=False)
            self.output_mixer = whole_linear(config, channels, channels, bias=False)

    def forward(
        self,
        noisy_BCT: Tensor,
        *,
        sigma_B: Tensor,
        context_BLC: Tensor,
        global_BG: Tensor,
        keeps_BL: Tensor | None = None,
    ) -> Tensor:
        """The velocity at sigma.

        Args:
            noisy_BCT: latents with noise.
            sigma_B: float32, by its name: megatron-core's Float16Module rounds what has none, and bfloat16 has no value
                between 0.996 and 1.
            context_BLC: tokens to attend to, of ``context_input_size``.
            global_BG: one vector a sample, of ``global_size``.
            keeps_BL: bool, True for the tokens that are more than filling; at least one a sample. Left out: all.

        Returns:
            [B, C, T] on the last pipeline stage; elsewhere what the next one is sent. Every stage is given the same.
        """
        dtype = self.config.params_dtype
        context_LBC = self.context_embedder(context_BLC.to(dtype)).transpose(0, 1)
        num_positions = self.size.num_extra_positions + noisy_BCT.size(2)
        hidden_SBH = self._embed(noisy_BCT.to(dtype), sigma_B, global_BG.to(dtype)) if self.pre_process else None
        hidden_SBH = self.transform(hidden_SBH, num_positions, context_LBC, None if keeps_BL is None else ~keeps_BL)
        if not self.post_process:
            return hidden_SBH
        latents_TBC = self.output_layer(hidden_SBH[self.size.num_extra_positions :])
        return (latents_TBC + self.output_mixer(latents_TBC)).permute(1, 2, 0)

    def _embed(self, noisy_BCT: Tensor, sigma_B: Tensor, global_BG: Tensor) -> Tensor:
        phase = 2 * math.pi * sigma_B.float()[:, None] * self.time_frequencies.float()
        time_BF = torch.cat([phase.cos(), phase.sin()], dim=1).to(global_BG.dtype)
        first_BH = self.time_embedder(time_BF) + self.global_embedder(global_BG)
        noisy_TBC = noisy_BCT.permute(2, 0, 1)
        hidden_TBH = self.input_layer(noisy_TBC + self.input_mixer(noisy_TBC))
        return torch.cat([first_BH[None], hidden_TBH])


def build_dit(
    size: DiTSize,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    train: TrainConfig | None = None,
    **options,
) -> AudioDiT:
    """This rank's part of the DiT.

    Args:
        train: what is recomputed in training; left out: nothing.
        options: see FlowTransformer.

    Raises:
        ConfigError: see ``flow_config``.
    """
    return AudioDiT(flow_config(size, parallel, dtype, train), size, **options)
