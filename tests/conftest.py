"""Makes the builders beside the tests importable, under any import mode."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("any machine", deadline=None)  # a busy machine is no defect
settings.load_profile("any machine")
