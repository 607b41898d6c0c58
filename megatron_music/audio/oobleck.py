"""Waveforms to latents and back: the Oobleck autoencoder of Stable Audio. The one owner of diffusers.

A folder is that of diffusers' AutoencoderOobleck, so that published weights are read and ours open there;
``latents.json`` beside them brings latents to about unit variance. Shapes: B samples, N frames of sound, C latent
channels, T latent frames.
"""

import json
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from megatron_music.storage.reading import read_json_object, regular
from megatron_music.storage.writing import write_whole

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers names what of torch and of itself it finds old
    from diffusers import AutoencoderOobleck

CONFIG, WEIGHTS, SCALES = "config.json", "diffusion_pytorch_model.safetensors", "latents.json"


@dataclass(frozen=True)
class OobleckSize:
    """The shape of an Oobleck autoencoder.

    Args:
        latent_channels: C; the encoder's first layer is twice as wide.
        decoder_channels: of the decoder's last layer.
        multiples: of both, from the sound inwards.
        strides: from the sound inwards; their product is the frames of sound in one of T.
    """

    latent_channels: int
    decoder_channels: int
    multiples: tuple[int, ...]
    strides: tuple[int, ...]
    channels: int
    sample_rate: int

    @property
    def least_parameters(self) -> int:
        """What the decoder's convolutions have alone, without building it: fewer than all."""
        ways = zip((1, *self.multiples), self.multiples, self.strides, strict=False)
        return self.decoder_channels**2 * sum(
            2 * stride * outer * inner + 24 * outer**2 for outer, inner, stride in ways
        )


SIZES = {
    "tiny": OobleckSize(4, 4, (1, 2, 2), (4, 8, 8), 2, 16000),  # for tests
    "small": OobleckSize(16, 12, (1, 2, 4, 8), (8, 4, 4, 4), 2, 16000),  # of which a CPU learns something in minutes
    # Stable Audio Open 1.0 (arXiv:2407.14358): 156,112,514 parameters.
    "stable-audio-open": OobleckSize(64, 128, (1, 2, 4, 8, 16), (2, 4, 4, 8, 8), 2, 44100),
}


def build_network(size: OobleckSize) -> AutoencoderOobleck:
    """Diffusers' autoencoder of a size, with new weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's old name of weight norm
        return AutoencoderOobleck(
            encoder_hidden_size=2 * size.latent_channels,
            downsampling_ratios=list(size.strides),
            channel_multiples=list(size.multiples),
            decoder_channels=size.decoder_channels,
            decoder_input_channels=size.latent_channels,
            audio_channels=size.channels,
            sampling_rate=size.sample_rate,
        )


class OobleckAutoencoder(torch.nn.Module):
    """An autoencoder whose latents have about unit variance.

    Args:
        network: diffusers' autoencoder.
        mean_C, scale_C: of its latents; left out: 0 and 1, as the published weights are used.
    """

    def __init__(self, network: AutoencoderOobleck, mean_C: Tensor | None = None, scale_C: Tensor | None = None):
        super().__init__()
        self.network = network
        channels = network.config.decoder_input_channels
        self.register_buffer("mean_C", torch.zeros(channels) if mean_C is None else mean_C)
        self.register_buffer("scale_C", torch.ones(channels) if scale_C is None else scale_C)

    @property
    def sample_rate(self) -> int:
        return self.network.config.sampling_rate

    @property
    def channels(self) -> int:
        return self.network.config.audio_channels

    @property
    def downsampling(self) -> int:
        """Frames of sound in one latent frame."""
        return self.network.hop_length

    @property
    def latent_channels(self) -> int:
        return self.network.config.decoder_input_channels

    @property
    def name(self) -> str:
        return f"Oobleck, {sum(parameter.numel() for parameter in self.network.parameters()):,} parameters"

    @torch.no_grad()
    def encode(self, samples_BCN: Tensor) -> Tensor:
        """The means of the latents, scaled [B, C, T], of sound [B, channels, N]; N is filled up to whole frames."""
        missing = -samples_BCN.shape[-1] % self.downsampling
        mean_BCT = self.network.encode(torch.nn.functional.pad(samples_BCN, (0, missing))).latent_dist.mean
        return (mean_BCT - self.mean_C[:, None]) / self.scale_C[:, None]

    @torch.no_grad()
    def decode(self, latents_BCT: Tensor) -> Tensor:
        """Sound [B, channels, T * downsampling] of scaled latents."""
        return self.network.decode(latents_BCT * self.scale_C[:, None] + self.mean_C[:, None]).sample

    def decode_in_chunks(self, latents_BCT: Tensor, chunk: int, overlap: int) -> Tensor:
        """The same sound in memory that does not grow with its length.

        Args:
            chunk: latent frames at a time.
            overlap: further frames on both sides, which are decoded and thrown away. From 16 on, the
                receptive field of a frame lies within, and the sound is the whole one's to rounding.
        """
        length, hop = latents_BCT.shape[-1], self.downsampling
        parts = []
        for first in range(0, length, chunk):
            last, begin = min(first + chunk, length), max(first - overlap, 0)
            sound = self.decode(latents_BCT[..., begin : last + overlap])
            parts.append(sound[..., (first - begin) * hop : (last - begin) * hop])
        return torch.cat(parts, dim=-1)

    def decoding_bytes(self, frames: int, chunk: int) -> int:
        """About the memory that ``decode_in_chunks`` takes for a sample of so many latent frames: its audio, twice."""
        return 2 * 4 * frames * self.downsampling * self.channels

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder, the configuration last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        scales = {"mean": self.mean_C.tolist(), "scale": self.scale_C.tolist()}
        write_whole(folder / WEIGHTS, save(weights))
        write_whole(folder / SCALES, (json.dumps(scales) + "\n").encode())
        config = {key: value for key, value in self.network.config.items() if not key.startswith("_")}
        config = {"_class_name": "AutoencoderOobleck", **config}
        write_whole(folder / CONFIG, (json.dumps(config, indent=1) + "\n").encode())


def load_oobleck(folder: str | os.PathLike) -> OobleckAutoencoder:
    """The autoencoder of a folder, published or trained here.

    Raises:
        ValueError: the folder holds none, or weights of other names or shapes; one sentence.
    """
    folder = Path(folder)
    try:
        config = read_json_object(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} cannot be read ({error}); name a folder of an Oobleck autoencoder"
        ) from None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderOobleck":
        raise ValueError(
            f"{folder} is not of diffusers' AutoencoderOobleck; name the folder of one, such as a model's vae/"
        )
    try:
        size = OobleckSize(
            latent_channels=config["decoder_input_channels"],
            decoder_channels=config["decoder_channels"],
            multiples=tuple(config["channel_multiples"]),
            strides=tuple(config["downsampling_ratios"]),
            channels=config["audio_channels"],
            sample_rate=config["sampling_rate"],
        )
        wrong = [value for value in (*asdict(size).values(),) if not _is_positive(value)]
        if (
            wrong
            or config["encoder_hidden_size"] != 2 * size.latent_channels
            or len(size.multiples) != len(size.strides)
        ):
            raise ValueError(f"sizes that do not go together: {config}")
        least = size.least_parameters
        if 2 * least > regular(folder / WEIGHTS).stat().st_size:
            raise ValueError(f"{CONFIG} asks for more than {least:,} parameters, which {WEIGHTS} is too small for")
        network = build_network(size)
        network.load_state_dict(load_file(regular(folder / WEIGHTS)), strict=True)
        scales = read_json_object(folder / SCALES) if (folder / SCALES).exists() else None
        found = [torch.tensor(scales[name]) for name in ("mean", "scale")] if scales else [None, None]
        if scales and any(len(value) != size.latent_channels for value in found):
            raise ValueError(f"{SCALES} is not of {size.latent_channels} channels")
    except (OSError, KeyError, TypeError, ValueError, ArithmeticError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds no whole Oobleck autoencoder ({reason}); copy it again") from None
    return OobleckAutoencoder(network, *found).eval().requires_grad_(False)


def _is_positive(value) -> bool:
    return (
        all(map(_is_positive, value)) and len(value) > 0
        if isinstance(value, tuple)
        else isinstance(value, int) and value > 0
    )
