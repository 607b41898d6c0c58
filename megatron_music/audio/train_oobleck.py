"""Training of a small autoencoder on a CPU in minutes: spectra at several resolutions, the waveform itself, and a small
KL.

No discriminator: the published autoencoder has one and sounds better for it. Shapes: B samples, N frames of sound.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from megatron_music.audio.oobleck import OobleckAutoencoder, OobleckSize, build_network

RESOLUTIONS = (128, 512, 2048)  # samples in a window, a quarter of which is the hop
KL_WEIGHT, WAVE_WEIGHT = 1e-4, 1.0
_LEAST = 1e-2


def spectral_distance(sound_BCN: Tensor, target_BCN: Tensor) -> Tensor:
    """How far spectra are from each other: spectral convergence and the L1 of logarithms, mean of ``RESOLUTIONS``.

    Source: Yamamoto et al. 2020, arXiv:1910.11480.
    """
    total = sound_BCN.new_zeros(())
    for size in RESOLUTIONS:
        window = torch.hann_window(size, device=sound_BCN.device)

        def magnitude(value: Tensor, size: int = size, window: Tensor = window) -> Tensor:
            return torch.stft(value.flatten(0, 1), size, size // 4, window=window, return_complex=True).abs()

        found, wanted = magnitude(sound_BCN), magnitude(target_BCN)
        convergence = (found - wanted).norm() / wanted.norm().clamp_min(_LEAST)
        total = total + convergence + ((found + _LEAST).log() - (wanted + _LEAST).log()).abs().mean()
    return total / len(RESOLUTIONS)


def fit_oobleck(
    waveforms: Sequence[np.ndarray],
    size: OobleckSize,
    *,
    steps: int,
    seed: int = 0,
    batch_size: int = 4,
    seconds: float = 0.256,
    learning_rate: float = 1e-3,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
    device: torch.device | str = "cpu",
) -> OobleckAutoencoder:
    """An autoencoder of these sounds (float32 [channels, frames] each, at the size's rate).

    The result depends on the seed, on the device, and on torch's number of threads alone.

    Args:
        seconds: of each example, cut out where chance wants.
        on_step: is told the step and its loss.
        device: of the training, and of the autoencoder that is returned.

    Raises:
        ValueError: no sound is as long as an example.
    """
    length = round(seconds * size.sample_rate / np.prod(size.strides)) * int(np.prod(size.strides))
    sounds = [sound for sound in waveforms if sound.shape[1] >= length]
    if not sounds or steps < 1:
        raise ValueError(
            f"an autoencoder needs steps and a sound of {seconds} s or more to learn from; give longer ones"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(size).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), learning_rate, betas=(0.8, 0.99), weight_decay=1e-3)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=max(steps, 2), pct_start=0.1)
    chance, noise = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    weights = np.array([sound.shape[1] for sound in sounds], np.float64)
    weights /= weights.sum()
    network.train()
    for step in range(steps):
        cuts = []
        for number in chance.choice(len(sounds), batch_size, p=weights):
            first = int(chance.integers(sounds[number].shape[1] - length + 1))
            cuts.append(sounds[number][:, first : first + length])
        target = torch.from_numpy(np.stack(cuts)).to(device)
        latents = network.encode(target).latent_dist
        found = network.decode(
            latents.mean + latents.std * torch.randn(latents.mean.shape, generator=noise).to(device)
        ).sample
        distance = spectral_distance(found, target) + WAVE_WEIGHT * (
            found - target
        ).abs().mean() / target.abs().mean().clamp_min(1e-4)
        loss = distance + KL_WEIGHT * latents.kl()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()
        on_step(step, distance.item())
    network.eval().requires_grad_(False)
    return _scaled(network, sounds, length, chance)


@torch.no_grad()
def _scaled(network, sounds: Sequence[np.ndarray], length: int, chance: np.random.Generator) -> OobleckAutoencoder:
    """With the mean and deviation of each channel of the latents of some of the sounds."""
    parts = [
        network.encode(torch.from_numpy(sounds[number][None, :, : 4 * length]).to(network.device)).latent_dist.mean[0]
        for number in chance.choice(len(sounds), min(len(sounds), 64), replace=False)
    ]
    latents_CT = torch.cat(parts, dim=1)
    return OobleckAutoencoder(network, latents_CT.mean(1), latents_CT.std(1).clamp_min(1e-4)).eval()
