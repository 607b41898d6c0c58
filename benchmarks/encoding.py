"""Files a second: our encoder beside MidiTok's MMM tokenizer, on the same files in the same run.

    python benchmarks/encoding.py MIDI_DIR [--files 60] [--rounds 5] [--json FILE]

Each round times all contenders one after another over the same files, parsing included, on one core; the table has
medians over rounds and the ratio of medians within rounds. MidiTok writes one whole-piece sequence a file; ours is
timed both so and as windows of 4 bars, hop 1, which is about four times the tokens. MidiTok needs the extra `bench`.
"""

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from machine import machine

from megatron_music.data.corpus import find_midi_files
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi
from megatron_music.tokens.mmmtrack import encode_piece, encode_windows, window_starts


def whole_piece(path: Path) -> int:
    return len(encode_piece(quantize(read_midi(path))))


def windows(path: Path) -> int:
    score = quantize(read_midi(path))
    return len(encode_windows(score, window_starts(score, 4, 1), 4)[0])


def miditok_mmm() -> Callable[[Path], int]:
    """MidiTok's MMM at our resolution: 4 positions a beat, no velocities beyond one, programs, no tempos."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import miditok

        config = miditok.TokenizerConfig(
            base_tokenizer="TSD", beat_res={(0, 16): 4}, num_velocities=1, use_programs=True, use_tempos=False
        )
        tokenizer = miditok.MMM(config)
    return lambda path: len(tokenizer(path).ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=60, help="evenly spaced over the folder; 0 for all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    paths = find_midi_files([options.folder])
    paths = paths[:: max(len(paths) // options.files, 1)][: options.files] if options.files else paths
    contenders = {"ours, windows (4 bars, hop 1)": windows, "ours, whole piece": whole_piece, "MidiTok MMM": miditok_mmm()}

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens: dict[str, int] = {}
    for round_number in range(options.rounds + 1):  # the first warms up
        for name, encode in contenders.items():
            start = time.perf_counter()
            tokens[name] = sum(encode(path) for path in paths)
            if round_number:
                seconds[name].append(time.perf_counter() - start)

    theirs = seconds["MidiTok MMM"]
    rows = [
        {
            "contender": name,
            "files_per_second": len(paths) / statistics.median(spent),
            "tokens_per_second": tokens[name] / statistics.median(spent),
            "ratio_to_miditok": statistics.median(slow / fast for slow, fast in zip(theirs, spent, strict=True)),
        }
        for name, spent in seconds.items()
    ]
    result = {
        "folder": options.folder.name, "files": len(paths), "rounds": options.rounds, "rows": rows,
        "machine": machine(), "versions": {name: version(name) for name in ("miditok", "symusic", "numpy")},
        "command": " ".join(["python", "benchmarks/encoding.py", *sys.argv[1:]]),
    }  # fmt: skip
    print(f"{len(paths)} files of {options.folder.name}, median of {options.rounds} rounds, one core: {machine()}\n")
    print("| contender | files/s | M tokens/s | files/s, ratio to MidiTok |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print(
            f"| {row['contender']} | {row['files_per_second']:,.1f} | {row['tokens_per_second'] / 1e6:.2f} "
            f"| {row['ratio_to_miditok']:.1f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
