"""What both autoencoders are, and which one a folder holds."""

import os
from pathlib import Path
from typing import Protocol

from torch import Tensor

from megatron_music.audio import spectral_autoencoder


class Autoencoder(Protocol):
    """Sound [B, channels, N] to latents [B, latent_channels, T] of about unit variance, and back.

    ``downsampling`` frames of sound are one latent frame; N is filled up to whole ones.
    """

    sample_rate: int
    channels: int
    downsampling: int
    latent_channels: int
    name: str

    def encode(self, samples_BCN: Tensor) -> Tensor: ...

    def decode(self, latents_BCT: Tensor) -> Tensor: ...

    def decode_in_chunks(self, latents_BCT: Tensor, chunk: int, overlap: int) -> Tensor: ...

    def decoding_bytes(self, frames: int, chunk: int) -> int: ...

    def save(self, folder: str | os.PathLike) -> None: ...


def load_autoencoder(folder: str | os.PathLike) -> Autoencoder:
    """The autoencoder of a folder: Oobleck, published or fitted here, or a spectral one.

    Raises:
        ValueError: the folder holds neither; one sentence.
    """
    if (Path(folder) / spectral_autoencoder.CONFIG).exists():
        return spectral_autoencoder.load_spectral_autoencoder(folder)
    from megatron_music.audio.oobleck import (
        load_oobleck,  # diffusers takes seconds to import
    )

    return load_oobleck(folder)
