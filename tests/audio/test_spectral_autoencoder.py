"""The autoencoder without a network: what it keeps of sounds, folders, fitting."""

import numpy as np
import pytest
import torch
from tones import tones

from megatron_music.audio.autoencoder import load_autoencoder
from megatron_music.audio.spectral_autoencoder import (
    CONFIG,
    HOP,
    WEIGHTS,
    WINDOW,
    SpectralAutoencoder,
    find_phases,
    fit_spectral_autoencoder,
    loudness_of,
    mel_bands,
)


@pytest.fixture(scope="module")
def autoencoder() -> SpectralAutoencoder:
    return fit_spectral_autoencoder([tones(seed) for seed in range(8)], latent_channels=24)


def test_shapes(autoencoder):
    found = autoencoder.encode(torch.randn(3, 2, 1000))
    assert found.shape == (3, 24, 2)  # 1000 is filled up to 2 frames of 512
    assert autoencoder.decode(found).shape == (3, 2, 1024)
    assert (autoencoder.downsampling, autoencoder.channels, autoencoder.latent_channels) == (512, 2, 24)


def test_latents_have_unit_variance_together_and_are_not_correlated(autoencoder):
    latents = torch.cat([autoencoder.encode(torch.from_numpy(tones(seed))[None])[0] for seed in range(8)], dim=1)
    assert latents.square().mean().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(latents)
    assert (correlation - torch.eye(24)).abs().max() < 0.05
    assert (latents.var(1).diff() < 0).all(), "the first is what is heard most"


def strongest(sound: torch.Tensor) -> float:
    """Hertz of the loudest frequency."""
    spectrum = torch.fft.rfft(sound[0]).abs()
    return spectrum[20:].argmax().item() * 16000 / sound.shape[1] + 20 * 16000 / sound.shape[1]


def test_pitches_it_has_not_heard_come_back():
    time = np.arange(16000) / 16000

    def tone(hertz: float) -> np.ndarray:
        sound = 0.3 * np.sin(2 * np.pi * hertz * time).astype(np.float32)
        return np.stack([sound, 0.5 * sound])

    found = fit_spectral_autoencoder([tone(hertz) for hertz in range(100, 1500, 20)], latent_channels=64)
    for hertz in (190, 333, 655, 1010):
        sound = torch.from_numpy(tone(hertz))[None]
        heard = found.decode(found.encode(sound))[0, :, :16000]
        assert strongest(heard) == pytest.approx(hertz, abs=12)
        levels = heard.square().mean(1).sqrt() / sound[0].square().mean(1).sqrt()
        assert ((levels > 0.6) & (levels < 1.5)).all(), "and are as loud, on both sides"


def test_phases_of_real_magnitudes_are_found():
    sound = torch.from_numpy(tones(3))
    window = torch.hann_window(WINDOW)

    def magnitudes(value: torch.Tensor) -> torch.Tensor:
        return torch.stft(value, WINDOW, HOP, window=window, pad_mode="constant", return_complex=True).abs()

    wanted = magnitudes(sound)
    heard = magnitudes(find_phases(wanted, window, 16000))
    noise = magnitudes(torch.randn(2, 16000) * sound.std())
    assert (heard - wanted).norm() < 0.2 * wanted.norm() < 0.2 * (noise - wanted).norm()


def test_each_sample_is_decoded_on_its_own_and_always_the_same(autoencoder):
    latents = torch.randn(3, 24, 20)
    whole = autoencoder.decode(latents)
    assert torch.equal(autoencoder.decode(latents[1:2])[0], whole[1])
    assert torch.equal(autoencoder.decode_in_chunks(latents, 7, 16), whole)


def test_silence_is_silent(autoencoder):
    sounds = [tones(seed) for seed in range(6)] + [np.zeros((2, 16000), np.float32)]
    found = fit_spectral_autoencoder(sounds, latent_channels=24)
    heard = found.decode(found.encode(torch.zeros(1, 2, 8192)))
    assert heard.isfinite().all() and heard.abs().max() < 1e-2 * tones(0).max()


def test_a_folder_comes_back(autoencoder, tmp_path):
    autoencoder.save(tmp_path)
    found, sound = load_autoencoder(tmp_path), torch.randn(1, 2, 2048, generator=torch.Generator().manual_seed(0))
    read, kept = found.state_dict(), autoencoder.state_dict()
    assert read.keys() == kept.keys() and all(torch.equal(read[name], kept[name]) for name in kept)
    # A matrix that lies elsewhere in memory is multiplied in another order on some CPUs.
    latents = autoencoder.encode(sound)
    torch.testing.assert_close(found.encode(sound), latents, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.decode(latents), autoencoder.decode(latents), rtol=1e-2, atol=1e-2)
    assert found.name == "spectral, 24 principal components"


@pytest.mark.parametrize(
    ("name", "change"),
    [(CONFIG, b"{"), (CONFIG, b'{"latent_channels": 3}'), (CONFIG, b'{"latent_channels": "24"}'), (WEIGHTS, b"short")],
)
def test_what_is_no_autoencoder_is_refused(autoencoder, tmp_path, name, change):
    autoencoder.save(tmp_path)
    (tmp_path / name).write_bytes(change)
    with pytest.raises(ValueError, match="holds no whole spectral autoencoder") as error:
        load_autoencoder(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_too_little_sound_is_refused():
    for sounds in ([], [np.zeros((2, 0), np.float32)], [tones(0)]):
        with pytest.raises(ValueError, match=r"needs 4.1 s of sound or more"):
            fit_spectral_autoencoder(sounds)


def test_bands_cover_all_frequencies():
    bands_MF = mel_bands()
    assert bands_MF.min() >= 0 and (bands_MF.sum(0)[2:-1] > 0).all() and (bands_MF.sum(1) > 0.5).all()
    assert loudness_of(torch.zeros(1, 2, 600), bands_MF).shape == (1, 2, 512)
