"""Labels of files from a CSV: GENRE, STYLE and any others, keyed by path or by hash. Never imports torch."""

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from megatron_music.storage.reading import TABLE_BYTES, read_bytes
from megatron_music.tokens.labels import LabelNames, label_ids

KEY_COLUMNS = ("path", "file", "md5", "sha256", "hash")
_HASHES = {32: "md5", 64: "sha256"}  # by hexadecimal digits
_FIRST_LABELS = ("STYLE", "GENRE")

Key = tuple[str, ...]  # the last components of a path, or one hash


@dataclass(frozen=True)
class Labels:
    """The labels of files.

    Attributes:
        names: for ``Encoding.labels``: STYLE, GENRE, then the others as the columns stand, each with its names, sorted.
        ids: token ids of each key, in the order of ``names``.
        hashes: the kinds of hash among the keys; empty where keys are paths.
        digest: SHA-256 of the CSV, hex.
    """

    names: LabelNames
    ids: Mapping[Key, tuple[int, ...]]
    hashes: tuple[str, ...]
    digest: str

    @staticmethod
    def read(path: str | os.PathLike) -> "Labels":
        """Labels of a CSV with a header line: one key column (path, file, md5, sha256 or hash), the others labels.

        A path may leave out folders at its front: it means every file whose path ends with it, in whole names, so a
        bare file name means all files of that name. Where several keys fit a file, the longest holds. A hash is the
        MD5 or SHA-256 of the bytes, in hexadecimal. Names are read in capitals, spaces as underscores; an empty value
        is no label.

        Raises:
            ValueError: what cannot be read, with its line.
            OSError: there is no such file.
        """
        try:
            content = read_bytes(path, TABLE_BYTES)
        except ValueError as error:
            raise ValueError(f"{path} cannot be read ({error}); name a table of labels") from None
        rows: dict[Key, dict[str, str]] = {}
        try:
            reader = csv.reader(io.StringIO(normal(content.decode("utf-8-sig")), newline=""), strict=True)
            header = [name.strip() for name in next(reader, [])]
            key_column, labels = _columns(header, str(path))
            kind = header[key_column].lower()
            for row in reader:
                if row:
                    _add_row(rows, row, len(header), key_column, kind, labels, f"{path}, line {reader.line_num}")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}); save it as CSV in UTF-8") from None
        except csv.Error as error:
            raise ValueError(
                f'{path}, line {reader.line_num} is no CSV ({error}); part by commas, quote with "'
            ) from None

        found = {label: sorted({values[label] for values in rows.values() if label in values}) for label in labels}
        names = tuple((label, tuple(found[label])) for label in labels if found[label])
        try:
            token_ids = label_ids(names)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        # Many files, few distinct sets of labels: one tuple for each set.
        shared: dict[tuple[int, ...], tuple[int, ...]] = {}
        ids = {}
        for key, values in rows.items():
            own = tuple(token_ids[f"{label}={values[label]}"] for label in labels if label in values)
            ids[key] = shared.setdefault(own, own)
        is_path = kind in ("path", "file")
        hashes = () if is_path else tuple(sorted({_HASHES[len(digest)] for (digest,) in rows}))
        return Labels(names, ids, hashes, hashlib.sha256(content).hexdigest())

    def ids_for(self, path: str | os.PathLike, content: bytes) -> tuple[int, ...]:
        """Token ids of a file's labels in the order of ``names``; empty where the CSV does not have the file.

        Args:
            path: of the file; of a member of an archive, the member's name, or the archive's path, a slash and that.
            content: its bytes.
        """
        if self.hashes:
            keys = ((hashlib.new(kind, content, usedforsecurity=False).hexdigest(),) for kind in self.hashes)
        else:
            parts = components(path)
            keys = (parts[first:] for first in range(len(parts)))  # the longest first
        return next((self.ids[key] for key in keys if key in self.ids), ())


def _columns(header: list[str], path: str) -> tuple[int, dict[str, int]]:
    """The number of the key column, and of each label's, in the order in which labels are written."""
    keys = [number for number, name in enumerate(header) if name.lower() in KEY_COLUMNS]
    if len(keys) != 1:
        raise ValueError(
            f"{path} has the columns {', '.join(header) or 'none'}, where one must be the key; name it path, file, "
            f"md5, sha256 "
            "or hash"
        )
    labels = {name.upper(): number for number, name in enumerate(header) if number != keys[0]}
    wrong = [name for name in labels if not re.fullmatch("[A-Z_]+", name)]
    if wrong:
        raise ValueError(
            f"{path} has the column {wrong[0]!r}; a label's name is of letters and underscores, such as GENRE"
        )
    if not labels or len(labels) != len(header) - 1:
        raise ValueError(f"{path} has the columns {', '.join(header)}; give each label one, at least one such as GENRE")
    first = [label for label in _FIRST_LABELS if label in labels]
    return keys[0], {label: labels[label] for label in dict.fromkeys((*first, *labels))}


def _add_row(
    rows: dict[Key, dict[str, str]],
    row: list[str],
    width: int,
    key_column: int,
    kind: str,
    labels: dict[str, int],
    where: str,
) -> None:
    if len(row) != width:
        raise ValueError(
            f"{where} has {len(row)} columns and the header {width}; write a value for each, empty for no label"
        )
    values = {}
    for label, column in labels.items():
        if any(mark in row[column] for mark in ",;|"):
            raise ValueError(
                f"{where} gives {label} as {row[column]!r}; a file has one value of each label, so choose one"
            )
        name = "_".join(row[column].upper().split())
        if name:
            values[label] = name
    key = row[key_column].strip()
    if rows.setdefault(_key(key, kind, where), values) != values:
        raise ValueError(f"{where} gives {key} other labels than a line before; keep one of the two")


def _key(text: str, kind: str, where: str) -> Key:
    if kind in ("path", "file"):
        if not components(text):
            raise ValueError(f"{where} has no {kind}; name the file, or remove the line")
        return components(text)
    digits = [length for length, name in _HASHES.items() if kind in (name, "hash")]
    if len(text) not in digits or not re.fullmatch("[0-9a-fA-F]*", text):
        raise ValueError(f"{where} has the {kind} {text!r}; write {' or '.join(map(str, digits))} hexadecimal digits")
    return (text.lower(),)


def components(path: str | os.PathLike) -> Key:
    """The names of a path, from the front; `.` and the root are none."""
    parts = PurePosixPath(normal(os.fspath(path)).replace("\\", "/")).parts
    return tuple(part for part in parts if not part.startswith("/"))


def normal(text: str) -> str:
    """The same letters in one spelling: some systems write an accent as a letter of its own."""
    return unicodedata.normalize("NFC", text)
