"""A pipe, a device or a socket where a file is wanted: no command waits for what never comes."""

import os
import socket
from pathlib import Path

import pytest
from bounded import run_bounded, run_command, run_commands
from tiny import write_corpus
from tiny_gpt import tiny_dataset
from tiny_latents import tiny_latents

from megatron_music.cli.entry import main

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
NAMES = [
    "metrics.jsonl",
    "captions.jsonl",
    "latest",
    "config.json",
    "sweep.json",
    "plan.json",
    "model.safetensors",
    "model_index.json",
    "index.json",
    "report.json",
]


def socket_at(path) -> None:
    os.chdir(path.parent)  # its name has 108 bytes at most
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)


KINDS = {"pipe": os.mkfifo, "socket": socket_at, "device": lambda path: path.symlink_to("/dev/zero")}
TOGETHER = (
    "train",
    "captions",
    "prompts",
    "continue",
    "latest",
    "config.json",
)  # they import torch, which takes longer than all else


def lay_out(place: Path, command: str, kind: str) -> list[str]:
    """A working folder for a command, what it is given being of this kind; its words."""
    make, folder = KINDS[kind], place / "folder"
    folder.mkdir(parents=True)
    for name in NAMES:
        make(folder / name)
    (place / "midi").mkdir()
    (place / "midi" / "a.mid").write_bytes(bytes.fromhex("4d546864000000060000000100184d54726b0000000400ff2f00"))
    words = [word.format(x=place / "x", folder=folder) for word in COMMANDS[command]]
    for word in words:
        if word.startswith(str(place / "x")):
            path = place / word.partition(":")[0].removeprefix(f"{place}/")
            if not os.path.lexists(path):
                make(path)
    return words


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> dict:
    """The working folder and the end of each command that imports torch, by command and kind, from one process."""
    top, before = tmp_path_factory.mktemp("no-files"), Path.cwd()
    names = [(command, kind) for command in TOGETHER for kind in KINDS]
    places = [top / f"{command}-{kind}" for command, kind in names]
    try:
        commands = [lay_out(place, *name) for place, name in zip(places, names, strict=True)]
    finally:
        os.chdir(before)
    return dict(zip(names, zip(places, run_commands(commands, places, mib=6 << 10), strict=True), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, request, command, kind):
    if command in TOGETHER:
        place, done = request.getfixturevalue("together")[command, kind]
    else:
        monkeypatch.chdir(tmp_path)
        place = tmp_path
        done = run_command(*lay_out(place, command, kind), cwd=place, seconds=300, mib=6 << 10)
    assert done.returncode in (1, 2), (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr and done.stderr.strip().count("\n") == 0, done.stderr
    assert not (place / "out").exists()


def test_tokens_from_a_pipe_are_read_where_a_dash_says_so(tmp_path):
    done = run_command("detokenize", "-", "-o", tmp_path / "x.mid", stdin=None, input="nonsense\n")
    assert done.returncode == 2 and "nonsense" in done.stderr


IN_A_DATASET = ["train.bin", "train.idx", "tokenizer/mmmtrack.json"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """What training on a dataset says, by the file that is a pipe; of one process."""
    folder, commands = tmp_path_factory.mktemp("pipes"), []
    for number, name in enumerate(IN_A_DATASET):
        data = tiny_dataset(folder / str(number))
        (data / name).unlink()
        os.mkfifo(data / name)
        commands.append(["train", "tiny", f"data.path={data}", "train.train_iters=1", "logging.tensorboard=false"])
    return dict(zip(IN_A_DATASET, run_commands(commands, seconds=300), strict=True))


@pytest.mark.parametrize("name", IN_A_DATASET)
def test_a_pipe_in_a_dataset_is_not_waited_for(trained, name):
    done = trained[name]
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr


def test_a_pipe_in_the_place_of_what_was_left_out_is_not_waited_for(tmp_path):
    data = tmp_path / "data"
    write_corpus(tmp_path / "midi")
    assert main(["build", "tokens", str(tmp_path / "midi"), "-o", str(data)]) == 0
    (data / "quarantine.jsonl").unlink()
    os.mkfifo(data / "quarantine.jsonl")
    done = run_command("inspect", data, "--html", tmp_path / "page.html", seconds=120)
    assert done.returncode == 2 and "quarantine.jsonl is damaged" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )
    (data / "quarantine.jsonl").unlink()
    with open(data / "quarantine.jsonl", "wb") as hole:  # one line, of more bytes than there is memory
        hole.truncate(1 << 38)
    done = run_command("inspect", data, "--html", tmp_path / "page.html", seconds=120)
    assert done.returncode == 2 and "quarantine.jsonl is damaged" in done.stderr and "Traceback" not in done.stderr, (
        done.stderr
    )


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
