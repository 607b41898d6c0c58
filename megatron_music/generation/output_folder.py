"""A folder of generated files that can be gone on with: ``made-with.json`` beside them says what they are made with.

A file there is whole, as files are written, and follows from the settings and its own number alone. So the same command
makes the files that are missing, and one of other settings is refused.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from megatron_music.storage.holding import hold_folder
from megatron_music.storage.reading import read_json_object
from megatron_music.storage.writing import write_whole

RECORD = "made-with.json"
FORMAT = 1
_GENERATED = re.compile(r"\d[\d-]*\.(mid|wav|flac)")


class OutputFolder:
    """What of a command's files is there already, and what they are made with.

    Args:
        folder: where they go.
        names: of all files, in order.
        settings: what the files follow from, as far as it is known before the model is loaded: plain values by name.

    Attributes:
        left_out: files that cannot be made, and why.

    Raises:
        ValueError: the folder holds files of other settings, or of whom nobody knows.
    """

    def __init__(self, folder: Path, names: Sequence[str], settings: dict):
        self.folder, self.names, self.settings = folder, list(names), _plain(settings)
        self.left_out: dict[str, str] = {}
        self._is_kept = False
        self._found = self._read()
        if self._found is None:
            there = next((name for name in self.names if os.path.lexists(folder / name)), None)
            if there:
                raise ValueError(f"{folder / there} is there already; name another folder, or remove it first")
        else:
            self._compare(self.settings)

    @property
    def found(self) -> dict:
        """The settings of the files that are there; empty where there are none."""
        return dict(self._found["settings"]) if self._found else {}

    def missing(self, facts: dict) -> list[int]:
        """The numbers of the files that are to be made.

        Args:
            facts: settings that were not known before: of the model.

        Raises:
            ValueError: the files that are there were made with others.
        """
        self.settings |= _plain(facts)
        if self._found is not None:
            self._compare({name: None for name in self.found if name != "batch_size"} | self.settings)
            self.left_out = dict(self._found["left_out"])
        return [
            number
            for number, name in enumerate(self.names)
            if not (self.folder / name).is_file() and name not in self.left_out
        ]

    def keep_record(self) -> None:
        """Write down what the files are made with: before the first of them."""
        if not self._is_kept:
            record = {"format": FORMAT, "settings": self.settings, "left_out": self.left_out}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(self.folder / RECORD, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
            self._is_kept = True

    def leave_out(self, name: str, reason: str) -> None:
        """Note that a file cannot be made; the next record says so."""
        self.left_out[name] = reason
        self._is_kept = False

    def _read(self) -> dict | None:
        path = self.folder / RECORD
        is_empty = not self.folder.is_dir() or not any(map(_GENERATED.fullmatch, os.listdir(self.folder)))
        if is_empty or not path.is_file():  # files that were removed bind nobody
            return None
        try:
            found = read_json_object(path, follow_links=False)
            if found["format"] != FORMAT or not isinstance(found["settings"], dict):
                raise ValueError("it is of another version")
            found["left_out"] = {str(name): str(reason) for name, reason in found["left_out"].items()}
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path} does not tell what the files beside it are made with; name another folder"
            ) from None

    def _compare(self, settings: dict) -> None:
        there = self._found["settings"]
        for name, value in settings.items():
            if there.get(name) != value:
                raise ValueError(
                    f"{self.folder} holds files made {_contrast(name, there.get(name), value)}; give the same "
                    "settings to go on, or name another folder"
                )


@contextmanager
def output_folder(
    folder: str | os.PathLike, what: str, names: Sequence[str], settings: dict, *, holds: bool = True
) -> Iterator[OutputFolder]:
    """Hold a folder while a command fills it; made where it is missing, and gone at the end if nothing came of it.

    Args:
        what: the command.
        names, settings: see ``OutputFolder``.
        holds: False in the other processes of one command.

    Raises:
        ValueError: another command fills the folder, or see ``OutputFolder``.
    """
    with hold_folder(folder, what, [*names, RECORD]) if holds else nullcontext():
        yield OutputFolder(Path(folder), names, settings)


def _plain(settings: dict) -> dict:
    return json.loads(json.dumps(settings))


def _contrast(name: str, there: object, given: object) -> str:
    """How a setting of the files that are there differs from that of this command; of ``None`` and nothing in words."""
    if given in (None, "", []):
        return f"with {name} {_in_short(there)}, and this command gives no {name}"
    if there in (None, "", []):
        return f"without {name}, and this command gives {_in_short(given)}"
    return f"with {name} {_in_short(there)}, not {_in_short(given)}"


def _in_short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
