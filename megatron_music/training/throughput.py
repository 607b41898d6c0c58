"""What a step says of the machine and of the way through the data: operations a second, MFU, memory, epochs.

Every number is of the run as a whole but memory, which is the main process's.
"""

import resource
import sys

import torch

from megatron_music.config.sections import Run
from megatron_music.parallel import distributed
from megatron_music.profiling.flops import tflops_per_gpu
from megatron_music.profiling.peaks import peak_of
from megatron_music.training.task import Work


class Throughput:
    """The figures of steps of one run.

    Args:
        speaks: the main process says on stderr by which formula, vocabulary and peak they are; without those they mean
            nothing.
    """

    def __init__(self, config: Run, work: Work, speaks: bool = True):
        self._work = work
        self._num_gpus = distributed.launched_size()
        self._peak, source = _peak(config)
        if speaks:
            distributed.tell(
                f"speed: tflops_per_gpu counts the model's operations by the formula {work.formula}; {source}"
            )

    def of_step(self, seconds: float, consumed_samples: int) -> dict[str, float | None]:
        """The figures after a step.

        Args:
            seconds: that the step took.
            consumed_samples: since the run began.

        Returns:
            ``tflops_per_gpu``; ``mfu`` in [0, 1], or None where no peak is known; ``epoch``, training tokens seen over
            training tokens there are; and the most memory there was so far, of the main process: ``cuda_memory_gib`` of
            tensors on its GPU, or ``process_memory_gib`` resident on a machine without one.
        """
        work = self._work
        speed = tflops_per_gpu(work.flops, seconds, self._num_gpus)
        return {
            "tflops_per_gpu": speed,
            "mfu": speed / self._peak if speed and self._peak else None,
            "epoch": consumed_samples * work.tokens_per_sample / work.train_tokens,
            "cuda_memory_gib" if torch.cuda.is_available() else "process_memory_gib": peak_memory_gib(),
        }


def _peak(config: Run) -> tuple[float | None, str]:
    """The peak of a GPU in TFLOP/s, and where it is from in words."""
    if config.logging.peak_tflops:
        return (
            config.logging.peak_tflops,
            f"mfu is its share of {config.logging.peak_tflops:g} TFLOP/s (logging.peak_tflops)",
        )
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    dtype = "bf16" if config.train.bf16 else "fp32"
    peak = peak_of(name) if config.train.bf16 else None
    if peak is None:
        return None, f"mfu is left out, since no peak of {name} in {dtype} is known (logging.peak_tflops sets one)"
    return peak.tflops, f"mfu is its share of {peak.tflops:g} TFLOP/s, the peak of {name} ({peak.source})"


def peak_memory_gib() -> float:
    """The most memory this process has had: of tensors on its GPU, or resident on a machine without one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
