"""Encoders, autoencoders and tokenizers from strangers: their small files hold anything, their sizes are backed by
nothing.
"""

import json
import shutil
from pathlib import Path

import pytest
from published_pipeline import published  # noqa: F401 (a fixture: a whole pipeline, small and random)
from tiny_gpt import tiny_dataset
from tiny_text_encoder import hugging_face_folder

from megatron_music.audio.music_encoder import load_music_encoder
from megatron_music.audio.oobleck import SIZES, build_network, load_oobleck
from megatron_music.audio.spectral_autoencoder import load_spectral_autoencoder
from megatron_music.audio.text_encoder import load_text_encoder
from megatron_music.data.latents_index import read_index
from megatron_music.tokens.bpe import read_bpe
from megatron_music.tokens.lexicon import read_wording

NESTED = ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000]
WRONG = [*NESTED, "[]", "3", "null", '"text"', "{}", "", "\xff", '{"a": NaN}', "{{{"]
READERS = {
    "words.json": load_text_encoder,
    "hub.json": load_text_encoder,
    "spectral.json": load_spectral_autoencoder,
    "music.json": load_music_encoder,
    "muq.json": load_music_encoder,
    "config.json": load_oobleck,
    "index.json": read_index,
    "mmmtrack.json": read_wording,
    "bpe.json": read_bpe,
}


def is_sentence(error: Exception, folder: Path) -> bool:
    return str(folder) in str(error) and "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize(
    "content",
    WRONG,
    ids=[
        "deep list",
        "deep object",
        "deep whole list",
        "list",
        "number",
        "null",
        "text",
        "empty object",
        "nothing",
        "no UTF-8",
        "NaN",
        "braces",
    ],
)
@pytest.mark.parametrize("name", READERS)
def test_a_small_file_that_holds_something_else_is_one_sentence_with_its_folder(tmp_path, name, content):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError) as error:
        READERS[name](tmp_path)
    assert is_sentence(error.value, tmp_path), error.value


FIELDS = {
    "hub.json": [
        {"name": 3, "length": 5},
        {"name": ".", "length": "5"},
        {"name": ".", "length": 2**63},
        {"name": ".", "length": -1},
        {"name": None, "length": None},
    ],
    "words.json": [
        {"words": 3, "format": 1},
        {"words": ["a"], "format": []},
        {"words": None, "format": 1},
        {"words": {}, "format": "1"},
    ],
    "spectral.json": [
        {"latent_channels": "8"},
        {"latent_channels": None},
        {"latent_channels": 2**63},
        {"latent_channels": [8]},
    ],
    "index.json": [{"format": 2**63}, {"format": None, "splits": []}, {"format": [], "splits": None}],
    "mmmtrack.json": [
        {"steps_per_quarter": "12"},
        {"bars": 2**63},
        {"labels": 3},
        {"labels": [[1]]},
        {"meters": None},
        {"vocabulary_hash": None},
    ],
}


@pytest.mark.parametrize(
    ("name", "values"), [(name, values) for name, all_values in FIELDS.items() for values in all_values]
)
def test_a_field_of_another_type_is_one_sentence_with_the_folder(tmp_path, name, values):
    base = {}
    if name == "mmmtrack.json":
        base = json.loads((tiny_dataset(tmp_path / "data") / "tokenizer" / name).read_text())
    (tmp_path / name).write_text(json.dumps(base | values))
    with pytest.raises(ValueError) as error:
        READERS[name](tmp_path)
    assert is_sentence(error.value, tmp_path), error.value


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_the_least_parameters_of_an_autoencoder_are_no_more_than_it_has(name):
    found = sum(value.numel() for value in build_network(SIZES[name]).parameters())
    assert found // 20 < SIZES[name].least_parameters <= found


@pytest.mark.parametrize("value", [2**14, 2**20, 2**62, "64", None, -1, 0, [4]])
@pytest.mark.parametrize(
    "field",
    ["decoder_channels", "decoder_input_channels", "audio_channels", "downsampling_ratios", "channel_multiples"],
)
def test_an_autoencoder_of_another_size_is_refused_before_it_is_built(published, tmp_path, field, value):
    source = shutil.copytree(published / "vae", tmp_path / "vae")
    config = json.loads((source / "config.json").read_text())
    config[field] = [value] * len(config[field]) if isinstance(config[field], list) else value
    if field == "decoder_input_channels" and isinstance(value, int):
        config["encoder_hidden_size"] = 2 * value
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        load_oobleck(source)
    assert is_sentence(error.value, source)


@pytest.mark.parametrize("value", [2**20, 10**7, 2**62, "64", None, -1])
@pytest.mark.parametrize(
    "field",
    [
        "num_layers",
        "attention_head_dim",
        "num_attention_heads",
        "in_channels",
        "cross_attention_input_dim",
        "global_states_input_dim",
    ],
)
def test_a_pipeline_of_another_size_is_refused_before_it_is_built(published, tmp_path, field, value):
    from megatron_music.hosts.stable_audio import convert_from_stable_audio

    source = shutil.copytree(published, tmp_path / "pipeline")
    config = json.loads((source / "transformer" / "config.json").read_text())
    (source / "transformer" / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(ValueError) as error:
        convert_from_stable_audio(source, tmp_path / "run")
    assert is_sentence(error.value, source) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [10**7, 2**20])
def test_a_text_encoder_of_more_layers_is_refused_before_it_is_built(tmp_path, value):
    folder = hugging_face_folder(tmp_path / "t5", "t5", 16)
    load_text_encoder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": value}))
    with pytest.raises(ValueError, match=r"holds no text encoder that transformers can load .*asks for"):
        load_text_encoder(folder)
