"""Stage 2: the diffusion transformer over latents of sound, in the shape of Stable Audio Open 1.0.

sigma and one global vector become a position before the latents, or modulate the layers; these attend to the context.
Shapes: B samples, C latent channels, T frames; context L tokens. The parallel groups of megatron-core must exist.
"""

import math

import torch
from torch import Tensor

from megatron_music.config.flow_sizes import MODULATIONS, DiTSize
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.flow_layers import FlowTransformerConfig
from megatron_music.models.flow_transformer import (
    FlowTransformer,
    flow_config,
    whole_linear,
    whole_mlp,
)


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
        if size.is_modulated:
            self.copied_on_stages("modulator", Modulator(config, size))
        elif self.pre_process:
            add_global_embedders(self, config, size)
        if self.pre_process:
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
        global_BG, modulation_BM = global_BG.to(dtype), None
        if self.size.is_modulated:
            modulation_BM = self.modulator(sigma_B, global_BG)
        hidden_SBH = self._embed(noisy_BCT.to(dtype), sigma_B, global_BG) if self.pre_process else None
        hides_BL = None if keeps_BL is None else ~keeps_BL
        hidden_SBH = self.transform(hidden_SBH, num_positions, context_LBC, hides_BL, modulation_BM)
        if not self.post_process:
            return hidden_SBH
        latents_TBC = self.output_layer(hidden_SBH[self.size.num_extra_positions :])
        return (latents_TBC + self.output_mixer(latents_TBC)).permute(1, 2, 0)

    def _embed(self, noisy_BCT: Tensor, sigma_B: Tensor, global_BG: Tensor) -> Tensor:
        noisy_TBC = noisy_BCT.permute(2, 0, 1)
        hidden_TBH = self.input_layer(noisy_TBC + self.input_mixer(noisy_TBC))
        if self.size.is_modulated:
            return hidden_TBH
        return torch.cat([embed_global(self, sigma_B, global_BG)[None], hidden_TBH])


class Modulator(torch.nn.Module):
    """sigma and the global vector to what modulates all layers [B, 6 H]."""

    def __init__(self, config: FlowTransformerConfig, size: DiTSize):
        super().__init__()
        width = size.hidden_size
        add_global_embedders(self, config, size)
        self.layers = torch.nn.Sequential(
            whole_linear(config, width, width), torch.nn.SiLU(), whole_linear(config, width, MODULATIONS * width)
        )

    def forward(self, sigma_B: Tensor, global_BG: Tensor) -> Tensor:
        return self.layers(embed_global(self, sigma_B, global_BG))


def add_global_embedders(module: torch.nn.Module, config: FlowTransformerConfig, size: DiTSize) -> None:
    """Give a module what ``embed_global`` needs."""
    # Random frequencies, never trained, of a standard normal distribution in cycles over sigma.
    frequencies = torch.randn(size.time_features // 2, dtype=config.params_dtype)
    if not config.use_cpu_initialization:
        frequencies = frequencies.to(torch.cuda.current_device())
    module.time_frequencies = torch.nn.Parameter(frequencies, requires_grad=False)
    module.time_embedder = whole_mlp(config, size.time_features, size.hidden_size)
    module.global_embedder = whole_mlp(config, size.global_size, size.hidden_size, bias=False)


def embed_global(module: torch.nn.Module, sigma_B: Tensor, global_BG: Tensor) -> Tensor:
    """One vector [B, H] of sigma and the global vector."""
    phase = 2 * math.pi * sigma_B.float()[:, None] * module.time_frequencies.float()
    time_BF = torch.cat([phase.cos(), phase.sin()], dim=1).to(global_BG.dtype)
    return module.time_embedder(time_BF) + module.global_embedder(global_BG)


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
