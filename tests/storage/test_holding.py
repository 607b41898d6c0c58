"""Two processes on one folder: on this machine, and on several nodes whose file system has no locks or has them for
each node alone.
"""

import errno
import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from shims import NODE_LOCAL, shimmed
from small_disks import small_disk
from tiny import write_corpus

from megatron_music.data.building import building_folder, temporary_shard
from megatron_music.storage import owners
from megatron_music.storage.holding import Busy, hold, hold_folder

HOLD = """
import sys, time
from megatron_music.storage import holding, owners
owners.STALE_SECONDS = 12.0
try:
    with holding.hold(sys.argv[1], "busy{owner}", shared=len(sys.argv) > 2):
        print("held", flush=True)
        time.sleep(600 if sys.argv[-1] == "stay" else 0)
except holding.Busy as error:
    print(error)
"""
WITHOUT_LOCKS = [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP]


@contextmanager
def holder(lock: Path, environment: dict, *words: str):
    """A process that holds a lock file until it is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, lock, *words, "stay"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def attempt(lock: Path, environment: dict, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HOLD, lock, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("flock", [NODE_LOCAL, *WITHOUT_LOCKS])
def test_on_two_nodes_whose_locks_do_not_reach_each_other_one_keeps_the_other_out(tmp_path, flock):
    lock = tmp_path / "lock"
    with holder(lock, shimmed(flock=flock, node="node1")) as process:
        assert attempt(lock, shimmed(flock=flock, node="node2")) == f"busy (process {process.pid} on 'node1')"
        assert attempt(lock, shimmed(flock=flock, node="node1")) == f"busy (process {process.pid} on 'node1')"


def test_several_nodes_may_share_a_folder_and_none_may_have_it_alone_meanwhile(tmp_path):
    lock, nodes = tmp_path / "lock", [shimmed(flock=NODE_LOCAL, node=f"node{number}") for number in range(3)]
    with holder(lock, nodes[0], "shared"):
        assert attempt(lock, nodes[1], "shared") == "held"
        assert attempt(lock, nodes[2]).startswith("busy (process ")
        assert attempt(lock, nodes[1], "shared") == "held"


def test_what_a_killed_process_of_another_node_held_is_free_when_its_file_is_not_refreshed(tmp_path):
    lock = tmp_path / "lock"
    with holder(lock, shimmed(flock=NODE_LOCAL, node="node1")):
        pass
    begun = time.monotonic()
    assert attempt(lock, shimmed(flock=NODE_LOCAL, node="node2")) == "held"
    assert time.monotonic() - begun > 10, "it was watched first"
    assert list(tmp_path.iterdir()) == []


def test_what_was_left_long_ago_on_another_node_is_free_at_once(tmp_path):
    lock = tmp_path / "lock"
    with holder(lock, shimmed(node="node1")):
        pass
    (left,) = tmp_path.glob("lock.*")
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    begun = time.monotonic()
    with hold(lock, "busy"):
        assert time.monotonic() - begun < 5
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_of_this_machine_held_is_free_at_once(tmp_path):
    lock = tmp_path / "lock"
    with holder(lock, os.environ), pytest.raises(Busy, match=r"busy \(process \d+ on "), hold(lock, "busy{owner}"):
        pass
    with hold(lock, "busy"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_number_of_a_process_that_ended_may_be_anothers(tmp_path):
    facts = {"machine": owners.machine(), "pid": os.getpid(), "start": "1", "shared": False}
    (tmp_path / "lock.0123456789abcdef").write_text(json.dumps(facts))
    with hold(tmp_path / "lock", "busy"):
        pass


def test_a_holder_whose_file_is_hostile_is_watched_and_says_no_control_characters(tmp_path):
    facts = {"machine": "\x1b[2J" * 100, "pid": "\x1b[31m", "start": None, "shared": False}
    (tmp_path / "lock.0123456789abcdef").write_text(json.dumps(facts))
    own = owners.Owner.read(tmp_path / "lock", "0123456789abcdef")
    assert own.is_alive() is None and "\x1b" not in str(own) and len(str(own)) < 400


def test_a_link_in_the_place_of_an_owner_file_is_not_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "REFRESH_SECONDS", 0.05)
    (tmp_path / "precious").touch()
    os.utime(tmp_path / "precious", (1, 1))
    heart, link = owners._Heart(), tmp_path / "lock.0123456789abcdef"
    link.symlink_to("precious")
    os.utime(link, (1, 1), follow_symlinks=False)
    heart.beats_for(link)
    limit = time.monotonic() + 10
    while link.lstat().st_mtime == 1 and time.monotonic() < limit:
        time.sleep(0.02)
    heart.stops_for(link)
    assert link.lstat().st_mtime > 1 and (tmp_path / "precious").stat().st_mtime == 1


def test_a_process_that_never_was_holds_nothing(tmp_path):
    facts = {"machine": owners.machine(), "pid": 1 << 30, "start": None, "shared": False}
    (tmp_path / "lock.0123456789abcdef").write_text(json.dumps(facts))
    with hold(tmp_path / "lock", "busy"):
        pass


def test_where_processes_are_not_listed_the_time_of_the_file_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "start_of", lambda pid: None)
    owner = owners.Owner.new(tmp_path / "lock", shared=False)
    try:
        assert owner.is_alive() is None
    finally:
        owner.let_go()


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="lock"), hold(tmp_path / "lock", "busy"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_that_nothing_came_of_goes_again_and_what_was_there_stays(tmp_path):
    with hold_folder(tmp_path / "new", "test"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    theirs, ours = tmp_path / "old" / ".notes.0123456789abcdef.tmp", tmp_path / "old" / ".001.mid.0123456789abcdef.tmp"
    theirs.touch()
    ours.touch()
    with (
        hold_folder(tmp_path / "old", "test", ["001.mid"]),
        pytest.raises(Busy, match=r"another `test` writes to .*old"),
        hold_folder(tmp_path / "old", "test"),
    ):
        pass
    assert list((tmp_path / "old").iterdir()) == [theirs]


def test_a_folder_on_a_full_disk_is_not_left_held(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with open(disk / "ballast", "wb", buffering=0) as ballast, suppress(OSError):
            while ballast.write(bytes(4096)):
                pass
        with (
            pytest.raises(OSError, match=r"No space left on device.*lock") as caught,
            hold_folder(disk / "out", "test"),
        ):
            pass
        assert caught.value.errno == errno.ENOSPC and not (disk / "out").exists()
        (disk / "ballast").unlink()
        with hold_folder(disk / "out", "test"):
            pass


def test_a_folder_whose_name_has_braces_is_named_as_it_is(tmp_path):
    with (
        hold_folder(tmp_path / "{x}{0}", "test"),
        pytest.raises(Busy, match=r"\{x\}\{0\} \(process"),
        hold_folder(tmp_path / "{x}{0}", "test"),
    ):
        pass


COMMANDS = {
    "no locks": {"flock": errno.ENOLCK, "fsync": errno.EINVAL},
    "node-local locks": {"flock": NODE_LOCAL, "fsync": errno.ENOTSUP},
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_a_dataset_is_built_on_a_file_system_without_locks_or_fsync(tmp_path, kind):
    write_corpus(tmp_path / "midi")
    for name, environment in (("calm", os.environ), ("out", shimmed(**COMMANDS[kind], node="node1"))):
        command = [sys.executable, "-m", "megatron_music", "build", "tokens", tmp_path / "midi", "-o", tmp_path / name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert ("keep others out" in done.stderr) is (kind == "no locks")
    for name in ("train.bin", "train.idx", "files.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "midi", "out"]


SWEEP = """
import sys, time
from pathlib import Path
from megatron_music.data.building import held, sweep_shards
building, limit = Path(sys.argv[1]), time.monotonic() + 300
with held(building, shared=True):
    print("sweeping", flush=True)
    while time.monotonic() < limit:
        sweep_shards(building)
"""


def test_ranks_of_an_array_do_not_remove_each_others_files_where_locks_are_of_a_node(tmp_path):
    write_corpus(tmp_path / "midi")
    plan = [sys.executable, "-m", "megatron_music", "build", "plan", tmp_path / "midi", "-o", tmp_path / "out"]
    subprocess.run(plan, check=True, capture_output=True)
    building = building_folder(tmp_path / "out")
    dead = temporary_shard(building / "shards" / "00000.bin", "0123456789abcdef")
    dead.touch()
    environment = shimmed(flock=NODE_LOCAL, node="node2")
    with subprocess.Popen([sys.executable, "-c", SWEEP, building], env=environment, stdout=subprocess.PIPE) as sweeping:
        try:
            sweeping.stdout.readline()
            for rank in ("0", "1"):
                shard = [
                    sys.executable,
                    "-m",
                    "megatron_music",
                    "build",
                    "shard",
                    tmp_path / "out",
                    "--rank",
                    rank,
                    "--world-size",
                    "2",
                ]
                environment = shimmed(flock=NODE_LOCAL, node=f"node{rank}")
                done = subprocess.run(shard, env=environment, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr
            assert not dead.exists() and sweeping.poll() is None
            merge = [sys.executable, "-m", "megatron_music", "build", "merge", tmp_path / "out"]
            done = subprocess.run(
                merge, env=shimmed(flock=NODE_LOCAL, node="node1"), capture_output=True, text=True, check=False
            )
            assert done.returncode == 2 and "another build works in" in done.stderr and "on 'node2'" in done.stderr
        finally:
            sweeping.kill()
