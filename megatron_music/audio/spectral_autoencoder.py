"""Waveforms to latents and back without a network: principal components of spectra, and phases found by Griffin and
Lim.

Fitted in seconds on a CPU, where an Oobleck of minutes leaves neither pitch nor instrument (docs/decisions). What is
lost: fine detail of spectra, and how phases lay. Shapes: B samples, N frames of sound, C latent channels, T latent
frames, each of ``FOLD`` spectra of two channels with M bands and F frequencies.
"""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from megatron_music.storage.reading import read_json_object, regular
from megatron_music.storage.writing import write_whole

SAMPLE_RATE, CHANNELS, WINDOW, HOP, BANDS, FOLD = 16000, 2, 1024, 256, 128, 2
LATENT_CHANNELS = 64
ROOT = 0.3  # magnitudes to this power are about as loud as they are heard
ROUNDS, MOMENTUM = 32, 0.5  # of Griffin and Lim
FEWEST_HERTZ = 30.0
CONFIG, WEIGHTS = "spectral.json", "spectral.safetensors"
_WIDTH = CHANNELS * BANDS * FOLD
_FITTED_FRAMES = 40_000
_SPECTRA_AT_ONCE = 6  # complex ones, while phases are found


class SpectralAutoencoder(torch.nn.Module):
    """An autoencoder whose latents are principal components of loudness in mel bands, of unit variance together.

    Args:
        mean_D: of the loudness of one latent frame; D = 2 channels x M x ``FOLD``.
        encode_DC, decode_CD: to latents and back.
    """

    sample_rate, channels, downsampling = SAMPLE_RATE, CHANNELS, HOP * FOLD

    def __init__(self, mean_D: Tensor, encode_DC: Tensor, decode_CD: Tensor):
        super().__init__()
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("encode_DC", encode_DC)
        self.register_buffer("decode_CD", decode_CD)
        bands_MF = mel_bands()
        self.register_buffer("bands_MF", bands_MF, persistent=False)
        self.register_buffer("inverse_FM", torch.linalg.pinv(bands_MF), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)

    @property
    def latent_channels(self) -> int:
        return self.encode_DC.size(1)

    @property
    def name(self) -> str:
        return f"spectral, {self.latent_channels} principal components"

    @torch.no_grad()
    def encode(self, samples_BCN: Tensor) -> Tensor:
        """The latents [B, C, T] of sound [B, 2, N]; N is filled up to whole frames."""
        return ((loudness_of(samples_BCN, self.bands_MF) - self.mean_D) @ self.encode_DC).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BCT: Tensor) -> Tensor:
        """Sound [B, 2, T * downsampling] of latents, each sample's on its own."""
        return torch.stack([self._sound_of(latents_CT) for latents_CT in latents_BCT])

    def decode_in_chunks(self, latents_BCT: Tensor, chunk: int, overlap: int) -> Tensor:
        """The same sound: spectra of minutes are small, and phases want to be found together."""
        return self.decode(latents_BCT)

    def decoding_bytes(self, frames: int, chunk: int) -> int:
        """About the most memory that ``decode_in_chunks`` takes for a sample of so many latent frames."""
        return frames * FOLD * CHANNELS * (WINDOW // 2 + 1) * 8 * _SPECTRA_AT_ONCE

    def _sound_of(self, latents_CT: Tensor) -> Tensor:
        length = latents_CT.size(1)
        loudness_TD = latents_CT.T @ self.decode_CD + self.mean_D
        bands = loudness_TD.view(length, CHANNELS, BANDS, FOLD).permute(1, 2, 0, 3).flatten(2)
        magnitudes = self._magnitudes_of(bands.clamp_min(0) ** (1 / ROOT))
        magnitudes = torch.cat([magnitudes, magnitudes[..., -1:]], dim=-1)  # the spectrum around the last sample
        return find_phases(magnitudes, self.window, length * FOLD * HOP)

    def _magnitudes_of(self, bands: Tensor) -> Tensor:
        """The nearest magnitudes [2, F, spectra] above 0 that make these bands, by the rule of Lee and Seung."""
        wanted = self.bands_MF.T @ bands
        found = (self.inverse_FM @ bands).clamp_min(0) + 1e-3
        for _ in range(10):
            found = found * wanted / (self.bands_MF.T @ (self.bands_MF @ found) + 1e-6)
        return found

    def save(self, folder: str | os.PathLike) -> None:
        """Write the folder, the configuration last."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(
            folder / WEIGHTS, save({name: value.cpu().contiguous() for name, value in self.state_dict().items()})
        )
        write_whole(
            folder / CONFIG, (json.dumps({"format": 1, "latent_channels": self.latent_channels}) + "\n").encode()
        )


def loudness_of(samples_BCN: Tensor, bands_MF: Tensor) -> Tensor:
    """Loudness [B, T, 2 * M * FOLD] of sound [B, 2, N]: roots of the magnitudes in mel bands."""
    samples_BCN = torch.nn.functional.pad(samples_BCN, (0, -samples_BCN.shape[-1] % (HOP * FOLD)))
    window = torch.hann_window(WINDOW, device=samples_BCN.device)
    padded = torch.nn.functional.pad(samples_BCN.flatten(0, 1), (WINDOW // 2, WINDOW // 2))
    spectra = torch.stft(padded, WINDOW, HOP, window=window, center=False, return_complex=True)
    bands = (bands_MF @ spectra[..., :-1].abs()) ** ROOT
    batch = bands.view(len(samples_BCN), CHANNELS, BANDS, -1, FOLD)
    return batch.permute(0, 3, 1, 2, 4).flatten(2)


def find_phases(magnitudes: Tensor, window: Tensor, length: int) -> Tensor:
    """Sound [2, length] that has these magnitudes [2, F, spectra] as nearly as can be found, the same each time.

    Source: Griffin and Lim 1984; with momentum, Perraudin et al. 2013.
    """
    chance = np.random.default_rng(0).uniform(-math.pi, math.pi, magnitudes.shape[1:]).astype(np.float32)
    phases = torch.exp(1j * torch.from_numpy(chance).to(magnitudes.device)).expand(magnitudes.shape)
    before = torch.zeros_like(phases)
    for _ in range(ROUNDS):
        sound = torch.istft(magnitudes * phases, WINDOW, HOP, window=window, length=length)
        spectra = torch.stft(sound, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True)
        ahead = spectra + MOMENTUM * (spectra - before)
        phases, before = ahead / (ahead.abs() + 1e-8), spectra
    return torch.istft(magnitudes * phases, WINDOW, HOP, window=window, length=length)


def mel_bands() -> Tensor:
    """What of each frequency's magnitude is in each band (float32 [M, F]): triangles, none narrower than a
    frequency.
    """
    hertz = np.linspace(0, SAMPLE_RATE / 2, WINDOW // 2 + 1)
    least, most = (2595 * math.log10(1 + value / 700) for value in (FEWEST_HERTZ, SAMPLE_RATE / 2))
    edges = 700 * (10 ** (np.linspace(least, most, BANDS + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    low, high = np.minimum(low, middle - SAMPLE_RATE / WINDOW), np.maximum(high, middle + SAMPLE_RATE / WINDOW)
    rising, falling = (hertz - low) / (middle - low), (high - hertz) / (high - middle)
    return torch.from_numpy(np.maximum(np.minimum(rising, falling), 0).astype(np.float32))


def fit_spectral_autoencoder(
    waveforms: Sequence[np.ndarray], *, latent_channels: int = LATENT_CHANNELS, seed: int = 0
) -> SpectralAutoencoder:
    """The autoencoder of these sounds (float32 [2, frames] each, at 16 kHz), by arithmetic alone.

    Raises:
        ValueError: the sounds together are shorter than as many latent frames as there are channels.
    """
    bands_MF = mel_bands()
    frames_TD = [loudness_of(torch.from_numpy(sound)[None], bands_MF)[0] for sound in waveforms if sound.shape[1]]
    frames_TD = torch.cat(frames_TD) if frames_TD else torch.zeros(0, _WIDTH)
    if len(frames_TD) < 2 * latent_channels:
        needed = 2 * latent_channels * HOP * FOLD / SAMPLE_RATE
        raise ValueError(f"an autoencoder needs {needed:.1f} s of sound or more to learn from; give more sounds")
    if len(frames_TD) > _FITTED_FRAMES:
        frames_TD = frames_TD[
            np.sort(np.random.default_rng(seed).choice(len(frames_TD), _FITTED_FRAMES, replace=False))
        ]
    mean_D = frames_TD.mean(0)
    covariance_DD = (frames_TD - mean_D).double().T @ (frames_TD - mean_D).double() / len(frames_TD)
    variances, directions = torch.linalg.eigh(covariance_DD)
    variances, directions_DC = (
        variances[-latent_channels:].flip(0).clamp_min(1e-6),
        directions[:, -latent_channels:].flip(1),
    )
    # Between what is heard most and what is heard least the latents keep the root of the difference.
    scales = variances**0.25
    scales = scales * (variances / scales**2).mean().sqrt()
    return SpectralAutoencoder(mean_D, (directions_DC / scales).float(), (directions_DC * scales).T.float()).eval()


def load_spectral_autoencoder(folder: str | os.PathLike) -> SpectralAutoencoder:
    """The autoencoder of a folder.

    Raises:
        ValueError: the folder holds none, or a part of one; one sentence.
    """
    folder = Path(folder)
    try:
        channels = read_json_object(folder / CONFIG)["latent_channels"]
        found = load_file(regular(folder / WEIGHTS))
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        if shapes != {"mean_D": (_WIDTH,), "encode_DC": (_WIDTH, channels), "decode_CD": (channels, _WIDTH)}:
            raise ValueError(f"tensors of other shapes: {shapes}")
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{folder} holds no whole spectral autoencoder ({reason}); copy it again") from None
    return SpectralAutoencoder(**found).eval()
