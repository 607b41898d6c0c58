"""The audio, music and text encoders of a dataset of latents: loaded, or fitted to the training files once."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from megatron_music.audio import spectral_autoencoder
from megatron_music.audio.autoencoder import Autoencoder, load_autoencoder
from megatron_music.audio.music_encoder import (
    MUQ_MODEL,
    MUQ_NAME,
    MuQMuLanProcess,
    MusicEncoder,
    features_of,
    fit_music_encoder,
    load_music_encoder,
)
from megatron_music.audio.text_encoder import TextEncoder, fit_words, load_text_encoder
from megatron_music.data.captioned import Captioned
from megatron_music.counted import counted
from megatron_music.data.crops import Crops
from megatron_music.data.latents_options import OOBLECK_SIZES, SPECTRAL, LatentsOptions
from megatron_music.storage.writing import appearing_folder

FITTED_SOUNDS = 256  # that the autoencoder learns from at most
FITTED_CROPS = 4096  # that the encoders of music and words learn from at most


class Encoders(NamedTuple):
    """The three encoders of one dataset."""

    autoencoder: Autoencoder
    music: MusicEncoder
    text: TextEncoder


def encoders_of(
    folder: Path, sounds: Sequence[Captioned], crops: Crops, options: LatentsOptions, say: Callable, device: torch.device | str
) -> Encoders:
    """The encoders on a device, those to be fitted fitted once; what is in the folder is whole."""
    folder.mkdir(exist_ok=True)
    if not (folder / "autoencoder").exists():
        _keep(_autoencoder(sounds, crops, options, say, device), folder / "autoencoder")
    autoencoder = load_autoencoder(folder / "autoencoder").to(device)
    length = latent_frames(options, autoencoder) * autoencoder.downsampling

    def with_captions(sound: Captioned) -> list:
        found = crops.of(sound, autoencoder.sample_rate, autoencoder.channels, length)
        return [(crop.waveform, sound.captions) for crop in found]

    learned = None
    muq_python = options.music_encoder.removeprefix("muq:") if options.music_encoder.startswith("muq:") else None
    if not (folder / "music").exists():
        if options.music_encoder == "small":
            say("fitting the encoder of music")
            learned = crops.some(sounds, FITTED_CROPS, with_captions)
            features = np.stack([features_of(crop) for crop, _ in learned]) if learned else np.zeros((0, 1))
            music = fit_music_encoder(features, [captions for _, captions in learned])
        elif muq_python is not None:
            music = MuQMuLanProcess(muq_python, os.environ.get(MUQ_MODEL, MUQ_NAME))
        else:
            music = load_music_encoder(options.music_encoder)
        _keep(music, folder / "music")
    music = load_music_encoder(folder / "music", muq_python)
    if not (folder / "text").exists():
        if options.text_encoder == "words":
            say("fitting the encoder of words")
            learned = learned or crops.some(sounds, FITTED_CROPS, with_captions)
            embeddings = music.embed_audio([crop for crop, _ in learned])
            owners = [number for number, (_, captions) in enumerate(learned) for _ in captions]
            text = fit_words([caption for _, captions in learned for caption in captions], embeddings[owners], seed=options.seed)
        else:
            text = load_text_encoder(options.text_encoder)
        _keep(text, folder / "text")
    return Encoders(autoencoder, music, load_text_encoder(folder / "text").to(device))


def _autoencoder(
    sounds: Sequence[Captioned], crops: Crops, options: LatentsOptions, say: Callable, device: torch.device | str
) -> Autoencoder:
    """The one that is asked for, fitted or read."""
    wanted = options.autoencoder

    def learned(sample_rate: int, channels: int) -> list[np.ndarray]:
        return crops.some(sounds, FITTED_SOUNDS, lambda sound: [crops.whole(sound, sample_rate, channels).samples])

    if wanted == SPECTRAL:
        say("fitting the spectral autoencoder")
        found = learned(spectral_autoencoder.SAMPLE_RATE, spectral_autoencoder.CHANNELS)
        return spectral_autoencoder.fit_spectral_autoencoder(found, seed=options.seed)
    if wanted not in OOBLECK_SIZES:
        return load_autoencoder(wanted)
    from megatron_music.audio.fit_oobleck import fit_oobleck
    from megatron_music.audio.oobleck import SIZES

    say(f"fitting the Oobleck autoencoder {wanted} in {counted(options.autoencoder_steps, 'step')}")
    size = SIZES[wanted]
    found = learned(size.sample_rate, size.channels)
    return fit_oobleck(found, size, steps=options.autoencoder_steps, seed=options.seed, device=device)


def _keep(encoder, folder: Path) -> None:
    """Save an encoder whole or not at all."""
    with appearing_folder(folder) as unfinished:
        encoder.save(unfinished)


def latent_frames(options: LatentsOptions, autoencoder: Autoencoder) -> int:
    """Latent frames of a sample."""
    return max(round(options.seconds * autoencoder.sample_rate / autoencoder.downsampling), 1)


def hash_of(folder: Path) -> str:
    """SHA-256 of all files of an encoder's folder, by name."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        found.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
