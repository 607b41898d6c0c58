"""``python -m megatron_music`` is ``megatron-music``; torchrun starts it this way."""

import sys


def main() -> int:
    """Run one command and return its exit status; an interrupt ends it with one sentence even while it is being imported."""
    try:
        from megatron_music.cli import main as run

        return run()
    except KeyboardInterrupt:
        print("megatron-music: stopped before it began", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
