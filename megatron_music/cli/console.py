"""What commands share: exit statuses, progress bars, printing of results, and checks of what they are given."""

import importlib.util
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from megatron_music.config.log import is_quiet, logger, print_text

OK, FAILED, BAD_INPUT = 0, 1, 2


def progress_bar(unit: str, total: int | None = None, items: Iterable | None = None):
    """A tqdm bar on stderr; silent under ``-q``, where stderr is not a terminal, and for the first half second."""
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, disable=True if is_quiet() else None, delay=0.5, leave=False)


def progress_over(unit: str) -> Callable[[Iterable, int | None], Iterable]:
    """What wraps an iteration in such a bar."""
    return lambda items, total: progress_bar(unit, total, items)


def check_modules(*names: str) -> None:
    """Refuse a command before it begins where a module that it will need is not installed.

    Raises:
        ModuleNotFoundError: the first that is missing.
    """
    for name in names:
        parents = [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)]
        if any(importlib.util.find_spec(parent) is None for parent in parents):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def check_one_file(path: str, command: str) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; {command} takes one file")


def check_output_file(path: str, suffixes: tuple[str, ...] = ()) -> None:
    if Path(path).is_dir():
        raise ValueError(f"{path} is a folder; name a file")
    if not Path(path).absolute().parent.is_dir():
        raise ValueError(f"{Path(path).parent} does not exist; make the folder first")
    if suffixes and not path.lower().endswith(suffixes):
        raise ValueError(f"{path} does not end in {', '.join(suffixes)}; name it so")


def print_result(options, result: dict | list, text: str) -> None:
    """Print what a command has made: as JSON under ``--json``, else as text for a person, which ``-q`` omits."""
    if options.json:
        print(json.dumps(result, indent=1))
    elif not is_quiet():
        print_text(text)


def print_next(options, command: str) -> None:
    """Print on stderr what to do with a command's result; ``--json`` and ``-q`` omit it."""
    if not getattr(options, "json", False):
        logger.info(f"next: {command}")
