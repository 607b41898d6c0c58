"""What this machine has for megatron_music, and what to install where something is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

MEGATRON_CORE_RANGE = ((0, 16, 1), (0, 20, 0))

# Distribution, what it is for, the command that installs it from a clone.
_PACKAGES = (
    ("symusic", "reading MIDI", "pip install -e ."),
    ("torch", "training and generating", "pip install -c constraints.txt -e '.[train]'"),
    ("megatron-core", "training and generating", "pip install -c constraints.txt -e '.[train]'"),
    ("psutil", "saving checkpoints", "pip install -c constraints.txt -e '.[train]'"),
    ("tensorboard", "TensorBoard logs", "pip install -c constraints.txt -e '.[train]'"),
    ("matplotlib", "piano rolls and loss curves", "pip install -c constraints.txt -e '.[plot]'"),
    ("music21", "the Bach chorales", "pip install -c constraints.txt -e '.[corpus]'"),
)


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``status`` is ok, missing, wrong or note; ``remedy`` says what to do, or is empty."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, packages, accelerators, cores and disk. Imports torch where it is installed."""
    findings = [_python()]
    findings += [_package(*package) for package in _PACKAGES]
    findings += [_transformer_engine(), *_wrong_apex(), _accelerators()]
    disk = shutil.disk_usage(".")
    findings.append(Finding("cores", "note", f"{os.cpu_count()} CPU cores"))
    findings.append(Finding("disk", "note", f"{disk.free / 2**30:.0f} GiB free in {os.getcwd()}"))
    return findings


def as_json(findings: list[Finding]) -> list[dict]:
    return [asdict(finding) for finding in findings]


def _python() -> Finding:
    version = platform.python_version_tuple()
    good = ("3", "11") <= version[:2] < ("3", "13") and version[0] == "3"
    remedy = "" if good else "use Python 3.11 or 3.12"
    return Finding("python", "ok" if good else "wrong", platform.python_version(), remedy)


def _package(name: str, purpose: str, command: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "missing", f"needed for {purpose}", f"run: {command}")
    if name == "megatron-core":
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:3] if part.isdigit())
        low, high = MEGATRON_CORE_RANGE
        if not low <= numbers < high:
            return Finding(name, "wrong", f"{version} is outside >=0.16.1,<0.20", f"run: {command}")
    return Finding(name, "ok", version)


def _transformer_engine() -> Finding:
    if importlib.util.find_spec("transformer_engine") is None:
        return Finding("transformer-engine", "note", "absent: layers use PyTorch's attention and norms")
    return Finding("transformer-engine", "ok", "present: layers use it on CUDA")


def _wrong_apex() -> list[Finding]:
    """The package index has an unrelated project named apex; NVIDIA's comes with the container."""
    found = importlib.util.find_spec("apex")  # looked at, not imported: the wrong one fails
    if found is None or any(Path(place, "optimizers").is_dir() for place in found.submodule_search_locations or ()):
        return []
    return [Finding("apex", "wrong", "this apex is not NVIDIA's", "run: pip uninstall apex")]


def _accelerators() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("accelerators", "note", "unknown without torch")
    import torch

    if not torch.cuda.is_available():
        return Finding("accelerators", "note", "no CUDA device: training runs on the CPU through gloo")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Finding("accelerators", "ok", f"{len(names)} x {', '.join(sorted(set(names)))}")
