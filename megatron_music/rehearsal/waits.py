"""A GPU as it describes itself, and the moments at which the host waits for it, with the line that asked."""

import sys
from pathlib import Path
from typing import NamedTuple

_OURS = ("megatron_music", "megatron")  # whose lines are named


class Wait(NamedTuple):
    """One moment at which the host waits for the GPU, or a copy between them."""

    kind: str  # wait, copy to the GPU, copy from the GPU
    what: str  # the call
    where: str  # file:line function
    num_bytes: int
    is_pinned: bool = False


class Gpu(NamedTuple):
    """What the GPU says of itself."""

    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    memory: int = 80 * 10**9
    as_cpu: bool = False  # keep in memory what PyTorch's kernels for CPUs keep, to compare with a run there


def where() -> str:
    """The innermost line of this package, but for the rehearsal's own, or of megatron-core."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename).parts
        package = next((name for name in _OURS if name in path[:-1]), None)
        if package and "rehearsal" not in path:
            short = "/".join(path[len(path) - 1 - path[::-1].index(package) :])
            return f"{short}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "torch"
