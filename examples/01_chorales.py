"""Bach's chorales to new chorales, as one program: `megatron-music demo`, whose steps are in megatron_music/demo.py.

python examples/01_chorales.py -o demo
"""

import sys

from megatron_music.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
