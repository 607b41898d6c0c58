"""Worker processes that read strangers' files, and what happens when one hangs or dies.

A worker is asked for a task by a line of JSON on its standard input, and answers in lines: the number of each file
before it is touched, ``.`` while it passes over others on the way, ``-`` after the last, then an object: ``{"done": 3,
...}``, ``{"refused": ...}``, or ``{"error": ...}``. Before it is done it may give parts, ``{"part": 3, ...}``; after
each it waits for another line, until the part was taken. ``python -m megatron_music.data.worker OUT.building`` encodes
shards of MIDI files, and ``megatron_music.data.audio_worker`` decodes audio.
"""

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import megatron_music
from megatron_music.corpora.midi_files import ChangedSource
from megatron_music.data.plan import Plan

_POLL_SECONDS = 1.0
_REST_SECONDS = (
    0.01  # between two looks: hearing of every file at once would take a tenth of a processor from the workers
)
_STDERR_BYTES = 2000
# Not a fault of the parser, unless it happens again: the system is short of memory, or somebody stops processes.
_OUTSIDE_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ONE_THREAD = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM")


class WorkerError(RuntimeError):
    """A worker met a fault of this package's own."""


def worker_command(building: Path, owner: str = "") -> list[str]:
    """What a worker process is started with; ``owner`` as in ``write_shard``."""
    return [sys.executable, "-P", "-m", "megatron_music.data.worker", str(building), *filter(None, [owner])]


def run_shards(
    plan: Plan, numbers: Sequence[int], workers: int, command: Sequence[str] | None = None, *, owner: str = ""
) -> Iterator[int]:
    """Have shards written by worker processes; yields the number of a shard once for each of its files.

    A file on which a worker dies or spends more than ``options.seconds_per_file`` is put into quarantine: the worker is
    replaced and the shard done again without that file. At most ``workers`` processes live at a time, none afterwards.

    Args:
        command: what to start a worker with, instead of this package's own.
        owner: see ``write_shard``.

    Raises:
        OSError: a worker met one (the disk is full), or workers die outside of any file.
        ChangedSource: a file is not the one that was planned.
        WorkerError: a fault of this package's own.
    """
    tasks = [
        Task(number, plan.shards[number].first, plan.shards[number].files, {"shard": number})
        for number in sorted(numbers)
    ]
    with Supervisor(
        command or worker_command(plan.building, owner), workers, plan.options.seconds_per_file
    ) as supervisor:
        for number, answer in supervisor.run(tasks):
            if answer is None:
                yield number


class Task(NamedTuple):
    """What a worker is asked for at a time.

    Args:
        number: by which the task is known.
        first, files: the number of its first file, and how many.
        request: what the worker is sent, beside ``skip``: the files it must not touch, and why.
    """

    number: int
    first: int
    files: int
    request: dict


class _Worker:
    """A process, and what it is at."""

    def __init__(self, command: Sequence[str], descriptors: Sequence[int]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=_environment(),
            pass_fds=descriptors,
        )
        self.stdout, self.stderr = self._process.stdout, self._process.stderr
        os.set_blocking(self.stderr.fileno(), False)
        self.task: Task | None = None
        self.entry: int | None = None  # in work now
        self.waits = False  # until a part was taken
        self.since = 0.0
        self.complaints = b""  # the end of what it wrote to stderr
        self._rest = b""

    def ask(self, task: Task, skip: dict[int, str]) -> None:
        self.task, self.entry, self.waits = task, None, False
        self._write(json.dumps(task.request | {"skip": skip}).encode() + b"\n")

    def go_on(self) -> None:
        """Its part was taken."""
        self.waits, self.since = False, time.monotonic()
        self._write(b"\n")

    def _write(self, line: bytes) -> None:
        with suppress(BrokenPipeError):  # it is dead; the end of its output says so too
            self._process.stdin.write(line)

    def read_lines(self) -> list[bytes] | None:
        """Whole lines of what it has said; None when there will be no more."""
        said = os.read(self.stdout.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + said).split(b"\n")
        return lines if said else None

    def read_complaints(self) -> bool:
        """Take in what it wrote to stderr; whether it wrote something."""
        try:
            said = os.read(self.stderr.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self.complaints = (self.complaints + said)[-_STDERR_BYTES:]
        return bool(said)

    def end(self) -> int:
        """Wait for a process that is ending by itself; its exit status."""
        try:
            status = self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            status = -signal.SIGKILL
        self.kill()
        return status

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self.stdout, self.stderr):
            pipe.close()


class Supervisor:
    """Workers of one kind, and the tasks they are given.

    A file on which a worker dies or is silent for too long is left out: the worker is replaced, and the task done again
    without that file.

    Args:
        command: what a worker is started with.
        workers: the most processes that run at once.
        seconds_per_file: of silence at one file.
        descriptors: open files that the workers inherit under the same numbers.
    """

    def __init__(self, command: Sequence[str], workers: int, seconds_per_file: float, descriptors: Sequence[int] = ()):
        self._command, self._max_workers, self._limit, self._descriptors = (
            command,
            workers,
            seconds_per_file,
            descriptors,
        )
        self._crew: list[_Worker] = []
        self._selector = selectors.DefaultSelector()
        self._deaths: Counter[tuple[int, int | None]] = Counter()  # by task and file
        self._waiting: deque[Task] = deque()
        self._skip: dict[int, dict[int, str]] = {}
        self._begun: Counter[int] = Counter()  # files of each task; those done again count once
        self._events: list[tuple[int, dict | None]] = []

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, dict | None]]:
        """Have tasks done, the first ones first; one run at a time.

        Yields:
            The number of a task, and None for each of its files that was begun, or what a worker says of it: a part, or
            that it is done. A worker that gave a part goes on when the next is asked for.

        Raises:
            As ``run_shards``.
        """
        self._waiting = deque(tasks)
        self._skip = {task.number: {} for task in self._waiting}
        self._deaths.clear()
        self._begun.clear()
        self._events = []
        try:
            while True:
                self._hand_out()
                if not any(worker.task for worker in self._crew):
                    return
                self._listen()
                events, self._events = self._events, []
                yield from events
                for worker in self._crew:
                    if worker.waits:
                        worker.go_on()
        finally:
            for worker in [worker for worker in self._crew if worker.task]:  # nobody waits for what they are at
                self._dismiss(worker)
                worker.kill()

    def stop(self) -> None:
        """End all workers."""
        self._selector.close()
        for worker in self._crew:
            worker.kill()
        self._crew.clear()

    def _hand_out(self) -> None:
        while self._waiting:
            worker = next((worker for worker in self._crew if worker.task is None), None)
            if worker is None:
                if len(self._crew) >= self._max_workers:
                    return
                worker = _Worker(self._command, self._descriptors)
                self._crew.append(worker)
                self._selector.register(worker.stdout, selectors.EVENT_READ, (worker, self._hear))
                self._selector.register(worker.stderr, selectors.EVENT_READ, (worker, self._hear_complaints))
            task = self._waiting.popleft()
            worker.ask(task, self._skip[task.number])

    def _listen(self) -> None:
        """Take in what workers say, for at most a second, and stop those that hang."""
        limit = self._limit
        patience = min(_POLL_SECONDS, limit / 4)
        started = time.monotonic()
        time.sleep(_REST_SECONDS)
        for key, _ in self._selector.select(patience):
            worker, hear = key.data
            if worker in self._crew:  # its other pipe may have ended it
                hear(worker)
        now = time.monotonic()
        for worker in list(self._crew):
            if worker.entry is None or worker.waits:
                continue
            if now - started > patience + _POLL_SECONDS:  # this process was stopped, and so perhaps were they
                worker.since = now
            elif now - worker.since > limit:
                self._dismiss(worker)
                worker.kill()
                self._leave_out(worker.task, worker.entry, f"takes longer than {limit:g} s")

    def _hear(self, worker: _Worker) -> None:
        lines = worker.read_lines()
        if lines is None:
            self._bury(worker)
            return
        worker.since = time.monotonic()
        for line in lines:
            if line.isdigit():
                worker.entry = int(line)
                self._count(worker.task, worker.entry - worker.task.first + 1)
            elif line == b"-":
                worker.entry = None
            elif line != b".":
                answer = json.loads(line)
                if "error" in answer or "refused" in answer:
                    raise _error(answer)
                if "part" in answer:
                    worker.waits = True
                else:
                    self._count(worker.task, worker.task.files)
                self._events.append((worker.task.number, answer))
                if not worker.waits:
                    worker.task = worker.entry = None

    def _hear_complaints(self, worker: _Worker) -> None:
        if not worker.read_complaints():
            self._selector.unregister(worker.stderr)

    def _count(self, task: Task, begun: int) -> None:
        new = max(begun - self._begun[task.number], 0)
        self._begun[task.number] += new
        self._events += [(task.number, None)] * new

    def _dismiss(self, worker: _Worker) -> None:
        self._crew.remove(worker)
        for pipe in (worker.stdout, worker.stderr):
            if pipe in self._selector.get_map():
                self._selector.unregister(pipe)

    def _bury(self, worker: _Worker) -> None:
        """A worker died by itself: decide whose fault it was."""
        while worker.stderr in self._selector.get_map() and worker.read_complaints():
            pass
        self._dismiss(worker)
        status = worker.end()
        task, entry = worker.task, worker.entry
        if task is None:
            return
        self._deaths[task.number, entry] += 1
        cause = f"signal {-status}" if status < 0 else f"exit status {status}"
        again = self._deaths[task.number, entry] > 1
        if entry is not None and (again or -status not in _OUTSIDE_SIGNALS):
            self._leave_out(task, entry, f"the parser crashed ({cause})")
        elif entry is None and again:
            last = worker.complaints.decode(errors="replace").strip().rpartition("\n")[2]
            raise ChildProcessError(
                errno.ECHILD, f"worker processes die outside of any file ({cause}{last and ': '}{last})"
            )
        else:
            self._waiting.appendleft(task)

    def _leave_out(self, task: Task, entry: int, reason: str) -> None:
        self._skip[task.number][entry] = reason
        self._waiting.appendleft(task)


def _error(answer: dict) -> Exception:
    if "refused" in answer:
        return ChangedSource(answer["refused"])
    if answer["errno"] is not None:
        return OSError(answer["errno"], answer["error"], answer["filename"])
    return WorkerError(answer["error"])


def _environment() -> dict[str, str]:
    """One thread in each worker, and this very package wherever the worker starts."""
    home = str(Path(megatron_music.__file__).parent.parent)
    paths = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return os.environ | {f"{name}_NUM_THREADS": "1" for name in _ONE_THREAD} | {"PYTHONPATH": os.pathsep.join(paths)}
