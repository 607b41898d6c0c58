"""The command ``launch``: copies the job scripts and container files that come with the package."""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from megatron_music.cli.console import print_next
from megatron_music.config.log import command_line, is_quiet, print_text
from megatron_music.storage.holding import hold_folder
from megatron_music.storage.writing import appearing_folder, remove_tree

FOLDERS = {"launch": "job scripts", "ngc": "container files", "examples": "examples and the notebook"}


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside a wheel, or of the clone that is installed in place.

    Raises:
        ValueError: this installation came without it.
    """
    package = Path(__file__).resolve().parent.parent
    for place in (package / "shipped" / name, package.parent / name):
        if place.is_dir() and (place.parent.name == "shipped" or (package.parent / "pyproject.toml").is_file()):
            return place
    raise ValueError(f"this installation has no folder {name}; install the package from its wheel or from a clone")


def add_launch(parser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="DIR",
        help="folder that receives launch/, ngc/ and examples/; no file is overwritten",
    )


def _copy(source: Path, target: Path) -> None:
    """Copy what is in a folder of the package.

    Raises:
        OSError: the first that came; shutil would list all of them, each as a text.
    """
    failed: list[OSError] = []

    def copy(one: str, other: str) -> None:
        try:
            shutil.copy2(one, other)
        except OSError as error:
            error.filename, error.filename2 = other, None
            failed.append(error)
            raise

    try:
        shutil.copytree(
            source,
            target,
            ignore=shutil.ignore_patterns("__pycache__", ".*", "notebook"),
            copy_function=copy,
            dirs_exist_ok=True,
        )
    except shutil.Error:
        if not failed:
            raise
        raise failed[0] from None


def launch(options) -> None:
    target = Path(options.output)
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target} is a file; name a folder for the scripts")
    sources = {name: shipped(name) for name in FOLDERS}
    there = [target / name for name in sources if os.path.lexists(target / name)]
    if there:
        raise ValueError(
            f"{there[0]} is there already, and nothing is overwritten; name another folder, or remove it first"
        )
    with hold_folder(target, "launch"), ExitStack() as failing:
        for name, source in sources.items():
            with appearing_folder(target / name) as unfinished:
                _copy(source, unfinished)
            failing.callback(remove_tree, target / name)  # else the same command would refuse to write there again
        failing.pop_all()
    for name, what in FOLDERS.items() if not is_quiet() else ():
        print_text(f"{what} in {target / name}")
    job = command_line("preflight", "sbatch", "launch/train.sbatch", "RECIPE", "data.path=OUT", "checkpoint.save=RUN")
    print_next(options, f"edit {target / 'launch' / 'env.sh'}; then, in {target}: {job}")
