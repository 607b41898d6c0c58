"""Kill -9 at random moments of a build, then the same command again: the dataset must be the same to the byte.

    python benchmarks/kills.py MIDI_DIR [--kills 50] [--files 300] [--seed 0] [--json FILE]

A build with two workers, densities, augmentation, infill, text and merged tokens is done once undisturbed. Then, for each kill,
a new build is started, killed after a random share of an undisturbed build's time (its main process alone: workers must die by
themselves), and finished by the same command; a build that was over before its kill does not count. Exit status 1 if anything but the rates in report.json differs.
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import machine
from tqdm import tqdm

from megatron_music.data.corpus import find_files

OPTIONS = [
    "--workers", "2", "--meters", "all", "--density", "4", "--bar-density", "3", "--copies", "2", "--transpose", "-3..3",
    "--infill", "0.3", "--format", "both", "--bpe", "128",
]  # fmt: skip


def command(midi: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "megatron_music", "build", "tokens", str(midi), "-o", str(out), *OPTIONS]


def contents(out: Path) -> dict[str, str]:
    """The hash of every file, report.json without its rates."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "report.json":
            content = json.dumps({name: value for name, value in json.loads(content).items() if name != "rates"}).encode()
        if path.name == "report.md":
            continue  # says the rates in words
        found[str(path.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return found


def moment(out: Path) -> str:
    """What the build was at, from what it has left."""
    building = out.with_name(f"{out.name}.building")
    if out.exists():
        return "after the rename"
    if not building.exists():
        return "before anything was written"
    if not (building / "plan.json").exists():
        return "planning"
    merges = [path for path in building.glob("merge-*") if path.is_dir()]
    if merges:
        names = {path.name for path in merges[0].iterdir()}
        half = any(f"{s}.bin" in names and f"{s}.idx" not in names for s in ("train", "valid", "test"))
        return "merging, .bin without its .idx" if half else "merging"
    done = len(list((building / "shards").glob("*.json")))
    return "encoding, some shards done" if done else "encoding, no shard done"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    moments, different = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        midi = Path(folder, "midi")
        midi.mkdir()
        files = [Path(file.path) for file in find_files([options.folder])]
        for path in files[:: max(len(files) // options.files, 1)][: options.files]:
            shutil.copy(path, midi)
        whole = Path(folder, "whole")
        seconds = []
        for _ in range(2):  # the first may compile
            shutil.rmtree(whole, ignore_errors=True)
            started = time.perf_counter()
            subprocess.run(command(midi, whole), check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        wanted = contents(whole)
        for number in tqdm(range(options.kills), disable=None):
            out = Path(folder, f"killed-{number}")
            while True:
                process = subprocess.Popen(command(midi, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                time.sleep(chance.random() * min(seconds))
                process.kill()
                process.wait()
                if not out.exists() or out.with_name(f"{out.name}.building").exists():
                    break
                shutil.rmtree(out)
            moments[moment(out)] += 1
            subprocess.run(command(midi, out), check=True, stdout=subprocess.DEVNULL)
            if contents(out) != wanted or out.with_name(f"{out.name}.building").exists():
                different.append(number)
            shutil.rmtree(out)
    result = {
        "kills": options.kills, "files": options.files, "of": options.folder.name, "moments": dict(moments),
        "different": different, "seconds_undisturbed": min(seconds), "options": OPTIONS, "machine": machine(),
        "command": " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]]),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if different:
        sys.exit(f"{len(different)} of {options.kills} killed builds came out otherwise")


if __name__ == "__main__":
    main()
