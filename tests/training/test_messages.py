"""What a person sees who trains: where it starts, what is kept, what to do next; on a terminal, with the bar below."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.config.errors import ConfigError
from megatron_music.config.load import load_run, write_run
from megatron_music.config.log import LOADING
from megatron_music.training.loop import DONE, train

BAR = "loss="  # after a step
MODEL = [
    "model.num_layers=1",
    "model.hidden_size=32",
    "model.num_attention_heads=2",
    "model.seq_length=64",
    "logging.tensorboard=false",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("messages") / "data")


def command(data: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "megatron_music", "train", "tiny", f"data.path={data}", *MODEL, *overrides]


def on_terminal(words: list[str], interrupt_at: str | None = None) -> tuple[int, list[str]]:
    """Exit status and the lines that stand on a terminal at the end; Ctrl-C once the pattern ``interrupt_at`` was seen
    on it.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 240, 0, 0))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        words, stdout=theirs, stderr=theirs, stdin=theirs, env=environment, start_new_session=True
    )
    os.close(theirs)
    seen = b""
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        if select.select([ours], [], [], 1)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other end was closed
                break
            if not part:
                break
            seen += part
        if interrupt_at and re.search(interrupt_at.encode(), seen):
            process.send_signal(signal.SIGINT)
            interrupt_at = None
    os.close(ours)
    if time.monotonic() >= limit:
        process.kill()
    return process.wait(), as_shown(seen.decode())


def as_shown(text: str) -> list[str]:
    """The lines of a terminal that was sent a text: a return goes to the left edge, and what is written there
    covers.
    """
    lines = []
    for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).replace("\r\n", "\n").split("\n"):
        shown: list[str] = []
        for part in line.split("\r"):
            shown[: len(part)] = part
        lines.append("".join(shown).rstrip())
    return lines


def notices(lines: list[str]) -> list[str]:
    """Sentences, each of which must have a line to itself."""
    for line in lines:
        assert line.count("megatron-music: ") <= 1 and (
            "megatron-music: " not in line or line.startswith("megatron-music: ")
        ), lines
        assert not ("step" in line and "megatron-music:" in line and "|" in line), line
    found = [line.removeprefix("megatron-music: ") for line in lines if line.startswith("megatron-music: ")]
    assert found[0] == LOADING
    return found[1:]


def test_on_a_terminal_every_sentence_has_its_own_line_from_start_to_next_step(data, tmp_path):
    run = tmp_path / "run"
    again = [
        "train.train_iters=3",
        "train.eval_interval=2",
        "train.eval_iters=1",
        "checkpoint.save_interval=2",
        f"checkpoint.save={run}",
    ]
    status, lines = on_terminal(command(data, *again))
    told = notices(lines)
    assert status == 0, lines
    assert told[0] == f"training from new weights, 3 iterations, into {run}"
    assert re.match("the training data are [0-9,]+ sequences of 64 tokens; .* of them are read once", told[1]), told[1]
    assert "tflops_per_gpu counts the model's operations by the formula mcore" in told[2]
    assert told[-2:] == [
        f"finished; iteration 3 is saved in {run}/iter_0000003",
        f"next: megatron-music generate midi {run} -o new",
    ]
    assert any(line.startswith("iteration 2/3 | valid_loss") for line in lines), lines
    assert any(re.fullmatch(r"train: 100%\|.*3/3 .*", line) for line in lines), lines
    status, lines = on_terminal(command(data, *again))
    assert (status, notices(lines)) == (
        0,
        [
            f"already finished at iteration 3 of {run}; a larger train.train_iters trains on",
            f"next: megatron-music generate midi {run} -o new",
        ],
    )


def test_ctrl_c_says_what_was_saved_and_the_run_says_that_it_resumes(data, tmp_path):
    run = tmp_path / "run"
    long = command(data, "train.train_iters=4000", "train.eval_iters=0", f"checkpoint.save={run}")
    status, lines = on_terminal(long, interrupt_at=BAR)
    (checkpoint,) = run.glob("iter_*")
    iteration = int(checkpoint.name.removeprefix("iter_"))
    assert status == 75
    assert (
        notices(lines)[-1]
        == f"stopped; iteration {iteration} is saved in {checkpoint}: the same command resumes from there"
    )
    status, lines = on_terminal(long, interrupt_at=BAR)
    assert status == 75 and notices(lines)[0] == f"resuming from iteration {iteration} of {run}, to iteration 4000"


def test_without_a_folder_it_is_said_at_the_start_and_at_the_end_that_nothing_is_kept(data):
    words = command(data, "train.eval_iters=0", "train.train_iters=4000")
    status, lines = on_terminal(words, interrupt_at=BAR)
    told = notices(lines)
    assert status == 1 and "checkpoint.save is not set: the model will be discarded at the end" in told[1]
    assert re.fullmatch(r"stopped after iteration \d+; nothing was kept, since checkpoint.save is not set", told[-1])


def test_few_sequences_read_again_and_again_are_a_warning(data, capfd):
    assert train(tiny_run(data, "train.train_iters=2")) == DONE
    said = capfd.readouterr().err
    assert "will memorise" not in said and "the model was discarded, since checkpoint.save is not set" in said
    small = tiny_run(data, "train.train_iters=2", "train.global_batch_size=20000", "train.micro_batch_size=1")
    from megatron_music.training.messages import opening
    from megatron_music.training.task import Work

    told = opening(small, Work(64, 5 * 64, 1.0, "mcore"), 0, None, False, has_valid=False)
    assert (
        "5 sequences x 8,000 epochs: the model will memorise them" in told[-2] and "nothing to evaluate on" in told[-1]
    )


def test_under_torchrun_one_process_speaks(data, tmp_path):
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += command(data, "train.train_iters=2", "train.eval_iters=0", f"checkpoint.save={tmp_path / 'run'}")[1:]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    for sentence in (
        "training from new weights",
        "tflops_per_gpu counts",
        "finished; iteration 2 is saved",
        "next: megatron-music",
    ):
        assert done.stderr.count(sentence) == 1, done.stderr


def test_a_window_to_profile_behind_the_last_step_is_refused(data, tmp_path):
    with pytest.raises(ConfigError, match=r"--profile-steps begin at 10, after the last step: train.train_iters is 3"):
        train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=3"), profile_steps=(10, 12))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("train_tokens", "sentence"),
    [
        (2 * 8 * 64, "each read once"),
        (8 * 64, "each read 2 times (epochs)"),
        (4 * 8 * 64, "; 50% of them are read once"),
        (1000 * 8 * 64, "; less than 1% of them are read once"),
    ],
)
def test_data_that_are_not_read_once_are_told_as_a_share_and_not_as_epochs(data, train_tokens, sentence):
    from megatron_music.training.messages import opening
    from megatron_music.training.task import Work

    run = tiny_run(data, "train.train_iters=2", "train.global_batch_size=8", "train.micro_batch_size=1")
    told = opening(run, Work(64, train_tokens, 1.0, "mcore"), 0, None, False, has_valid=True)
    assert any(line.endswith(sentence) for line in told), told


def stage_run(folder, data: str, recipe: str = "demo-text2muq"):
    """A finished run of one stage, as far as the command that follows the other looks at it."""
    checkpoint = folder / "iter_0000001"
    checkpoint.mkdir(parents=True)
    write_run(load_run(recipe, [f"data.path={data}", f"checkpoint.save={folder}"]), checkpoint / "config.yaml")
    (folder / "latest").write_text("iter_0000001\n")


def test_after_stage_2_the_next_step_names_the_run_of_stage_1_on_the_same_data_where_there_is_one(tmp_path):
    from megatron_music.training.messages import done

    def told(*overrides: str) -> str:
        return done(load_run("demo-dit", ["data.path=DATA", f"checkpoint.save={tmp_path / 'dit'}", *overrides]))[-1]

    (tmp_path / "dit").mkdir()
    before, after = "next: megatron-music generate audio ", f'{tmp_path / "dit"} -o new --prompt "..."'
    assert told() == f"{before}STAGE1 {after}"
    stage_run(tmp_path / "other", "OTHER_DATA")
    (tmp_path / "latest").write_text("a file beside the runs\n")
    assert told() == f"{before}STAGE1 {after}"
    stage_run(tmp_path / "words", "DATA")
    assert told() == f"{before}{tmp_path / 'words'} {after}"
    stage_run(tmp_path / "words2", "DATA")
    assert told() == f"{before}STAGE1 {after}", "it cannot be known which of two"
    assert told("model.conditions=stable-audio") == f"{before}{after}", "which needs no stage 1"


def test_after_stage_1_the_next_step_trains_stage_2_or_uses_the_one_that_is_there(tmp_path):
    from megatron_music.training.messages import done

    save = tmp_path / "words"
    save.mkdir()

    def told(recipe: str = "demo-text2muq") -> str:
        return done(load_run(recipe, ["data.path=my data", f"checkpoint.save={save}"]))[-1]

    assert told() == "next: megatron-music train demo-dit 'data.path=my data' checkpoint.save=STAGE2"
    assert told("text2muq").startswith("next: megatron-music train stable-audio-open "), "the size that goes with it"
    stage_run(tmp_path / "sound", "my data", "demo-dit")
    assert told() == f'next: megatron-music generate audio {save} {tmp_path / "sound"} -o new --prompt "..."'
