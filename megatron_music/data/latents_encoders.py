"""The audio, music and text encoders of a dataset of latents: loaded, or fitted to the training files once."""

import json
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
    SmallMusicEncoder,
    features_of,
    fit_music_encoder,
    load_music_encoder,
)
from megatron_music.audio.text_encoder import TextEncoder, fit_words, load_text_encoder
from megatron_music.audio.waveform import Waveform
from megatron_music.config.errors import counted
from megatron_music.corpora.captioned import Captioned
from megatron_music.data.crops import Crops
from megatron_music.data.latents_index import encoder_hash
from megatron_music.data.latents_options import OOBLECK_SIZES, SPECTRAL, LatentsOptions
from megatron_music.storage.reading import read_bytes
from megatron_music.storage.sealed import parse_sealed, sealed
from megatron_music.storage.writing import appearing_folder, write_whole

FITTED_SOUNDS = 256  # that the autoencoder learns from at most,
FITTED_SECONDS, FITTED_BYTES = 300, 320 << 20  # of each, and of all together
FITTED_CROPS, FITTED_CROPS_OF_ONE = 4096, 64  # that the encoders of music and words learn from at most, and of one file
ENCODER_HASHES = "encoders.json"


class Encoders(NamedTuple):
    """The three encoders of one dataset."""

    autoencoder: Autoencoder
    music: MusicEncoder
    text: TextEncoder


def encoders_of(
    folder: Path,
    sounds: Sequence[Captioned],
    crops: Crops,
    options: LatentsOptions,
    say: Callable,
    device: torch.device | str,
) -> Encoders:
    """The encoders on a device, those to be fitted fitted once; what is in the folder is whole."""
    folder.mkdir(exist_ok=True)
    if not (folder / "autoencoder").exists():
        _keep(_autoencoder(sounds, crops, options, say, device), folder / "autoencoder")
    autoencoder = load_autoencoder(folder / "autoencoder").to(device)
    length = latent_frames(options, autoencoder) * autoencoder.downsampling

    def learned(of: Callable[[Waveform], np.ndarray]) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """What crops give, one row each, and their captions."""
        found = crops.some(
            sounds,
            lambda sound, crop: (of(crop.waveform), sound.captions),
            lambda found: len(found) >= FITTED_CROPS,
            autoencoder.sample_rate,
            autoencoder.channels,
            length,
            FITTED_CROPS_OF_ONE,
        )[:FITTED_CROPS]
        rows, captions = zip(*found, strict=True) if found else ((), ())
        return np.stack(rows) if rows else np.zeros((0, 1), np.float32), list(captions)

    features = None
    muq_python = options.music_encoder.removeprefix("muq:") if options.music_encoder.startswith("muq:") else None
    if not (folder / "music").exists():
        if options.music_encoder == "small":
            say("fitting the encoder of music")
            features = learned(features_of)
            music = fit_music_encoder(*features)
        elif muq_python is not None:
            music = MuQMuLanProcess(muq_python, os.environ.get(MUQ_MODEL, MUQ_NAME))
        else:
            music = load_music_encoder(options.music_encoder)
        _keep(music, folder / "music")
        close(music)
    music = load_music_encoder(folder / "music", muq_python)
    try:
        if not (folder / "text").exists():
            if options.text_encoder == "words":
                say("fitting the encoder of words")
                if isinstance(music, SmallMusicEncoder):
                    rows, captions = features or learned(features_of)
                    embeddings = music.embed_features(rows)
                else:
                    embeddings, captions = learned(lambda waveform: music.embed_audio([waveform])[0])
                owners = [number for number, texts in enumerate(captions) for _ in texts]
                text = fit_words(
                    [caption for texts in captions for caption in texts], embeddings[owners], seed=options.seed
                )
            else:
                text = load_text_encoder(options.text_encoder)
            _keep(text, folder / "text")
        return Encoders(autoencoder, music, load_text_encoder(folder / "text").to(device))
    except BaseException:
        close(music)
        raise


def close(music: MusicEncoder) -> None:
    """End the process of an encoder of music that has one."""
    if isinstance(music, MuQMuLanProcess):
        music.close()


def keep_hashes(building: Path, folder: Path) -> dict[str, str]:
    """The hashes of the encoders in a folder: written once, and compared from then on.

    Raises:
        ValueError: an encoder is not the one that the shards so far were made with, or the file of hashes is damaged.
    """
    found = {name: encoder_hash(folder / name) for name in Encoders._fields}
    path = building / ENCODER_HASHES
    if not path.exists():
        write_whole(path, sealed(json.dumps(found) + "\n"))
    try:
        wanted = parse_sealed(read_bytes(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used ({error}); remove {building} and build again") from None
    for name, digest in found.items():
        if wanted.get(name) != digest:
            raise ValueError(
                f"{folder / name} was changed since the shards were made with it; remove {building} and build again"
            )
    return found


def _autoencoder(
    sounds: Sequence[Captioned], crops: Crops, options: LatentsOptions, say: Callable, device: torch.device | str
) -> Autoencoder:
    """The one that is asked for, fitted or read."""
    wanted = options.autoencoder

    def learned(sample_rate: int, channels: int) -> list[np.ndarray]:
        return crops.some(
            sounds,
            lambda sound, crop: crop.waveform.samples,
            lambda found: len(found) >= FITTED_SOUNDS or _bytes(found) >= FITTED_BYTES,
            sample_rate,
            channels,
            FITTED_SECONDS * sample_rate,
            1,
            pads=False,
        )

    if wanted == SPECTRAL:
        say("fitting the spectral autoencoder")
        found = learned(spectral_autoencoder.SAMPLE_RATE, spectral_autoencoder.CHANNELS)
        return spectral_autoencoder.fit_spectral_autoencoder(found, seed=options.seed)
    if wanted not in OOBLECK_SIZES:
        return load_autoencoder(wanted)
    from megatron_music.audio.oobleck import SIZES
    from megatron_music.audio.train_oobleck import fit_oobleck

    say(f"fitting the Oobleck autoencoder {wanted} in {counted(options.autoencoder_steps, 'step')}")
    size = SIZES[wanted]
    found = learned(size.sample_rate, size.channels)
    return fit_oobleck(found, size, steps=options.autoencoder_steps, seed=options.seed, device=device)


def _bytes(arrays: Sequence[np.ndarray]) -> int:
    return sum(array.nbytes for array in arrays)


def _keep(encoder, folder: Path) -> None:
    """Save an encoder whole or not at all."""
    with appearing_folder(folder) as unfinished:
        encoder.save(unfinished)


def latent_frames(options: LatentsOptions, autoencoder: Autoencoder) -> int:
    """Latent frames of a sample."""
    return max(round(options.seconds * autoencoder.sample_rate / autoencoder.downsampling), 1)
