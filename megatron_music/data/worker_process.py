"""What every worker process that ``worker_pool.py`` starts does first: it lives within bounds, and keeps its channel to
itself.
"""

import ctypes
import os
import resource
import signal
import sys
from typing import BinaryIO

MEMORY_LIMIT = 1 << 30
_PR_SET_PDEATHSIG = 1  # prctl: the signal to get when the parent dies


def live_within_bounds() -> None:
    """Take 1 GiB of memory and no more, write no core file, leave Ctrl-C to the parent, and end when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = MEMORY_LIMIT if most == resource.RLIM_INFINITY else min(MEMORY_LIMIT, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def private_channel() -> tuple[int, BinaryIO]:
    """Where to answer, and what is asked. What a parser prints goes to standard error, and it finds nothing to read."""
    channel, requests = os.dup(1), os.dup(0)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return channel, open(requests, "rb", closefd=True)


def say(channel: int, line: str) -> None:
    """One line to the parent."""
    os.write(channel, line.encode() + b"\n")
