"""What nvidia-smi says of a GPU over a stretch of time: utilization, memory, power.

``utilization.gpu`` is the share of time in which any kernel ran, however small: 100% says nothing of how well it was
used.
"""

import contextlib
import subprocess
from statistics import fmean

_FIELDS = ("utilization.gpu", "utilization.memory", "memory.used", "power.draw")
INTERVAL_MS = 200
_SECONDS_TO_END = 10


class GpuMonitor:
    """Asks nvidia-smi again and again while its ``with`` lasts.

    Args:
        gpu: the index or UUID of the GPU; None: there is none, and nothing is asked.

    Attributes:
        figures: afterwards the means of ``gpu_utilization`` and ``memory_utilization`` in [0, 1] and of ``power_w``,
            the most of ``memory_used_gib``, each None where the GPU does not tell, and the number of ``samples``; None
            where nvidia-smi is not there or said nothing.
    """

    def __init__(self, gpu: str | None):
        self._gpu = gpu
        self.figures: dict[str, float] | None = None

    def __enter__(self) -> "GpuMonitor":
        self._process = None
        if self._gpu is not None:
            command = [
                "nvidia-smi",
                f"--id={self._gpu}",
                f"--query-gpu={','.join(_FIELDS)}",
                "--format=csv,noheader,nounits",
                f"--loop-ms={INTERVAL_MS}",
            ]
            with contextlib.suppress(OSError):
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        return self

    def __exit__(self, *_) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            output, _ = self._process.communicate(timeout=_SECONDS_TO_END)
        except subprocess.TimeoutExpired:  # it waits for the driver
            self._process.kill()
            return
        self.figures = _summary(output)


def _summary(output: str) -> dict[str, float | None] | None:
    lines = [line.split(",") for line in output.splitlines() if line.count(",") == len(_FIELDS) - 1]
    if not lines:
        return None
    utilization, memory, used, power = (
        [value for word in column if (value := _number(word)) is not None] for column in zip(*lines, strict=True)
    )
    return {
        "gpu_utilization": fmean(utilization) / 100 if utilization else None,
        "memory_utilization": fmean(memory) / 100 if memory else None,
        "memory_used_gib": max(used) / 1024 if used else None,
        "power_w": fmean(power) if power else None,
        "samples": len(lines),
    }


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # [N/A]
        return None
