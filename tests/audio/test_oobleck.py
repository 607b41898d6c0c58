"""Oobleck, the autoencoder of Stable Audio: published shape, folders, chunks, fitting."""

import json
import warnings

import numpy as np
import pytest
import torch
from tones import tones

from megatron_music.audio.oobleck import (
    CONFIG,
    SCALES,
    SIZES,
    WEIGHTS,
    OobleckAutoencoder,
    build_network,
    load_oobleck,
)
from megatron_music.audio.train_oobleck import fit_oobleck, spectral_distance


@pytest.fixture(scope="module")
def autoencoder() -> OobleckAutoencoder:
    torch.manual_seed(0)
    mean, scale = torch.randn(4), torch.rand(4) + 0.5
    return OobleckAutoencoder(build_network(SIZES["tiny"]), mean, scale).eval().requires_grad_(False)


def test_the_published_size_has_156_112_514_parameters():
    with torch.device("meta"):
        network = build_network(SIZES["stable-audio-open"])
    assert sum(parameter.numel() for parameter in network.parameters()) == 156_112_514
    assert sum(parameter.numel() for parameter in network.encoder.parameters()) == 77_989_888
    assert network.hop_length == 2048


def test_shapes(autoencoder):
    found = autoencoder.encode(torch.randn(3, 2, 1000))
    assert found.shape == (3, 4, 4)  # 1000 is filled up to 4 frames of 256
    assert autoencoder.decode(found).shape == (3, 2, 1024)
    assert (autoencoder.downsampling, autoencoder.channels, autoencoder.latent_channels) == (256, 2, 4)


def test_scaling_is_undone(autoencoder):
    plain = OobleckAutoencoder(autoencoder.network)
    sound = torch.randn(1, 2, 2048)
    latents = autoencoder.encode(sound)
    assert not torch.allclose(latents, plain.encode(sound))
    torch.testing.assert_close(autoencoder.decode(latents), plain.decode(plain.encode(sound)))


def test_chunks_are_the_whole(autoencoder):
    latents = torch.randn(2, 4, 100)
    whole = autoencoder.decode(latents)
    for chunk in (1, 7, 64, 100, 300):
        torch.testing.assert_close(autoencoder.decode_in_chunks(latents, chunk, 16), whole, atol=1e-5, rtol=1e-4)
    assert (autoencoder.decode_in_chunks(latents, 7, 0) - whole).abs().max() > 1e-3, "without overlap chunks are heard"


def test_a_folder_comes_back_and_opens_in_diffusers(autoencoder, tmp_path):
    from diffusers import AutoencoderOobleck

    autoencoder.save(tmp_path)
    found, sound = load_oobleck(tmp_path), torch.randn(1, 2, 512)
    assert torch.equal(found.encode(sound), autoencoder.encode(sound))
    warnings.simplefilter("ignore")  # diffusers calls torch's weight norm by its old name
    theirs = AutoencoderOobleck.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(theirs.encode(sound).latent_dist.mean, OobleckAutoencoder(autoencoder.network).encode(sound))


def test_published_weights_without_scales_are_read(autoencoder, tmp_path):
    autoencoder.save(tmp_path)
    (tmp_path / SCALES).unlink()
    assert load_oobleck(tmp_path).mean_C.eq(0).all()


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        (CONFIG, lambda text: "{", "cannot be read"),
        (
            CONFIG,
            lambda text: text.replace("AutoencoderOobleck", "AutoencoderKL"),
            "is not of diffusers' AutoencoderOobleck",
        ),
        (
            CONFIG,
            lambda text: text.replace('"encoder_hidden_size": 8', '"encoder_hidden_size": 6'),
            "do not go together",
        ),
        (CONFIG, lambda text: text.replace('"decoder_channels": 4', '"decoder_channels": 5'), "holds no whole Oobleck"),
        (CONFIG, lambda text: json.dumps({**json.loads(text), "audio_channels": "two"}), "do not go together"),
        (WEIGHTS, lambda text: None, "holds no whole Oobleck"),
        (SCALES, lambda text: '{"mean": [0.0], "scale": [1.0]}', "is not of 4 channels"),
    ],
)
def test_what_is_no_autoencoder_is_refused(autoencoder, tmp_path, name, change, sentence):
    autoencoder.save(tmp_path)
    path = tmp_path / name
    content = path.read_bytes()
    changed = change(content.decode(errors="replace"))
    path.write_bytes(content[:100] if changed is None else changed.encode())
    with pytest.raises(ValueError, match=sentence) as error:
        load_oobleck(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_fitting_brings_spectra_nearer_and_latents_to_unit_variance():
    sounds = [tones(seed) for seed in range(6)]
    heard = torch.from_numpy(tones(99))[None]
    distances = []
    for steps in (1, 30):
        torch.manual_seed(0)
        found = fit_oobleck(sounds, SIZES["tiny"], steps=steps, learning_rate=4e-3, batch_size=2)
        distances.append(spectral_distance(found.decode(found.encode(heard))[..., :16000], heard).item())
    assert distances[1] < 0.8 * distances[0]
    latents = torch.cat([found.encode(torch.from_numpy(sound)[None])[0] for sound in sounds], dim=1)
    assert 0.7 < latents.std().item() < 1.4
    again = fit_oobleck(sounds, SIZES["tiny"], steps=30, learning_rate=4e-3, batch_size=2)
    assert torch.equal(again.encode(heard), found.encode(heard))


def test_too_short_sounds_are_refused():
    with pytest.raises(ValueError, match=r"a sound of 0.256 s or more"):
        fit_oobleck([np.zeros((2, 100), np.float32)], SIZES["tiny"], steps=1)
