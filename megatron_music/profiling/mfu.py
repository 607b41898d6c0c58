"""MFU and HFU of a measured step, by every formula side by side, with what each counts."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from megatron_music.config.sections import ModelConfig
from megatron_music.profiling.flops import (
    FORMULAS,
    PASSES,
    PLAIN,
    StepFlops,
    Variant,
    forward_flops,
    step_flops,
    tflops_per_gpu,
    utilization,
)
from megatron_music.profiling.logs import Step
from megatron_music.profiling.peaks import PEAKS, Peak, peak_of, precision_of

COUNTS = {
    "mcore": "half of the attention's scores (causal); as Megatron-LM since 2025",
    "72-form": "all scores; arXiv:2205.05198",
    "flow": "all attention: no position is hidden",
    "paper-eq3": "all scores, and full recomputation, always; arXiv:2104.04473, equation 3",
}
# Below it the matrix products are not what a step waits for.
LOW_MFU = 0.1
SAME_FORMULA = 0.01  # a log's own figure is rounded to 0.1 TFLOP/s


class Utilization(NamedTuple):
    """One formula's figures; None where the formula is not derived for the model."""

    formula: str
    counts: str  # in words; why there is no figure, where there is none
    recomputation: str
    model_tflops_per_gpu: float | None  # what the model needs, a second
    hardware_tflops_per_gpu: float | None  # what is carried out
    mfu: float | None  # in [0, 1]
    hfu: float | None


def utilizations(
    model: ModelConfig,
    *,
    global_batch_size: int,
    num_gpus: int,
    seconds: float,
    peak_tflops: float,
    recomputation: str = "none",
    variant: Variant = PLAIN,
) -> list[Utilization]:
    """All formulas' figures of one training step of a GPT.

    Args:
        seconds: of a step.
        recomputation: ``none``, ``selective`` or ``full``. Equation 3 counts full recomputation whatever was done.
    """
    found = []
    for formula in FORMULAS:
        counted = "full" if formula == "paper-eq3" else recomputation
        try:
            flops = step_flops(model, global_batch_size, formula=formula, recomputation=counted, variant=variant)
        except ValueError as error:
            found.append(Utilization(formula, str(error), counted, None, None, None, None))
            continue
        found.append(utilization_of(flops, num_gpus=num_gpus, seconds=seconds, peak_tflops=peak_tflops))
    return found


def utilization_of(flops: StepFlops, *, num_gpus: int, seconds: float, peak_tflops: float) -> Utilization:
    """The figures of one step whose operations are counted."""
    both = flops.model, flops.hardware
    return Utilization(
        flops.formula,
        COUNTS[flops.formula],
        flops.recomputation,
        *(tflops_per_gpu(operations, seconds, num_gpus) for operations in both),
        *(utilization(operations, seconds, num_gpus, peak_tflops) for operations in both),
    )


class StatedSpeed(NamedTuple):
    """The TFLOP/s per GPU that a log prints, beside what each way of counting attention gives for the same lines."""

    stated: float  # median over the lines
    causal: float  # by mcore: half of the scores
    all_scores: float
    follows: str | None  # "causal", "all scores", or None: neither within 1 %


def compare_stated(
    steps: Sequence[Step], model: ModelConfig, *, global_batch_size: int, num_gpus: int, variant: Variant = PLAIN
) -> StatedSpeed | None:
    """Which formula a log's own TFLOP/s per GPU follow; None where its lines state none.

    Megatron-LM counted all of the attention's scores until 2025, and half of them since; NeMo and its benchmark scripts
    have both.
    """
    stated = [(step.tflops_per_gpu, step.seconds) for step in steps if step.tflops_per_gpu]
    if not stated:
        return None
    operations = statistics.median(tflops * seconds for tflops, seconds in stated)  # free of the spread of times
    counts = []
    for causal in (True, False):
        layers, _, logits = forward_flops(model, causal=causal, variant=variant)
        counts.append(tflops_per_gpu(PASSES * global_batch_size * (layers + logits), 1.0, num_gpus))
    distances = [abs(operations / count - 1) for count in counts]
    nearest = min(range(2), key=lambda number: distances[number])
    follows = ("causal", "all scores")[nearest] if distances[nearest] < SAME_FORMULA else None
    seconds = statistics.median(seconds for _, seconds in stated)
    return StatedSpeed(
        statistics.median(tflops for tflops, _ in stated), counts[0] / seconds, counts[1] / seconds, follows
    )


def find_peak(gpu: str | None, peak_tflops: float | None, dtype: str | None = None) -> Peak:
    """The peak that figures are shares of.

    Args:
        gpu: a short name of ``PEAKS``, or the name torch gives it.
        peak_tflops: of one GPU, dense; it goes before what is known of the GPU.
        dtype: ``bf16`` or ``fp16``; left out: bf16 where the GPU has it.

    Raises:
        ValueError: neither is given, the GPU is not known, or has no bf16.
    """
    if peak_tflops is not None:
        if not 0 < peak_tflops < float("inf"):
            raise ValueError(f"--peak is {peak_tflops}; use TFLOP/s above 0, dense, such as 989 of an H100")
        return Peak(gpu or "a GPU", peak_tflops, "as --peak says", "")
    if not gpu:
        raise ValueError(
            f"there is no peak to compare with; give --gpu ({', '.join(PEAKS)}) or --peak TFLOP/s of one GPU"
        )
    if dtype is None:
        known = peak_of(gpu, "fp16")
        dtype = "bf16" if known is None or known.has_bf16 else "fp16"
    found = peak_of(gpu, dtype)
    if found is None:
        raise ValueError(f"no peak of {gpu!r} is known; use one of {', '.join(PEAKS)}, or --peak TFLOP/s of one GPU")
    return found


def in_precision(peak: Peak, *, bf16: bool, float32_matmul_precision: str) -> Peak:
    """A GPU's peak for a run in bf16, or in float32, which has a peak of its own.

    Raises:
        ValueError: the GPU's peak in float32 is not known.
    """
    if bf16:
        return peak
    try:
        found = precision_of(peak, bf16=False, float32_matmul_precision=float32_matmul_precision)
    except ValueError as error:
        raise ValueError(f"{str(error).partition(';')[0]}; give it with --peak TFLOP/s of one GPU") from None
    return peak._replace(tflops=found.tflops, source=f"as recalled from NVIDIA's data sheet, dense, {found.name}")
