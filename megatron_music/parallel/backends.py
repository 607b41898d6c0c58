"""What a GPT's layers can use on this machine: Transformer Engine, its attention kernels, apex's fused gradients.

Imports neither torch nor megatron-core until a function needs them.
"""

import contextlib
import importlib
import importlib.util
import os
import traceback
from collections.abc import Iterator
from pathlib import Path

from megatron_music.config.errors import ConfigError, refuse_unless

# megatron-core's AttnBackend: its names, and the values of VARIABLES under which Transformer Engine has each of them.
_KERNELS = {"flash": "100", "fused": "010", "unfused": "001"}
VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN")


def why_no_transformer_engine() -> str | None:
    """The reason why layers cannot come from Transformer Engine here, for a sentence; None where they can.

    Raises:
        ConfigError: it is installed, there is a CUDA device, and it cannot be imported.
    """
    if importlib.util.find_spec("transformer_engine") is None:
        return "Transformer Engine is not installed"
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    with naming_transformer_engine():
        importlib.import_module("transformer_engine.pytorch")
    return None


@contextlib.contextmanager
def naming_transformer_engine() -> Iterator[None]:
    """Turns an error that Transformer Engine's import raises, whoever imports it, into one sentence.

    Raises:
        ConfigError: instead of the error.
    """
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not any(
            frame.name == "<module>" and "transformer_engine" in Path(frame.filename).parts[:-1] for frame in frames
        ):
            raise
        raise ConfigError(
            f"Transformer Engine is installed but cannot be imported ({type(error).__name__}: {_first_line(error)}); "
            "install a build that matches torch and its CUDA libraries, or uninstall it to use PyTorch's attention "
            "and norms"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"


def has_gradient_fusion() -> bool:
    """Whether apex's extension for ``gradient_accumulation_fusion`` can be imported."""
    if importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is None:
        return False
    try:
        import torch  # noqa: F401  the extension links to its libraries

        importlib.import_module("fused_weight_gradient_mlp_cuda")
    except (ImportError, OSError):
        return False
    return True


_set_here: dict[str, str] = {}  # variables that an earlier model of this process left set


@contextlib.contextmanager
def attention_backend(backend: str, own_layers_because: str | None) -> Iterator[None]:
    """Build a GPT within this; Transformer Engine's attention then uses the backend.

    megatron-core sets Transformer Engine's variables for every GPT, and fails where the environment has another value
    already. Here the environment's values count under ``auto``, and contradict any other choice.

    Args:
        backend: one of ATTENTION_BACKENDS.
        own_layers_because: the reason why the layers are not Transformer Engine's; None where they are.

    Raises:
        ConfigError: a kernel of Transformer Engine for layers of ours; a backend that the environment rules out; an
            environment that rules out every kernel.
    """
    chosen = {
        name: os.environ[name] for name in VARIABLES if name in os.environ and os.environ[name] != _set_here.get(name)
    }
    wanted = dict(zip(VARIABLES, _KERNELS[backend], strict=True)) if backend in _KERNELS else {}
    if own_layers_because is None:
        _check_environment(backend, wanted, chosen)
    else:
        refuse_unless(
            not wanted,
            f"model.attention_backend is {backend}, a kernel of Transformer Engine, and the layers are our own because "
            f"{own_layers_because}; set model.attention_backend=auto",
        )
    for name in VARIABLES:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        _set_here.clear()
        _set_here.update({name: value for name, value in wanted.items() if name not in chosen})
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(chosen | wanted)


def _check_environment(backend: str, wanted: dict[str, str], chosen: dict[str, str]) -> None:
    for name, value in chosen.items():
        refuse_unless(
            value == wanted.get(name, value),
            f"{name}={value} is in the environment and model.attention_backend is {backend}, which needs "
            f"{name}={wanted.get(name)}; unset it, or set model.attention_backend=auto, under which the environment "
            f"decides",
        )
    refuse_unless(
        list(chosen.values()) != ["0"] * len(VARIABLES),
        f"{', '.join(VARIABLES)} are all 0 in the environment, which leaves Transformer Engine no attention; unset "
        f"one of "
        "them, or set model.attention_backend=local",
    )
