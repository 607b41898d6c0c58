"""Kill -9 at random moments of a command, then the same command again: what comes out must be the same to the byte.

    python benchmarks/kills.py [MIDI_DIR] [--what build,latents,train,convert,generate] [--kills 20] [--files 60] [--seed 0] [--json FILE]

Each command is done undisturbed first. Then, for each kill, it is started anew, killed (its main process alone: workers
must end by themselves), and given again. Half of the kills fall anywhere in the command's time, half after the first
trace of it on the disk; of ``train``, a third fall while the index of its samples is written. A command that was over
before its kill does not count; one that had finished its output is not refused if that is the undisturbed one's. Left
out of the comparison are times and rates alone. Exit status 1 if anything differs,
is refused, or is left behind. Without MIDI_DIR, Bach's chorales.
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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from machine import machine
from tqdm import tqdm

from megatron_music.corpora.midi_files import find_files

MUSIC = (sys.executable, "-m", "megatron_music")
BUILD = [
    "--workers",
    "2",
    "--meters",
    "all",
    "--density",
    "4",
    "--bar-density",
    "3",
    "--copies",
    "2",
    "--transpose",
    "-3..3",
    "--infill",
    "0.3",
    "--format",
    "both",
    "--bpe",
    "128",
]
TRAIN = [
    "model.size=tiny",
    "train.train_iters=12",
    "checkpoint.save_interval=4",
    "train.eval_interval=6",
    "logging.tensorboard=false",
    "train.global_batch_size=4",
]
TIMED = (
    "tokens_per_second",
    "step_seconds",
    "samples_per_second",
    "tflops_per_gpu",
    "mfu",
    "process_memory_gib",
    "seconds",
    "wait_seconds",
)


@dataclass(frozen=True)
class Job:
    """A command that is killed.

    Args:
        command: with everything but the name of its output.
        output: the option or field that names it, such as ``-o`` or ``checkpoint.save=``.
        watched: a pattern below the output: a third of the kills fall when the first such file is there.
        program: what runs it.
    """

    command: list[str]
    output: str
    watched: str | None = None
    program: tuple[str, ...] = MUSIC

    def words(self, out: Path) -> list[str]:
        return [
            *self.program,
            *self.command,
            *([f"{self.output}{out}"] if self.output.endswith("=") else [self.output, str(out)]),
        ]


def jobs(home: Path, midi: Path, wanted: list[str]) -> Iterator[tuple[str, Job]]:
    """The commands by name; what they read is made first."""
    data, run = home / "data", home / "run"
    if "build" in wanted:
        yield "build", Job(["build", "tokens", str(midi), *BUILD], "-o")
    if "latents" in wanted:
        _run(["corpus", "sounds", str(midi), "-o", str(home / "sounds"), "--num", "40", "--seconds", "2", "--own"])
        yield "latents", Job(["build", "latents", str(home / "sounds"), "--seconds", "2"], "-o")
    if {"train", "convert", "generate"} & set(wanted):
        _run(["build", "tokens", str(midi), "-o", str(data)])
    if "train" in wanted:
        yield "train", Job(["train", "tiny", f"data.path={data}", *TRAIN], "checkpoint.save=", "cache/**/*.npy")
    if {"convert", "generate"} & set(wanted):
        _run(["train", "tiny", f"data.path={data}", *TRAIN, f"checkpoint.save={run}"])
    if "convert" in wanted:
        yield "convert", Job(["convert", str(run), "--to", "huggingface"], "-o")
    if "generate" in wanted:
        yield "generate", Job(["generate", "midi", str(run), "--num", "24", "--batch-size", "4", "--bars", "2"], "-o")


def _run(words: list[str]) -> None:
    subprocess.run([*MUSIC, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def contents(out: Path) -> dict[str, str]:
    """The hash of every file, without times and rates."""
    found = {}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.name in ("report.md", ".metadata", "starts.json", "manifest.json") or name.endswith("rank0.json"):
            continue  # rates in words; the number of a save; how often it was started; hashes of these
        found[name] = hashlib.sha256(_comparable(path, out)).hexdigest()
    return found


def _comparable(path: Path, out: Path) -> bytes:
    content = path.read_bytes().replace(str(out).encode(), b"OUT").replace(out.name.encode(), b"OUT")
    if path.name == "report.json":
        return json.dumps({name: value for name, value in json.loads(content).items() if name != "rates"}).encode()
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        return json.dumps([{name: value for name, value in row.items() if name not in TIMED} for row in rows]).encode()
    return content


def traces(out: Path) -> list[Path]:
    """What the command has on the disk: its output, and what stands beside it under a name of its own."""
    return [path for path in out.parent.iterdir() if out.name in path.name]


def moment(name: str, out: Path) -> str:
    """What the command was at, from what it has left."""
    if not traces(out):
        return "before anything was written"
    if name == "build":
        return _moment_of_build(out)
    if name == "train":
        done = sorted(path.name for path in out.glob("iter_*"))
        index = list(out.glob("cache/**/*.npy"))
        return f"after {done[-1]}" if done else "after the index of samples" if index else "before the index of samples"
    return (
        "before its output appears"
        if not out.exists()
        else f"with {sum(path.is_file() for path in out.rglob('*'))} files"
    )


def _moment_of_build(out: Path) -> str:
    building = out.with_name(f"{out.name}.building")
    if not (building / "plan.json").exists():
        return "planning"
    if any(path.is_dir() for path in building.glob("merge-*")):
        return "merging"
    return "encoding, some shards done" if list((building / "shards").glob("*.json")) else "encoding, no shard done"


def timed(job: Job, out: Path) -> tuple[float, float]:
    """Seconds of an undisturbed command, and seconds to its first trace on the disk."""
    started = time.perf_counter()
    first = None
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(job.words(out), stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            if first is None and traces(out):
                first = time.perf_counter() - started
            time.sleep(0.005)
        if process.returncode:
            said.seek(0)
            sys.exit(f"{' '.join(job.words(out))} ends with {process.returncode}: {said.read().decode()[-500:]}")
    seconds = time.perf_counter() - started
    return seconds, seconds if first is None else first


def killed(job: Job, out: Path, wait: Callable[[], None]) -> bool:
    """Start the command, kill it after the wait; whether the kill came before its end."""
    process = subprocess.Popen(job.words(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait()
    was_running = process.poll() is None
    process.kill()
    process.wait()
    return was_running


def try_kills(name: str, job: Job, home: Path, kills: int, chance: random.Random) -> dict:
    """Kill the command a number of times; returns the outcomes."""
    place = home / f"killed-{name}"
    place.mkdir()
    times = []
    for number in range(2):  # the first may compile; the second tells whether the command gives the same twice
        out = place / f"out{number}"
        times.append(timed(job, out))
        found = contents(out)
        left = [path.name for path in traces(out)]
        if number and found != wanted:  # noqa: F821 (of the pass before)
            differing = [file for file in found.keys() | wanted.keys() if found.get(file) != wanted.get(file)]  # noqa: F821
            sys.exit(f"{name} differs from itself undisturbed: {differing}")
        wanted = found
        shutil.rmtree(out)
    seconds, first = min(times)
    moments, finished, different, refused, left_behind = Counter(), 0, [], [], []
    for number in tqdm(range(kills), desc=name, disable=None):
        out = place / "out-killed"

        def wait(number: int = number, out: Path = out) -> None:
            seen = (
                (lambda: list(out.glob(job.watched)))
                if job.watched and number % 3 == 2
                else (lambda: traces(out))
                if number % 2
                else None
            )
            if seen is None:
                time.sleep(chance.random() * seconds)
                return
            limit = time.monotonic() + 5 * seconds
            while not seen() and time.monotonic() < limit:
                time.sleep(0.0005)
            time.sleep(chance.random() * (0.01 if job.watched and number % 3 == 2 else seconds - first))

        while not killed(job, out, wait):
            shutil.rmtree(out)
        time.sleep(0.5)  # workers see that their parent is gone
        moments[moment(name, out)] += 1
        again = subprocess.run(job.words(out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        if again.returncode and contents(out) == wanted:
            finished += 1
        elif again.returncode:
            refused.append({"kill": number, "status": again.returncode, "said": again.stderr.decode()[-300:]})
        elif contents(out) != wanted:
            found = contents(out)
            different.append(
                {
                    "kill": number,
                    "files": sorted(
                        file for file in found.keys() | wanted.keys() if found.get(file) != wanted.get(file)
                    )[:10],
                }
            )
        elif [path.name.replace("out-killed", "out1") for path in traces(out)] != left:
            left_behind.append({"kill": number, "files": [path.name for path in traces(out)]})
        for path in traces(out):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {
        "kills": kills,
        "moments": dict(moments),
        "refused_since_finished": finished,
        "different": different,
        "refused": refused,
        "left_behind": left_behind,
        "seconds_undisturbed": seconds,
        "command": " ".join(["megatron-music", *job.command]).replace(str(home), "HOME"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=None)
    parser.add_argument("--what", default="build,latents,train,convert,generate")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    names = options.what.split(",")
    if unknown := set(names) - {"build", "latents", "train", "convert", "generate"}:
        parser.error(f"--what has {sorted(unknown)[0]}; use build, latents, train, convert and generate")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        if options.folder is None:
            _run(["corpus", "bach", "-o", str(home / "chorales")])
        files = [Path(file.path) for file in find_files([options.folder or home / "chorales"])]
        midi = home / "midi"
        midi.mkdir()
        for path in files[:: max(len(files) // options.files, 1)][: options.files]:
            shutil.copy(path, midi)
        found = {
            name: try_kills(name, job, home, options.kills, random.Random(f"{options.seed}:{name}"))
            for name, job in jobs(home, midi, names)
        }
    result = {
        "commands": found,
        "files": options.files,
        "of": options.folder.name if options.folder else "Bach's chorales",
        "machine": machine(),
        "command": " ".join(["python", "benchmarks/kills.py", *sys.argv[1:]]),
    }
    print(json.dumps(result, indent=1))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    bad = {name: sum(len(of[kind]) for kind in ("different", "refused", "left_behind")) for name, of in found.items()}
    if any(bad.values()):
        sys.exit(
            "killed commands that came out otherwise: "
            + ", ".join(f"{count} of {name}" for name, count in bad.items() if count)
        )


if __name__ == "__main__":
    main()
