"""Readers with every fault that ``fuzz_worker`` must notice, each of the inputs by its first bytes."""

import os
import time
from pathlib import Path

from fuzz_formats import Format, Refused


def _make(folder: Path) -> None:
    (folder / "a.bin").write_bytes(b"good" * 20)


def _leaks(folder, path):
    kept = []
    while True:
        kept.append(bytearray(64 << 20))


def _crashes(folder, path):
    os.kill(os.getpid(), 9)


def _hangs(folder, path):
    time.sleep(10**6)


def _raises(folder, path):
    return {}["key"]


def _says_nothing_of_the_file(folder, path):
    raise ValueError("invalid literal for int() with base 10")


def _writes_to_the_terminal(folder, path):
    raise Refused(f"{path} holds \x1b[31m")


def _refuses(folder, path):
    raise ValueError(f"{path} is damaged; copy it again")


def _asks_for_too_much_at_once(folder, path):
    return bytearray(3 << 30)


def damaged(read):
    """A reader whose fault comes with an altered file alone."""

    def checked(folder, path):
        if path.read_bytes() != b"good" * 20:
            read(folder, path)

    return checked


FORMATS = {
    name: Format(_make, ("*.bin",), damaged(read))
    for name, read in {
        "memory": _leaks,
        "memory at once": _asks_for_too_much_at_once,
        "crash": _crashes,
        "hang": _hangs,
        "traceback": _raises,
        "bad sentence": _says_nothing_of_the_file,
        "control characters": _writes_to_the_terminal,
        "refused": _refuses,
    }.items()
}
