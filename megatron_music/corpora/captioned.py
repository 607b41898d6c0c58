"""Folders of sound with captions, and how three kinds of them say which caption is whose.

- ``captions.csv`` or ``captions.jsonl`` beside the sounds: ``path`` (or ``file_name``) with ``caption``, or
  ``captions`` (a list, JSONL alone), and ``group``: sounds of a group come into one split, as renders of one piece
  should.
- MusicBench: its ``MusicBench*.json``, one object a line, with ``location``, ``main_caption`` and ``alt_caption``.
- Music4All: ``audios/<id>.mp3``, and genres and tags in ``id_genres.csv`` and ``id_tags.csv``, of which a caption is
  made.

A CSV is UTF-8 with commas, a header in any case, and quotes around captions that have commas. What would lose a caption
is refused with its line. Reads no audio.
"""

import csv
import io
import os
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from megatron_music.storage.reading import (
    TABLE_BYTES,
    parse_json,
    read_bytes,
    reason_of,
)


class Captioned(NamedTuple):
    """One sound."""

    path: str  # below the folder, with forward slashes
    captions: tuple[str, ...]  # without empty ones
    group: str


LISTS = ("captions.jsonl", "captions.csv")


def read_captioned(folder: Path) -> list[Captioned]:
    """All sounds that the folder has captions of, by path; whether they are there is not asked.

    Raises:
        ValueError: no listing, or one that cannot be read; one sentence with the file and the line.
    """
    for name in LISTS:
        if (folder / name).is_file():
            return _by_path(_own(folder / name))
    benches = sorted(folder.glob("MusicBench*.json"))
    if benches:
        return _by_path(sound for path in benches for sound in _musicbench(path, folder))
    if (folder / "id_tags.csv").is_file() and (folder / "id_genres.csv").is_file():
        return _by_path(_music4all(folder))
    raise ValueError(
        f"{folder} holds no {' or '.join(LISTS)}, and is neither MusicBench nor Music4All; write a captions.csv with "
        f"the "
        "columns path and caption"
    )


def with_names_on_disk(folder: Path, sounds: Iterable[Captioned]) -> list[Captioned]:
    """The sounds under the names that their files have, where a listing writes an accent as another Unicode sequence.

    Archives made on a Mac hold decomposed names (NFD), most editors write composed ones (NFC). Sounds that turn out to
    be one file are merged; groups, hence splits, stay those of the listing.
    """
    names: dict[Path, dict[str, str]] = {}

    def on_disk(path: str) -> str:
        if path.isascii() or (folder / path).exists():
            return path
        found = folder
        for part in path.split("/"):
            if found not in names:
                there = os.listdir(found) if found.is_dir() else []
                names[found] = {unicodedata.normalize("NFC", name): name for name in sorted(there)}
            found = found / names[found].get(unicodedata.normalize("NFC", part), part)
        return found.relative_to(folder).as_posix()

    return _by_path(sound._replace(path=on_disk(sound.path)) for sound in sounds)


def state_of(path: Path) -> list[int] | None:
    """The size and the time of change of a file (ns), by which it is known again; None: there is none."""
    if not path.is_file():
        return None
    try:
        found = path.stat()
    except FileNotFoundError:  # it went just now
        return None
    return [found.st_size, found.st_mtime_ns]


def _by_path(sounds: Iterable[Captioned]) -> list[Captioned]:
    found: dict[str, Captioned] = {}
    for sound in sounds:
        if sound.path in found:  # several lines of one sound are several captions of it
            captions = tuple(dict.fromkeys((*found[sound.path].captions, *sound.captions)))
            sound = sound._replace(captions=captions, group=found[sound.path].group)
        found[sound.path] = sound
    return [found[path] for path in sorted(found)]


def _own(path: Path) -> Iterator[Captioned]:
    for line, row in _rows(path, columns=(("path", "file_name"), ("caption", "captions"))):
        where = row.get("path") or row.get("file_name")
        captions = row.get("captions") or row.get("caption") or ""
        captions = [captions] if isinstance(captions, str) else captions
        if (
            not isinstance(where, str)
            or not isinstance(captions, list)
            or not all(isinstance(text, str) for text in captions)
        ):
            raise ValueError(f"{path}, line {line}, has no path and caption; give each line both")
        yield _sound(f"{path}, line {line},", where.strip(), captions, row.get("group"))


def _musicbench(path: Path, folder: Path) -> Iterator[Captioned]:
    below = "datashare/" if (folder / "datashare").is_dir() else ""
    for line, row in _rows(path):
        if not isinstance(row.get("location"), str):
            raise ValueError(f"{path}, line {line}, has no location; is it MusicBench's?")
        captions = [row.get("main_caption") or "", row.get("alt_caption") or ""]
        if not all(isinstance(text, str) for text in captions):
            raise ValueError(f"{path}, line {line}, has a caption that is no text; is it MusicBench's?")
        # Augmented copies are named <clip>_<number>.wav and stay with their clip.
        stem = Path(row["location"]).stem
        yield _sound(
            f"{path}, line {line},", below + row["location"], captions, stem.rsplit("_", 1)[0] if "_" in stem else stem
        )


def _music4all(folder: Path) -> Iterator[Captioned]:
    tags = {row["id"]: row["tags"] for _, row in _rows(folder / "id_tags.csv", "\t", (("id",), ("tags",)))}
    genres_file = folder / "id_genres.csv"
    for line, row in _rows(genres_file, "\t", (("id",), ("genres",))):
        genres = ", ".join(genre.strip() for genre in row["genres"].split(",") if genre.strip())
        found = ", ".join(tag.strip() for tag in tags.get(row["id"], "").split(",") if tag.strip())
        captions = [f"{genres} music", f"{genres} music: {found}" if found else ""]
        yield _sound(f"{genres_file}, line {line},", f"audios/{row['id']}.mp3", captions, None)


def _sound(where: str, path: str, captions: list[str], group) -> Captioned:
    path = path.replace("\\", "/").removeprefix("./")
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{where} names {path}, which lies outside its folder; move it inside and name it from there")
    captions = tuple(dict.fromkeys(" ".join(caption.split()) for caption in captions if caption.strip()))
    return Captioned(path, captions, str(group) if group not in (None, "") else path)


_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
Columns = tuple[tuple[str, ...], ...]  # those that are needed, each under any of its names


def _rows(path: Path, delimiter: str = ",", columns: Columns = ()) -> Iterator[tuple[int, dict]]:
    """Lines, by their number, with their values by name in small letters.

    Raises:
        ValueError: what cannot be read, or would be lost; one sentence with the line.
    """
    text = _text(path)
    if path.suffix == ".csv":
        yield from _csv_rows(path, text, delimiter, columns)
        return
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = parse_json(content)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}, is not JSON ({error}); write one object per line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line}, is no JSON object; write one per line")
        row = {name.strip().casefold(): value for name, value in row.items()}
        for names in columns:
            if not row.keys() & set(names):
                raise ValueError(
                    f"{path}, line {line}, has no {names[0]}; give each line "
                    f"{' and '.join(each[0] for each in columns)}"
                )
        yield line, row


def _text(path: Path) -> str:
    """The text of a file with \\n as the end of each line."""
    try:
        content = read_bytes(path, TABLE_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({reason_of(error)}); check the path and its permissions") from None
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        before = content[: len(content) - len(error.object) + error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line, byte = before.count(b"\n") + 1, error.object[error.start]
        raise ValueError(f"{path}, line {line}, is not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8") from None


def _csv_rows(path: Path, text: str, delimiter: str, columns: Columns) -> Iterator[tuple[int, dict]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # a quoted caption may have several
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {line}, opens a quote that is not closed where its cell ends ({error}); close it, or "
                f"write a "
                "quote within quotes twice"
            ) from None
        if row is None:
            break
        if not any(cell.strip() for cell in row):
            continue
        if header is None:
            header = _header(path, row, delimiter, columns)
            continue
        extra = [cell for cell in row[len(header) :] if cell.strip()]
        if extra:
            raise ValueError(
                f"{path}, line {line}, has {len(row)} cells and its header {len(header)} columns; put what has a "
                f"{'comma' if delimiter == ',' else 'tab'} in it between double quotes"
            )
        if len(row) < len(columns):
            _refuse_other_separator(f"{path}, line {line},", row[0], delimiter, len(columns))
        yield line, dict(zip(header, [*row, *[""] * (len(header) - len(row))], strict=False))
    if header is None:
        raise ValueError(f"{path} is empty; write a header and a line for each sound")


def _header(path: Path, row: list[str], delimiter: str, columns: Columns) -> list[str]:
    """The names of the columns in small letters."""
    header = [name.strip().casefold() for name in row]
    for names in columns:
        if not set(names) & set(header):
            _refuse_other_separator(str(path), delimiter.join(row), delimiter, len(columns))
            raise ValueError(
                f"{path} has no column {' or '.join(names)}; its header has {', '.join(header)}: name the columns in "
                f"line 1"
            )
    twice = [name for name in header if name and header.count(name) > 1]
    if twice:
        raise ValueError(
            f"{path} has two columns named {twice[0]}; keep one, and give a sound with two captions two lines"
        )
    return header


def _refuse_other_separator(where: str, text: str, delimiter: str, count: int) -> None:
    """Refuse a line that falls into columns by another separator than the one that is read."""
    for separator, plural in _SEPARATORS.items():
        if separator != delimiter and len(text.split(separator)) >= count > 1:
            raise ValueError(
                f"{where} is separated by {plural}, where {_SEPARATORS[delimiter]} are read; save it with "
                f"{_SEPARATORS[delimiter]}"
            )
