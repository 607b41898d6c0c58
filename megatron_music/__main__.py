"""``python -m megatron_music`` is ``megatron-music``; torchrun starts it this way."""

import os
import sys


def main() -> int:
    """Run one command and return its exit status; an interrupt ends it with one sentence even while it is being
    imported.
    """
    open_standard_streams()
    try:
        from megatron_music.cli.entry import main as run

        return run()
    except KeyboardInterrupt:
        print("megatron-music: stopped before it began", file=sys.stderr)
        return 1


def open_standard_streams() -> None:
    """Give standard input, output and error that are closed, as a daemon's are, the empty device.

    Else the next files that are opened get their numbers, and what anybody prints goes into those.
    """
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115 (it stays open)


if __name__ == "__main__":
    sys.exit(main())
