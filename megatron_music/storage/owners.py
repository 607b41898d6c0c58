"""Owner files: who is at work in a folder, on which machine, and whether that process is alive.

Beside a lock file ``LOCK`` lies ``LOCK.16-hex-digits`` for each holder: its machine, its process, and since when, as
JSON. A thread refreshes the time of the file every 5 seconds. An owner on this machine is alive as long as its process
is. One on another machine is alive where its file's time changes while it is watched, and dead where it does not for
``STALE_SECONDS``, or is ``ABANDONED_SECONDS`` old already.
"""

import json
import logging
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_music.storage.writing import naming, token

_logger = logging.getLogger("megatron_music")
REFRESH_SECONDS = 5.0
STALE_SECONDS = 120.0  # a process that computes within one call of a library may refresh late
ABANDONED_SECONDS = 900.0  # more than clocks of one cluster differ
_POLL_SECONDS = 0.5
_OWNER_BYTES = 4096


@dataclass
class Owner:
    """An owner file."""

    lock: Path
    token: str
    shared: bool
    facts: dict
    seconds: float  # its time, on the file system's clock

    @property
    def path(self) -> Path:
        return self.lock.with_name(f"{self.lock.name}.{self.token}")

    @classmethod
    def new(cls, lock: Path, shared: bool) -> "Owner":
        facts = {"machine": machine(), "pid": os.getpid(), "start": _start(os.getpid()), "shared": shared}
        owner = cls(lock, token(), shared, facts, 0.0)
        with naming(owner.path):
            descriptor = os.open(owner.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            try:
                os.write(descriptor, json.dumps(facts).encode())
                owner.seconds = os.fstat(descriptor).st_mtime
            except OSError:  # the disk is full
                owner.path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        _heart.beats_for(owner.path)
        return owner

    @classmethod
    def read(cls, lock: Path, name: str) -> "Owner | None":
        """The owner file of a token; None: there is none. Opened each time, as network file systems look anew then."""
        path = lock.with_name(f"{lock.name}.{name}")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError:  # of another user, or a link
            return cls(lock, name, False, {}, time.time())
        try:
            found, seconds = os.read(descriptor, _OWNER_BYTES), os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)
        try:
            facts = json.loads(found)
            return cls(lock, name, facts["shared"] is True, facts, seconds)
        except (ValueError, KeyError, TypeError, RecursionError):  # it is being written at the moment
            return cls(lock, name, False, {}, seconds)

    def is_alive(self) -> bool | None:
        """None: it is on another machine, or this system does not list its processes."""
        if self.facts.get("machine") != machine() or _start(os.getpid()) is None:
            return None
        pid = self.facts.get("pid")
        start = _start(pid) if type(pid) is int else None
        return start is not None and start == self.facts.get("start")

    def is_dead(self, now: float) -> bool:
        """Whether it is dead; of one on another machine that takes some time to tell.

        Args:
            now: on the file system's clock.
        """
        alive = self.is_alive()
        if alive is not None:
            return not alive
        if now - self.seconds > ABANDONED_SECONDS:
            return True
        _logger.info(f"waiting to see whether {self} is still alive: {self.path.parent} was held by it")
        limit = time.monotonic() + STALE_SECONDS
        while time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
            found = Owner.read(self.lock, self.token)
            if found is None:
                return True
            if found.seconds != self.seconds:
                return False
        return True

    def let_go(self) -> None:
        _heart.stops_for(self.path)
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def __str__(self) -> str:
        pid, name = self.facts.get("pid"), str(self.facts.get("machine")).partition(" ")[0]
        return f"process {pid if isinstance(pid, int) else '?'} on {name[:64]!r}"


def machine() -> str:
    """This machine since it started, as processes are numbered in it; its name first."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        boot = numbering = "?"
    return f"{os.uname().nodename or '?'} {boot} {numbering}"


def start_of(pid: int) -> bytes | None:
    """When a process started, as the kernel counts it; None: it has ended, whether or not its parent knows."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19]


def _start(pid: int) -> str | None:
    found = start_of(pid)
    return None if found is None else found.decode("ascii")


class _Heart:
    """Refreshes the times of owner files, from a thread that starts with the first of them."""

    def __init__(self):
        self._paths: set[Path] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def beats_for(self, path: Path) -> None:
        with self._lock:
            self._paths.add(path)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, daemon=True, name="owner files")
                self._thread.start()

    def stops_for(self, path: Path) -> None:
        with self._lock:
            self._paths.discard(path)

    def _beat(self) -> None:
        while True:
            time.sleep(REFRESH_SECONDS)
            with self._lock:
                paths = list(self._paths)
            for path in paths:
                try:
                    os.utime(path, follow_symlinks=False)
                except FileNotFoundError:
                    with self._lock:
                        is_missed = path in self._paths
                        self._paths.discard(path)
                    if is_missed:
                        _logger.warning(
                            f"{path} was removed while this process was at work there; if another process has taken "
                            f"{path.parent} "
                            "meanwhile, stop one of them"
                        )
                except OSError:  # a server that does not answer now may answer in time
                    pass


_heart = _Heart()
os.register_at_fork(after_in_child=_heart.__init__)  # a child holds nothing
