"""Each extra alone: an environment of its own, the wheel with that extra, and the commands that docs/install.md says it
serves.

    python tests/extras.py [EXTRA ...]

The environments share nothing but a folder of downloaded wheels; two are made and used at a time. Needs the standard
library and pip alone. `demo` is the wheel's own demo.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extra_commands import COMMANDS

ROOT = Path(__file__).parent.parent
DEMO = ["demo -o demo --num 2 train.train_iters=6"]
EXTRAS = {"demo": DEMO, "notebook": [], **COMMANDS}  # the longest first
AT_A_TIME = 2


def main(names: list[str]) -> int:
    wrong = [name for name in names if name not in EXTRAS]
    if wrong:
        print(f"no commands are known of {', '.join(wrong)}; use {', '.join(EXTRAS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="extras-") as folder:
        return _run(names or list(EXTRAS), Path(folder))


def _run(names: list[str], folder: Path) -> int:
    wheels = folder / "wheels"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "-q",
        "-w",
        str(wheels),
        "-c",
        str(ROOT / "constraints.txt"),
    ]
    # torch first: where its pinned build is at hand, nothing larger is pulled in by the others.
    if set(names) & {"train", "huggingface", "audio", "wandb", "demo", "notebook"}:
        _check([*pip, "torch"], folder)
    extras = ",".join(name for name in names if name != "base")
    clone = folder / "clone"  # built apart: nothing is left in the tree
    needed = (
        "megatron_music",
        "launch",
        "ngc",
        "examples",
        "pyproject.toml",
        "setup.py",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
    )
    clone.mkdir()
    for what in needed:
        (shutil.copytree if (ROOT / what).is_dir() else shutil.copy)(ROOT / what, clone / what)
    _check([*pip, "--find-links", str(wheels), f"{clone}[{extras}]" if extras else str(clone)], folder)
    (wheel,) = wheels.glob("megatron_music-*.whl")
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        passed = list(pool.map(lambda name: _passes(name, wheel, folder / name), names))
    return 0 if all(passed) else 1


def _passes(name: str, wheel: Path, place: Path) -> bool:
    """One environment and its commands; what became of them is printed."""
    began = time.monotonic()
    try:
        passes, said = True, _one(name, wheel, place)
    except subprocess.CalledProcessError as error:
        passes, said = False, f"FAILED: {' '.join(error.cmd)}\n{(error.stdout or '')[-3000:]}"
    print(f"{name:12} {time.monotonic() - began:4.0f} s  {said}", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    return passes


def _one(name: str, wheel: Path, place: Path) -> str:
    """Make the environment, run the commands outside the clone, and say how many did what they should."""
    _check([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], wheel.parent)
    python = place / "venv" / "bin" / "python"
    what = f"{wheel}[{name}]" if name != "base" else str(wheel)
    # Not compiled: most of what is installed is never imported here.
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-compile",
    ]
    _check([*pip, "--no-index", "--find-links", str(wheel.parent), what], place)
    work = place / "work"
    work.mkdir()
    shutil.copy(ROOT / "tests" / "golden" / "chorale.mid", work)
    commands = EXTRAS[name]
    if any("scripts/launch" in command for command in commands) and "launch -o scripts" not in commands:
        commands = ["launch -o scripts", *commands]
    for command in commands:
        words = [str(python.parent / "megatron-music"), *command.removeprefix("!").split()]
        _check(words, work, allowed=(0, 2) if command.startswith("!") else (0,))
    if name == "notebook":
        _check([str(python.parent / "jupyter"), "lab", "--version"], work)
    if name == "demo":
        page = (work / "demo" / "listen.html").read_text(encoding="utf-8")
        if page.count("<audio") != 2 or not (work / "demo" / "chorales" / "002.wav").is_file():
            raise subprocess.CalledProcessError(1, ["listen.html"], "the page or its WAV files are incomplete")
    return f"{len(commands)} commands"


def _check(command: list[str], folder: Path, allowed: tuple[int, ...] = (0,)) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV", "MAKE"))
    }
    environment |= {"WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode not in allowed or "Traceback" in done.stdout:
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
