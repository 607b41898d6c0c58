"""Reports what this machine has for megatron_music, and what to install where something is missing.

Which packages an extra needs is read from this package's own metadata, as pip reads it.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from packaging.requirements import Requirement

DISTRIBUTION = "megatron-music"
BASE = "base"  # what is installed without any extra
# Modules whose distribution has another name.
_DISTRIBUTIONS = {
    "yaml": "pyyaml",
    "megatron": "megatron-core",
    "megatron.bridge": "megatron-bridge",
    "nemo": "nemo_toolkit",
}
_IMPORT_SECONDS = 300


@dataclass(frozen=True)
class Finding:
    """One item of the report. ``status`` is ok, missing, wrong or note; ``remedy`` is what to do, or empty."""

    name: str
    status: str
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at Python, each extra, accelerators, cores and disk. Imports torch where it is installed."""
    accelerators = _accelerators()
    findings = [_python()]
    findings += [_extra(extra) for extra in (BASE, *extras())]
    findings += [_transformer_engine(accelerators.status == "ok"), *_wrong_apex(), accelerators]
    disk = shutil.disk_usage(".")
    findings.append(Finding("cores", "note", f"{os.cpu_count()} CPU cores"))
    findings.append(Finding("disk", "note", f"{disk.free / 2**30:.0f} GiB free in {os.getcwd()}"))
    return findings


def as_json(findings: list[Finding]) -> list[dict]:
    return [asdict(finding) for finding in findings]


def extras() -> list[str]:
    """The extras of this package, in the order of its metadata."""
    return importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []


def requirements(extra: str = BASE) -> list[Requirement]:
    """The packages an extra needs on this machine beyond the base, extras that it includes resolved.

    Raises:
        importlib.metadata.PackageNotFoundError: this package is imported from a folder and not installed.
    """
    wanted = "" if extra == BASE else extra
    found: dict[str, Requirement] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted}):
            continue
        if wanted and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            continue  # of the base
        if _normal(requirement.name) == DISTRIBUTION:
            for included in requirement.extras:
                found |= {_normal(inner.name): inner for inner in requirements(included)}
        else:
            found[_normal(requirement.name)] = requirement
    return list(found.values())


def missing_package(module: str) -> str | None:
    """What to give pip for a module that was not found; None where no declared package brings it."""
    parts = module.split(".")
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    name = _normal(next((_DISTRIBUTIONS[name] for name in names if name in _DISTRIBUTIONS), parts[0]))
    for extra in (BASE, *extras()):
        for requirement in requirements(extra):
            if _normal(requirement.name) == name:
                return _for_pip(requirement)
    return None


def missing_packages(module: str, preferred: Sequence[str] = ()) -> list[str]:
    """What to give pip for a module that was not found, and for all else that its extra lacks, the module's package
    first.

    Args:
        preferred: extras of the command that needs the module, which go before all others that bring it.

    Returns:
        Nothing where no declared package brings the module.
    """
    package = missing_package(module)
    if package is None:
        return []
    for name in [*(name for name in preferred if name in extras()), BASE, *extras()]:
        needed = requirements(name)
        if package in map(_for_pip, needed):
            lacking = [_for_pip(requirement) for requirement in needed if _version(requirement.name) is None]
            return [package, *(other for other in lacking if other != package)]
    return [package]


def install_command(packages: list[str]) -> str:
    """The command that adds packages to the Python that runs, and leaves what is there as it is."""
    quoted = (f"'{package}'" if re.search(r"[^\w.-]", package) else package for package in packages)
    return f"{sys.executable} -m pip install {' '.join(quoted)}"


def _for_pip(requirement: Requirement) -> str:
    """The bare name, which no version that is there contradicts; bounds where the newest version may be too new."""
    has_upper_bound = any(specifier.operator in ("<", "<=", "==", "~=") for specifier in requirement.specifier)
    options = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
    return f"{requirement.name}{options}{requirement.specifier if has_upper_bound else ''}"


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _python() -> Finding:
    good = (3, 11) <= sys.version_info[:2] < (3, 13)
    return Finding(
        "python", "ok" if good else "wrong", platform.python_version(), "" if good else "use Python 3.11 or 3.12"
    )


def _extra(extra: str) -> Finding:
    """Whether all packages of an extra are there, in versions it can use."""
    try:
        needed = requirements(extra)
    except importlib.metadata.PackageNotFoundError:
        return Finding(
            extra,
            "wrong",
            f"{DISTRIBUTION} is not installed in this Python",
            f"run: {sys.executable} -m pip install WHEEL_OR_CLONE",
        )
    if not needed:
        return Finding(extra, "note", "needs another Python: nothing of it can be installed in this one")
    versions = {requirement.name: _version(requirement.name) for requirement in needed}
    lacking = [requirement for requirement in needed if versions[requirement.name] is None]
    unfit = list(_unfit(needed, versions))
    remedy = f"run: {install_command([_for_pip(requirement) for requirement in lacking])}" if lacking else ""
    if unfit:
        lacks = [f"lacks {', '.join(requirement.name for requirement in lacking)}"] if lacking else []
        install = f"install {'a version' if len(unfit) == 1 else 'versions'} in that range"
        return Finding(extra, "wrong", "; ".join([*unfit, *lacks]), "; ".join(filter(None, [install, remedy])))
    if lacking:
        return Finding(extra, "missing", f"lacks {', '.join(requirement.name for requirement in lacking)}", remedy)
    return Finding(extra, "ok", "complete: " + ", ".join(f"{name} {version}" for name, version in versions.items()))


def _unfit(needed: list[Requirement], versions: dict[str, str | None]) -> Iterator[str]:
    for requirement in needed:
        version = versions[requirement.name]
        if version is not None and not requirement.specifier.contains(version, prereleases=True):
            yield f"{requirement.name} {version} is outside {requirement.specifier}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _transformer_engine(has_gpu: bool) -> Finding:
    """Imported in a process of its own: a build that does not fit torch may raise anything, or end the process."""
    name = "transformer-engine"
    if importlib.util.find_spec("transformer_engine") is None:
        return Finding(name, "note", "not installed: layers use PyTorch's attention and norms")
    code = (
        "import transformer_engine.pytorch, transformer_engine as t; print(getattr(t, '__version__', 'of unknown "
        "version'))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_IMPORT_SECONDS, check=False
        )
        failure = (
            (done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"])[-1]
            if done.returncode
            else ""
        )
    except subprocess.TimeoutExpired:
        failure = f"no answer within {_IMPORT_SECONDS} s"
    if failure:
        remedy = (
            "install the build that fits this torch, or uninstall it: layers then use PyTorch's attention and norms"
        )
        return Finding(name, "wrong" if has_gpu else "note", f"cannot be imported: {failure}", remedy)
    return Finding(name, "ok", f"{done.stdout.strip().splitlines()[-1]}: layers use it on CUDA")


def _wrong_apex() -> list[Finding]:
    """The package index has an unrelated project named apex; NVIDIA's comes with the container."""
    found = importlib.util.find_spec("apex")  # looked at, not imported: the wrong one fails
    if found is None or any(Path(place, "optimizers").is_dir() for place in found.submodule_search_locations or ()):
        return []
    return [Finding("apex", "wrong", "this apex is not NVIDIA's", f"run: {sys.executable} -m pip uninstall apex")]


def _accelerators() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("accelerators", "note", "unknown without torch")
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding(
            "accelerators",
            "wrong",
            f"torch cannot be imported: {str(error).splitlines()[0]}",
            "install a build of torch that fits this machine",
        )
    if not torch.cuda.is_available():
        return Finding("accelerators", "note", "no CUDA device: training runs on the CPU through gloo")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return Finding("accelerators", "ok", f"{len(names)} x {', '.join(sorted(set(names)))}")
