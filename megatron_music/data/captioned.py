"""Folders of sound with captions, and how three kinds of them say which caption is whose.

- ``captions.csv`` or ``captions.jsonl`` beside the sounds: ``path`` (or ``file_name``) with ``caption``, or ``captions`` (a
  list, JSONL alone), and ``group``: sounds of a group come into one split, as renders of one piece should.
- MusicBench: its ``MusicBench*.json``, one object a line, with ``location``, ``main_caption`` and ``alt_caption``.
- Music4All: ``audios/<id>.mp3``, and genres and tags in ``id_genres.csv`` and ``id_tags.csv``, of which a caption is made.

Reads no sound.
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


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
        f"{folder} holds no {' or '.join(LISTS)}, and is neither MusicBench nor Music4All; write a captions.csv with the "
        "columns path and caption"
    )


def _by_path(sounds: Iterator[Captioned]) -> list[Captioned]:
    found: dict[str, Captioned] = {}
    for sound in sounds:
        if sound.path in found:  # several lines of one sound are several captions of it
            captions = tuple(dict.fromkeys((*found[sound.path].captions, *sound.captions)))
            sound = sound._replace(captions=captions, group=found[sound.path].group)
        found[sound.path] = sound
    return [found[path] for path in sorted(found)]


def _own(path: Path) -> Iterator[Captioned]:
    for line, row in _rows(path):
        where = row.get("path") or row.get("file_name")
        captions = row.get("captions") or row.get("caption") or ""
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(where, str) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{path}, line {line}, has no path and caption; give each line both")
        yield _sound(where, captions, row.get("group"))


def _musicbench(path: Path, folder: Path) -> Iterator[Captioned]:
    below = "datashare/" if (folder / "datashare").is_dir() else ""
    for line, row in _rows(path):
        if not isinstance(row.get("location"), str):
            raise ValueError(f"{path}, line {line}, has no location; is it MusicBench's?")
        captions = [row.get("main_caption") or "", row.get("alt_caption") or ""]
        # Augmented copies are named <clip>_<number>.wav and stay with their clip.
        stem = Path(row["location"]).stem
        yield _sound(below + row["location"], captions, stem.rsplit("_", 1)[0] if "_" in stem else stem)


def _music4all(folder: Path) -> Iterator[Captioned]:
    tags = {row["id"]: row["tags"] for _, row in _rows(folder / "id_tags.csv", "\t", ("id", "tags"))}
    for _, row in _rows(folder / "id_genres.csv", "\t", ("id", "genres")):
        genres = ", ".join(genre.strip() for genre in row["genres"].split(",") if genre.strip())
        found = ", ".join(tag.strip() for tag in tags.get(row["id"], "").split(",") if tag.strip())
        yield _sound(f"audios/{row['id']}.mp3", [f"{genres} music", f"{genres} music: {found}" if found else ""], None)


def _sound(path: str, captions: list[str], group) -> Captioned:
    path = path.replace("\\", "/").removeprefix("./")
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"the sound {path} lies outside its folder; move it inside and name it from there")
    captions = tuple(dict.fromkeys(" ".join(caption.split()) for caption in captions if caption.strip()))
    return Captioned(path, captions, str(group) if group not in (None, "") else path)


def _rows(path: Path, delimiter: str = ",", columns: tuple[str, ...] = ()) -> Iterator[tuple[int, dict]]:
    """Lines and what they say by name."""
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            if path.suffix == ".csv":
                reader = csv.DictReader(file, delimiter=delimiter)
                missing = [name for name in columns if name not in (reader.fieldnames or ())]
                if missing:
                    raise ValueError(f"it has no column {missing[0]}")
                for row in reader:
                    line = reader.line_num
                    yield line, {name: value or "" for name, value in row.items() if isinstance(name, str)}
                return
            for line, text in enumerate(file, start=1):  # noqa: B007
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError("it is no JSON object")
                    yield line, row
    except (OSError, UnicodeDecodeError, csv.Error, ValueError) as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path} cannot be read near line {line + 1} ({error}); mend it") from None
