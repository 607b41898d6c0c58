"""``corpus sounds``: a folder is what its settings say, however often the command is given."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny import tiny_score, transposed

from megatron_music.cli.entry import main
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Score, Track

OPTIONS = ["--num", "6", "--seconds", "1", "--own"]


@pytest.fixture
def midi(tmp_path):
    (tmp_path / "midi").mkdir()
    for number in range(3):
        tracks = tuple(transposed(track, number) for track in tiny_score(6).tracks)
        write_midi(Score(tracks, 4), tmp_path / "midi" / f"{number}.mid")
    return tmp_path / "midi"


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def sounds(midi, out, *options):
    return main(["corpus", "sounds", str(midi), "-o", str(out), *OPTIONS, *options])


def test_the_same_command_completes_a_folder(midi, tmp_path):
    assert sounds(midi, tmp_path / "out") == 0
    whole = files_of(tmp_path / "out")
    assert len(whole) == 8
    for name in ("00003.flac", "captions.jsonl"):
        (tmp_path / "out" / name).unlink()
    assert sounds(midi, tmp_path / "out") == 0 and files_of(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--seed", "1"], "seed 0 instead of 1"),
        (["--seconds", "2"], "seconds 1.0 instead of 2.0"),
        (["--num", "5"], "num 6 instead of 5"),
        (["--sample-rate", "8000"], "sample_rate 16000 instead of 8000"),
        ("midi", "MIDI files"),
    ],
)
def test_other_options_in_the_same_folder_are_refused(midi, tmp_path, capsys, options, named):
    assert sounds(midi, tmp_path / "out") == 0
    before = files_of(tmp_path / "out")
    capsys.readouterr()
    if options == "midi":
        write_midi(tiny_score(4), midi / "1.mid")
        options = []
    assert sounds(midi, tmp_path / "out", *options) == 2
    said = capsys.readouterr().err
    assert named in said and "name another folder" in said and said.count("\n") == 1
    assert files_of(tmp_path / "out") == before


def test_a_folder_of_other_sounds_is_refused(midi, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.flac").write_bytes(b"mine")
    assert sounds(midi, tmp_path / "out") == 2 and "corpus.json" in capsys.readouterr().err
    assert files_of(tmp_path / "out") == {"00000.flac": b"mine"}


def test_a_killed_run_leaves_nothing_after_the_next(midi, tmp_path):
    assert sounds(midi, tmp_path / "calm", "--num", "40") == 0
    command = [
        sys.executable,
        "-m",
        "megatron_music",
        "corpus",
        "sounds",
        str(midi),
        "-o",
        str(tmp_path / "out"),
        *OPTIONS,
        "--num",
        "40",
    ]
    process = subprocess.Popen(command)
    while process.poll() is None and not (tmp_path / "out" / "00004.flac").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "captions.jsonl").exists(), "it was to be killed before it was done"
    for name in (".00010.flac.0123456789abcdef.tmp", ".captions.jsonl.0123456789abcdef.tmp"):
        (tmp_path / "out" / name).write_bytes(b"half")
    assert sounds(midi, tmp_path / "out", "--num", "40") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm")


def test_long_rests_and_pipes_do_not_cost_the_corpus(midi, tmp_path):
    """A note every hundreds of bars, with silence before the first."""
    notes = np.array([[start, start + 4, 60, 90] for start in range(8_000, 80_000, 8_000)])
    write_midi(Score((Track(notes, 0),), 4), midi / "rests.mid")
    os.mkfifo(midi / "pipe.mid")
    assert sounds(midi, tmp_path / "out", "--num", "12") == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert sum(line["group"] == "rests" for line in lines) == 3
