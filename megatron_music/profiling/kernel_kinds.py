"""The kind of a kernel or operator: matrix product, attention, communication, memory traffic or other.

Told by the function's own name. Template arguments and argument types say which data a kernel takes, not what it does:
a lookup in a table takes an ``fbgemm_gpu::FixedDivisor``, and a norm ``cutlass::bfloat16_t``.
"""

import re
from functools import lru_cache

KINDS = ("gemm", "attention", "communication", "memory", "other")
_COMMUNICATION = re.compile(
    r"nccl|nvshmem|deep_?ep\b|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|send_?recv|broadcast_?kernel|c10d::|gloo|"
    r"ModelParallelRegion|cross_device_reduce|userbuffers|multimem",
    re.IGNORECASE,
)  # before the others: the names of NCCL's kernels have types of products in them
# Of the last part of a name, without its namespaces: flashinfer and fbgemm_gpu are libraries, not what a kernel of
# theirs does.
_LAST_PART = (
    ("memory", re.compile(r"(reshape|concat)_and_cache", re.IGNORECASE)),
    (
        "other",
        re.compile(r"^triton_(poi|red|per)_"),
    ),  # fused elementwise work and reductions, named after all they replace
    (
        "attention",
        re.compile(
            r"flash|fmha|attention|attn|sdpa|scaled_(upper_triang_)?masked_softmax|PagedKVCache|(Batch|Single)(Prefill|Decode)",
            re.I,
        ),
    ),
    (
        "gemm",
        re.compile(
            r"gemm|gemv|^cutlass_|cublas|nvjet|xmma|wgrad|dgrad|^Cijk_|^bmm_|matmul|splitKreduce|fused_moe|(^|_)(add|b)?mm(_|\d|$)",
            re.I,
        ),
    ),
    ("memory", re.compile(r"memcpy|memset|copy|CatArray", re.IGNORECASE)),
)
_ATEN = (
    ("attention", re.compile(r"attention|sdpa")),
    ("gemm", re.compile(r"^aten::(addmm|mm|bmm|baddbmm|linear|matmul|mkldnn_linear)")),
    ("memory", re.compile(r"^aten::(copy|_to_copy|fill_|zero_|empty|cat|to\b|clone|contiguous)")),
)
# Entry points that launch whatever their template arguments name.
_ENTRY_POINTS = re.compile(r"(^|::)(Kernel2?|device_kernel|kentry|kernel_entry)$")
_ATTENTION_WITHIN = re.compile(r"flash|fmha|attention|attn", re.IGNORECASE)
_ELEMENTWISE = re.compile(r"(^|_)(elementwise|index_elementwise)_kernel")
_PYTHON = re.compile(r"^\S+\.py\(\d+\): *")  # a file and a line, as of Triton's kernels in some traces
_COPY_WITHIN = re.compile(r"direct_copy_kernel|FillFunctor|CopyFunctor")


@lru_cache(maxsize=65536)
def kind_of(name: str) -> str:
    """The kind of a kernel or operator, by its name: one of ``KINDS``."""
    if _COMMUNICATION.search(own := own_name(name)):
        return "communication"
    if name.startswith("aten::"):
        return next((kind for kind, pattern in _ATEN if pattern.search(name)), "other")
    if _ENTRY_POINTS.search(own):
        return "attention" if _ATTENTION_WITHIN.search(name) else "gemm"
    last = own.rsplit("::", 1)[-1]
    if _ELEMENTWISE.search(last):
        return "memory" if _COPY_WITHIN.search(name) else "other"
    return next((kind for kind, pattern in _LAST_PART if pattern.search(last)), "other")


def own_name(name: str) -> str:
    """A function's name with its namespaces, without return type, template arguments and parameters."""
    if name.startswith("_Z"):
        return _mangled(name)
    text = _PYTHON.sub("", name).replace("(anonymous namespace)", "anonymous").removeprefix("void ")
    kept, depth = [], 0
    for character in text:
        if character == "(" and depth == 0:
            break
        depth += (character == "<") - (character == ">" and depth > 0)
        if depth == 0 and character != ">":
            kept.append(character)
    return "".join(kept).strip()


def _mangled(name: str) -> str:
    """The names in a mangled one, ``_ZN5flash16flash_fwd_kernelI...``, up to its template arguments."""
    parts, rest = [], name[2:].lstrip("NKL")
    while length := re.match(r"\d{1,6}", rest):
        size = int(length[0])
        parts.append(rest[length.end() : length.end() + size])
        rest = rest[length.end() + size :]
    return "::".join(parts) or name
