"""A pipe, a device or a socket where a file is wanted: no command waits for what never comes."""

import os
import socket

import pytest
from bounded import run_bounded, run_command
from tiny import write_corpus
from tiny_gpt import tiny_dataset
from tiny_latents import tiny_latents

from megatron_music.cli import main

COMMANDS = {
    "tokenize": ["tokenize", "{x}.mid"],
    "detokenize": ["detokenize", "{x}.txt"],
    "plot": ["plot", "{x}.mid", "-o", "out.png"],
    "render": ["render", "{x}.mid", "-o", "out.wav"],
    "train": ["train", "{x}.yaml"],
    "mfu": ["mfu", "{x}.jsonl", "--gpu", "h100"],
    "mfu of a run": ["mfu", "{folder}", "--gpu", "h100"],
    "compare": ["compare", "{x}.log", "{x}.log"],
    "preflight": ["preflight", "{x}.sbatch"],
    "trace": ["trace", "{x}.json"],
    "labels": ["build", "tokens", "midi", "-o", "out", "--labels", "{x}.csv"],
    "split-by": ["build", "tokens", "midi", "-o", "out", "--split-by", "{x}.csv:split"],
    "list of files": ["build", "tokens", "{x}.txt", "-o", "out"],
    "captions": ["build", "latents", "{folder}", "-o", "out"],
    "prompts": ["generate", "audio", "{folder}", "-o", "out", "--prompts", "{x}.txt"],
    "continue": ["generate", "midi", "{folder}", "-o", "out", "--continue", "{x}.mid"],
    "latest": ["generate", "midi", "{folder}", "-o", "out"],
    "config.json": ["convert", "{folder}", "--to", "megatron", "-o", "out"],
    "sweep": ["sweep", "{folder}"],
    "report": ["inspect", "{folder}"],
    "report with hashes": ["inspect", "{folder}", "--verify"],
    "report of a dataset that is there": ["build", "tokens", "midi", "-o", "{folder}"],
}
NAMES = ["metrics.jsonl", "captions.jsonl", "latest", "config.json", "sweep.json", "plan.json", "model.safetensors", "model_index.json", "index.json", "report.json"]


def socket_at(path) -> None:
    os.chdir(path.parent)  # its name has 108 bytes at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, socket_at, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "socket", "device"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, command, make):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in NAMES:
        make(folder / name)
    (tmp_path / "midi").mkdir()
    (tmp_path / "midi" / "a.mid").write_bytes(bytes.fromhex("4d546864000000060000000100184d54726b0000000400ff2f00"))
    words = [word.format(x=tmp_path / "x", folder=folder) for word in COMMANDS[command]]
    for word in words:
        if word.startswith(str(tmp_path / "x")):
            path = tmp_path / word.partition(":")[0].removeprefix(f"{tmp_path}/")
            if not os.path.lexists(path):
                make(path)
    done = run_command(*words, cwd=tmp_path, seconds=300, mib=6 << 10)
    assert done.returncode in (1, 2), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
    assert not (tmp_path / "out").exists()


def test_tokens_from_a_pipe_are_read_where_a_dash_says_so(tmp_path):
    done = run_command("detokenize", "-", "-o", tmp_path / "x.mid", stdin=None, input="nonsense\n")
    assert done.returncode == 2 and "nonsense" in done.stderr


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "tokenizer/mmmtrack.json"])
def test_a_pipe_in_a_dataset_is_not_waited_for(tmp_path, name):
    data = tiny_dataset(tmp_path / "data")
    (data / name).unlink()
    os.mkfifo(data / name)
    done = run_command("train", "tiny", f"data.path={data}", "train.train_iters=1", "logging.tensorboard=false", seconds=300)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr


def test_a_pipe_in_the_place_of_what_was_left_out_is_not_waited_for(tmp_path):
    data = tmp_path / "data"
    write_corpus(tmp_path / "midi")
    assert main(["build", "tokens", str(tmp_path / "midi"), "-o", str(data)]) == 0
    (data / "quarantine.jsonl").unlink()
    os.mkfifo(data / "quarantine.jsonl")
    done = run_command("inspect", data, "--html", tmp_path / "page.html", seconds=120)
    assert done.returncode == 2 and "quarantine.jsonl is damaged" in done.stderr and "Traceback" not in done.stderr, done.stderr


CAPTION = """
from megatron_music.data.latents import DamagedLatents, LatentDataset
try:
    LatentDataset(sys.argv[1], "train").caption(1)
except DamagedLatents as error:
    answer(str(error))
"""


def test_a_pipe_in_the_place_of_captions_is_not_waited_for(tmp_path):
    data = tiny_latents(tmp_path / "data")
    (data / "texts.jsonl").unlink()
    os.mkfifo(data / "texts.jsonl")
    found = run_bounded(CAPTION, data, mib=4 << 10, seconds=120)
    assert "texts.jsonl cannot be read (it is not a regular file); copy" in found.value
