"""Megatron-Bridge importable where Transformer Engine is not, and the builders of tests/ beside these tests."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from bridge_import import seed_bridge  # noqa: E402

seed_bridge()
