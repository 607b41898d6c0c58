"""Some steps of a run under a profiler: nsys's window and ranges on a GPU, torch.profiler's trace on a CPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from megatron_music.config.errors import ConfigError
from megatron_music.storage.writing import written_apart

FEWEST = 3  # steps on each side, below which it is not said what the profiler costs


class StepProfiler:
    """Marks each step with its iteration, and profiles a window of them.

    On a GPU a step is an NVTX range, and the window is opened and closed by cudaProfilerStart and cudaProfilerStop, for
    ``nsys profile --capture-range=cudaProfilerApi``. On a CPU the window is written as ``trace-rankN.json`` into the
    run's folder.

    Args:
        folder: the run's, or None.
        window: the first and the last iteration profiled, or None.

    Raises:
        ConfigError: a trace of a CPU would have no place.
    """

    def __init__(self, folder: Path | None, window: tuple[int, int] | None):
        self._on_gpu = torch.cuda.is_available()
        if window and folder is None and not self._on_gpu:
            raise ConfigError(
                "without a GPU --profile-steps writes trace-rankN.json into the run's folder; set checkpoint.save"
            )
        self._folder, self._window = folder, window
        self._is_open = False
        self._seconds: dict[bool, list[float]] = {True: [], False: []}  # of steps, by whether they were profiled
        self._profiler: torch.profiler.profile | None = None

    @contextmanager
    def step(self, iteration: int) -> Iterator[None]:
        """Around one step."""
        if self._window and not self._is_open and self._window[0] <= iteration <= self._window[1]:
            self._open()
        name, begin = f"iteration {iteration}", time.perf_counter()
        if self._on_gpu:
            torch.cuda.nvtx.range_push(name)
            try:
                yield
            finally:
                torch.cuda.nvtx.range_pop()
        elif self._profiler:
            with torch.profiler.record_function(name):
                yield
        else:
            yield
        self._seconds[self._is_open].append(time.perf_counter() - begin)
        if self._window and iteration == self._window[1]:
            self.close()

    def cost(self) -> str | None:
        """What profiling does to the times in a trace, in a sentence; None where nothing was to be profiled."""
        profiled, others = self._seconds[True], self._seconds[False][1:]  # the first step of a run warms up
        if not profiled:
            return (
                f"no step was profiled: this start had none of the iterations {self._window[0]}-{self._window[1]}"
                if self._window
                else None
            )
        if min(len(profiled), len(others)) < FEWEST:
            return f"too few steps to say what the profiler costs: {len(profiled)} profiled, {len(others)} others"
        slower = median(profiled) / median(others) - 1
        return (
            f"{len(profiled)} profiled steps took {median(profiled):.4g} s, the {len(others)} others "
            f"{median(others):.4g} s (medians): "
            f"{slower:+.0%}, the profiler's part in the trace"
        )

    def close(self) -> None:
        """End the window, also where the run ends within it."""
        if not self._is_open:
            return
        self._is_open = False
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
        else:
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            path = self._folder / f"trace-rank{dist.get_rank()}.json"
            with written_apart(path) as apart:
                profiler.export_chrome_trace(str(apart))

    def _open(self) -> None:
        self._is_open = True
        if self._on_gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        else:
            self._profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profiler.start()
