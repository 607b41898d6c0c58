"""The whole walk in one program: Bach's chorales as MIDI, tokens, a GPT on megatron-core, new chorales.

    python examples/01_chorales.py demo

`make demo` runs this. Run again, it goes on where it stopped and does nothing twice. docs/walk-midi.md follows the
same steps file by file.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from megatron_music.cli import guarded, quiet_dependencies

PIECES, BARS, SEED = 10, 8, 0
VOICES = ("SOPRANO", "ALTO", "TENOR", "BASS")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="gets everything")
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change the recipe `demo`")
    options = parser.parse_args()
    midi, data, run, pieces = (options.folder / name for name in ("midi", "data", "run", "chorales"))

    quiet_dependencies()
    say(1, "Bach's chorales from the music21 package, as MIDI", midi)
    write_corpus(midi)
    say(2, "windows of 4 bars as tokens, in Megatron's .bin/.idx", data)
    report = build(midi, data)
    say(3, "a small GPT on megatron-core", run)
    status = train(data, run, options.overrides)
    if status:
        return status
    say(4, f"{PIECES} new chorales of {BARS} bars", pieces)
    compose(run, pieces)
    account(report, data, run, options.folder)
    return 0


def say(number: int, what: str, where: Path) -> None:
    print(f"[{number}/4] {what} -> {where}", flush=True)


def write_corpus(folder: Path) -> None:
    from megatron_music.commands import progress_bar
    from megatron_music.data.bach import write_chorales

    marker = folder / ".complete"
    if marker.exists():
        return
    with progress_bar("score") as bar:
        for done, total in write_chorales(folder):
            bar.total = total
            bar.update(done - bar.n)
    marker.touch()


def build(midi: Path, data: Path) -> dict:
    from megatron_music.commands import progress_bar
    from megatron_music.data.build import build_tokens

    return build_tokens([midi], data, progress=lambda items, total: progress_bar("file", total, items))


def train(data: Path, run: Path, overrides: list[str]) -> int:
    from megatron_music.recipes import load_run
    from megatron_music.training import loop

    config = load_run("demo", [f"data.path={data}", f"checkpoint.save={run}", *overrides])
    return loop.train(config)


def compose(run: Path, folder: Path) -> None:
    from megatron_music.commands import progress_bar
    from megatron_music.generation.sampling import Sampler
    from megatron_music.music.midi import write_midi
    from megatron_music.music.pianoroll import plot_score
    from megatron_music.training import distributed
    from megatron_music.training.inference import load_composer

    paths = [folder / f"{number:03}.mid" for number in range(1, PIECES + 1)]
    picture = folder.parent / "pianoroll.png"
    if all(path.exists() for path in (*paths, picture)):
        return
    folder.mkdir(parents=True, exist_ok=True)
    composer = load_composer(run, sampler=Sampler(temperature=0.9, top_p=0.95))
    with progress_bar("token") as bar:
        scores = composer.compose(range(SEED, SEED + PIECES), BARS, VOICES, on_token=lambda tokens: bar.update(1))
    distributed.stop()
    for path, score in zip(paths, scores, strict=True):
        write_midi(score, path)
    plot_score(scores[0], picture, "A new chorale (001.mid)")


def account(report: dict, data: Path, run: Path, folder: Path) -> None:
    import numpy as np

    from megatron_music.data.indexed import open_split, unigram_counts
    from megatron_music.tokens import vocabulary
    from megatron_music.training.curve import plot_loss

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    valid_loss = [row["valid_loss"] for row in rows if "valid_loss" in row][-1]
    frequencies = unigram_counts(open_split(data, "train"))
    frequencies = frequencies[frequencies > 0] / frequencies.sum()
    uniform, unigram = math.log(vocabulary.SIZE), float(-(frequencies * np.log(frequencies)).sum())
    plot_loss(run / "metrics.jsonl", folder / "loss.png", {"uniform": uniform, "unigram": unigram})
    splits = report["splits"].values()
    speed = float(np.median([row["tokens_per_second"] for row in steps]))
    print(f"""
files              {report["files"]["used"]:,} chorales in 4/4 of {report["files"]["found"]:,}
windows            {sum(split["documents"] for split in splits):,} of 4 bars
tokens             {sum(split["tokens"] for split in splits):,}
training           {len(steps)} steps, {speed:,.0f} tokens/s, {sum(row["step_seconds"] for row in steps):.0f} s
validation loss    {valid_loss:.3f} nats a token
  uniform          {uniform:.3f}  (every token as likely as any other)
  unigram          {unigram:.3f}  (entropy of the training tokens)
  below unigram    {unigram - valid_loss:.3f} nats: {math.exp(unigram - valid_loss):.0f} times as likely, token for token

listen             {folder / "chorales"}/001.mid to {PIECES:03}.mid, in any MIDI player
look               {folder / "pianoroll.png"} and {folder / "loss.png"}""")


if __name__ == "__main__":
    sys.exit(guarded(main))
