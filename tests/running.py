"""Other processes as tests watch them: whether one runs, and waiting for what it will do however busy the
machine is.
"""

import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_SECONDS = 900


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it never came to this"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """A zombie has ended, however slow its parent is to take note of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid: int, count: int) -> list[int]:
    """At least so many children, as soon as it has them."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: len(listed.read_text().split()) >= count)
    return [int(child) for child in listed.read_text().split()]
