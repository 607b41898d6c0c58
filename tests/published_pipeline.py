"""A whole Stable Audio pipeline in the published layout, small and random."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_flow import SIZE, oracle
from tiny_text_encoder import hugging_face_folder

from megatron_music.audio.oobleck import OobleckSize, build_network


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A folder in the layout of the published one, everything in it small and random."""
    from diffusers import EDMDPMSolverMultistepScheduler, StableAudioProjectionModel

    folder = tmp_path_factory.mktemp("published") / "pipeline"
    text = hugging_face_folder(tmp_path_factory.mktemp("text") / "t5", "t5", SIZE.context_input_size)
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "text_encoder").mkdir()
    for path in text.iterdir():
        shutil.copy(path, folder / ("tokenizer" if "token" in path.name else "text_encoder") / path.name)
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_max_length": 6}))
    torch.manual_seed(3)
    oracle().save_pretrained(folder / "transformer")
    projection = StableAudioProjectionModel(SIZE.context_input_size, SIZE.context_input_size, 0, 512)
    projection.save_pretrained(folder / "projection_model")
    vae = build_network(OobleckSize(SIZE.latent_channels, 4, (1, 2, 2), (4, 8, 8), 2, 16000))
    vae.save_pretrained(folder / "vae")
    EDMDPMSolverMultistepScheduler(prediction_type="v_prediction").save_pretrained(folder / "scheduler")
    parts = ("transformer", "projection_model", "vae", "text_encoder", "tokenizer", "scheduler")
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableAudioPipeline"} | {part: [] for part in parts})
    )
    return folder
