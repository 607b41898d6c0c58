"""megatron-core on a machine without CUDA: what it asks of ``torch.cuda``, answered by the CPU.

megatron-core runs on gloo and the CPU but for places where it names CUDA outright. ``install`` answers those in this
process until ``uninstall``; nothing is patched by importing this module, and nothing at all where CUDA exists.
"""

import contextlib
import warnings

import megatron.core.optimizer.clip_grads as megatron_clipping
import megatron.core.tensor_parallel.random as megatron_random
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


def _names_cuda(device) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")


# What multiplies matrices. A processor without bfloat16 arithmetic takes some twenty times as long for these as in
# float32.
_PRODUCTS = {
    F.linear,
    F.scaled_dot_product_attention,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.Tensor.matmul,
    torch.Tensor.__matmul__,
    torch.Tensor.mm,
    torch.Tensor.bmm,
}


def _multiplies_bfloat16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _is_half(value) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16


class _CudaMeansCpu(TorchFunctionMode):
    """Turns calls that name CUDA outright into calls on the CPU.

    Where the processor has no bfloat16 arithmetic, products of bfloat16 matrices are computed in float32 and rounded,
    as arithmetic units for bfloat16 do.
    """

    def __init__(self):
        super().__init__()
        self._widens = not _multiplies_bfloat16()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._widens and function in _PRODUCTS and any(map(_is_half, args)) and "out" not in kwargs:
            args = tuple(argument.float() if _is_half(argument) else argument for argument in args)
            kwargs = {key: value.float() if _is_half(value) else value for key, value in kwargs.items()}
            return function(*args, **kwargs).to(torch.bfloat16)
        # Schedules, gradient clipping and the optimizer create their scalars with device="cuda".
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs = {**kwargs, "device": CPU}
            kwargs.pop("pin_memory", None)
        # The tied embedding between pipeline stages and the distributed optimizer's gathers move tensors to CUDA.
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.to:
            args = tuple(CPU if _names_cuda(argument) else argument for argument in args)
        # The optimizers sort parameters by type name and know only torch.cuda.FloatTensor and its like.
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.", 1)
        return function(*args, **kwargs)


class _Idle:
    """A CUDA stream or event with nothing to wait for: the CPU has done its work when a call returns."""

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def _get_state(*args, **kwargs) -> torch.Tensor:
    return torch.get_rng_state()


def _set_state(state, *args, **kwargs) -> None:
    torch.set_rng_state(state)


class _CpuStatesTracker(megatron_random.CudaRNGStatesTracker):
    """megatron-core's tracker on the CPU generator.

    The original warns at every fork that the CPU generator moved, which here is the point.
    """

    @contextlib.contextmanager
    def fork(self, name=megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME):
        outside = torch.get_rng_state()
        torch.set_rng_state(self.states_[name])
        try:
            yield
        finally:
            self.states_[name] = torch.get_rng_state()
            torch.set_rng_state(outside)


def _scale(chunk_size, noop_flag, tensor_lists, scale) -> None:
    sources, targets = tensor_lists
    for source, target in zip(sources, targets, strict=True):
        torch.mul(source, scale, out=target)


_run_backward = torch.autograd._engine_run_backward


def _backward(*args, **kwargs):
    # torch calls a mode for a backward pass as a whole, and leaves it out within: what is recomputed there needs it.
    with _mode:
        return _run_backward(*args, **kwargs)


def _patches() -> list[tuple[object, str, object]]:
    def returns(value):
        return lambda *args, **kwargs: value

    cuda = torch.cuda
    return [
        # Buffers of the pipeline, of sequence parallelism, of gradients and of RoPE are made on this device.
        (cuda, "current_device", returns(CPU)),
        (cuda, "device_count", returns(1)),
        # Under PYTORCH_NVML_BASED_CUDA_CHECK, which Lightning sets, torch asks the count whether there is CUDA.
        (cuda, "is_available", returns(False)),
        (cuda, "set_device", returns(None)),
        (cuda, "synchronize", returns(None)),
        (cuda, "empty_cache", returns(None)),
        # Gradient synchronization of newer versions waits for streams even where there is no overlap.
        (cuda, "Stream", _Idle),
        (cuda, "Event", _Idle),
        (cuda, "current_stream", _Idle),
        (cuda, "default_stream", _Idle),
        (cuda, "stream", lambda stream: contextlib.nullcontext()),
        # Dropout and recomputation keep one generator state for what tensor-parallel ranks share and one for what
        # they do not; both live in the CPU generator here.
        (cuda, "manual_seed", torch.default_generator.manual_seed),
        (cuda, "manual_seed_all", returns(None)),
        (cuda, "get_rng_state", _get_state),
        (cuda, "set_rng_state", _set_state),
        (cuda.random, "get_rng_state", _get_state),
        (cuda.random, "set_rng_state", _set_state),
        (megatron_random, "_get_cuda_rng_state", _get_state),
        (megatron_random, "_set_cuda_rng_state", _set_state),
        (megatron_random, "CudaRNGStatesTracker", _CpuStatesTracker),
        (torch.autograd, "_engine_run_backward", _backward),
        # Without apex, clipping writes every gradient twice.
        (megatron_clipping, "multi_tensor_scale_impl", _scale),
    ]


_originals: list[tuple[object, str, object]] = []
_mode: _CudaMeansCpu | None = None


def install() -> bool:
    """Answer for CUDA from now on, in this thread.

    Returns:
        True where the adapter is in place; False on a machine with CUDA, where nothing is done.
    """
    global _mode
    if torch.cuda.is_available():
        return False
    if _mode is None:
        # Without CUDA neither apex nor Transformer Engine is used, installed or not.
        warnings.filterwarnings("ignore", message="(?i)(transformer engine and )?apex (is|are) not installed")
        for owner, name, replacement in _patches():
            _originals.append((owner, name, getattr(owner, name)))
            setattr(owner, name, replacement)
        _mode = _CudaMeansCpu()
        _mode.__enter__()
    return True


def uninstall() -> None:
    """Take the adapter out again, as if it had never been there."""
    global _mode
    if _mode is not None:
        _mode.__exit__(None, None, None)
        _mode = None
        while _originals:
            setattr(*_originals.pop())
