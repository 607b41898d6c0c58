"""Megatron-Bridge on a machine without Transformer Engine: its modules, without the packages' ``__init__``.

Bridge's ``__init__`` files import every model it knows, and those import Transformer Engine. Seeding the packages as
bare folders lets each module that needs neither be imported as it is. For tests alone: never on a machine with a GPU.
"""

import importlib
import sys
import types
from pathlib import Path

import megatron
import megatron.core

PACKAGES = ("", ".models", ".models.conversion")
PROVIDERS = {"GPTModelProvider": "gpt_provider", "T5ModelProvider": "t5_provider"}


def seed_bridge() -> None:
    """Make ``megatron.bridge.models.gpt_provider``, ``megatron.bridge.training.config`` and their like importable."""
    if "megatron.bridge" in sys.modules:
        return
    if not any(Path(folder, "bridge").is_dir() for folder in megatron.__path__):
        raise ImportError("megatron-bridge is not installed; run make test-latest")
    for package in PACKAGES:
        bare_package(f"megatron.bridge{package}")
    sys.modules["megatron.bridge.models"].__getattr__ = _provider
    # Counting operations asks only whether a run trains adapters, whose module is Transformer Engine's.
    adapters = types.ModuleType("megatron.bridge.peft.lora")
    adapters.LoRA = type("LoRA", (), {})
    sys.modules[adapters.__name__] = adapters


def bare_package(name: str) -> None:
    """Make the modules of a package below ``megatron`` importable, without its ``__init__``."""
    places = [Path(folder, *name.split(".")[1:]) for folder in megatron.__path__]
    module = types.ModuleType(name)
    module.__path__ = [str(place) for place in places if place.is_dir()]
    sys.modules[name] = module


def _provider(name: str):
    if name not in PROVIDERS:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"megatron.bridge.models.{PROVIDERS[name]}"), name)
