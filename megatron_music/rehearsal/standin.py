"""A stand-in for CUDA: a tensor "on cuda:0" is one without data ("meta") that says it is on cuda:0.

No kernel runs and no value is right; shapes, dtypes, devices, and the order of calls are. What waits for the GPU
(``.item()``, ``.tolist()``, ``.cpu()``, ``bool()``, ``synchronize()``) is told to a ``Waits`` with the line that asked,
and so is what is copied to it. torch.cuda answers as on a node of eight GPUs, until ``installed`` ends.
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator

import megatron.core.optimizer as megatron_optimizer
import megatron.core.optimizer.clip_grads as megatron_clipping
import megatron.core.optimizer.optimizer as megatron_mixed
import megatron.core.tensor_parallel.random as megatron_random
import torch
import torch.distributed as dist
from megatron.core.utils import local_multi_tensor_applier, local_multi_tensor_scale
from torch.overrides import TorchFunctionMode

from megatron_music.rehearsal.operators import (
    FusedRmsNorm,
    attend,
    attend_on_cpu,
    has_fused_rms_norm,
)
from megatron_music.rehearsal.waits import Gpu, Wait, where
from megatron_music.training.optimizer import l2_norm

GPU, META, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
GPUS_PER_NODE = 8


class _Idle:
    """A CUDA stream or event: nothing is under way."""

    cuda_stream = 0

    def __init__(self, *args, **kwargs):
        pass

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


def _is_without_data(tensor) -> bool:
    with torch._C.DisableTorchFunction():
        return tensor.is_meta


def names_gpu(device) -> bool:
    if isinstance(device, bool):
        return False
    if isinstance(device, str):
        return device.startswith("cuda")
    return isinstance(device, int) or (isinstance(device, torch.device) and device.type == "cuda")


class StandIn(TorchFunctionMode):
    """Answers for tensors without data as a GPU's would.

    Args:
        note: called with every ``Wait``.
    """

    def __init__(self, note: Callable[[Wait], None], gpu: Gpu):
        super().__init__()
        self.note, self.gpu = note, gpu
        tensor = torch.Tensor
        self._answers = {
            tensor.device.__get__: lambda f, t: GPU if _is_without_data(t) else f(t),
            tensor.is_cuda.__get__: lambda f, t: _is_without_data(t),
            tensor.is_meta.__get__: lambda f, t: False,
            tensor.get_device: lambda f, t: 0 if _is_without_data(t) else -1,
            tensor.type: self._type,
            tensor.record_stream: lambda f, t, stream: None,
            tensor.pin_memory: self._pin,
            tensor.is_pinned: lambda f, t, *unused: hasattr(t, "is_page_locked"),
            tensor.copy_: self._copy,
            tensor.to: self._to,
            tensor.cuda: lambda f, t, *rest, **options: self._onto_gpu(t, "cuda", torch.Tensor.to, (t, META), {}),
            tensor.cpu: lambda f, t, *rest, **options: self._to(torch.Tensor.to, t, "cpu"),
            tensor.numpy: self._numpy,
            tensor.normal_: self._random,
            tensor.uniform_: self._random,
            torch.tensor: self._tensor,
            torch.as_tensor: self._tensor,
            torch.nn.functional.scaled_dot_product_attention: self._attend,
            torch.nn.functional.rms_norm: self._normalize,
        }
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
            self._answers[getattr(tensor, name)] = self._number

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        answer = self._answers.get(function)
        if answer is not None:
            return answer(function, *args, **kwargs)
        if kwargs and names_gpu(kwargs.get("device")):
            kwargs = {**kwargs, "device": META}
            kwargs.pop("pin_memory", None)
        elif kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        return function(*args, **kwargs)

    def _say(self, kind: str, what: str, tensor=None, is_pinned: bool = False) -> None:
        self.note(Wait(kind, what, where(), 0 if tensor is None else tensor.numel() * tensor.element_size(), is_pinned))

    def _type(self, function, tensor, *args, **kwargs):
        if args or kwargs or not _is_without_data(tensor):
            return function(tensor, *args, **kwargs)
        return function(tensor).replace("torch.meta.", "torch.").replace("torch.", "torch.cuda.", 1)

    def _pin(self, function, tensor, *unused):
        copy = tensor.clone()
        copy.is_page_locked = True
        return copy

    def _random(self, function, tensor, *args, generator=None, **kwargs):
        if generator is not None and not _is_without_data(tensor):
            kwargs["generator"] = generator
        return function(tensor, *args, **kwargs)

    def _number(self, function, tensor, *args):
        if not _is_without_data(tensor):
            return function(tensor, *args)
        name = function.__name__
        self._say("wait", f"{name}()", tensor)
        if name == "tolist":
            return torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu").tolist()
        return {"__bool__": True, "__float__": 1.0, "__int__": 1, "__index__": 1}.get(
            name, 1.0 if tensor.is_floating_point() else 1
        )

    def _numpy(self, function, tensor, *args, **kwargs):
        if _is_without_data(tensor):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
                "first."
            )
        return function(tensor, *args, **kwargs)

    def _copy(self, function, target, source, *args, **kwargs):
        to_gpu, from_gpu = _is_without_data(target), _is_without_data(source)
        if to_gpu == from_gpu:
            return function(target, source, *args, **kwargs)
        if to_gpu:
            return function(target, self._onto_gpu(source, "copy_", torch.Tensor.to, (source, META), {}))
        self._say("copy from the GPU", "copy_", source)
        return target

    def _to(self, function, tensor, *args, **kwargs):
        words = [*args, kwargs.get("device")]
        if any(names_gpu(word) for word in words):
            args = tuple(META if names_gpu(word) else word for word in args)
            if names_gpu(kwargs.get("device")):
                kwargs = {**kwargs, "device": META}
            return self._onto_gpu(tensor, "to", function, (tensor, *args), kwargs)
        other = next((word for word in words if isinstance(word, torch.Tensor)), None)
        to_cpu = any(str(word) == "cpu" for word in words) or (other is not None and not _is_without_data(other))
        if to_cpu and _is_without_data(tensor):
            self._say("copy from the GPU", "to", tensor)
            dtype = next((word for word in [*args, kwargs.get("dtype")] if isinstance(word, torch.dtype)), tensor.dtype)
            return torch.ones(tensor.shape, dtype=dtype, device="cpu")
        if other is not None and _is_without_data(other) and not _is_without_data(tensor):
            return self._onto_gpu(tensor, "to", function, (tensor, *args), kwargs)
        return function(tensor, *args, **kwargs)

    def _onto_gpu(self, tensor, name: str, function, args: tuple, kwargs: dict):
        if _is_without_data(tensor):
            return function(*args, **kwargs) if name != "cuda" else tensor
        self._say("copy to the GPU", name, tensor, hasattr(tensor, "is_page_locked"))
        return function(*args, **kwargs)

    def _tensor(self, function, data, *args, **kwargs):
        held = [value for value in _values(data) if isinstance(value, torch.Tensor) and _is_without_data(value)]
        if held and not isinstance(data, torch.Tensor):
            for value in held:
                self._say("wait", "torch.tensor() of values on the GPU", value)
            data = _with_ones(data)
        to_gpu = names_gpu(kwargs.get("device"))
        found = function(data, *args, **({**kwargs, "device": CPU} if to_gpu else kwargs))
        return self._onto_gpu(found, function.__name__, torch.Tensor.to, (found, META), {}) if to_gpu else found

    def _attend(self, function, query, *args, **kwargs):
        if not _is_without_data(query):
            return function(query, *args, **kwargs)
        return (attend_on_cpu if self.gpu.as_cpu else attend)(query, *args, **kwargs)

    def _normalize(self, function, hidden, normalized_shape, weight=None, eps=None):
        fuses = has_fused_rms_norm() and not self.gpu.as_cpu and weight is not None and weight.dtype == hidden.dtype
        return (
            FusedRmsNorm.apply(hidden, weight)
            if fuses and _is_without_data(hidden)
            else function(hidden, normalized_shape, weight, eps)
        )


def _values(data) -> list:
    return [value for item in data for value in _values(item)] if isinstance(data, list | tuple) else [data]


def _with_ones(data):
    if isinstance(data, list | tuple):
        return [_with_ones(item) for item in data]
    return 1.0 if isinstance(data, torch.Tensor) else data


@contextlib.contextmanager
def installed(note: Callable[[Wait], None], gpu: Gpu, around_backward: Callable) -> Iterator[StandIn]:
    """Answer for CUDA and for other processes in this thread.

    Args:
        note: called with every ``Wait``.
        around_backward: a context manager in which a backward pass runs.
    """
    mode = StandIn(note, gpu)
    run_backward = torch.autograd._engine_run_backward

    def backward(*args, **kwargs):
        # torch calls a mode for a backward pass as a whole, and leaves it out within.
        with mode, around_backward():
            return run_backward(*args, **kwargs)

    def synchronize(*args) -> None:
        note(Wait("wait", "torch.cuda.synchronize()", where(), 0))

    originals = []
    try:
        for owner, name, value in _patches(gpu, backward, synchronize):
            if hasattr(owner, name):  # some are of other versions of torch and megatron-core
                originals.append((owner, name, getattr(owner, name)))
                setattr(owner, name, value)
        with mode:
            yield mode
    finally:
        while originals:
            setattr(*originals.pop())


def _patches(gpu: Gpu, backward: Callable, synchronize: Callable) -> list[tuple[object, str, object]]:
    def returns(value):
        return lambda *args, **kwargs: value

    def gather_object(found: list, own, group=None) -> None:
        found[:] = [own] * len(found)

    def no_state(*args, **kwargs) -> torch.Tensor:
        return torch.zeros(16, dtype=torch.uint8, device="cpu")

    class _Event(_Idle):
        def synchronize(self) -> None:
            synchronize()

    cuda, properties = torch.cuda, _Properties(gpu)
    answers = {
        "is_available": True,
        "is_initialized": True,
        "device_count": GPUS_PER_NODE,
        "current_device": 0,
        "set_device": None,
        "empty_cache": None,
        "get_device_capability": gpu.capability,
        "get_device_name": gpu.name,
        "get_device_properties": properties,
        "manual_seed": None,
        "manual_seed_all": None,
        "set_rng_state": None,
        "max_memory_allocated": 0,
        "memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "mem_get_info": (gpu.memory, gpu.memory),
        "_lazy_init": None,
        "is_current_stream_capturing": False,
    }
    return [
        *((cuda, name, returns(value)) for name, value in answers.items()),
        (cuda, "synchronize", synchronize),
        (cuda, "Stream", _Idle),
        (cuda, "Event", _Event),
        (cuda, "current_stream", _Idle),
        (cuda, "default_stream", _Idle),
        (cuda, "stream", lambda stream: contextlib.nullcontext()),
        (cuda, "get_rng_state", no_state),
        (cuda.random, "get_rng_state", no_state),
        (cuda.random, "set_rng_state", returns(None)),
        (megatron_random, "_get_cuda_rng_state", no_state),
        (megatron_random, "_set_cuda_rng_state", returns(None)),
        (cuda.nvtx, "range_push", returns(0)),
        (cuda.nvtx, "range_pop", returns(0)),
        (torch.autograd, "_engine_run_backward", backward),
        (torch.autograd.graph, "_engine_run_backward", backward),
        (importlib.import_module("torch.optim.adam"), "_device_dtype_check_for_fused", returns(None)),
        *(
            (torch.optim.Optimizer, name, returns(None))
            for name in vars(torch.optim.Optimizer)
            if name.endswith("graph_capture_health_check")
        ),
        # Kernels of Transformer Engine and apex read data; PyTorch's operators hold as much memory.
        (megatron_optimizer, "USING_PYTORCH_OPTIMIZER", True),
        (megatron_optimizer, "Adam", torch.optim.AdamW),
        (megatron_clipping, "l2_norm_impl", l2_norm),
        *(
            (module, "multi_tensor_applier", local_multi_tensor_applier)
            for module in (megatron_clipping, megatron_mixed)
        ),
        *(
            (module, "multi_tensor_scale_impl", local_multi_tensor_scale)
            for module in (megatron_clipping, megatron_mixed)
        ),
        # What this process says stands for all.
        (dist, "all_gather_object", gather_object),
        (dist, "broadcast_object_list", returns(None)),
    ]


class _Properties:
    """Of the device."""

    uuid, multi_processor_count = "rehearsed", 132

    def __init__(self, gpu: Gpu):
        self.name, (self.major, self.minor), self.total_memory = gpu.name, gpu.capability, gpu.memory
