"""What commands start ends with them: by itself, at a time limit, at every signal, and when they are killed
themselves.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import PATIENCE_SECONDS, children_of, is_running, wait_until

from megatron_music.parallel.processes import run_to_end, stopped_by_every_signal

# A launcher as torchrun is: its worker is in a session of its own, and it may end without it, or not listen.
LAUNCHER = """
import os, pathlib, signal, subprocess, sys, time
folder, how = pathlib.Path(sys.argv[1]), sys.argv[2]
if how == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: (folder / "told").touch())
worker = subprocess.Popen([sys.executable, "-c", sys.argv[3]], start_new_session=True)
(folder / "pids.part").write_text(f"{os.getpid()} {worker.pid}")
os.replace(folder / "pids.part", folder / "pids")
while how != "ends":
    time.sleep(0.05)
sys.exit(7)
"""
DEAF_WORKER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
OWN_WORKER = (
    "import time; from megatron_music.parallel.processes import end_with_starter; end_with_starter(); time.sleep(600)"
)
STARTER = """
import subprocess, sys
from megatron_music.parallel.processes import run_to_end
try:
    run_to_end(sys.argv[2:], subprocess.DEVNULL, 600, float(sys.argv[1]))
except KeyboardInterrupt:
    sys.exit(5)
"""


def started(
    folder: Path, how: str, *, grace_seconds: float, worker: str = DEAF_WORKER
) -> tuple[subprocess.Popen, list[int]]:
    """A process in ``run_to_end`` whose launcher has started its worker."""
    command = [sys.executable, "-c", LAUNCHER, str(folder), how, worker]
    process = subprocess.Popen([sys.executable, "-c", STARTER, str(grace_seconds), *command])
    return process, pids_of(folder)


def pids_of(folder: Path) -> list[int]:
    wait_until((folder / "pids").exists)
    return [int(pid) for pid in (folder / "pids").read_text().split()]


def test_a_launcher_that_ends_without_its_workers(tmp_path):
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), "ends", DEAF_WORKER]
    assert run_to_end(command, subprocess.DEVNULL, 600) == 7
    assert not any(is_running(pid) for pid in pids_of(tmp_path))


def test_the_time_limit_ends_processes_that_do_not_listen(tmp_path):
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), "deaf", DEAF_WORKER]
    time_limit = 1
    while not (tmp_path / "pids").exists():  # until it has come so far within the limit
        time_limit *= 2
        with pytest.raises(subprocess.TimeoutExpired):
            run_to_end(command, subprocess.DEVNULL, time_limit, grace_seconds=0.1)
    assert not any(is_running(pid) for pid in pids_of(tmp_path))


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("how", ["listens", "deaf"])
def test_a_signal_ends_a_command_and_its_descendants(tmp_path, how, kind):
    process, below = started(tmp_path, how, grace_seconds=600 if how == "listens" else 0.1)
    process.send_signal(kind)
    assert process.wait(timeout=PATIENCE_SECONDS) == 5
    assert not any(is_running(pid) for pid in below)


def test_a_second_signal_waits_for_nothing(tmp_path):
    process, below = started(tmp_path, "deaf", grace_seconds=600)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "told").exists)
    assert is_running(below[0])
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=PATIENCE_SECONDS) == 5
    assert not any(is_running(pid) for pid in below)


def test_workers_end_when_who_started_them_is_killed(tmp_path):
    process, (launcher, worker) = started(tmp_path, "listens", grace_seconds=600, worker=OWN_WORKER)
    try:
        process.kill()
        process.wait()
        wait_until(lambda: not is_running(worker))
    finally:
        os.kill(launcher, signal.SIGKILL)  # torchrun ends by itself when a worker has


def test_ignored_signals_stay_ignored():
    """nohup and shells' background jobs ignore some on purpose."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopped_by_every_signal():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
        command = [sys.executable, "-c", f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP)"]
        assert run_to_end(command, subprocess.DEVNULL, 600) == 0
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_stopped_corpus_leaves_no_worker(tmp_path, kind):
    command = [sys.executable, "-m", "megatron_music", "corpus", "bach", "-o", str(tmp_path / "midi"), "--workers=2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list((tmp_path / "midi").glob("*.mid")))
    below = children_of(process.pid, 2)
    process.send_signal(kind)
    _, said = process.communicate(timeout=PATIENCE_SECONDS)
    wait_until(lambda: not any(is_running(pid) for pid in below))
    assert process.returncode == (-kind if kind == signal.SIGKILL else 1)
    assert ("stopped; files that were finished stay" in said) == (kind != signal.SIGKILL)
    assert not list((tmp_path / "midi").glob(".*.tmp")) or kind == signal.SIGKILL
