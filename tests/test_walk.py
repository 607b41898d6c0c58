"""The whole walk by the command line: MIDI files in, .bin/.idx, a GPT, new MIDI out; alone and under torchrun."""

import json
import os
import subprocess
import sys

import pytest
from tiny import tiny_score, transposed

from megatron_music.cli.entry import main
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Score
from megatron_music.reports.loss_curve import plot_loss
from megatron_music.tokens.mmmtrack import decode_piece, encode_piece


def run(*arguments) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_midi_in_midi_out(tmp_path):
    (tmp_path / "midi").mkdir()
    for number in range(12):
        tracks = tuple(transposed(t, number) for t in tiny_score(6 + number).tracks)
        write_midi(Score(tracks, 4), tmp_path / "midi" / f"{number}.mid")
    model = ["model.seq_length=256", "train.micro_batch_size=2", "train.global_batch_size=2"]
    run("build", "tokens", tmp_path / "midi", "-o", tmp_path / "data")
    run(
        "train",
        "tiny",
        f"data.path={tmp_path / 'data'}",
        f"checkpoint.save={tmp_path / 'run'}",
        "train.train_iters=6",
        *model,
    )

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    promised = {"iteration", "loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds"}
    steps = [line for line in lines if "loss" in line]
    assert [line["iteration"] for line in steps] == [1, 2, 3, 4, 5, 6] and promised <= set(steps[0])
    assert any("valid_loss" in line for line in lines)
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    plot_loss(tmp_path / "run" / "metrics.jsonl", tmp_path / "loss.png", {"uniform": 6.64})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")

    run("generate", "midi", tmp_path / "run", "-o", tmp_path / "new", "--num", 3, "--instruments", "SOPRANO,BASS")
    pieces = [quantize(read_midi(path)) for path in sorted((tmp_path / "new").glob("*.mid"))]
    assert len(pieces) == 3 and all(decode_piece(encode_piece(piece)) == piece for piece in pieces)

    # The same run on two processes, with the optimizer split between them, saves what one process goes on from.
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "megatron_music",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    model[1] = "train.micro_batch_size=1"
    both = [
        f"data.path={tmp_path / 'data'}",
        f"checkpoint.save={tmp_path / 'both'}",
        "train.train_iters=6",
        *model,
        "checkpoint.save_interval=3",
        "optimizer.use_distributed_optimizer=true",
    ]
    subprocess.run([*command, "train", "tiny", *both], check=True, env=environment, timeout=900)
    assert losses(tmp_path / "both") == pytest.approx([line["loss"] for line in steps], rel=1e-5)
    (tmp_path / "both" / "latest").write_text("iter_0000003\n")
    run("train", "tiny", *both, "optimizer.use_distributed_optimizer=false")
    assert losses(tmp_path / "both") == pytest.approx([line["loss"] for line in steps], rel=1e-5)
    assert (tmp_path / "both" / "latest").read_text() == "iter_0000006\n"

    # And two processes with tensor parallelism write the pieces that one wrote.
    subprocess.run(
        # "--" keeps torchrun from reading --num as its own --numa-binding.
        [
            *command[:-1],
            "--",
            command[-1],
            "generate",
            "midi",
            str(tmp_path / "run"),
            "-o",
            str(tmp_path / "two"),
            "--num",
            "3",
            "--instruments",
            "SOPRANO,BASS",
        ],
        check=True,
        env=environment,
        timeout=900,
    )
    two = [quantize(read_midi(path)) for path in sorted((tmp_path / "two").glob("*.mid"))]
    assert two == pieces
