"""A pipeline of diffusers as a run of ours, beside the pipeline itself; and back. All weights are random."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from published_pipeline import published  # noqa: F401 (a fixture)
from tiny_flow import SIZE
from tiny_latents import flow_run, tiny_latents
from tiny_sounds import tiny_sounds

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.data.build_latents import build_latents
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.flow.noise import sample_noise
from megatron_music.generation.audio_from_checkpoint import load_sound_maker
from megatron_music.generation.dpm_solver import SIGMA_MAX, SIGMA_MIN
from megatron_music.generation.flow_sampling import FlowSampler
from megatron_music.hosts.stable_audio import (
    convert_from_stable_audio,
    convert_to_stable_audio,
)
from megatron_music.parallel import distributed
from megatron_music.training.loop import train

PROMPTS = ["slow organ", "fast"]
STEPS, GUIDANCE = 6, 3.0


@pytest.fixture(scope="module")
def run(published, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "run"
    assert main(["convert", str(published), "--to", "megatron", "-o", str(folder)]) == 0
    return folder


def pipeline_of(folder: Path):
    """The pipeline, with our steps: its own scheduler adds noise from a library that is not installed."""
    from diffusers import (
        AutoencoderOobleck,
        EDMDPMSolverMultistepScheduler,
        StableAudioDiTModel,
        StableAudioPipeline,
        StableAudioProjectionModel,
    )
    from transformers import AutoTokenizer, T5EncoderModel

    class Quarter(EDMDPMSolverMultistepScheduler):
        """Steps that tell the model the share of the quarter circle, as the published scheduler does."""

        def precondition_noise(self, sigma):
            return torch.atan(torch.as_tensor(sigma)) * 2 / torch.pi

    scheduler = Quarter(
        sigma_min=SIGMA_MIN,
        sigma_max=SIGMA_MAX,
        sigma_data=1.0,
        sigma_schedule="exponential",
        prediction_type="v_prediction",
    )
    warnings.simplefilter("ignore")
    found = StableAudioPipeline(
        AutoencoderOobleck.from_pretrained(folder / "vae"),
        T5EncoderModel.from_pretrained(folder / "text_encoder"),
        StableAudioProjectionModel.from_pretrained(folder / "projection_model"),
        AutoTokenizer.from_pretrained(folder / "tokenizer"),
        StableAudioDiTModel.from_pretrained(folder / "transformer"),
        scheduler,
    )
    found.set_progress_bar_config(disable=True)
    return found


def theirs(folder: Path, negative: str | None) -> np.ndarray:
    noise = torch.stack([sample_noise((SIZE.latent_channels, SIZE.latent_length), 5, [0])[0]] * len(PROMPTS))
    seconds = SIZE.latent_length * 256 / 16000
    with torch.no_grad():
        found = pipeline_of(folder)(
            PROMPTS,
            negative_prompt=None if negative is None else [negative] * len(PROMPTS),
            audio_end_in_s=seconds,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=noise,
            output_type="np",
        )
    return found.audios


@pytest.mark.parametrize("negative", [None, "organ"])
def test_sounds_are_those_of_the_pipeline(published, run, negative):
    try:
        maker = load_sound_maker([run])
        sampler = FlowSampler(STEPS, guidance_scale=GUIDANCE)
        ours = np.stack([sound.samples for sound in maker.make(PROMPTS, 1, 5, stage2=sampler, negative=negative or "")])
    finally:
        distributed.stop()
    expected = theirs(published, negative)
    assert expected.std() > 1e-3 and np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_command_writes_sounds_and_refuses_what_needs_music(run, tmp_path, capsys):
    command = ["generate", "audio", str(run), "--prompt", "slow organ", "--steps", "2"]
    assert main([*command, "-o", str(tmp_path / "sounds")]) == 0
    assert (tmp_path / "sounds" / "01-001.wav").stat().st_size > 1000
    capsys.readouterr()
    for options, sentence in ((["--rank"], "no encoder of music"), (["--towards", "fast"], "takes no music embedding")):
        assert main([*command, *options, "-o", str(tmp_path / "none")]) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "none").exists()


def test_back_to_diffusers_changes_no_bit(published, run, tmp_path):
    from safetensors.torch import load_file

    assert main(["convert", str(run), "--to", "huggingface", "-o", str(tmp_path / "back")]) == 0
    card = (tmp_path / "back" / "README.md").read_text()
    assert "# StableAudioDiTModel for text-to-music" in card and "diffusers.StableAudioPipeline.from_pretrained" in card
    for part in ("transformer", "projection_model"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        before, after = load_file(published / name), load_file(tmp_path / "back" / name)
        assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
        first, last = (
            json.loads((folder / part / "config.json").read_text()) for folder in (published, tmp_path / "back")
        )
        for config in (first, last):
            config.pop("_name_or_path", None)
        assert first == last


def test_training_goes_on_from_it(published, run, tmp_path):
    from safetensors.torch import load_file

    encoders, data = run / "iter_0000000" / "encoders", tmp_path / "data"
    options = LatentsOptions(
        seconds=SIZE.latent_length * 256 / 16000,
        autoencoder=str(encoders / "autoencoder"),
        text_encoder=str(encoders / "text"),
        min_seconds=0.1,
    )
    build_latents(tiny_sounds(tmp_path / "sounds"), data, options)
    changes = (
        "model.conditions=stable-audio",
        "flow.objective=v",
        "flow.ema_decay=0",
        "optimizer.weight_decay=0",
        "train.train_iters=1",
        "optimizer.lr_decay_style=constant",
    )
    for name, rate in (("still", 1e-30), ("moved", 1e-2)):
        folder = tmp_path / name
        train(flow_run(data, *changes, f"optimizer.lr={rate}", f"checkpoint.load={run}", f"checkpoint.save={folder}"))
        convert_to_stable_audio(folder, tmp_path / f"{name}-back")
        after = load_file(tmp_path / f"{name}-back" / "transformer" / "diffusion_pytorch_model.safetensors")
        before = load_file(published / "transformer" / "diffusion_pytorch_model.safetensors")
        assert all(torch.equal(before[key], after[key]) for key in before) == (name == "still")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder / "vae"), "vae is missing"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}'),
            "is a FluxPipeline",
        ),
        (
            lambda folder: change(folder / "transformer" / "config.json", time_proj_dim=8),
            "with 8 features of time, as no size here does",
        ),
        (
            lambda folder: change(folder / "projection_model" / "config.json", max_value=90),
            "counts seconds from 0 to 90",
        ),
        (
            lambda folder: change(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon"),
            "says epsilon",
        ),
        (
            lambda folder: change(folder / "tokenizer" / "tokenizer_config.json", model_max_length=10**30),
            "model_max_length",
        ),
        (lambda folder: cut(folder / "transformer" / "diffusion_pytorch_model.safetensors"), "describes a model of"),
        (lambda folder: cut(folder / "vae" / "diffusion_pytorch_model.safetensors"), "holds no whole Oobleck"),
        (
            lambda folder: (folder / "tokenizer" / "readme.txt").symlink_to(__file__),
            "readme.txt is a link that leads out of its folder",
        ),
        (
            lambda folder: change(folder / "vae" / "config.json", decoder_input_channels=4, encoder_hidden_size=8),
            "Oobleck",
        ),
    ],
)
def test_what_is_no_whole_pipeline_is_refused(published, tmp_path, damage, sentence):
    shutil.copytree(published, tmp_path / "copy")
    damage(tmp_path / "copy")
    with pytest.raises(ValueError, match=sentence) as error:
        convert_from_stable_audio(tmp_path / "copy", tmp_path / "run")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_other_models_are_not_written_as_a_pipeline(tmp_path):
    data = tiny_latents(tmp_path / "data")
    train(flow_run(data, "train.train_iters=1", f"checkpoint.save={tmp_path / 'run'}"))
    with pytest.raises(ConfigError, match="cannot ask; it needs dit, stable-audio and v"):
        convert_to_stable_audio(tmp_path / "run", tmp_path / "back")
    assert not (tmp_path / "back").exists()
