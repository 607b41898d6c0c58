"""Makes the builders beside the tests importable, under any import mode, and keeps a run of all tests short."""

import gc
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("any machine", deadline=None)  # a busy machine is no defect
settings.load_profile("any machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors are small: a second thread would only wait

# A shell's background jobs may ignore SIGINT, and nohup SIGHUP: what the tests start would inherit that, but not a
# handler.
for kind, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda number, frame: None)):
    if signal.getsignal(kind) == signal.SIG_IGN:
        signal.signal(kind, handler)


# Files of few tests that take long: begun first, so that no process is left alone with one of them at the end.
LONG = (
    "test_parity.py",
    "test_notebook.py",
    "test_sweep.py",
    "test_faults.py",
    "test_layouts.py",
    "test_flow_parity.py",
    "test_sharding.py",
    "test_build_latents.py",
    "test_rehearsal.py",
    "test_messages.py",
    "test_huggingface.py",
    "test_walk.py",
    "test_extras.py",
    "test_flow_training.py",
    "test_memory.py",
    "test_build.py",
    "test_run_folder.py",
    "test_archives.py",
    "test_audio.py",
)


def pytest_collection_modifyitems(items) -> None:
    order = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    """What is imported stays, so no later collection looks at it again: each start and stop of a run collects."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable():
    """What a test printed may hold bytes of a file name that are no UTF-8; pytest-xdist sends reports as UTF-8 and ends
    at others.
    """
    return _as_utf8((yield))


def _as_utf8(value):
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_as_utf8(key): _as_utf8(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_as_utf8, value))
    return value
