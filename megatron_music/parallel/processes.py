"""Commands that this one starts, and that end with it, whatever stops it. Linux finds their descendants, too.

torchrun starts each worker in a session of its own and forgets it where a signal comes while it does, so that ending a
launcher
or its process group can leave workers behind: they are found by an environment variable that all of them inherit.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_music.storage.owners import start_of

GRACE_SECONDS = 10.0  # from SIGTERM to SIGKILL
_KILL_SECONDS = 10.0  # for what SIGKILL reaches late: a process that waits for a disk or a driver
_POLL_SECONDS = 0.05
_MARK, _STARTED_BY = "MEGATRON_MUSIC_MARK", "MEGATRON_MUSIC_STARTED_BY"
STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP"))


def run_to_end(command: Sequence[str], output, time_limit: float, grace_seconds: float = GRACE_SECONDS) -> int:
    """Run a command; afterwards neither it nor anything it started is running.

    SIGINT, SIGTERM and SIGHUP end it: first by SIGTERM, after ``grace_seconds`` or at a second signal by SIGKILL.

    Args:
        output: a file for its standard output and error.
        time_limit: seconds.

    Returns:
        Its exit status; negative: the signal that ended it.

    Raises:
        subprocess.TimeoutExpired: the time limit passed.
        KeyboardInterrupt: one of the three signals came.
    """
    mark = uuid.uuid4().hex
    environment = os.environ | {_MARK: mark, _STARTED_BY: str(os.getpid())}
    with _noted_signals() as noted:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        limit = time.monotonic() + time_limit
        while process.poll() is None and not noted and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
        status = process.poll()
        _end(process, mark, noted, grace_seconds)
    if noted:
        raise KeyboardInterrupt
    if status is None:
        raise subprocess.TimeoutExpired(command, time_limit)
    return status


def end_with_starter() -> None:
    """In a process below ``run_to_end``: end when the process that called it has ended, even by SIGKILL."""
    starter = os.environ.get(_STARTED_BY)
    if starter:
        threading.Thread(target=_outlive_no_more_than, args=(int(starter),), daemon=True).start()


def _outlive_no_more_than(starter: int) -> None:
    while True:
        try:
            os.kill(starter, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1.0)


def end_with_parent() -> None:
    """In a worker of ``multiprocessing``: leave Ctrl-C to the parent, and end when the parent has, even by SIGKILL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for kind in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, signal.SIG_DFL)  # a forked process inherits the parent's handlers
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextlib.contextmanager
def stopped_by_every_signal() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does, so that child processes and temporary files are
    cleared away.

    A second one ends the process at once. Signals that are ignored stay so, as under nohup; elsewhere than in the main
    thread nothing changes.
    """

    def interrupt(number, frame) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt

    changed = []
    with contextlib.suppress(ValueError):  # only the main thread may listen
        for kind in STOPPING[1:]:
            if signal.getsignal(kind) == signal.SIG_DFL:
                signal.signal(kind, interrupt)
                changed.append(kind)
    try:
        yield
    finally:
        for kind in changed:
            signal.signal(kind, signal.SIG_DFL)


@contextlib.contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """A list that receives the signals that would stop the process. None interrupts Python between two statements."""
    noted: list[int] = []
    previous = {kind: signal.getsignal(kind) for kind in STOPPING}
    heeded = {kind: handler for kind, handler in previous.items() if handler not in (signal.SIG_IGN, None)}
    with contextlib.suppress(ValueError):  # only the main thread may listen
        for kind in heeded:
            signal.signal(kind, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        with contextlib.suppress(ValueError):
            for kind, handler in heeded.items():
                signal.signal(kind, handler)


def _end(process: subprocess.Popen, mark: str, noted: list[int], grace_seconds: float) -> None:
    """End a command and its descendants; signals beyond those noted so far cut the grace short."""
    family = _Family(mark)
    before = len(noted)
    if process.poll() is None:
        process.terminate()  # a launcher ends its workers in turn
        limit = time.monotonic() + grace_seconds
        while process.poll() is None and len(noted) == before and time.monotonic() < limit:
            family.running()
            time.sleep(_POLL_SECONDS)
    limit, quiet_looks = time.monotonic() + _KILL_SECONDS, 0
    while quiet_looks < 2 and time.monotonic() < limit:  # at one look a process may be on the way from fork to exec
        if process.poll() is None:
            process.kill()
        left = family.running()
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        quiet_looks = 0 if left or process.poll() is None else quiet_looks + 1
        time.sleep(_POLL_SECONDS)


class _Family:
    """The processes that have a mark in their environment; none where there is no /proc."""

    def __init__(self, mark: str):
        self._wanted = f"{_MARK}={mark}".encode()
        self._seen: set[tuple[int, bytes | None]] = set()  # a process that is ending has no environment any more
        self.running()

    def running(self) -> list[tuple[int, bytes | None]]:
        """Those that have not ended, each with the time of its start, which tells it from another with its number."""
        for entry in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # of another user, or ended meanwhile
                if self._wanted in entry.read_bytes().split(b"\0"):
                    pid = int(entry.parent.name)
                    self._seen.add((pid, start_of(pid)))
        return [(pid, start) for pid, start in self._seen if start and start_of(pid) == start]
