"""Converts Stable Audio Open: diffusers' folder to a run, and such a run back to the parts that training changes.

Weights are read from safetensors alone. Which tensor is which is known to models/diffusers_weights.py; how such a model
is asked, to models/conditioners.py (``stable-audio``) and generation/dpm_solver.py.
"""

import inspect
import json
import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from megatron_music.audio.oobleck import load_oobleck
from megatron_music.audio.text_encoder import HUB, load_text_encoder
from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.new_folder import new_folder, one_process
from megatron_music.config.errors import ConfigError, refuse_unless
from megatron_music.config.flow_sections import FlowConfig, FlowModelConfig
from megatron_music.config.flow_sizes import DIT_SIZES, DiTSize
from megatron_music.config.run import FlowRunConfig
from megatron_music.config.sections import LoggingConfig, ParallelConfig, TrainConfig
from megatron_music.data.latents_index import (
    ENCODERS,
    INDEX,
    LatentsInfo,
    encoder_files,
    encoder_hash,
    write_index,
)
from megatron_music.generation.load_models import BYTES_PER_PARAMETER, load_flow_model
from megatron_music.models.build import build_flow_model
from megatron_music.models.conditioners import LONGEST_SECONDS
from megatron_music.models.diffusers_weights import (
    from_diffusers,
    load_weights,
    to_diffusers,
)
from megatron_music.parallel import distributed
from megatron_music.storage.reading import (
    copy_regular,
    is_outward_link,
    read_json_object,
)
from megatron_music.training.model_card import write_card
from megatron_music.training.state import save_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # diffusers names what of torch and of itself it finds old
    from diffusers import StableAudioDiTModel, StableAudioProjectionModel

MODEL_INDEX, PIPELINE = "model_index.json", "StableAudioPipeline"
LARGEST_SIZE = 1 << 24
# A number's embedder: ours to theirs.
_NUMBER = {"frequencies": "0.weights", "layer.weight": "1.weight", "layer.bias": "1.bias"}
_NUMBERS = {"seconds_start": "start_number_conditioner", "seconds_total": "end_number_conditioner"}
_EMBEDDERS = {
    f"conditions.{ours}.{name}": f"{theirs}.time_positional_embedding.{their_name}"
    for ours, theirs in _NUMBERS.items()
    for name, their_name in _NUMBER.items()
}


def convert_from_stable_audio(source: str | os.PathLike, folder: str | os.PathLike) -> int:
    """Write diffusers' folder of a Stable Audio pipeline as a run that has not begun: weights and encoders.

    `generate audio` makes sounds of it, and ``checkpoint.load`` trains on from it.

    Args:
        source: with transformer/, projection_model/, vae/, text_encoder/, tokenizer/ and scheduler/, as published.
        folder: a new one, or an empty one; it appears whole or not at all.

    Returns:
        The number of parameters of the DiT.

    Raises:
        ValueError: a part is missing, damaged, of other shapes, or trained in a way that is not known here.
    """
    source = Path(source)
    _check_pipeline(source)
    name, size = _size_of(_config(source, "transformer", StableAudioDiTModel), source)
    _check_held(size.parameter_count, source / "transformer")
    _check_projection(_config(source, "projection_model", StableAudioProjectionModel), size, source)
    transformer = _part(source, "transformer", StableAudioDiTModel)
    projection = _part(source, "projection_model", StableAudioProjectionModel)
    dtype = torch.float32 if {value.dtype for value in transformer.parameters()} == {torch.float32} else torch.bfloat16
    config = FlowRunConfig(
        model=FlowModelConfig(
            kind="dit",
            size=name,
            conditions="stable-audio",
            num_layers=size.num_layers,
            hidden_size=size.hidden_size,
            num_attention_heads=size.num_attention_heads,
            ffn_hidden_size=size.ffn_hidden_size,
            text_size=size.context_input_size,
            latent_channels=size.latent_channels,
            latent_length=size.latent_length,
        ),
        flow=FlowConfig(objective="v", ema_decay=0.0),
        train=TrainConfig(bf16=dtype == torch.bfloat16),
        logging=LoggingConfig(sample_pieces=0),
    )
    with new_folder(folder) as unfinished, one_process():
        parts = unfinished / ENCODERS
        _copy_encoders(source, parts)
        info, encoders = _info(parts, size)
        write_index(unfinished, info, {}, encoders)
        files = dict(encoder_files(unfinished)) | {INDEX: (unfinished / INDEX).read_bytes()}
        shutil.rmtree(parts)
        (unfinished / INDEX).unlink()
        distributed.start(ParallelConfig())
        distributed.seed_for_building(config.train.seed)
        module = build_flow_model(config, dtype)
        weights = from_diffusers(config.model.shape, dict(transformer.named_parameters()))
        theirs = projection.state_dict()
        weights |= {ours: theirs[their_name] for ours, their_name in _EMBEDDERS.items()}
        load_weights(module, {name: value.to(dtype) for name, value in weights.items()})
        save_weights(unfinished, module, config, files)
    return size.parameter_count


def convert_to_stable_audio(checkpoint: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Write a run with ``model.conditions=stable-audio`` as transformer/ and projection_model/, for their places in a
    pipeline.

    What else a pipeline has, training does not change. The averages of the weights are written where there are some.

    Args:
        folder: a new one, or an empty one; it appears whole or not at all.

    Raises:
        ValueError: no checkpoint, or one of another model or objective.
    """
    checkpoint = find_checkpoint(checkpoint)
    with new_folder(folder) as unfinished, one_process():
        module, run = load_flow_model(checkpoint)
        refuse_unless(
            run.model.kind == "dit" and run.model.conditions == "stable-audio" and run.flow.objective == "v",
            f"{checkpoint} is of model.kind={run.model.kind}, model.conditions={run.model.conditions} and "
            f"flow.objective={run.flow.objective}, which diffusers' {PIPELINE} cannot ask; it needs dit, stable-audio "
            f"and v",
        )
        size: DiTSize = run.model.shape
        weights = {name: value.detach().float().cpu() for name, value in module.named_parameters()}
        embedders = {theirs: weights.pop(ours) for ours, theirs in _EMBEDDERS.items()}
        transformer = StableAudioDiTModel(
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
        width = size.context_input_size
        projection = StableAudioProjectionModel(width, width, 0, int(LONGEST_SECONDS))
        transformer.load_state_dict(to_diffusers(size, weights), strict=True)
        projection.load_state_dict(embedders, strict=True)
        transformer.save_pretrained(unfinished / "transformer")
        projection.save_pretrained(unfinished / "projection_model")
        parameters = sum(value.numel() for value in transformer.parameters())
        write_card(unfinished, checkpoint, run, type(transformer).__name__, parameters, "float32")


def _check_pipeline(source: Path) -> None:
    found = _json(source / MODEL_INDEX).get("_class_name")
    refuse_unless(found == PIPELINE, f"{source} is a {found}, and not diffusers' {PIPELINE}; name the folder of one")
    for name in ("transformer", "projection_model", "vae", "text_encoder", "tokenizer", "scheduler"):
        refuse_unless((source / name).is_dir(), f"{source / name} is missing; copy the whole pipeline")
    path = source / "scheduler" / "scheduler_config.json"
    found = _json(path).get("prediction_type", "v_prediction")
    refuse_unless(
        found == "v_prediction",
        f"{path} says {found}, where v_prediction is known here; use the published model's form",
    )


def _json(path: Path) -> dict:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); copy the whole pipeline") from None


def _config(source: Path, name: str, kind: type) -> SimpleNamespace:
    """What a part's config.json says, with the defaults of its class for what it does not say; no model is built.

    Raises:
        ConfigError: it cannot be read, or holds no whole numbers where sizes are wanted.
    """
    path = source / name / "config.json"
    defaults = {
        key: value.default for key, value in inspect.signature(kind.__init__).parameters.items() if key != "self"
    }
    found = defaults | _json(path)
    for key, default in defaults.items():
        is_whole = isinstance(found[key], int) and not isinstance(found[key], bool)
        refuse_unless(
            not isinstance(default, int) or isinstance(default, bool) or (is_whole and 1 <= found[key] <= LARGEST_SIZE),
            f"{path} says {key}={str(found[key])[:40]}, where a whole number up to {LARGEST_SIZE:,} is wanted; copy "
            f"the whole pipeline",
        )
    return SimpleNamespace(**{key: found[key] for key in defaults})


def _check_held(parameters: int, folder: Path) -> None:
    """Refuse a model that a folder's tensors are too small for."""
    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    refuse_unless(
        parameters * BYTES_PER_PARAMETER <= held,
        f"{folder / 'config.json'} describes a model of {parameters:,} parameters, and the tensors beside it have "
        f"{held:,} bytes; "
        "copy the whole pipeline",
    )


def _part(source: Path, name: str, kind: type) -> torch.nn.Module:
    try:
        found, told = kind.from_pretrained(
            source / name,
            local_files_only=True,
            use_safetensors=True,
            torch_dtype="auto",
            output_loading_info=True,
            low_cpu_mem_usage=False,
        )
    except Exception as error:  # diffusers has many kinds for a folder that is wrong
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{source / name} cannot be read ({reason}); copy the whole pipeline, with safetensors"
        ) from None
    wrong = [*told["missing_keys"], *told["unexpected_keys"]]
    refuse_unless(
        not wrong, f"{source / name} lacks, or has too many, the tensor {wrong[0] if wrong else ''}; copy it again"
    )
    return found.requires_grad_(False)


def _size_of(config, source: Path) -> tuple[str, DiTSize]:
    """The named size that says what a run's fields do not, and the size itself."""
    width = config.num_attention_heads * config.attention_head_dim
    size = DiTSize(
        num_layers=config.num_layers,
        hidden_size=width,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=4 * width,
        latent_channels=config.in_channels,
        latent_length=config.sample_size,
        context_input_size=config.cross_attention_input_dim,
        context_size=config.cross_attention_dim,
        global_size=config.global_states_input_dim,
        time_features=config.time_proj_dim,
    )
    names = [
        name
        for name, known in DIT_SIZES.items()
        if (known.context_size, known.time_features) == (size.context_size, size.time_features)
    ]
    has_its_form = (
        config.num_key_value_attention_heads == size.num_context_groups and config.out_channels == config.in_channels
    )
    refuse_unless(
        bool(names) and has_its_form,
        f"{source / 'transformer'} attends to {size.context_size} numbers a word by "
        f"{config.num_key_value_attention_heads} heads, "
        f"with {size.time_features} features of time, as no size here does; use the published model's form",
    )
    return names[-1], size


def _check_projection(config, size: DiTSize, source: Path) -> None:
    width, path = size.context_input_size, source / "projection_model"
    refuse_unless(
        (config.min_value, config.max_value) == (0, LONGEST_SECONDS),
        f"{path} counts seconds from {config.min_value} to {config.max_value}, where 0 to {LONGEST_SECONDS:g} are "
        f"known here",
    )
    refuse_unless(
        config.text_encoder_dim == config.conditioning_dim == width and size.global_size == 2 * width,
        f"{path} maps words of {config.text_encoder_dim} to {config.conditioning_dim}, where the transformer takes "
        f"{width} as they "
        "are; use the published model's form",
    )


def _copy_encoders(source: Path, folder: Path) -> None:
    load_oobleck(source / "vae").save(
        folder / "autoencoder"
    )  # as `build latents` saves it, so that both are known as one
    (folder / "text").mkdir()
    for part in ("text_encoder", "tokenizer"):
        for path in sorted((source / part).iterdir()):
            if path.is_file() and path.suffix not in (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5"):
                refuse_unless(
                    not is_outward_link(path),
                    f"{path} is a link that leads out of its folder; copy the file in its place",
                )
                copy_regular(path, folder / "text" / path.name, follow_links=True)
    path = source / "tokenizer" / "tokenizer_config.json"
    length = _json(path).get("model_max_length")
    refuse_unless(
        isinstance(length, int) and 0 < length <= 4096,
        f"{path} says model_max_length={length}; set it to what the model was trained on, 128",
    )
    (folder / "text" / HUB).write_text(json.dumps({"name": ".", "length": length}) + "\n", encoding="utf-8")


def _info(folder: Path, size: DiTSize) -> tuple[LatentsInfo, dict[str, dict]]:
    """What the encoders that were copied are; each is loaded once, so that what cannot be is refused now."""
    autoencoder, text = load_oobleck(folder / "autoencoder"), load_text_encoder(folder / "text")
    refuse_unless(
        (autoencoder.latent_channels, text.size) == (size.latent_channels, size.context_input_size),
        f"the transformer takes {size.latent_channels} channels and words of {size.context_input_size}, where the "
        f"autoencoder "
        f"gives {autoencoder.latent_channels} and the text encoder {text.size}; copy the parts of one pipeline",
    )
    info = LatentsInfo(
        size.latent_channels,
        size.latent_length,
        autoencoder.sample_rate,
        autoencoder.channels,
        autoencoder.downsampling,
        0,
        text.length,
        text.size,
    )
    parts = {"autoencoder": autoencoder, "text": text}
    return info, {name: {"name": part.name, "sha256": encoder_hash(folder / name)} for name, part in parts.items()}
