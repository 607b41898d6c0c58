"""``python -m megatron_music`` is ``megatron-music``; torchrun starts it this way."""

import sys

from megatron_music.cli import main

if __name__ == "__main__":
    sys.exit(main())
