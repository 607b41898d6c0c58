"""Standard streams that are closed, full or have no reader any more: a sentence or nothing, and what was asked for is
done.
"""

import os
import subprocess
import sys

import pytest
from bounded import run_command
from tiny import tiny_score

from megatron_music.music.midi import write_midi

# Prints come out at once, or with the last of them.
BUFFERING = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
COMMANDS = [
    ["recipes"],
    ["recipes", "demo"],
    ["recipes", "--json"],
    ["--help"],
    ["--version"],
    ["build", "tokens", "--help"],
    [],
]


@pytest.fixture
def closing():
    """A command's options of ``run_command`` that close some of its three streams."""

    def options(*numbers):
        def close():
            for number in numbers:
                os.close(number)

        return {"preexec_fn": close}

    return options


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@BUFFERING
def test_a_reader_that_has_left_is_no_error(monkeypatch, command, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    reading, writing = os.pipe()
    os.close(reading)
    done = run_command(*command, stdout=writing, stderr=subprocess.PIPE, capture_output=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@BUFFERING
def test_a_result_that_cannot_be_printed_is_an_error_in_one_sentence(monkeypatch, command, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with open("/dev/full", "w") as full:
        done = run_command(*command, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done
    assert "No space left on device" in done.stderr


def test_wrong_use_stays_wrong_use_where_nothing_can_be_printed():
    with open("/dev/full", "w") as full:
        assert run_command("trian", stdout=full, stderr=subprocess.PIPE, capture_output=False).returncode == 2


def test_tokens_from_a_closed_standard_input_are_none(tmp_path, closing):
    command = [sys.executable, "-m", "megatron_music", "detokenize", "-", "-o", str(tmp_path / "x.mid")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **closing(0))
    assert done.returncode == 2 and done.stderr.startswith("megatron-music: ") and done.stderr.count("\n") == 1, (
        done.stderr
    )


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_closed_streams_change_nothing_of_what_is_written(tmp_path, closing, closed):
    (tmp_path / "midi").mkdir()
    for number in range(3):
        write_midi(tiny_score(4 + number), tmp_path / "midi" / f"{number}.mid")
    for out, options in (("wanted", {}), ("found", closing(*closed))):
        command = [
            sys.executable,
            "-m",
            "megatron_music",
            "build",
            "tokens",
            tmp_path / "midi",
            "-o",
            tmp_path / out,
            "--workers",
            "2",
        ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            **options,
        )
        assert done.returncode == 0, out
    for name in ("train.bin", "train.idx", "valid.bin", "files.jsonl"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "wanted" / name).read_bytes(), name
