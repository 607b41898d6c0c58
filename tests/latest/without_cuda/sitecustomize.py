"""On PYTHONPATH this folder lets a script for Megatron-Bridge run as written on a machine without CUDA and Transformer
Engine.

Python imports this module at its start. It does nothing until ``megatron.bridge`` is imported; then the adapter of
``megatron_music.parallel.cpu_backend`` answers for CUDA, and process groups are gloo's. Training loop, data, optimizer
and checkpoints are Bridge's own. For tests alone.
"""

import functools
import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path

BRIDGE = "megatron.bridge"


def does_nothing(*arguments, **options) -> None:
    pass


# Bridge imports these at its start, for what the script does not use: models that ModelOpt has changed, and restarts in
# place.
ABSENT = {
    "modelopt": {},
    "modelopt.torch": {},
    "modelopt.torch.distill": {"DistillationModel": type("DistillationModel", (), {})},
    "modelopt.torch.distill.plugins": {},
    "modelopt.torch.distill.plugins.megatron": {
        "DistillationConfig": type("DistillationConfig", (), {}),
        "get_tensor_shapes_adjust_fn_for_distillation": does_nothing,
    },
    "modelopt.torch.opt": {},
    "modelopt.torch.opt.plugins": dict.fromkeys(
        ("restore_modelopt_state", "save_modelopt_state", "save_sharded_modelopt_state"), does_nothing
    ),
    "nvidia_resiliency_ext": {"__version__": "0"},
    "nvidia_resiliency_ext.inprocess": {"CallWrapper": object},
}


class WithoutCuda(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Prepares for ``megatron.bridge`` when it is first imported, then leaves."""

    def find_spec(self, name, path=None, target=None):
        if name != BRIDGE:
            return None
        sys.meta_path.remove(self)
        prepare()
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return sys.modules[BRIDGE]  # as prepare() has seeded it

    def exec_module(self, module):
        pass


def prepare() -> None:
    sys.path.insert(1, str(Path(__file__).parent.parent))
    import torch
    from bridge_import import bare_package, seed_bridge

    seed_bridge()
    bare_package(f"{BRIDGE}.peft")  # its adapters are Transformer Engine's layers
    import megatron.core.datasets.utils

    from megatron_music.parallel import cpu_backend

    assert cpu_backend.install(), "this machine has CUDA, where Bridge runs by itself"
    torch.distributed.init_process_group = on_gloo(torch.distributed.init_process_group)
    megatron.core.datasets.utils.compile_helpers = does_nothing  # the wheel has them compiled, and no Makefile
    for name, content in ABSENT.items():
        sys.modules[name] = module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update(content)
    from megatron.bridge.training import initialize

    initialize.initialize_megatron = functools.partial(initialize.initialize_megatron, allow_no_cuda=True)


def on_gloo(function):
    def call(*arguments, **options):
        return function(*arguments, **{**options, "backend": "gloo"})

    return call


sys.meta_path.insert(0, WithoutCuda())
