"""Checkpoints and models from strangers: sizes that nothing backs, and files that hold something else than they
should.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bounded import run_command, run_commands
from running import wait_until
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.checkpoints.manifest import write_manifest
from megatron_music.hosts.huggingface import convert_to_huggingface
from megatron_music.training.loop import DONE, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("gifts") / "data")


@pytest.fixture(scope="module")
def saved(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "run"
    assert train(tiny_run(data, f"checkpoint.save={folder}", "train.train_iters=2")) == DONE
    return folder


@pytest.fixture
def gift(saved, tmp_path) -> Path:
    """A checkpoint, to be changed by a stranger who writes its manifest, too."""
    return shutil.copytree(saved / "iter_0000002", tmp_path / "gift")


@pytest.fixture(scope="module")
def exported(saved, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    convert_to_huggingface(saved, folder)
    return folder


def refused(*arguments, seconds: float = 300) -> str:
    """The sentence of a command that refuses its input: one line, without a traceback."""
    return sentence_of(run_command(*arguments, seconds=seconds))


def sentence_of(done: subprocess.CompletedProcess) -> str:
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr + done.stdout, done.stderr
    return done.stderr


# Address space: torch and megatron-core alone take some 3 GiB of it before anything is read.
MIB = 6 << 10
FIELDS = ["hidden_size: 64", "num_layers: 2", "ffn_hidden_size: 256", "vocab_size: 768"]


def resize(gift: Path, field: str, value: int) -> None:
    text, name = (gift / "config.yaml").read_text(), field.partition(":")[0]
    (gift / "config.yaml").write_text(re.sub(rf"{name}: \d+", f"{name}: {value}", text))
    write_manifest(gift)


@pytest.fixture(scope="module")
def resized(saved, tmp_path_factory) -> dict[str, subprocess.CompletedProcess]:
    """What generating from a checkpoint says, by the field that claims a million, with little address space."""
    folder = tmp_path_factory.mktemp("resized")
    for number, field in enumerate(FIELDS):
        resize(shutil.copytree(saved / "iter_0000002", folder / str(number)), field, 2**20)
    commands = [
        ["generate", "midi", folder / str(number), "-o", folder / f"out-{number}"] for number in range(len(FIELDS))
    ]
    return dict(zip(FIELDS, run_commands(commands, mib=MIB), strict=True))


@pytest.mark.parametrize("field", FIELDS)
def test_a_configuration_of_another_size_is_refused_before_the_model_is_built(gift, resized, tmp_path, field):
    told = sentence_of(resized[field])
    assert "describes a model of" in told or f"model.{field.partition(':')[0]} is {2**20}" in told, told
    for value in (2**20, 10**7, 2**62):
        resize(gift, field, value)
        with pytest.raises(ValueError, match=r"describes a model of|is outside|at most|use "):
            convert_to_huggingface(gift, tmp_path / "out")


@pytest.mark.parametrize(
    "field",
    [
        "num_hidden_layers",
        "hidden_size",
        "n_inner",
        "intermediate_size",
        "max_position_embeddings",
        "num_attention_heads",
    ],
)
@pytest.mark.parametrize("value", [2**14, 2**20, 10**7, 2**62, -1, "64", None, [64], 1e300])
def test_a_folder_of_transformers_with_another_size_is_refused(exported, tmp_path, field, value):
    from megatron_music.hosts.huggingface import convert_to_megatron

    source = shutil.copytree(exported, tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer"} if config["model_type"] == "gpt2" else {}
    if names.get(field, field) not in config:
        pytest.skip(f"{config['model_type']} has no {field}")
    config[names.get(field, field)] = value
    (source / "config.json").write_text(json.dumps(config))
    begun = time.monotonic()
    try:
        convert_to_megatron(source, tmp_path / "run")
    except ValueError as error:
        assert ("\n" not in str(error) and str(source) in str(error)) or "model." in str(error), error
    else:  # of heads and positions of rotary embeddings another number is another model, of the same tensors
        assert field in ("max_position_embeddings", "num_attention_heads")
    assert time.monotonic() - begun < 300


STATES = {
    "guard": [
        None,
        [],
        "x",
        {},
        {"recent_losses": None, "skipped": 0, "in_a_row": []},
        {"recent_losses": ["x"], "skipped": 0, "in_a_row": []},
        {"recent_losses": [], "skipped": -1, "in_a_row": []},
        {"recent_losses": [], "skipped": 0, "in_a_row": ["7"]},
    ],
    "consumed_samples": ["8", 2**63, -8, None, 8.5, True, [8]],
    "iteration": ["2", 2**63, -2, None, {}],
    "optimizer_step": ["2", -1, None],
    "schedule": [None, [], {}, {"num_steps": "2"}, {"num_steps": 2**64}],
    "has_main_parameters": [None, "no", 1],
    "layout": [None, "x"],
    "vocabulary": [None, [], {}, {"name": [], "hash": 3}, {"name": "x" * 10**6, "hash": "y"}],
    "weights_only": [1, "yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in STATES.items() for value in values])
def test_a_state_of_other_types_is_one_sentence_with_the_file(gift, name, value):
    from megatron_music.checkpoints.state import read_state

    facts = json.loads((gift / "state.json").read_text())
    assert read_state(gift) == facts
    (gift / "state.json").write_text(json.dumps(facts | {name: value}))
    with pytest.raises(ValueError) as error:
        read_state(gift)
    assert str(gift) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 700
    if name not in ("weights_only",):
        (gift / "state.json").write_text(json.dumps({key: one for key, one in facts.items() if key != name}))
        with pytest.raises(ValueError, match="cannot be read"):
            read_state(gift)


NESTED = ["[" * 200_000, '{"a":' * 200_000, "[" * 200_000 + "]" * 200_000]
WRONG = [*NESTED, "[]", "3", "null", '"text"', "{}", "", "\xff", '{"a": NaN}', "{{{"]
FILES = ["state.json", "config.yaml", "manifest.json", ".metadata", "tokenizer/mmmtrack.json"]


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
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_checkpoint_that_holds_something_else_is_one_sentence(gift, tmp_path, capsys, name, content):
    from megatron_music.cli.entry import main

    (gift / name).write_bytes(content.encode("latin-1"))
    if name != "manifest.json":
        write_manifest(gift)
    status = main(["generate", "midi", str(gift), "-o", str(tmp_path / "out"), "--num", "1"])
    told = capsys.readouterr().err
    assert status == 2 and told.count("\n") == 1 and str(gift) in told and len(told) < 1000, told


PIPES = [*FILES, "model"]


@pytest.fixture(scope="module")
def pipes(saved, tmp_path_factory) -> dict[str, tuple[Path, subprocess.CompletedProcess]]:
    """What generating from a checkpoint says, by the file that is a pipe."""
    folder, found = tmp_path_factory.mktemp("pipes"), []
    for number, name in enumerate(PIPES):
        gift = shutil.copytree(saved / "iter_0000002", folder / f"gift-{number}")
        found.append(gift / name if name != "model" else next(gift.glob("*.distcp")))
        found[-1].unlink()
        os.mkfifo(found[-1])
    commands = [
        ["generate", "midi", folder / f"gift-{number}", "-o", folder / f"out-{number}"] for number in range(len(PIPES))
    ]
    return dict(zip(PIPES, zip(found, run_commands(commands, seconds=300), strict=True), strict=True))


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_a_checkpoint_is_not_waited_for(pipes, name):
    path, done = pipes[name]
    told = sentence_of(done)
    assert path.name in told or str(path.parents[name.count("/")]) in told


def test_a_damaged_index_prints_no_traceback_of_torch(gift, data, tmp_path):
    content = (gift / ".metadata").read_bytes()
    for damaged in (b"", b"garbage", content[:500], content[:-2], b"\x80\x04" + b"(" * 1000):
        (gift / ".metadata").write_bytes(damaged)
        write_manifest(gift)
    assert ".metadata is not an index of tensors" in refused("generate", "midi", gift, "-o", tmp_path / "out")
    told = refused("train", "tiny", f"data.path={data}", f"checkpoint.load={gift}", "logging.tensorboard=false")
    assert ".metadata is not an index of tensors" in told


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_a_checkpoint_is_read_is_told_as_a_stop(saved, data, tmp_path, kind):
    run = shutil.copytree(saved, tmp_path / "run")
    commands = {
        75: [
            "train",
            "tiny",
            f"data.path={data}",
            f"checkpoint.save={run}",
            "train.train_iters=4",
        ],  # the same command goes on
        1: ["generate", "midi", str(run), "-o", str(tmp_path / "out")],
    }
    for status, words in commands.items():
        (tmp_path / "reading-0").unlink(missing_ok=True)
        process = start_slowly(words, tmp_path)
        wait_until(lambda: (tmp_path / "reading-0").exists() or process.poll() is not None)
        process.send_signal(kind)
        _, told = process.communicate(timeout=900)
        assert process.returncode == status and "stopped" in told, told
        assert "cannot be loaded" not in told and "Traceback" not in told, told


def test_a_process_that_is_lost_while_a_checkpoint_is_read_is_told_as_lost(saved, data, tmp_path):
    """The others read a whole checkpoint; nobody must be sent back to an earlier one."""
    run = shutil.copytree(saved, tmp_path / "run")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        "train",
        "tiny",
        f"data.path={data}",
        f"checkpoint.save={run}",
        "train.train_iters=4",
        "logging.tensorboard=false",
    ]
    # Two launchers, as of two nodes: one alone would end the rank that lives before it could say anything.
    processes = [
        start_slowly(
            words,
            tmp_path,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "2",
            "--nproc_per_node",
            "1",
            "--node_rank",
            str(rank),
            "--master_addr",
            "127.0.0.1",
            "--master_port",
            str(port),
        )
        for rank in (0, 1)
    ]
    wait_until(lambda: (tmp_path / "reading-1").exists() or any(process.poll() is not None for process in processes))
    os.kill(int((tmp_path / "reading-1").read_text()), signal.SIGKILL)
    told, _ = (process.communicate(timeout=900)[1] for process in processes)
    assert all(process.returncode for process in processes)
    ours = [line for line in told.splitlines() if line.startswith("megatron-music: ")]
    assert "cannot be loaded" not in told and "earlier iter_ folder" not in told, told
    assert any(
        "another process of the run was lost while" in line and "no fault of the checkpoint" in line for line in ours
    ), told


SLOW = """
import os, pathlib, sys, time
import megatron_music.checkpoints.reader as reader
found = reader.IndexReader.read_data
def read_data(self, plan, planner):
    rank = os.environ.get("RANK", "0")
    (FOLDER / f".reading-{rank}").write_text(str(os.getpid()))
    os.replace(FOLDER / f".reading-{rank}", FOLDER / f"reading-{rank}")
    if rank != "0" or os.environ.get("WORLD_SIZE", "1") == "1":
        time.sleep(250)
    return found(self, plan, planner)
reader.IndexReader.read_data = read_data
from megatron_music.cli.entry import main
sys.exit(main(sys.argv[1:]))
"""


def start_slowly(words: list[str], folder: Path, *launcher: str) -> subprocess.Popen:
    """A command whose last rank takes a minute to read tensors; ``folder/reading-RANK`` holds its process when it
    begins.
    """
    program = folder / "slow.py"
    program.write_text(f"import pathlib\nFOLDER = pathlib.Path({str(folder)!r})\n{SLOW}")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    return subprocess.Popen(
        [sys.executable, *launcher, str(program), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
