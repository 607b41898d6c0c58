"""Files that are there whole or not at all, whatever lies under their names, and on whatever disk."""

import errno
import os
import subprocess
import sys

import pytest
from bounded import run_bounded
from shims import shimmed
from small_disks import small_disk

from megatron_music.storage import writing
from megatron_music.storage.writing import (
    appearing,
    appearing_folder,
    no_links,
    sweep_temporary,
    write_whole,
    written_apart,
)


def test_a_file_has_the_mode_of_the_umask_and_replaces_the_one_before(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "a", b"1", syncs_folder=True)
        write_whole(tmp_path / "a", b"22")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"22" and (tmp_path / "a").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nobody_can_foresee_a_temporary_name_and_what_lies_there_is_never_written_to(tmp_path, monkeypatch):
    names = []
    for _ in range(3):
        with appearing(tmp_path / "a"):
            names += [path.name for path in tmp_path.iterdir() if path.name != "a"]
    assert len(set(names)) == 3 and all(writing.is_temporary(name) for name in names)
    monkeypatch.setattr(writing, "token", lambda: "0123456789abcdef")  # one that was foreseen all the same
    (tmp_path / "precious").write_bytes(b"mine")
    for target in (tmp_path / "precious", tmp_path / "nothing"):
        planted = tmp_path / ".a.0123456789abcdef.tmp"
        planted.symlink_to(target)
        with pytest.raises(FileExistsError):
            write_whole(tmp_path / "a", b"ours")
        planted.unlink()
    assert (tmp_path / "precious").read_bytes() == b"mine" and not (tmp_path / "nothing").exists()


def test_a_link_that_has_the_files_own_name_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "precious").write_bytes(b"mine")
    (tmp_path / "a").symlink_to("precious")
    write_whole(tmp_path / "a", b"ours")
    assert not (tmp_path / "a").is_symlink() and (tmp_path / "precious").read_bytes() == b"mine"
    (tmp_path / "log").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic link"), open(tmp_path / "log", "a", opener=no_links):
        pass


def test_a_log_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log")
    for reader in (None, os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)):
        answer = run_bounded(
            """
            from megatron_music.storage.writing import no_links
            try:
                open(sys.argv[1], "w", opener=no_links)
            except ValueError as error:
                answer(str(error))
            """,
            tmp_path / "log",
            mib=4096,
            seconds=60,
        )
        assert answer.value == f"{tmp_path / 'log'} is not a regular file; move it away", reader
    os.close(reader)


def test_a_name_of_255_bytes_has_room_for_its_temporary_one(tmp_path):
    for name in ("n" * 255, "é" * 127):
        write_whole(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, Stop])
def test_nothing_is_left_of_a_file_or_folder_that_fails(tmp_path, error):
    (tmp_path / "a").write_bytes(b"before")
    with pytest.raises(error), appearing(tmp_path / "a") as file:
        file.write(b"half")
        raise error
    with pytest.raises(error), written_apart(tmp_path / "a") as path:
        path.write_bytes(b"half")
        raise error
    with pytest.raises(error), appearing_folder(tmp_path / "folder") as folder:
        (folder / "part").write_bytes(b"half")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_bytes() == b"before"


def test_a_full_disk_names_the_file_and_leaves_the_one_before(tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        write_whole(disk / "a", b"before")
        with pytest.raises(OSError, match="No space left on device") as caught:
            write_whole(disk / "a", bytes(2 << 20))
        assert caught.value.filename == str(disk / "a")
        assert [path.name for path in disk.iterdir()] == ["a"] and (disk / "a").read_bytes() == b"before"


def test_what_killed_processes_left_is_swept_by_name_alone(tmp_path):
    left = [".001.mid.0123456789abcdef.tmp", ".latest.0123456789abcdef.tmp"]
    theirs = [".001.mid.tmp", "001.mid.0123456789abcdef.tmp", ".001.mid.0123456789ABCDEF.tmp", ".notes.tmp", "a.tmp"]
    for name in (*left, *theirs):
        (tmp_path / name).touch()
    (tmp_path / ".folder.0123456789abcdef.tmp").mkdir()
    sweep_temporary(tmp_path, ["001.mid"])
    assert not (tmp_path / left[0]).exists() and (tmp_path / left[1]).exists()
    sweep_temporary(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, ".folder.0123456789abcdef.tmp"])


def test_a_folder_of_a_killed_process_goes_and_one_of_another_name_stays(tmp_path):
    for name in (".a.0123456789abcdef.unfinished", ".ab.0123456789abcdef.unfinished", ".a.unfinished"):
        (tmp_path / name).mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / ".a.1123456789abcdef.unfinished").symlink_to("precious")
    with appearing_folder(tmp_path / "a") as folder:
        (folder / "part").touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".a.unfinished",
        ".ab.0123456789abcdef.unfinished",
        "a",
        "precious",
    ]


WRITE = (
    "import sys; from megatron_music.storage.writing import write_whole; write_whole(sys.argv[1], b'1', "
    "syncs_folder=True)"
)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EIO])
def test_a_file_system_that_has_no_fsync_is_not_a_full_disk(tmp_path, number):
    done = subprocess.run(
        [sys.executable, "-c", WRITE, tmp_path / "a"],
        env=shimmed(fsync=number),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is (number != errno.EIO), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if number == errno.EIO else ["a"])


APART = """
import os, sys
from megatron_music.storage.writing import written_apart
with written_apart(sys.argv[1]) as path:
    path.write_bytes(b"half")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_wrote_for_a_library_goes_with_the_next(tmp_path):
    (tmp_path / ".b.0123456789abcdef.unfinished").mkdir()
    assert subprocess.run([sys.executable, "-c", APART, tmp_path / "a"], check=False).returncode == -9
    assert len(list(tmp_path.iterdir())) == 2
    with written_apart(tmp_path / "a") as path:
        path.write_bytes(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.0123456789abcdef.unfinished", "a"]
    assert (tmp_path / "a").read_bytes() == b"whole"
