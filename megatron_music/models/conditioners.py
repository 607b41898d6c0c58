"""What a sample of sound is conditioned on, as the DiT hears it: tokens to attend to, and one global vector.

Words from a text encoder, an embedding of music, and which seconds of how many a sample is. Shapes: B samples, L words,
C the width of a token, E the embedding of music.
"""

import math

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_music.config.errors import refuse_unless
from megatron_music.config.flow_sizes import DiTSize
from megatron_music.config.sections import ParallelConfig, TrainConfig
from megatron_music.models.dit import AudioDiT
from megatron_music.models.flow_layers import FlowTransformerConfig
from megatron_music.models.flow_transformer import flow_config, whole_linear
from megatron_music.models.text2muq import to_unit_variance

MUSIC_SIZE = 512  # of MuQ-MuLan's embeddings, of length 1
LONGEST_SECONDS = 512.0


class SecondsEmbedder(torch.nn.Module):
    """Seconds to a token: their share of the longest, its sines and cosines, and a linear layer.

    What lies outside 0 to ``LONGEST_SECONDS`` counts as its nearest end.
    """

    def __init__(self, config: TransformerConfig, outputs: int, num_frequencies: int = 128):
        super().__init__()
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.frequencies = torch.nn.Parameter(torch.randn(num_frequencies, dtype=config.params_dtype, device=device))
        self.layer = whole_linear(config, 1 + 2 * num_frequencies, outputs)

    def forward(self, seconds_B: Tensor) -> Tensor:
        """[B] in float32 to [B, C]."""
        share_B1 = (seconds_B.float().clamp(0, LONGEST_SECONDS) / LONGEST_SECONDS)[:, None]
        phase = 2 * math.pi * share_B1 * self.frequencies.float()
        return self.layer(torch.cat([share_B1, phase.sin(), phase.cos()], dim=1).to(self.layer.weight.dtype))


def _check_global_size(size: DiTSize) -> None:
    needed = 2 * size.context_input_size
    refuse_unless(
        size.global_size == needed,
        f"the DiT's global_size is {size.global_size}, where seconds_start and seconds_total need twice its "
        f"context_input_size; set it to {needed}",
    )


class AudioConditions(torch.nn.Module):
    """Conditions to tokens and global vector: the words, one token of music, and two of seconds, which are global too.

    Raises:
        ConfigError: the size has no room for two tokens in its global vector.
    """

    def __init__(self, config: TransformerConfig, size: DiTSize, music_size: int = MUSIC_SIZE):
        super().__init__()
        width = size.context_input_size
        _check_global_size(size)
        self.music = whole_linear(config, music_size, width)
        self.seconds_start, self.seconds_total = SecondsEmbedder(config, width), SecondsEmbedder(config, width)

    def forward(
        self, text_BLC: Tensor, keeps_BL: Tensor, music_BE: Tensor, seconds_start_B: Tensor, seconds_total_B: Tensor
    ) -> dict[str, Tensor]:
        """What AudioDiT takes besides noisy latents and sigma.

        Args:
            text_BLC: of each word; what stands for filling may be anything finite.
            keeps_BL: bool, True for words. A sample may have none: the tokens after them are always heard.
            music_BE: of length 1, or 0 where there is none.
            seconds_start_B, seconds_total_B: float32.
        """
        start_BC, total_BC = self.seconds_start(seconds_start_B), self.seconds_total(seconds_total_B)
        text_BLC = (text_BLC * keeps_BL[..., None]).to(start_BC.dtype)
        others = [self.music(to_unit_variance(music_BE).to(start_BC.dtype)), start_BC, total_BC]
        return {
            "context_BLC": torch.cat([text_BLC, torch.stack(others, dim=1)], dim=1),
            "keeps_BL": torch.cat([keeps_BL, keeps_BL.new_ones(len(keeps_BL), len(others))], dim=1),
            "global_BG": torch.cat([start_BC, total_BC], dim=1),
        }


class StableAudioConditions(torch.nn.Module):
    """The conditions of the published Stable Audio Open 1.0: words and seconds, and no music.

    Filling is attended to, as zeros, as that model was trained. A sample of no words at all is one without a condition:
    all it attends to is zeros. Parameters have the names they have in AudioConditions.

    Raises:
        ConfigError: see AudioConditions.
    """

    def __init__(self, config: TransformerConfig, size: DiTSize):
        super().__init__()
        _check_global_size(size)
        width = size.context_input_size
        self.seconds_start, self.seconds_total = SecondsEmbedder(config, width), SecondsEmbedder(config, width)

    def forward(
        self, text_BLC: Tensor, keeps_BL: Tensor, seconds_start_B: Tensor, seconds_total_B: Tensor
    ) -> dict[str, Tensor]:
        """As AudioConditions, without music."""
        start_BC, total_BC = self.seconds_start(seconds_start_B), self.seconds_total(seconds_total_B)
        text_BLC = (text_BLC * keeps_BL[..., None]).to(start_BC.dtype)
        context_BLC = torch.cat([text_BLC, start_BC[:, None], total_BC[:, None]], dim=1)
        return {
            "context_BLC": context_BLC * keeps_BL.any(dim=1)[:, None, None],
            "global_BG": torch.cat([start_BC, total_BC], dim=1),
        }


class ConditionedDiT(AudioDiT):
    """This rank's part of the DiT with what embeds its conditions.

    Args:
        music_size: of the embedding of music; None: there is none, and the conditions are those of the published model.
        options: see FlowTransformer.
    """

    def __init__(self, config: FlowTransformerConfig, size: DiTSize, *, music_size: int | None = MUSIC_SIZE, **options):
        super().__init__(config, size, **options)
        self.hears_music = music_size is not None
        conditions = (
            AudioConditions(config, size, music_size) if self.hears_music else StableAudioConditions(config, size)
        )
        self.copied_on_stages("conditions", conditions)

    def forward(self, noisy_BCT: Tensor, *, sigma_B: Tensor, **conditions: Tensor) -> Tensor:
        """The velocity at sigma; the conditions are those of its embedder, by name, alike on every stage."""
        return super().forward(noisy_BCT, sigma_B=sigma_B, **self.conditions(**conditions))


def build_conditioned_dit(
    size: DiTSize,
    parallel: ParallelConfig,
    *,
    dtype: torch.dtype = torch.float32,
    train: TrainConfig | None = None,
    **options,
) -> ConditionedDiT:
    """This rank's part of the DiT with what embeds its conditions; for the rest see ``build_dit``."""
    return ConditionedDiT(flow_config(size, parallel, dtype, train), size, **options)
