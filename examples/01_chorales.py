"""Bach's chorales to new chorales, as one program: `megatron-music demo`, whose steps are in
megatron_music/cli/demo.py.

python examples/01_chorales.py demo
"""

import sys

from megatron_music.cli.entry import main

if __name__ == "__main__":
    folder, *rest = sys.argv[1:] or ["demo"]
    sys.exit(main(["demo", "-o", folder, *rest]))
