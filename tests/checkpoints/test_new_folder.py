"""Folders of conversions: one writer at a time, whole or not at all, and a full disk told as that."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from small_disks import small_disk

from megatron_music.checkpoints.new_folder import error_of_disk, new_folder
from megatron_music.checkpoints.writer import WriteFailed
from megatron_music.config.errors import ConfigError


def in_another_thread(work) -> str:
    said = []

    def attempt() -> None:
        try:
            work()
            said.append("")
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return said[0]


def test_a_second_conversion_is_refused_and_the_living_one_keeps_its_folder(tmp_path):
    def second() -> None:
        with new_folder(tmp_path / "out"):
            raise AssertionError("two at once")

    with new_folder(tmp_path / "out") as folder:
        (folder / "model.safetensors").write_bytes(b"weights")
        assert "another `convert` writes" in in_another_thread(second)
        assert (folder / "model.safetensors").exists()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(ConfigError, match="is not empty; name a new folder"):
        second()


def test_what_a_killed_conversion_left_goes_and_nothing_else(tmp_path):
    code = (
        "import os, signal, sys; from megatron_music.checkpoints.new_folder import new_folder\nwith "
        "new_folder(sys.argv[1]): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False).returncode == -9
    (tmp_path / ".out.notes.unfinished").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / ".out.0123456789abcdef.unfinished").symlink_to("precious")
    assert len(list(tmp_path.glob(".out.*.unfinished"))) == 3
    with new_folder(tmp_path / "out"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.notes.unfinished", "out", "precious"]


def test_a_folder_that_was_filled_meanwhile_keeps_what_is_in_it(tmp_path):
    with (
        pytest.raises(ConfigError, match="was filled meanwhile; name a new folder"),
        new_folder(tmp_path / "out") as folder,
    ):
        (folder / "ours").touch()
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_disk_that_safetensors_finds_full_is_told_as_that(tmp_path):
    from safetensors.numpy import save_file

    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(OSError, match="No space left on device") as caught, new_folder(disk / "out") as folder:
            save_file({"a": np.zeros(1 << 20, np.float32)}, folder / "model.safetensors")
        assert caught.value.filename == str(disk / "out") and list(disk.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ENOTDIR])
def test_a_source_that_cannot_be_read_is_named_and_not_the_new_folder(tmp_path, number):
    with pytest.raises(OSError) as caught, new_folder(tmp_path / "out"):
        raise OSError(number, os.strerror(number), "/source/model.safetensors")
    assert (caught.value.errno, caught.value.filename) == (number, "/source/model.safetensors") and list(
        tmp_path.iterdir()
    ) == []


def test_the_error_of_the_disk_is_found_behind_others():
    disk = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    failed = WriteFailed("process 0")
    failed.__cause__ = disk
    assert error_of_disk(failed) is disk and error_of_disk(ValueError("no")) is None


def test_a_relative_name_and_a_link_to_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("new", "link", "deeper/new"):
        with new_folder(name) as folder:
            (folder / "a").touch()
        assert Path(name, "a").exists() and Path("link").is_symlink()
