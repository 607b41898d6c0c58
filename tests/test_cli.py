"""Commands as a person types them, and what is said of bad input."""

import json
import subprocess
import sys

import pytest

from megatron_music.cli import main
from megatron_music.data.build import build_tokens
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Score, TimeSignature
from tiny import tiny_score


@pytest.fixture
def midi(tmp_path):
    write_midi(tiny_score(), tmp_path / "a.mid")
    return tmp_path / "a.mid"


@pytest.fixture
def dataset(midi, tmp_path):
    build_tokens([midi], tmp_path / "out")
    return tmp_path / "out"


def run(capsys, *arguments) -> tuple[int, str, str]:
    status = main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def refused(capsys, *arguments) -> str:
    """The one sentence said of bad input."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "") and err.startswith("megatron-music: ") and err.count("\n") == 1, err
    return err


def test_tokenize_and_back(capsys, midi, tmp_path):
    status, text, err = run(capsys, "tokenize", midi)
    assert (status, err) == (0, "") and text.startswith("PIECE_START TRACK_START INST=SOPRANO BAR_START NOTE_ON=72 ")
    (tmp_path / "tokens.txt").write_text(text)
    assert run(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid")[0] == 0
    assert quantize(read_midi(tmp_path / "b.mid")) == tiny_score()


def test_tokenize_windows(capsys, midi, tmp_path):
    _, text, _ = run(capsys, "tokenize", midi, "--bars", 2, "--hop", 1)
    assert len(text.splitlines()) == 3
    (tmp_path / "tokens.txt").write_text(text)
    assert "holds 3 pieces" in refused(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid")
    assert run(capsys, "detokenize", tmp_path / "tokens.txt", "-o", tmp_path / "b.mid", "--piece", 3)[0] == 0
    assert quantize(read_midi(tmp_path / "b.mid")).num_bars == 2


def test_a_waltz_is_said_to_be_one(capsys, tmp_path):
    write_midi(Score(tiny_score().tracks, 4, (TimeSignature(0, 3, 4),)), tmp_path / "waltz.mid")
    status, text, err = run(capsys, "tokenize", tmp_path / "waltz.mid")
    assert status == 0 and text.startswith("PIECE_START") and "not all in 4/4" in err
    assert "has no part in 4/4" in refused(capsys, "tokenize", tmp_path / "waltz.mid", "--bars", 4)


def test_plot(capsys, midi, tmp_path):
    assert run(capsys, "plot", midi, "-o", tmp_path / "roll.png")[0] == 0
    assert (tmp_path / "roll.png").read_bytes().startswith(b"\x89PNG")


def test_build_and_inspect(capsys, midi, tmp_path):
    status, text, _ = run(capsys, "build", "tokens", midi.parent, "-o", tmp_path / "out", "--bars", 2)
    assert status == 0 and "1 of 1 used" in text
    status, text, _ = run(capsys, "inspect", tmp_path / "out", "--json")
    assert json.loads(text)["splits"]["train"]["documents"] == 3
    _, text, _ = run(capsys, "inspect", tmp_path / "out", "--document", 1)
    assert text.startswith("PIECE_START") and text.endswith("DOCUMENT_END\n")
    assert run(capsys, "inspect", tmp_path / "out", "--document", 0, "-o", tmp_path / "d.mid")[0] == 0
    assert quantize(read_midi(tmp_path / "d.mid")).num_bars == 2


def test_doctor(capsys):
    status, text, _ = run(capsys, "doctor", "--json")
    findings = {finding["name"]: finding for finding in json.loads(text)}
    assert status == 0 and findings["symusic"]["status"] == "ok" and findings["python"]["status"] == "ok"


def test_recipes(capsys):
    assert "demo" in run(capsys, "recipes")[1]


@pytest.mark.parametrize(("arguments", "said"), [
    (["tokenize", "nowhere.mid"], "nowhere.mid cannot be read"),
    (["tokenize", "{text}"], "is no MIDI file"),
    (["tokenize", "{midi}", "--bars", "-1"], "bars is -1"),
    (["detokenize", "nowhere.txt", "-o", "x.mid"], "nowhere.txt cannot be read"),
    (["detokenize", "{midi}", "-o", "x.mid"], "cannot be read as text"),
    (["detokenize", "{text}", "-o", "x.mid"], "is 'no', which is not in the vocabulary"),
    (["plot", "nowhere.mid", "-o", "x.png"], "nowhere.mid cannot be read"),
    (["build", "tokens", "nowhere", "-o", "out"], "nowhere does not exist"),
    (["build", "tokens", "{empty}", "-o", "out"], "no MIDI files in"),
    (["build", "tokens", "{text}", "-o", "out"], "none of the 1 files gives a document"),
    (["build", "tokens", "{midi}", "-o", "out", "--split", "half"], "--split is 'half'"),
    (["build", "tokens", "{midi}", "-o", "out", "--split", "1,1,1"], "does not add up to 1"),
    (["build", "tokens", "{midi}", "-o", "out", "--workers", "0"], "workers is 0"),
    (["build", "tokens", "{midi}", "-o", "{empty}/.."], "is not empty and holds no dataset"),
    (["inspect", "{empty}"], "report.json is missing"),
    (["inspect", "{midi}"], "report.json is missing"),
    (["plot", "{midi}", "-o", "no/roll.png"], "no does not exist"),
    (["plot", "{midi}", "-o", "roll"], "does not end in .png"),
    (["plot", "{midi}", "-o", "{empty}"], "is a folder"),
    (["corpus", "bach", "-o", "."], "holds other MIDI files"),
    (["build", "tokens", "{midi}", "-o", "out", "--split", "nan,.5,.5"], "does not add up to 1"),
    (["train", "nosuch"], "nosuch"),
    (["train", "tiny", "train.steps=3"], "steps"),
    (["train", "tiny", "data.path={empty}"], "holds no train.bin"),
    (["generate", "midi", "{empty}", "-o", "out"], "{empty}"),
    (["generate", "midi", "{empty}", "-o", "out", "--num", "0"], "--num is 0"),
    (["generate", "midi", "{empty}", "-o", "out", "--temperature", "-1"], "temperature is -1"),
    (["generate", "midi", "{empty}", "-o", "out", "--continue", "nowhere.mid"], "nowhere.mid cannot be read"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_written(capsys, midi, tmp_path, monkeypatch, arguments, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mid").write_text("no music")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    places = {"midi": midi, "text": tmp_path / "text.mid", "empty": tmp_path / "empty"}
    assert said.format(**places) in refused(capsys, *(argument.format(**places) for argument in arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_document_that_is_not_there(capsys, dataset):
    assert "--document 7 is not in 0..0 of train" in refused(capsys, "inspect", dataset, "--document", 7)
    assert "valid.bin is empty" in refused(capsys, "inspect", dataset, "--document", 0, "--split", "valid")
    assert "needs --document" in refused(capsys, "inspect", dataset, "-o", "x.mid")


def test_a_full_disk_is_a_failure_not_bad_input(capsys, midi, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "out")

    monkeypatch.setattr("megatron_music.data.build.write_tokenizer_folder", full)
    status, _, err = run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")
    assert status == 1 and "No space left on device (out)" in err and not (tmp_path / "out").exists()


def test_ctrl_c_leaves_nothing(capsys, midi, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("megatron_music.data.build.write_tokenizer_folder", interrupt)
    status, _, err = run(capsys, "build", "tokens", midi, "-o", tmp_path / "out")
    assert status == 1 and "stopped" in err and sorted(p.name for p in tmp_path.iterdir()) == ["a.mid"]


def test_a_missing_extra_is_named(capsys, monkeypatch, midi):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "megatron_music.music.pianoroll", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.collections", None)
    assert '-e ".[plot]"' in refused(capsys, "plot", midi, "-o", "x.png")


def test_wrong_words_exit_with_2_and_one_sentence():
    done = subprocess.run([sys.executable, "-m", "megatron_music", "sing"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "invalid choice: 'sing'" in done.stderr


def test_a_reader_that_leaves_early_is_no_error(midi):
    command = f"{sys.executable} -m megatron_music tokenize {midi} --bars 1 | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
