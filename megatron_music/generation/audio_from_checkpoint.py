"""From checkpoints on disk to a ``SoundMaker``: where training's files, encoders and generation's models are joined."""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_music.audio.autoencoder import Autoencoder, load_autoencoder
from megatron_music.audio.music_encoder import load_music_encoder
from megatron_music.audio.text_encoder import TextEncoder, load_text_encoder
from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.folder import CONFIG
from megatron_music.checkpoints.manifest import fingerprint
from megatron_music.config.errors import ConfigError
from megatron_music.config.flow_sections import FlowModelConfig
from megatron_music.config.load import read_run
from megatron_music.config.run import FlowRunConfig
from megatron_music.data.latents_index import ENCODERS, check_encoders, read_index
from megatron_music.generation.audio import SoundMaker
from megatron_music.generation.load_models import load_flow_model
from megatron_music.parallel import distributed


def load_sound_maker(checkpoints: Sequence[str | os.PathLike], *, averaged: bool = True) -> SoundMaker:
    """Stage 2, and stage 1 where it is given, with the encoders that lie in their checkpoints.

    Under torchrun every process must call this, and make the same calls of what it gives; each layer is split over all.

    Args:
        checkpoints: of a dit, and of a text2muq or none: then the encoder of music embeds the words. In any order.
        averaged: with the averages of their weights, where the runs kept them.

    Raises:
        ValueError: no dit, two of a kind, a GPT, stages that learned from other encoders, or encoders that are not
            those of the index or do not go with the models.
    """
    found = {}
    for named in checkpoints:
        checkpoint = find_checkpoint(named)
        run = read_run(checkpoint / CONFIG)
        kind = run.model.kind if isinstance(run, FlowRunConfig) else "gpt"
        if kind in found or kind == "gpt":
            raise ConfigError(
                f"{named} is of a {kind}; name one run of a dit, and one of a text2muq beside it if you like"
            )
        found[kind] = checkpoint, run
    if "dit" not in found:
        raise ConfigError("no checkpoint of a dit was named, which makes the sound; name one run of model.kind=dit")
    indices = [read_index(checkpoint) for checkpoint, _ in found.values()]
    if any(index["encoders"] != indices[0]["encoders"] for index in indices):
        named = " and ".join(str(checkpoint) for checkpoint, _ in found.values())
        raise ConfigError(
            f"{named} learned from latents of other encoders than each other; train both on one folder of latents"
        )
    checkpoint, folder = found["dit"][0], found["dit"][0] / ENCODERS
    index, model = read_index(checkpoint), found["dit"][1].model
    missing = {"autoencoder", "text", *(["music"] if model.conditions == "music" else [])} - index["encoders"].keys()
    if missing:
        raise ConfigError(
            f"{checkpoint} names no encoder of {' and '.join(sorted(missing))}, which its model needs; copy the run "
            f"again"
        )
    check_encoders(checkpoint)
    autoencoder, text_encoder = load_autoencoder(folder / "autoencoder"), load_text_encoder(folder / "text")
    _check_sizes(checkpoint, model, index, autoencoder, text_encoder)
    loaded, facts = {}, {}
    for kind, (checkpoint, _) in found.items():
        loaded[kind], _ = load_flow_model(checkpoint, distributed.launched_size(), averaged=averaged)
        facts |= {f"{kind}_checkpoint": checkpoint.name, f"{kind}_sha256": fingerprint(checkpoint)}
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    objectives = tuple(found[kind][1].flow.objective if kind in found else "flow" for kind in ("text2muq", "dit"))
    return SoundMaker(
        loaded.get("text2muq"),
        loaded["dit"],
        text_encoder.to(device),
        load_music_encoder(folder / "music") if loaded["dit"].hears_music else None,
        autoencoder.to(device),
        index["latent_length"],
        device,
        objectives,
        facts,
    )


def _check_sizes(
    checkpoint: Path, model: FlowModelConfig, index: dict, autoencoder: Autoencoder, text: TextEncoder
) -> None:
    """Refuse encoders that do not go with the model or with the index of its checkpoint."""
    found = {
        name: getattr(autoencoder, name) for name in ("latent_channels", "sample_rate", "channels", "downsampling")
    }
    found |= {"text_size": text.size, "text_length": text.length}
    for name, value in found.items():
        wanted = getattr(model, name, None) or index[name]
        if value != wanted:
            part = "text encoder" if name.startswith("text") else "autoencoder"
            raise ConfigError(
                f"the {part} in {checkpoint / ENCODERS} has {name}={value}, where its model takes {wanted}; copy the "
                f"run again"
            )
