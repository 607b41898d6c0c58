"""Files a second from MIDI to tokens on disk, beside the parser alone, MidiTok, and a plain Python encoder.

    python benchmarks/encode.py MIDI_DIR [--files 60] [--rounds 5] [--corpus 4000] [--json FILE]

First table: each round times all contenders one after another over the same files on one core, reading included;
medians over rounds, and the medians of the ratios within rounds. MidiTok's MMM writes one sequence for a whole piece,
in memory; ours are whole pieces, too, and windows of 4 bars, hop 1, which is about four times the tokens. Our pipeline
reads, parses, encodes, hashes and writes the shard. The pieces' meters are taken for 4/4, as MidiTok takes them (a
declared 1/4 counts as unknown).

Second table: whole builds, `build tokens` as a command's work, of the files copied until there are --corpus of them,
with one worker and two; and the merge beside a copy of the same bytes. What the machine itself gains by a second
process is
measured beside it: the parser alone, over the same files, in one process and in two. Needs the extras `bench` and
`fast`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import plain
import symusic
from machine import machine

from megatron_music.corpora.midi_files import Reader, find_files
from megatron_music.data import encode
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.encode import ARRAYS, encode_content
from megatron_music.data.merge import merge_shards
from megatron_music.data.plan import plan_build
from megatron_music.data.shard import encode_shard, write_shard
from megatron_music.tokens.encoding import Encoding

OPTIONS = BuildOptions(encoding=Encoding(unknown_meters=("1/4",)))
WHOLE = BuildOptions(encoding=Encoding(unknown_meters=("1/4",), bars=0))
PARSER, OURS, MIDITOK = "symusic, parsing alone", "ours, windows: parse, encode, write", "MidiTok MMM, whole pieces"
SHARD_FILES = 512
REPEAT = 3  # of the fast contenders within a round


def parse(paths: Sequence[Path]) -> int:
    for path in paths:
        symusic.Score.from_midi(path.read_bytes())
    return 0


def in_memory(paths: Sequence[Path], options: BuildOptions = OPTIONS) -> int:
    return sum(len(encode_content(path.read_bytes(), options).ids) for path in paths)


def in_arrays(paths: Sequence[Path]) -> int:
    fastest, encode.fastest_engine = encode.fastest_engine, lambda: ARRAYS
    try:
        return in_memory(paths)
    finally:
        encode.fastest_engine = fastest


def pipeline(paths: Sequence[Path], folder: Path, options: BuildOptions) -> Callable[[Sequence[Path]], int]:
    """What a worker process does with a shard of the usual size, without the process."""
    times = -(-SHARD_FILES // len(paths))
    midi = folder / "shard"
    midi.mkdir(parents=True)
    for number in range(times * len(paths)):
        shutil.copy(paths[number % len(paths)], midi / f"{number:06}.mid")
    plan = plan_build([midi], folder / "piped", options, files_per_shard=times * len(paths))

    def run(_: Sequence[Path]) -> int:
        for path in (plan.building / "shards").iterdir():  # a build never writes a shard over one that is there
            path.unlink()
        started = time.perf_counter()
        write_shard(plan, 0, Reader(), lambda entry, content: encode_content(content, options), {}, lambda entry: None)
        run.seconds = (time.perf_counter() - started) / times
        return (plan.building / "shards" / "00000.bin").stat().st_size // 2 // times

    return run


def plain_python(paths: Sequence[Path]) -> int:
    return sum(len(window) for path in paths for window in plain.encode_file(path))


def miditok_mmm() -> Callable[[Sequence[Path]], int]:
    """MidiTok's MMM at our resolution: 4 positions a beat, no velocities beyond one, programs, no tempos."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import miditok

        config = miditok.TokenizerConfig(
            base_tokenizer="TSD", beat_res={(0, 16): 4}, num_velocities=1, use_programs=True, use_tempos=False
        )
        tokenizer = miditok.MMM(config)
    return lambda paths: sum(len(tokenizer(path).ids) for path in paths)


def file_rates(paths: list[Path], rounds: int, folder: Path) -> list[dict]:
    fast = {
        PARSER: parse,
        "ours, whole pieces: parse, encode, write": pipeline(paths, folder / "whole", WHOLE),
        "ours, whole pieces: parse, encode": lambda paths: in_memory(paths, WHOLE),
        OURS: pipeline(paths, folder / "windows", OPTIONS),
        "ours, windows: parse, encode": in_memory,
        "ours without numba, windows: parse, encode": in_arrays,
    }
    slow = {MIDITOK: miditok_mmm(), "miditoolkit and plain Python": plain_python}
    seconds: dict[str, list[float]] = {name: [] for name in (*fast, *slow)}
    tokens: dict[str, int] = {}
    for round_number in range(rounds + 1):  # the first warms up
        for name, run in (fast | slow).items():
            times = []
            for _ in range(REPEAT if name in fast else 1):
                started = time.perf_counter()
                tokens[name] = run(paths)
                times.append(getattr(run, "seconds", time.perf_counter() - started))
            if round_number:
                seconds[name].append(min(times))
    return [
        {
            "contender": name,
            "files_per_second": len(paths) / statistics.median(spent),
            "tokens_per_second": tokens[name] / statistics.median(spent),
            "over_miditok": statistics.median(a / b for a, b in zip(seconds[MIDITOK], spent, strict=True)),
            "times_parsing": statistics.median(a / b for a, b in zip(spent, seconds[PARSER], strict=True)),
        }
        for name, spent in seconds.items()
    ]


def machine_gain(paths: list[Path], rounds: int) -> float:
    """How many times as much two processes parse as one does, with nothing of ours in them and nothing to wait for."""
    gains = []
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(parse_repeatedly, [paths[:1]] * 2))  # both have started
        for _ in range(rounds):
            one = pool.submit(parse_repeatedly, paths).result()
            gains.append(2 * one / max(pool.map(parse_repeatedly, [paths] * 2)))
    return statistics.median(gains)


def parse_repeatedly(paths: Sequence[Path]) -> float:
    """Seconds for a good second of parsing, files read before."""
    contents = [path.read_bytes() for path in paths]
    started = time.perf_counter()
    for _ in range(-(-10_000 // len(contents))):
        for content in contents:
            symusic.Score.from_midi(content)
    return time.perf_counter() - started


def build_rates(paths: list[Path], corpus: int, rounds: int, folder: Path) -> dict:
    """Seconds of whole builds with one worker and two, in turn, and of the merge beside a copy."""
    midi = folder / "midi"
    midi.mkdir()
    for number in range(corpus):
        (midi / f"{number:06}.mid").write_bytes(paths[number % len(paths)].read_bytes())
    found: dict[str, list[float]] = {"one": [], "two": [], "encode_one": [], "encode_two": [], "merge": [], "copy": []}
    for _ in range(rounds):
        for workers, name in ((1, "one"), (2, "two")):
            out = folder / name
            started = time.perf_counter()
            plan_build([midi], out, OPTIONS)
            planned = time.perf_counter()
            encode_shard(out, workers=workers)
            encoded = time.perf_counter()
            merge_shards(out)
            done = time.perf_counter()
            found[name].append(done - started)
            found[f"encode_{name}"].append(encoded - planned)
            found["merge"].append(done - encoded)
            for path in folder.glob(
                "copy-*"
            ):  # a copy writes new files, as a merge does: writing over old ones is faster
                path.unlink()
            copied = time.perf_counter()
            for path in out.glob("*.bin"):
                with open(shutil.copy(path, folder / f"copy-{path.name}"), "rb+") as copy:
                    os.fsync(copy.fileno())
            found["copy"].append(time.perf_counter() - copied)
            bytes_ = sum(path.stat().st_size for path in out.glob("*.bin"))
            shutil.rmtree(out)
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    return {
        "machine_gain": machine_gain(paths, rounds),
        "files": corpus,
        "megabytes": bytes_ / 1e6,
        "seconds": median,
        "two_workers_over_one": statistics.median(
            a / b for a, b in zip(found["encode_one"], found["encode_two"], strict=True)
        ),
        "whole_two_over_one": statistics.median(a / b for a, b in zip(found["one"], found["two"], strict=True)),
        "merge_over_copy": statistics.median(a / b for a, b in zip(found["merge"], found["copy"], strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--files", type=int, default=60, help="evenly spaced over the folder; 0 for all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--corpus", type=int, default=4000, help="files of the whole builds; 0 for none")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    paths = [Path(file.path) for file in find_files([options.folder])]
    paths = paths[:: max(len(paths) // options.files, 1)][: options.files] if options.files else paths
    with tempfile.TemporaryDirectory() as folder:
        rows = file_rates(paths, options.rounds, Path(folder))
        builds = build_rates(paths, options.corpus, 3, Path(folder)) if options.corpus else None
    result = {
        "folder": options.folder.name,
        "files": len(paths),
        "rounds": options.rounds,
        "rows": rows,
        "builds": builds,
        "machine": machine(),
        "versions": {name: version(name) for name in ("miditok", "symusic", "numpy", "numba")},
        "command": " ".join(["python", "benchmarks/encode.py", *sys.argv[1:]]),
    }
    print(f"{len(paths)} files of {options.folder.name}, median of {options.rounds} rounds, one core: {machine()}\n")
    print(
        "| contender | files/s | M tokens/s | files/s over MidiTok | time over parsing |\n| --- | ---: | ---: | ---: "
        "| ---: |"
    )
    for row in rows:
        print(
            f"| {row['contender']} | {row['files_per_second']:,.0f} | {row['tokens_per_second'] / 1e6:.2f} "
            f"| {row['over_miditok']:.1f} | {row['times_parsing']:.1f} |"
        )
    if builds:
        times = builds["seconds"]
        print(f"\n{builds['files']:,} files, {builds['megabytes']:,.0f} MB of ids, medians of 3 rounds:\n")
        print("| | one worker | two workers | |\n| --- | ---: | ---: | ---: |")
        print(
            f"| encode, s | {times['encode_one']:.2f} | {times['encode_two']:.2f} | "
            f"{builds['two_workers_over_one']:.2f} times |"
        )
        print(
            f"| whole build, s | {times['one']:.2f} | {times['two']:.2f} | {builds['whole_two_over_one']:.2f} times |"
        )
        print(f"| parser alone, two processes | | | {builds['machine_gain']:.2f} times |")
        print(
            f"| merge, s | {times['merge']:.2f} | copy: {times['copy']:.2f} | {builds['merge_over_copy']:.2f} times |"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
