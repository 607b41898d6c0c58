"""Peak speeds of GPUs, dense matrix products in bf16 and fp16 in TFLOP/s, each with where the number is from; float32;
memory.

Dense, that is without structured sparsity: data sheets print the double with it (1979 for an H100). Found by the names
that ``torch.cuda.get_device_name`` gives; a slice of a GPU (MIG) has no entry, as its peak is not the GPU's.
"""

import re
from typing import NamedTuple

DATA_SHEET = "NVIDIA's data sheet, dense"
RECALLED = "NVIDIA's data sheet as recalled, dense; check it before you publish"


class Peak(NamedTuple):
    """What a GPU can do at most."""

    gpu: str  # short name, what a person types
    tflops: float  # dense, bf16 and fp16 alike
    source: str
    device_name: str  # regular expression over the whole of what torch calls it
    memory_gb: int | None = None  # 10^9 bytes; of a short name, the largest there is; as recalled from data sheets
    has_bf16: bool = True
    tf32_tflops: float | None = None  # of float32 matrices on TF32 units, dense; NVIDIA's data sheets as recalled
    fp32_tflops: float | None = None  # of float32 matrices on float32 units; likewise


_OTHER_NAMES = {"v100-32gb": "v100", "a100-80gb": "a100", "a800-80gb": "a800"}

PEAKS: dict[str, Peak] = {
    peak.gpu: peak
    for peak in (
        Peak(
            "v100",
            125,
            DATA_SHEET + ", SXM2, fp16",
            r"Tesla V100-SXM[23]-32GB(-LS)?",
            32,
            has_bf16=False,
            fp32_tflops=15.7,
        ),
        Peak(
            "v100-16gb", 125, DATA_SHEET + ", SXM2, fp16", r"Tesla V100-SXM2-16GB", 16, has_bf16=False, fp32_tflops=15.7
        ),
        Peak("v100-dgx2h", 130, "NVIDIA's DGX-2H, 450 W a GPU, fp16", r"Tesla V100-SXM3-32GB-H", 32, has_bf16=False),
        Peak(
            "a100",
            312,
            DATA_SHEET,
            r"(NVIDIA )?A100-(SXM4|SXM|PCIE|PCIe)-80GB|NVIDIA A100 80GB PCIe",
            80,
            tf32_tflops=156,
            fp32_tflops=19.5,
        ),
        Peak(
            "a100-40gb",
            312,
            DATA_SHEET,
            r"(NVIDIA )?A100-(SXM4|SXM|PCIE|PCIe)-40GB",
            40,
            tf32_tflops=156,
            fp32_tflops=19.5,
        ),
        Peak(
            "a800",
            312,
            DATA_SHEET,
            r"NVIDIA A800-(SXM4|PCIE)-80GB|NVIDIA A800 80GB PCIe",
            80,
            tf32_tflops=156,
            fp32_tflops=19.5,
        ),
        Peak(
            "a800-40gb",
            312,
            DATA_SHEET,
            r"NVIDIA A800-(SXM4|PCIE)-40GB( Active)?",
            40,
            tf32_tflops=156,
            fp32_tflops=19.5,
        ),
        Peak("h100", 989, DATA_SHEET + ", SXM", r"NVIDIA H100 80GB HBM3", 80, tf32_tflops=494.5, fp32_tflops=67),
        Peak("h100-pcie", 756, DATA_SHEET, r"NVIDIA H100 PCIe", 80, tf32_tflops=378, fp32_tflops=51),
        Peak("h100-nvl", 835, DATA_SHEET, r"NVIDIA H100 NVL", 94, tf32_tflops=417.5, fp32_tflops=60),
        Peak("h200", 989, DATA_SHEET + ", SXM", r"NVIDIA H200", 141, tf32_tflops=494.5, fp32_tflops=67),
        Peak("h800", 989, DATA_SHEET + ", SXM", r"NVIDIA H800", 80, tf32_tflops=494.5, fp32_tflops=67),
        Peak("h20", 148, DATA_SHEET, r"NVIDIA H20", 96, tf32_tflops=74, fp32_tflops=44),
        Peak("l40s", 362, RECALLED, r"NVIDIA L40S", 48, tf32_tflops=183, fp32_tflops=91.6),
        Peak("b200", 2250, DATA_SHEET, r"NVIDIA B200", 180, tf32_tflops=1125, fp32_tflops=75),
        Peak("b300", 2250, DATA_SHEET, r"NVIDIA B300( SXM6 AC)?", 288, tf32_tflops=1125, fp32_tflops=75),
        Peak("gb200", 2500, "a GB200 NVL72's by 72; other sources have 2450", r"NVIDIA GB200", 186, tf32_tflops=1250),
        Peak("gb300", 2500, "as a GB200; other sources have 2450", r"NVIDIA GB300", 288, tf32_tflops=1250),
    )
}


def peak_of(gpu: str, dtype: str = "bf16") -> Peak | None:
    """The peak of a GPU by its short name or the name that torch gives it; None where it is not known.

    Args:
        dtype: ``bf16`` or ``fp16``.

    Raises:
        ValueError: another dtype, or bf16 of a GPU that has none.
    """
    if dtype not in ("bf16", "fp16"):
        raise ValueError(f"dtype is {dtype!r}; peaks are known for bf16 and fp16, give the number for another")
    name = gpu.strip()
    short = re.sub(r"[ _]", "-", name.lower())
    found = PEAKS.get(_OTHER_NAMES.get(short, short)) or next(
        (peak for peak in PEAKS.values() if re.fullmatch(peak.device_name, name)), None
    )
    if found and dtype == "bf16" and not found.has_bf16:
        raise ValueError(f"{name} does not compute in bf16; use fp16, or a GPU from the A100 on")
    return found


class Precision(NamedTuple):
    """What a run's matrix products are computed in on a GPU."""

    name: str  # bf16, or float32 and the units that multiply it
    tflops: float  # the GPU's peak, dense
    element_bytes: int  # of activations and of the messages that carry them


def precision_of(peak: Peak, *, bf16: bool, float32_matmul_precision: str = "high") -> Precision:
    """The precision of a run on a GPU, and the peak that goes with it.

    Args:
        bf16: ``train.bf16``.
        float32_matmul_precision: ``train.float32_matmul_precision``; PyTorch takes TF32 for ``high`` and ``medium``
            where the GPU has it, which came with bf16.

    Raises:
        ValueError: the GPU's peak in that precision is not known.
    """
    if bf16:
        return Precision("bf16", peak.tflops, 2)
    is_tf32 = float32_matmul_precision != "highest" and peak.has_bf16
    tflops, units = (peak.tf32_tflops, "TF32") if is_tf32 else (peak.fp32_tflops, "float32")
    if tflops is None:
        raise ValueError(
            f"train.bf16 is false, and the peak of {peak.gpu} with matrix products on {units} units is not known; set "
            f"train.bf16=true"
            + ("" if is_tf32 or peak.tf32_tflops is None else " or train.float32_matmul_precision=high")
        )
    return Precision(f"float32 on {units} units", tflops, 4)
