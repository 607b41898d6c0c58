"""``--split-by``: which files stay in one split beside those of equal notes, or which split a file was given to.

Three ways to say it: ``folder``, ``FILE.csv:COLUMN`` and a regular expression with a group. Where every value found is
the name of a split, as in MAESTRO's column ``split``, files go to the splits named; else files of one value stay
together.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from megatron_music.config.errors import counted
from megatron_music.corpora.archives import Entry
from megatron_music.corpora.labels import Key, components, normal
from megatron_music.storage.reading import TABLE_BYTES, read_bytes, reason_of

FOLDER = "folder"
# As data sets spell them.
SPLIT_NAMES = {
    "train": 0,
    "training": 0,
    "valid": 1,
    "validation": 1,
    "val": 1,
    "dev": 1,
    "test": 2,
    "testing": 2,
}
KEY_COLUMNS = ("path", "file", "filename", "file_name", "midi_filename", "midi_file", "midi_path", "midi")
_CSV = re.compile(r"(?P<path>.+\.csv):(?P<column>[^:]+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Grouping:
    """What a ``--split-by`` means.

    Args:
        value_of: gives the value of an input file, or None where it has none.
        digest: SHA-256 of what it reads besides paths, hex; empty where it reads nothing.
    """

    value_of: Callable[[Entry], str | None]
    digest: str = ""

    @staticmethod
    def of(split_by: str, sources: Sequence[str | os.PathLike]) -> "Grouping":
        """Read what a ``--split-by`` names.

        Args:
            sources: of the build: a file that lies directly in one is a group of its own under ``folder``.

        Raises:
            ValueError: it is none of the three forms, or its CSV cannot be read.
        """
        if split_by == FOLDER:
            return Grouping(_by_folder({os.path.abspath(source) for source in sources}))
        if found := _CSV.fullmatch(split_by):
            values, digest = _read_column(found["path"], found["column"].strip())
            return Grouping(lambda entry: _in_table(values, path_of(entry)), digest)
        return Grouping(_by_pattern(split_by))


def absolute(split_by: str) -> str:
    """The same with the path of its CSV absolute."""
    found = _CSV.fullmatch(split_by)
    return f"{os.path.abspath(found['path'])}:{found['column'].strip()}" if found else split_by


def path_of(entry: Entry) -> str:
    """The path that CSV files and patterns are compared with; a member of an archive lies below the archive."""
    return f"{entry.path}/{entry.member}" if entry.member else entry.path


def split_named(value: str) -> int | None:
    """The split (0 train, 1 valid, 2 test) that a value names."""
    return SPLIT_NAMES.get(value.strip().lower())


def _by_folder(sources: set[str]) -> Callable[[Entry], str | None]:
    def value_of(entry: Entry) -> str | None:
        folder = os.path.dirname(path_of(entry))
        # Loose files at the top of a collection have nothing in common.
        return None if folder in sources or folder == entry.path else folder

    return value_of


def _by_pattern(text: str) -> Callable[[Entry], str | None]:
    forms = f"write {FOLDER}, FILE.csv:COLUMN, or a regular expression with a group, such as '/(\\d+)/'"
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ValueError(f"--split-by {text!r} is no regular expression ({error}); {forms}") from None
    if not pattern.groups:
        raise ValueError(f"--split-by {text!r} has no group in parentheses, which says what belongs together; {forms}")

    def value_of(entry: Entry) -> str | None:
        found = pattern.search(path_of(entry))
        return "/".join(filter(None, found.groups())) or None if found else None

    return value_of


def _in_table(values: dict[Key, str], path: str) -> str | None:
    parts = components(path)
    keys = (parts[first:] for first in range(len(parts)))  # the longest first
    return next((values[key] for key in keys if key in values), None) or None


def _read_column(path: str, column: str) -> tuple[dict[Key, str], str]:
    """The values of a column by path, and the file's SHA-256."""
    try:
        content = read_bytes(path, TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({reason_of(error)}); name a CSV file as in --split-by FILE.csv:COLUMN"
        ) from None
    try:
        reader = csv.reader(io.StringIO(normal(content.decode("utf-8-sig")), newline=""), strict=True)
        header = [name.strip() for name in next(reader, [])]
        lowered = [name.lower() for name in header]
        keys = [lowered.index(name) for name in KEY_COLUMNS if name in lowered and name != column.lower()]
        if not keys or column.lower() not in lowered:
            missing = f"no column {column!r}" if keys else f"no column of paths ({', '.join(KEY_COLUMNS)})"
            raise ValueError(
                f"{path} has {missing} among {', '.join(header) or 'none'}; mend --split-by, or the header line"
            )
        key, place = keys[0], lowered.index(column.lower())
        values: dict[Key, str] = {}
        for row in filter(None, reader):
            where = f"{path}, line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{where} has {len(row)} columns and the header {len(header)}; write a value for each")
            name, value = components(row[key].strip()), row[place].strip()
            if not name:
                raise ValueError(f"{where} names no file; name it, or remove the line")
            if values.setdefault(name, value) != value:
                raise ValueError(f"{where} gives {row[key]} another {column} than a line before; keep one of the two")
        return values, hashlib.sha256(content).hexdigest()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}); save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise ValueError(f'{path}, line {reader.line_num} is no CSV ({error}); part by commas, quote with "') from None


def grouped(entries: Iterable[Entry], split_by: str, sources: Sequence[str | os.PathLike]) -> Iterator[Entry]:
    """The entries with their groups.

    Raises:
        ValueError: no file has a group, or some groups are names of splits and others are not.
    """
    value_of = Grouping.of(split_by, sources).value_of
    splits: dict[int, str] = {}
    others, files = "", 0
    for entry in entries:
        value, files = value_of(entry) or "", files + 1
        if value and (split := split_named(value)) is not None:
            splits[split] = value
        else:
            others = others or value
        yield replace(entry, group=value)
    if files and not splits and not others:
        raise ValueError(f"--split-by {split_by} finds nothing in {counted(files, 'file')}; correct it, or omit it")
    if len(splits) > 1 and others:
        named = " and ".join(splits[split] for split in sorted(splits))
        raise ValueError(
            f"--split-by {split_by} finds the splits {named}, and {others!r}, which is none; use train, valid and "
            f"test alone"
        )
