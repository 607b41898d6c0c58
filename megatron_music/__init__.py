"""Music models on NVIDIA's Megatron stack: MIDI to ``.bin/.idx``, GPT on megatron-core, and back to MIDI.

Importing this package imports nothing else: no torch, no megatron-core. Read docs/walk-midi.md for the
order in which the files are meant to be read.
"""

__version__ = "0.1.0"

from megatron_music import _moved

_moved.install()
