"""Runs code, or the command line, in a process of its own that may use only so much memory and time."""

import json
import resource
import subprocess
import sys
import textwrap
from functools import partial
from typing import NamedTuple

import pytest

_LIMITS = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, ({bytes}, {bytes}))
_begun = time.monotonic()
def answer(value):
    # Not ru_maxrss, which a process takes over from the one that started it.
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    print(json.dumps([value, peak, time.monotonic() - _begun]), file=sys.__stdout__, flush=True)
"""


def _limit_to(mib: int | None):
    return partial(resource.setrlimit, resource.RLIMIT_AS, (mib << 20, mib << 20)) if mib else None


def run_command(*arguments, mib: int | None = None, seconds: float = 300, **options) -> subprocess.CompletedProcess:
    """``megatron-music`` with these arguments, of bytes or whatever ``str`` takes; it fails the test where it needs
    more time.

    Args:
        mib: of address space; left out: as much as there is.
        options: of ``subprocess.run``.
    """
    words = [word if isinstance(word, bytes) else str(word) for word in arguments]
    options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | options
    try:
        return subprocess.run(
            [sys.executable, "-m", "megatron_music", *words],
            timeout=seconds,
            check=False,
            preexec_fn=_limit_to(mib),
            **options,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end within {seconds:g} s: {words}")


_EACH = """
import contextlib, io, json, os, sys
from megatron_music.cli.entry import main
found = []
for folder, words in json.load(sys.stdin):
    os.chdir(folder)
    print("began:", *words, file=sys.__stderr__, flush=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as end:
            status = end.code
    found.append((words, status, out.getvalue(), err.getvalue()))
print(json.dumps(found), file=sys.__stdout__)
"""


def run_commands(
    commands, folders=None, *, mib: int | None = None, seconds: float = 300
) -> list[subprocess.CompletedProcess]:
    """What ``run_command`` gives of each command; one process, which imports once, runs one after the other.

    Args:
        folders: each command's working folder; left out: the current one.
        mib: of address space; left out: as much as there is.
        seconds: for all of them.
    """
    folders = folders or ["."] * len(commands)
    given = json.dumps([(str(folder), [*map(str, words)]) for folder, words in zip(folders, commands, strict=True)])
    try:
        done = subprocess.run(
            [sys.executable, "-c", _EACH],
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            preexec_fn=_limit_to(mib),
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"no end within {seconds:g} s: {(error.stderr or b'')[-2000:]!r}")
    assert done.returncode == 0, done.stderr[-2000:]
    return [subprocess.CompletedProcess(*found) for found in json.loads(done.stdout.splitlines()[-1])]


class Answer(NamedTuple):
    value: object
    peak_mib: float
    seconds: float


def run_bounded(code: str, *arguments, mib: int, seconds: float) -> Answer:
    """What ``code`` passes to ``answer``; it fails the test where it needs more memory (address space) or time."""
    script = _LIMITS.format(bytes=mib << 20) + textwrap.dedent(code)
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"no end within {seconds:g} s")
    assert done.returncode == 0, done.stderr[-2000:]
    return Answer(*json.loads(done.stdout.splitlines()[-1]))
