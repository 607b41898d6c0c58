"""Which packages each command needs: it runs with those of its extra alone, every other one hidden."""

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from extra_commands import COMMANDS
from packaging.requirements import Requirement

from megatron_music.cli.doctor import (
    extras,
    install_command,
    missing_package,
    requirements,
)

ROOT = Path(__file__).parent.parent

# Loaded by every Python that the command starts, too. Hides modules as if their packages were not installed.
HOOK = """
import os, re, sys
from importlib.machinery import PathFinder
HIDDEN = set(os.environ["HIDDEN_MODULES"].split(","))
PACKAGES = set(os.environ["HIDDEN_PACKAGES"].split(","))

class Shown:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in HIDDEN:  # but for the copies that setuptools carries with it
            path = [place for place in (sys.path if path is None else path) if "_vendor" in str(place)]
        return PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(*context):
        for found in PathFinder.find_distributions(*context):
            if re.sub(r"[-_.]+", "-", found.metadata["Name"]).lower() not in PACKAGES:
                yield found

sys.meta_path[:] = [Shown if finder is PathFinder else finder for finder in sys.meta_path]
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(extra: str) -> set[str]:
    """The distributions that installing the package with an extra brings."""
    waiting = [("megatron-music", "" if extra == "base" else extra)]
    seen = set()
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            needed = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # not here, such as what only another system needs
        for requirement in map(Requirement, needed):
            if requirement.marker is None or requirement.marker.evaluate({"extra": wanted}):
                waiting += [(normal(requirement.name), inner) for inner in ("", *requirement.extras)]
    return {name for name, _ in seen}


def environment(extra: str, folder: Path) -> dict[str, str]:
    """An environment in which only what ``extra`` brings can be imported or seen by importlib.metadata."""
    allowed = closure(extra)
    by_module = importlib.metadata.packages_distributions()
    hidden = {module for module, owners in by_module.items() if not allowed & set(map(normal, owners))}
    packages = {normal(owner) for owners in by_module.values() for owner in owners} - allowed
    hidden -= {"megatron_music", "_distutils_hack"}
    (folder / "hook").mkdir(exist_ok=True)
    (folder / "hook" / "sitecustomize.py").write_text(HOOK)
    return os.environ | {
        "PYTHONPATH": f"{folder / 'hook'}:{ROOT}",
        "HIDDEN_MODULES": ",".join(sorted(hidden)),
        "HIDDEN_PACKAGES": ",".join(sorted(packages)),
        "WANDB_MODE": "offline",
    }


def run(words: str, folder: Path, extra: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "megatron_music", *words.split()]
    return subprocess.run(
        command, cwd=folder, env=environment(extra, folder), capture_output=True, text=True, check=False
    )


def is_here(extra: str) -> bool:
    return extra == "base" or all(
        any(True for _ in importlib.metadata.distributions(name=requirement.name))
        for requirement in requirements(extra)
    )


@pytest.mark.parametrize("extra", COMMANDS)
def test_an_extra_alone_is_enough_for_the_commands_it_serves(extra, tmp_path):
    if not is_here(extra):
        pytest.skip(f"the extra {extra} is not installed: its commands are run by `make test-extras` alone")
    shutil.copy(ROOT / "tests" / "golden" / "chorale.mid", tmp_path)
    shutil.copytree(ROOT / "launch", tmp_path / "scripts" / "launch")
    for command in COMMANDS[extra]:
        if command == "launch -o scripts":
            shutil.rmtree(tmp_path / "scripts")
        done = run(command.removeprefix("!"), tmp_path, extra)
        allowed = (0, 2) if command.startswith("!") else (0,)
        assert (
            done.returncode in allowed and "Traceback" not in done.stderr and "this command needs" not in done.stderr
        ), f"{command}\n{done.stdout}\n{done.stderr}"


def test_the_packages_of_other_extras_are_hidden(tmp_path):
    """The test above can fail: without the extra, its commands are refused."""
    shutil.copy(ROOT / "tests" / "golden" / "chorale.mid", tmp_path)
    for command, package in (
        ("corpus bach -o midi", "music21"),
        ("build tokens chorale.mid -o x --bpe 8", "tokenizers"),
    ):
        done = run(command, tmp_path, "base")
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.strip().endswith(
            f"this command needs {package}; run: {sys.executable} -m pip install {package}"
        ), done.stderr
    done = run("doctor", tmp_path, "base")
    lines = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert (
        lines["base"].startswith("ok")
        and "lacks" in lines["audio"]
        and "soundfile" in lines["audio"]
        and lines["train"].startswith("missing")
    )


def test_a_missing_base_package_is_one_sentence(tmp_path):
    shutil.copy(ROOT / "tests" / "golden" / "chorale.mid", tmp_path)
    code = (
        "import sys; sys.modules['miditoolkit'] = None; from megatron_music.cli.entry import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "tokenize", "chorale.mid"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        done.returncode == 2
        and f"needs miditoolkit; run: {sys.executable} -m pip install miditoolkit" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_every_extra_of_the_package_is_tried_or_named():
    not_alone = {
        "demo",
        "notebook",
        "bridge",
        "nemo",
        "nemo-run",
        "test",
        "bench",
    }  # others of make test-extras, hosts, tools
    assert set(extras()) == (set(COMMANDS) - {"base"}) | not_alone
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert all(f"`{extra}`" in page for extra in extras())


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("yaml", "pyyaml"),
        ("safetensors.torch", "safetensors"),
        ("megatron.core", "megatron-core<0.20,>=0.16.1"),
        ("soundfile", "soundfile"),
        ("matplotlib.figure", "matplotlib"),
        ("unheard_of", None),
    ],
)
def test_a_module_leads_to_the_package_that_brings_it(module, package):
    found = missing_package(module)
    assert (Requirement(found) == Requirement(package)) if found and package else found == package


def test_what_a_shell_would_misread_is_quoted():
    assert install_command(["a<1", "b"]) == f"{sys.executable} -m pip install 'a<1' b"


@pytest.mark.parametrize(
    ("command", "extra"), [("train tiny", "train"), ("demo -o demo", "demo"), ("build latents . -o data", "audio")]
)
def test_a_command_names_all_packages_that_its_extra_lacks_in_one_pip_command(command, extra, tmp_path):
    done = run(command, tmp_path, "base")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "this command needs " in done.stderr, done.stderr
    _, _, pip = done.stderr.partition("-m pip install ")
    assert {normal(Requirement(word).name) for word in shlex.split(pip)} == {
        normal(requirement.name) for requirement in requirements(extra)
    } - closure("base")
    assert not (tmp_path / "demo").exists() and not (tmp_path / "data").exists()


def test_a_sweep_without_torch_says_what_train_says_and_starts_no_row(tmp_path):
    assert run("sweep tiny -o sweep --plan --vary=train.micro_batch_size=1,2", tmp_path, "base").returncode == 0
    sweep, train = run("sweep sweep", tmp_path, "base"), run("train tiny", tmp_path, "base")
    assert sweep.returncode == 2 and sweep.stderr == train.stderr and "this command needs torch" in sweep.stderr
    assert not [path for path in (tmp_path / "sweep" / "rows").iterdir() if path.suffix != ".yaml"]
