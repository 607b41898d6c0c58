"""Feeds the mutants of one format to its reader, in a process with a limit on memory that its parent watches.

    python tests/fuzz_worker.py TABLE FORMAT FIRST LAST SEED     the child: one line of JSON for each input
    python tests/fuzz_worker.py FORMAT NUMBER [SEED]             one input again, with its traceback and its file

An input is accepted, or refused with one sentence that names its file, on the terminal of a user
(``megatron_music.cli.entry.guarded``).
All else is a fault: another exception, something that is no such sentence, a hang, too much memory, the end of the
process.
"""

import contextlib
import importlib
import io
import json
import os
import re
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_formats import Format, Refused
from fuzz_mutations import kind_of, mutant_of

MEMORY_BYTES = 2 << 30  # beyond what the reader's libraries have mapped before the first input
SECONDS_PER_INPUT = 30.0
_START_SECONDS = 300.0
_GROWN_BYTES = (
    1 << 30
)  # of addresses that libraries keep for threads that have ended: then the next input has a new process
ACCEPTED, REFUSED, TRACEBACK, SENTENCE, HANG, MEMORY, CRASH = (
    "accepted",
    "refused",
    "traceback",
    "bad sentence",
    "hang",
    "memory",
    "crash",
)
FAULTS = (TRACEBACK, SENTENCE, HANG, MEMORY, CRASH)
_LONGEST_SENTENCE = 5000  # characters


@dataclass
class Result:
    """What became of the inputs of a format."""

    outcomes: Counter = field(default_factory=Counter)
    faults: list[dict] = field(
        default_factory=list
    )  # number, outcome, altered file, reason; the first of each kind of reason
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    memory_bytes: int = 0  # the most beyond what the libraries take

    @property
    def inputs(self) -> int:
        return sum(self.outcomes.values())

    @property
    def num_faults(self) -> int:
        return sum(self.outcomes[outcome] for outcome in FAULTS)


def fuzz(
    name: str,
    inputs: int,
    *,
    seed: int = 0,
    first: int = 0,
    time_limit: float | None = None,
    progress=lambda done: None,
    table: str = "fuzz_formats",
    seconds_per_input: float = SECONDS_PER_INPUT,
) -> Result:
    """The outcomes of a format's inputs from ``first`` on.

    Args:
        name: a key of the table's FORMATS.
        inputs: how many; fewer where the time limit comes before.
        time_limit: seconds for all of them, from the first on.
        progress: called with 1 after each.
        table: the module beside this one that has FORMATS.

    Raises:
        RuntimeError: the good folder cannot be made.
    """
    result, number = Result(), first
    kinds = set()
    while number < first + inputs and (time_limit is None or result.seconds < time_limit):
        with _Child(table, name, number, first + inputs, seed, seconds_per_input) as child:
            for answer in child.answers(None if time_limit is None else time_limit - result.seconds):
                number = answer["number"] + 1
                result.outcomes[answer["outcome"]] += 1
                result.slowest_seconds = max(result.slowest_seconds, answer["seconds"])
                result.memory_bytes = max(result.memory_bytes, answer.get("memory_bytes", 0))
                kind = (answer["outcome"], answer.get("place", answer["reason"][:40]))
                if answer["outcome"] in FAULTS and kind not in kinds:
                    kinds.add(kind)
                    result.faults.append(answer)
                progress(1)
            result.seconds += child.seconds
            if not child.has_begun:
                raise RuntimeError(f"the reader of {name} cannot be started: {child.complaint()}")
    return result


class _Child:
    """The process of some inputs; it ends with the first that it does not survive."""

    def __init__(self, table: str, name: str, first: int, last: int, seed: int, seconds_per_input: float):
        self._seconds_per_input = seconds_per_input
        self._next, self._last, self.has_begun = first, last, False
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of the block)
        command = [sys.executable, __file__, table, name, str(first), str(last), str(seed)]
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONWARNINGS": "ignore",
            "MALLOC_ARENA_MAX": "2",
        }
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            start_new_session=True,
        )
        self._buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def complaint(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:]

    @property
    def seconds(self) -> float:
        """Since it was ready for its first input."""
        return time.monotonic() - self._ready if self.has_begun else 0.0

    def answers(self, time_limit: float | None) -> Iterator[dict]:
        """What the child says, and a hang or a crash in the words of its parent."""
        line = self._line(time.monotonic() + _START_SECONDS)
        self.has_begun, self._ready = bool(line), time.monotonic()
        begun = self._ready
        while self.has_begun and (time_limit is None or self.seconds < time_limit):
            line = self._line(begun + self._seconds_per_input)
            if line is None:
                yield self._lost(HANG, f"no answer within {self._seconds_per_input:.0f} s", self._seconds_per_input)
                return
            if not line:
                if self._next < self._last and self._process.wait() != 0:
                    yield self._lost(
                        CRASH,
                        f"the process ended with {self._process.wait()}: {self.complaint()[-200:]}",
                        time.monotonic() - begun,
                    )
                return
            answer = json.loads(line)
            begun = time.monotonic()
            self._next = answer["number"] + 1
            yield answer
            if answer["outcome"] == MEMORY:
                return  # what an allocation that failed leaves behind is no ground for the next input

    def _lost(self, outcome: str, reason: str, seconds: float) -> dict:
        return {"number": self._next, "outcome": outcome, "reason": reason, "seconds": seconds, "file": "?"}

    def _line(self, until: float) -> bytes | None:
        """The next line; empty at the end of the child, None at that of the time."""
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(until - time.monotonic(), 0))
            if not ready:
                return None
            content = os.read(self._process.stdout.fileno(), 1 << 16)
            if not content:
                return b""
            self._buffer += content
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


class Bench:
    """A format's good folder, of which one file is altered at a time."""

    def __init__(self, row: Format, folder: Path):
        self._row, self._good, self.folder = row, folder / "good", folder / "used"
        self._good.mkdir()
        row.make(self._good)
        shutil.copytree(self._good, self.folder)
        names = sorted(
            {
                path.relative_to(self._good)
                for pattern in row.altered
                for path in self._good.glob(pattern)
                if path.is_file()
            }
        )
        self._contents = {name: (self._good / name).read_bytes() for name in names}

    @property
    def names(self) -> list[Path]:
        return list(self._contents)

    def put(self, number: int, seed: int) -> Path:
        """Alter the file that comes next; returns its path."""
        name = self.names[number % len(self.names)]
        alike = [content for other, content in self._contents.items() if other.suffix == name.suffix]
        content = mutant_of(kind_of(name.name), [self._contents[name], *alike], number, seed)
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def restore(self, path: Path) -> None:
        """The good folder again."""
        if self._row.changes:
            shutil.rmtree(self.folder)
            shutil.copytree(self._good, self.folder)
        else:
            path.write_bytes(self._contents[path.relative_to(self.folder)])  # what else reading wrote stays


def judged(row: Format, folder: Path, path: Path) -> dict:
    """Outcome and reason of what lies there."""
    from megatron_music.cli.entry import guarded

    errors, complained = [], io.StringIO()

    def read() -> None:
        try:
            row.read(folder, path)
        except BaseException as error:
            errors.append(error)
            raise

    try:
        with contextlib.redirect_stderr(complained):
            guarded(read)
    except BaseException as error:
        return {"outcome": TRACEBACK, "reason": repr(error)[:300], "place": _place(error)}
    if not errors:
        return {"outcome": ACCEPTED, "reason": ""}
    sentence = complained.getvalue().removesuffix("\n")
    if "there is not enough memory" in sentence:
        return {"outcome": MEMORY, "reason": sentence[:300], "place": _place(errors[0])}
    wrong = _what_is_wrong(
        sentence, {re.escape(str(folder)), re.escape(path.name), *([row.also_names] if row.also_names else ())}
    )
    if wrong:
        kind = re.sub(r"/\S*|'[^']*'|\d+", "", sentence)[:60] if isinstance(errors[0], Refused) else _place(errors[0])
        return {"outcome": SENTENCE, "reason": f"{wrong}: {sentence[:300]!r}", "place": f"{wrong} {kind}"}
    return {"outcome": REFUSED, "reason": sentence[:300]}


def _what_is_wrong(sentence: str, names: set[str]) -> str | None:
    """Why this is no sentence that a terminal can show and that names one of these patterns."""
    if len(sentence.splitlines()) != 1:
        return "is not one line"
    if len(sentence) > _LONGEST_SENTENCE:
        return "is too long"
    if not all(letter.isprintable() or letter == "\t" for letter in sentence):
        return "has control characters"
    if not any(re.search(name, sentence) for name in names):
        return "names no file"
    return None


def _place(error: BaseException) -> str:
    """The innermost line of the package that the exception came through."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "/megatron_music/" in frame.filename and "fuzz_" not in frame.filename
    ]
    return (
        f"{type(error).__name__} at {frames[-1].filename.rpartition('megatron_music/')[2]}:{frames[-1].lineno}"
        if frames
        else repr(error)[:60]
    )


def _child(table: str, name: str, first: int, last: int, seed: int) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        row = importlib.import_module(table).FORMATS[name]
        bench = Bench(row, Path(home))
        os.chdir(bench.folder)
        for good in bench.names:  # what is imported and compiled counts for nothing
            judged(row, bench.folder, bench.folder / good)
            bench.restore(bench.folder / good)
            os.chdir(bench.folder)
        mapped = _bytes_of("VmSize")
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY_BYTES, mapped + MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        resident = _bytes_of("VmHWM")
        print(json.dumps({"begun": name}), file=answers)
        for number in range(first, last):
            path = bench.put(number, seed)
            os.chdir(bench.folder)
            started = time.perf_counter()
            found = judged(row, bench.folder, path)
            seconds = time.perf_counter() - started
            os.chdir(home)
            bench.restore(path)
            facts = {
                "number": number,
                "seconds": seconds,
                "file": path.name,
                "memory_bytes": max(_bytes_of("VmHWM") - resident, 0),
            }
            print(json.dumps(found | facts), file=answers)
            if _bytes_of("VmSize") > mapped + _GROWN_BYTES:
                break
        shutil.rmtree(home, ignore_errors=True)
        os._exit(0)  # libraries' threads are not waited for


def _bytes_of(name: str) -> int:
    """A size of this process, of /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10


def _again(name: str, number: int, seed: int) -> None:
    """One input, with its traceback."""
    row = importlib.import_module("fuzz_formats").FORMATS[name]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as home:
        bench = Bench(row, Path(home))
        path = bench.put(number, seed)
        kept = Path(tempfile.gettempdir(), f"fuzz-{name.replace(' ', '-')}-{seed}-{number}-{path.name}")
        shutil.copy(path, kept)
        print(f"{kept}: {path.read_bytes()[:400]!r}")
        with contextlib.chdir(bench.folder):
            row.read(bench.folder, path)
        print("accepted")


if __name__ == "__main__":
    if len(sys.argv) <= 4:
        _again(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) == 4 else 0)
    else:
        _child(*sys.argv[1:3], *map(int, sys.argv[3:6]))
