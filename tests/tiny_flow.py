"""Tiny text-to-music models with random weights, and what they are given, for the tests of parity.

The oracle of the DiT is diffusers' StableAudioDiTModel. Of four samples, each with filling of its own among the words.
"""

import torch
from diffusers import StableAudioDiTModel
from diffusers.models.embeddings import get_1d_rotary_pos_embed

from megatron_music.config.flow_sizes import DIT_SIZES, TEXT2MUQ_SIZES, DiTSize
from megatron_music.flow.path import flow_loss

SIZE = DIT_SIZES["tiny"]
FRAMES = 16  # with the position before them 17, which sequence parallelism has to fill up


def oracle(size: DiTSize = SIZE, seed: int = 0) -> StableAudioDiTModel:
    """Diffusers' model, every weight of it random: fresh norms are ones and zeros, which hide what is exchanged."""
    torch.manual_seed(seed)
    model = StableAudioDiTModel(
        sample_size=size.latent_length,
        in_channels=size.latent_channels,
        out_channels=size.latent_channels,
        num_layers=size.num_layers,
        attention_head_dim=size.hidden_size // size.num_attention_heads,
        num_attention_heads=size.num_attention_heads,
        num_key_value_attention_heads=size.num_context_groups,
        cross_attention_dim=size.context_size,
        time_proj_dim=size.time_features,
        global_states_input_dim=size.global_size,
        cross_attention_input_dim=size.context_input_size,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter.shape[1] ** -0.5 if parameter.dim() > 1 else 0.3
            parameter.copy_(scale * torch.randn_like(parameter) + (parameter if parameter.dim() == 1 else 0))
    return model


def batch(size: DiTSize = SIZE, seed: int = 1) -> dict[str, torch.Tensor]:
    """Inputs, and the velocity to be learned."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random)

    return {
        "noisy": normal(4, size.latent_channels, FRAMES),
        "velocity": normal(4, size.latent_channels, FRAMES),
        "sigma_B": torch.rand(4, generator=random),
        "context_BLC": normal(4, 5, size.context_input_size),
        "global_BG": normal(4, size.global_size),
        "keeps_BL": torch.arange(5).expand(4, 5) < torch.tensor([[5], [3], [1], [4]]),
    }


def text2muq_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """The same for stage 1."""
    random, size = torch.Generator().manual_seed(seed), TEXT2MUQ_SIZES["tiny"]
    noisy, velocity = torch.randn(2, 4, size.embedding_size, generator=random)
    return {
        "noisy": noisy,
        "velocity": velocity,
        "sigma_B": torch.rand(4, generator=random),
        "context_BLC": torch.randn(4, 5, size.context_size, generator=random),
        "keeps_BL": torch.arange(5).expand(4, 5) < torch.tensor([[5], [3], [1], [4]]),
    }


def conditioned_batch(seed: int = 1) -> dict[str, torch.Tensor]:
    """The same for the DiT with its conditions' embedders."""
    given, random = batch(seed=seed), torch.Generator().manual_seed(seed + 1)
    given["text_BLC"] = given.pop("context_BLC")
    del given["global_BG"]
    given["music_BE"] = torch.nn.functional.normalize(torch.randn(4, 512, generator=random))
    given["seconds_start_B"], given["seconds_total_B"] = 400 * torch.rand(2, 4, generator=random)
    return given


def oracle_velocity(model: StableAudioDiTModel, given: dict[str, torch.Tensor], with_mask: bool = True) -> torch.Tensor:
    """What diffusers' model makes of the same inputs."""
    rotary = get_1d_rotary_pos_embed(
        model.config.attention_head_dim // 2,
        given["noisy"].size(2) + 1,
        use_real=True,
        repeat_interleave_real=False,
    )
    return model(
        given["noisy"],
        timestep=given["sigma_B"],
        encoder_hidden_states=given["context_BLC"],
        global_hidden_states=given["global_BG"][:, None],
        rotary_embedding=rotary,
        encoder_attention_mask=given["keeps_BL"] if with_mask else None,
        return_dict=False,
    )[0]


def oracle_gradients(model: StableAudioDiTModel, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The gradient of every weight under the flow matching loss; of the fixed frequencies zero."""
    flow_loss(oracle_velocity(model, given), given["velocity"]).backward()
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in model.named_parameters()
    }
