"""Encoders that lie in a stranger's checkpoint or dataset: nothing of theirs is started, imported or asked for on the
network.
"""

import io
import json
import sys

import pytest

from megatron_music.audio.music_encoder import MUQ_NAME, load_music_encoder
from megatron_music.audio.text_encoder import load_text_encoder


def program_that_marks(tmp_path):
    """A program whose run leaves a file."""
    (tmp_path / "program").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "program").chmod(0o755)
    return str(tmp_path / "program")


@pytest.mark.parametrize("model", ["-esystem", MUQ_NAME])
def test_a_folder_does_not_say_which_program_is_started(tmp_path, monkeypatch, model):
    monkeypatch.delenv("MEGATRON_MUSIC_MUQ_PYTHON", raising=False)
    (tmp_path / "muq.json").write_text(
        json.dumps({"python": program_that_marks(tmp_path), "model": model, "licence": "x"})
    )
    with pytest.raises(ValueError, match="set MEGATRON_MUSIC_MUQ_PYTHON"):
        load_music_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model", ["-esystem", "stranger/model", "/tmp", None, ["x"]])
def test_a_folder_does_not_say_which_model_is_loaded(tmp_path, monkeypatch, model):
    monkeypatch.setenv("MEGATRON_MUSIC_MUQ_PYTHON", program_that_marks(tmp_path))
    (tmp_path / "muq.json").write_text(json.dumps({"model": model}))
    with pytest.raises(ValueError, match="which is not OpenMuQ/MuQ-MuLan-large; set MEGATRON_MUSIC_MUQ_MODEL"):
        load_music_encoder(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "answer",
    [
        "import os; os.write(1, (2**60).to_bytes(8, 'little'))",
        "print('hello'); import time; time.sleep(60)",
        "import os; os.close(1); import time; time.sleep(60)",
    ],
    ids=["a length of an exabyte", "a line on its output", "an output that is closed"],
)
def test_a_process_that_answers_nonsense_is_one_sentence(tmp_path, answer, monkeypatch):
    from megatron_music.audio import music_encoder

    monkeypatch.setattr(music_encoder, "MUQ_SECONDS", 20.0)
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -uc "{answer}"\n')
    (tmp_path / "python").chmod(0o755)
    with pytest.raises(ValueError, match=r"MuQ-MuLan in .* has"):
        music_encoder.MuQMuLanProcess(str(tmp_path / "python"))


def test_code_beside_a_text_encoder_is_not_run(tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\ny\n"))  # what a question would be answered with
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "encoder").mkdir()
    (tmp_path / "encoder" / "evil.py").write_text(code + "class Config: pass\n")
    auto = {
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Config", "AutoTokenizer": ["evil.Config", None]}
    }
    (tmp_path / "encoder" / "config.json").write_text(json.dumps({"model_type": "evil", **auto}))
    (tmp_path / "encoder" / "tokenizer_config.json").write_text(json.dumps(auto))
    (tmp_path / "encoder" / "hub.json").write_text(json.dumps({"name": ".", "length": 16}))
    with pytest.raises(ValueError, match="no text encoder that transformers can load"):
        load_text_encoder(tmp_path / "encoder")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("hub", "sentence"),
    [
        ({"name": "stranger/encoder", "length": 16, "revision": "abc"}, "hf download stranger/encoder --revision abc"),
        ({"name": "../../etc", "length": 16}, "which is a path"),
        ({"name": "/etc", "length": 16}, "which is a path"),
        ([], "names no text encoder"),
        ({"name": "x"}, "names no text encoder"),
        ({"name": "x", "length": 2**40}, "names no text encoder"),
        ({"name": "x", "length": 16, "revision": 5}, "names no text encoder"),
    ],
)
def test_a_text_encoder_of_the_hub_comes_from_the_cache_alone(tmp_path, hub, sentence):
    pytest.importorskip("transformers")
    asked = []
    (tmp_path / "hub.json").write_text(json.dumps(hub))
    import socket

    real = socket.socket.connect
    socket.socket.connect = lambda *words: asked.append(words) or real(*words)
    try:
        with pytest.raises(ValueError, match=sentence):
            load_text_encoder(tmp_path)
    finally:
        socket.socket.connect = real
    assert not asked


def text_encoder_in(folder, *, is_named_by_the_user: bool):
    pytest.importorskip("transformers")
    from megatron_music.audio.text_encoder import HuggingFaceTextEncoder

    encoder = object.__new__(HuggingFaceTextEncoder)
    encoder.where, encoder.length, encoder._follows_links = str(folder), 16, is_named_by_the_user
    return encoder


def test_a_link_beside_a_text_encoder_does_not_bring_a_file_of_the_users_into_a_dataset(tmp_path):
    (tmp_path / "secret").write_text("key")
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text("{}")
    (tmp_path / "given" / "readme.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(
        ValueError, match=r"readme.txt is a link that leads out of its folder; copy the file in its place"
    ):
        text_encoder_in(tmp_path / "given", is_named_by_the_user=True).save(tmp_path / "kept")
    of_a_checkpoint = text_encoder_in(tmp_path / "given", is_named_by_the_user=False)
    of_a_checkpoint.save(tmp_path / "other")
    of_a_checkpoint.save(tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == ["config.json", "hub.json"]


def test_a_text_encoder_in_the_hubs_cache_is_copied_whole(tmp_path):
    """There every file is a link to the blobs beside."""
    snapshot = tmp_path / "models--google--t5" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    (snapshot.parent.parent / "blobs" / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    text_encoder_in(snapshot, is_named_by_the_user=True).save(tmp_path / "kept")
    assert (tmp_path / "kept" / "config.json").read_text() == "{}" and not (
        tmp_path / "kept" / "config.json"
    ).is_symlink()
