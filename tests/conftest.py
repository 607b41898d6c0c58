"""Makes the builders beside the tests importable, under any import mode."""

import signal
import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("any machine", deadline=None)  # a busy machine is no defect
settings.load_profile("any machine")

# A shell's background jobs may ignore SIGINT, and nohup SIGHUP: what the tests start would inherit that, but not a handler.
for kind, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda number, frame: None)):
    if signal.getsignal(kind) == signal.SIG_IGN:
        signal.signal(kind, handler)
