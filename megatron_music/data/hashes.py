"""SHA-256 of every file of a dataset of tokens: kept in its report when it is built, compared by ``inspect --verify``.

Never imports torch.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from megatron_music.reports.dataset import REPORT_FILE
from megatron_music.storage.reading import hash_of_file, reason_of

HASHES = "sha256"  # in the report: names of files from the dataset's folder, and their hashes


def hashes_of(folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """The hash of every file below a folder but its report, by name.

    Args:
        known: hashes of files that were taken while they were written: those are not read again.
    """
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: known.get(name) or hash_of_file(folder / name) for name in names if name != REPORT_FILE}


def damaged_files(
    folder: str | os.PathLike, report: dict, progress: Callable[[Iterable, int], Iterable] = lambda items, total: items
) -> dict[str, str]:
    """The files of a dataset that are not as they were built, with what is wrong with each.

    Args:
        report: of the dataset.
        progress: wraps the iteration over files, given their number.

    Raises:
        ValueError: the report has no hashes, being of an older version, or has no such table.
    """
    path, hashes = Path(folder, REPORT_FILE), report.get(HASHES)
    if hashes is None:
        raise ValueError(
            f"{path} has no hashes to verify the files with: an older version wrote it; build the dataset again"
        )
    if not isinstance(hashes, dict) or not hashes or not all(_is_entry(*entry) for entry in hashes.items()):
        raise ValueError(
            f"{path} is damaged (its {HASHES} is not a table of files); build the dataset again, or copy it again whole"
        )

    def wrong(name: str) -> str:
        try:
            return "" if hash_of_file(Path(folder, name)) == hashes[name] else "was changed since it was built"
        except FileNotFoundError:
            return "is missing"
        except (OSError, ValueError) as error:
            return f"cannot be read ({reason_of(error)})"

    with ThreadPoolExecutor() as threads:
        found = progress(zip(hashes, threads.map(wrong, hashes), strict=True), len(hashes))
        return {name: what for name, what in found if what}


def _is_entry(name: object, value: object) -> bool:
    """Whether a name stays in the folder, and a value may be its hash."""
    place = PurePosixPath(name) if isinstance(name, str) else PurePosixPath("/")
    return not place.is_absolute() and ".." not in place.parts and "\0" not in str(name) and isinstance(value, str)
