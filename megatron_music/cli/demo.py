"""The MIDI pipeline as one program: Bach's chorales as MIDI, tokens, a GPT on megatron-core, new chorales, a page to
listen to them.

`make demo` and `megatron-music demo` run it. A run that was stopped resumes where it was. docs/walk-midi.md follows the
same steps file by file.
"""

import argparse
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_music.cli.console import check_modules, progress_bar
from megatron_music.config.errors import counted
from megatron_music.config.log import command_line, is_quiet, print_text
from megatron_music.storage.holding import hold_folder
from megatron_music.storage.reading import (
    TABLE_BYTES,
    parse_json,
    read_json_object,
    read_text,
)
from megatron_music.storage.writing import write_whole

BARS, SEED = 8, 0
VOICES = ("SOPRANO", "ALTO", "TENOR", "BASS")
PAGE = "listen.html"


def add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.field=value",
        help="change the recipe `demo`, such as train.train_iters=60",
    )
    parser.add_argument("-o", "--output", default="demo", metavar="DIR", help="folder for everything the demo makes")
    parser.add_argument("--num", type=int, default=10, help="new chorales")


def demo(options) -> int:
    """Run every step that is not done yet; the exit status is training's."""
    if options.num < 1:
        raise ValueError(f"--num is {options.num}; use 1 or more")
    folder = Path(options.output)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the demo")
    check_modules("music21", "torch", "megatron.core", "matplotlib")
    with hold_folder(folder, "demo"):
        return _make(folder, options)


def _make(folder: Path, options) -> int:
    midi, data, run, pieces = (folder / name for name in ("midi", "data", "run", "chorales"))
    say(1, "Bach's chorales from the music21 package, as MIDI", midi)
    write_corpus(midi)
    say(2, "windows of 4 bars as tokens, in Megatron's .bin/.idx", data)
    report = build(midi, data)
    say(3, "a small GPT on megatron-core (loading torch first)", run)
    status = train(data, run, options.overrides)
    if status:
        return status
    say(4, f"{counted(options.num, 'new chorale')} of {BARS} bars, as MIDI and WAV", pieces)
    compose(run, pieces, options.num)
    account(report, data, run, folder, options.num)
    return 0


def say(number: int, what: str, where: Path, steps: int = 4) -> None:
    """Print which step of a demo begins, and where its result will be; ``-q`` omits it."""
    if not is_quiet():
        print_text(f"[{number}/{steps}] {what} -> {where}")


def write_corpus(folder: Path) -> None:
    """Bach's chorales as MIDI, unless they are there already."""
    marker = folder / ".complete"
    if marker.exists():
        return
    from megatron_music.corpora.bach import write_chorales

    with progress_bar("score") as bar:
        for done, total in write_chorales(folder):
            bar.total = total
            bar.update(done - bar.n)
    marker.touch()


def build(midi: Path, data: Path) -> dict:
    from megatron_music.data.build import build_tokens
    from megatron_music.data.build_options import BuildOptions
    from megatron_music.tokens.encoding import Encoding

    article = BuildOptions(Encoding())  # 4/4 alone, as NVIDIA's article has it
    return build_tokens([midi], data, article, progress=lambda items, total: progress_bar("file", total, items))


def train(data: Path, run: Path, overrides: Sequence[str]) -> int:
    from megatron_music.config.load import load_run
    from megatron_music.training import loop

    return loop.train(load_run("demo", [f"data.path={data}", f"checkpoint.save={run}", *overrides]))


def compose(run: Path, folder: Path, num: int) -> None:
    """New pieces as MIDI and WAV, the first as a picture, and the page; what is there already is kept."""
    from megatron_music.audio.listening import render_files, write_listening_page
    from megatron_music.generation.from_checkpoint import load_composer
    from megatron_music.generation.sampling import Sampler
    from megatron_music.music.midi import write_midi
    from megatron_music.parallel import distributed
    from megatron_music.reports.pianoroll import plot_score

    paths = [folder / f"{number:03}.mid" for number in range(1, num + 1)]
    picture = folder.parent / "pianoroll.png"
    _remove_others(folder, {"checkpoint": read_text(run / "latest").strip(), "pieces": num})
    if not all(path.exists() for path in (*paths, picture)):
        composer = load_composer(run, sampler=Sampler(temperature=0.9, top_p=0.95))
        with progress_bar("token") as bar:
            scores = composer.compose(range(SEED, SEED + num), BARS, VOICES, on_token=lambda tokens: bar.update(1))
        distributed.stop()
        for path, score in zip(paths, scores, strict=True):
            write_midi(score, path)
        plot_score(scores[0], picture, "A new chorale (001.mid)")
    sounds = [path.with_suffix(".wav") for path in paths]
    if not all(path.exists() for path in (*sounds, folder.parent / PAGE)):
        with progress_bar("piece", num) as bar:
            rendered = [pair for pair in render_files(list(zip(paths, sounds, strict=True))) if not bar.update(1)]
        about = (
            f"Written by a small GPT trained on Bach's chorales. {counted(num, 'piece')} of {BARS} bars, seeds {SEED} "
            f"to {SEED + num - 1}."
        )
        write_listening_page(folder.parent / PAGE, "New chorales", about, rendered)


def _remove_others(folder: Path, facts: dict) -> None:
    """Remove the pieces of an earlier demo, which are of another checkpoint or of another number, and write down what
    these are of.
    """
    record = folder / "made-with.json"
    if folder.is_dir() and _read_record(record) != facts:
        for path in folder.iterdir():
            if re.fullmatch(r"\d{3,}\.(mid|wav)", path.name):
                path.unlink()
        (folder.parent / PAGE).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(record, (json.dumps(facts) + "\n").encode())


def _read_record(path: Path) -> dict | None:
    """What pieces are of; None where that cannot be read."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return None


def account(report: dict, data: Path, run: Path, folder: Path, num: int) -> None:
    """Print the figures of the demo, and save the loss curve."""
    import numpy as np

    from megatron_music.data.indexed import open_split, unigram_counts
    from megatron_music.reports.loss_curve import plot_loss
    from megatron_music.tokens import vocabulary

    rows = [parse_json(line) for line in read_text(run / "metrics.jsonl", TABLE_BYTES).splitlines()]
    steps = [row for row in rows if "loss" in row]
    losses = [row["valid_loss"] for row in rows if "valid_loss" in row]
    frequencies = unigram_counts(open_split(data, "train"))
    frequencies = frequencies[frequencies > 0] / frequencies.sum()
    uniform, unigram = math.log(vocabulary.SIZE), float(-(frequencies * np.log(frequencies)).sum())
    plot_loss(run / "metrics.jsonl", folder / "loss.png", {"uniform": uniform, "unigram": unigram})
    splits = report["splits"].values()
    speed = float(np.median([row["tokens_per_second"] for row in steps]))
    print_text(f"""
files              {report["files"]["used"]:,} chorales in 4/4 of {report["files"]["found"]:,}
windows            {sum(split["documents"] for split in splits):,} of 4 bars
tokens             {sum(split["tokens"] for split in splits):,}
training           {counted(len(steps), "step")}, {speed:,.0f} tokens/s, {sum(row["step_seconds"] for row in steps):.0f} s""")
    if losses:
        gain = unigram - losses[-1]
        print_text(f"""validation loss    {losses[-1]:.3f} nats per token
  uniform          {uniform:.3f}  (all tokens equally likely)
  unigram          {unigram:.3f}  (entropy of the training tokens)
  below unigram    {gain:.3f} nats: on average {math.exp(gain):.3g} times the probability per token""")
    generate = ("generate", "midi", run, "-o", "new", "--num", 8, "--bars", BARS, "--instruments", ",".join(VOICES))
    print_text(f"""
listen             open {folder / PAGE} in a browser; the pieces are {folder / "chorales"}/001.mid to {num:03}.mid, with a WAV of each
look               {folder / "pianoroll.png"} and {folder / "loss.png"}
next               {command_line(*generate, "--temperature", 0.9, "--top-p", 0.95)}""")
