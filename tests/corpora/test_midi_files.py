import io
import json
import os
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_music.corpora import archives, midi_files
from megatron_music.corpora.archives import Entry, EntryError
from megatron_music.corpora.midi_files import (
    Reader,
    find_entries,
    find_files,
    find_midi_files,
)

CONTENTS = {
    "a/one.mid": b"one" * 1000,
    "a/two.MIDI": b"",
    "b/three.kar": bytes(range(256)) * 300,
    "notes.txt": b"no music",
    "caf\udce9 *[1].mid": b"latin name",
    "z/" + "long/" * 40 + "four.mid": b"four",
}
MIDI = {name: content for name, content in CONTENTS.items() if name != "notes.txt"}


def write_folder(folder: Path) -> Path:
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, mode: str = "w", format: int = tarfile.PAX_FORMAT, contents: dict = CONTENTS) -> Path:
    with tarfile.open(path, mode, format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("link.mid")
        link.type, link.linkname = tarfile.SYMTYPE, "a/one.mid"
        tar.addfile(link)
    return path


def write_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder.mid")
        for number, (name, content) in enumerate(CONTENTS.items()):
            kind = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[number % 2]
            archive.writestr(name.replace("\udce9", "é"), content, kind)
        link = zipfile.ZipInfo("link.mid")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "a/one.mid")
    return path


def entries(*sources) -> list[Entry]:
    return list(find_entries(find_files(sources)))


def contents(*sources) -> dict[str, bytes]:
    with Reader() as reader:
        return {entry.member or entry.path: reader.read(entry) for entry in entries(*sources)}


def reason(entry: Entry) -> str:
    with pytest.raises(EntryError) as caught, Reader() as reader:
        reader.read(entry)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "mode"),
    [("x.tar", "w"), ("x.tar.gz", "w:gz"), ("x.TGZ", "w:gz"), ("x.tar.bz2", "w:bz2"), ("x.tar.xz", "w:xz")],
)
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_reads_as_what_is_in_it(tmp_path, name, mode, format):
    path = write_tar(tmp_path / name, mode, format)
    assert contents(path) == MIDI
    assert [entry.member for entry in entries(path)] == list(MIDI)


def test_a_zip_reads_as_what_is_in_it(tmp_path):
    wanted = {name.replace("\udce9", "é"): content for name, content in MIDI.items()}
    assert contents(write_zip(tmp_path / "x.zip")) == wanted
    with open(tmp_path / "before.zip", "wb") as file:  # as in a self-extracting archive
        file.write(b"#!/bin/sh\n" + (tmp_path / "x.zip").read_bytes())
    assert contents(tmp_path / "before.zip") == wanted


def test_a_folder_reads_as_what_is_in_it(tmp_path):
    folder = write_folder(tmp_path / "midi")
    assert contents(folder) == {str(folder / name): content for name, content in MIDI.items()}


def test_entries_are_in_order_and_each_real_file_is_there_once(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "midi")
    (tmp_path / "link").symlink_to(folder)
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "self").symlink_to("self")
    (folder / "a" / "gone.mid").symlink_to("nothing.mid")
    (folder / "again.mid").symlink_to("a/one.mid")
    (tmp_path / "out.mid").write_bytes(b"outside")
    (folder / "b" / "outside.mid").symlink_to(tmp_path / "out.mid")
    os.mkfifo(folder / "pipe.mid")
    tar = write_tar(tmp_path / "m.tar")
    found = find_files([folder, tmp_path / "link", tar, tar, folder / "a" / "one.mid", tmp_path / "out.mid"])
    wanted = [("m.tar", 2), ("midi/b/outside.mid", 0), *((f"midi/{name}", 0) for name in MIDI)]
    assert [(os.path.relpath(file.path, tmp_path), file.source) for file in found] == sorted(wanted)
    monkeypatch.chdir(tmp_path)
    found = find_files(["link/../link"])
    assert {file.path for file in found} == {str(tmp_path / name) for name, _ in wanted if name != "m.tar"}


def test_relative_and_absolute_names_are_one(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "midi")
    monkeypatch.chdir(folder)
    assert find_files(["."]) == find_files([folder]) == find_files(["../midi", folder])
    assert find_midi_files(["a"]) == [folder / "a" / "one.mid", folder / "a" / "two.MIDI"]


def test_a_list_names_files_folders_and_archives(tmp_path):
    folder = write_folder(tmp_path / "midi")
    write_tar(tmp_path / "x.tar.gz", "w:gz")
    listing = tmp_path / "list.txt"
    listing.write_bytes(b"\xef\xbb\xbf# what I like\r\n\nmidi/a\r\n  \nx.tar.gz\nmidi/caf\xe9 *[1].mid")
    assert [file.path for file in find_files([listing])] == [
        str(folder / "a" / "one.mid"),
        str(folder / "a" / "two.MIDI"),
        str(folder / "caf\udce9 *[1].mid"),
        str(tmp_path / "x.tar.gz"),
    ]
    listing.write_text("midi\nmissing.mid\n")
    with pytest.raises(ValueError, match=r"list.txt, line 2 names missing.mid, which does not exist"):
        find_files([listing])
    listing.write_text("list.txt\n")
    with pytest.raises(ValueError, match=r"line 1 names the list list.txt"):
        find_files([listing])


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.mid does not exist"):
        find_files([tmp_path / "gone.mid"])
    with pytest.raises(
        ValueError,
        match=r"no MIDI files in .*; files ending in .mid, .midi, .kar, .rmi are read: export scores .* as MIDI first",
    ):
        find_files([tmp_path])


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_entries_survive_json_and_are_read_from_anywhere(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    found = entries(write_zip(path) if kind == "zip" else write_tar(path, {"tar": "w", "tar.gz": "w:gz"}[kind]))
    lines = [json.dumps(entry.as_json()) for entry in found]
    assert all(line.isascii() for line in lines)
    assert [Entry(**json.loads(line)) for line in lines] == found
    wanted = list(MIDI.values())
    for order in (range(5), [3, 4, 0, 2, 1], [4, 4]):
        with Reader() as reader:
            assert [reader.read(found[number]) for number in order] == [wanted[number] for number in order]


@given(st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 47, 10, 13}))
def test_any_name_survives_json(name):
    entry = Entry(os.fsdecode(b"/midi/" + name), member=os.fsdecode(name))
    assert Entry(**json.loads(json.dumps(entry.as_json()))) == entry
    assert os.fsencode(Entry(**json.loads(json.dumps(entry.as_json()))).path) == b"/midi/" + name


def test_a_compressed_tar_is_read_once_forward(tmp_path, monkeypatch):
    found = entries(write_tar(tmp_path / "x.tar.gz", "w:gz"))
    opened, open_tar = [], archives._open_tar
    monkeypatch.setattr(archives, "_open_tar", lambda path: opened.append(path) or open_tar(path))
    beats = []
    with Reader(beat=lambda: beats.append(1)) as reader:
        assert [reader.read(found[number]) for number in (0, 2, 4)] == [
            list(MIDI.values())[number] for number in (0, 2, 4)
        ]
        assert len(opened) == 1 and len(beats) == 3  # two.MIDI, notes.txt and the Latin name were passed over
        reader.read(found[1])
        assert len(opened) == 2


def test_a_tar_that_breaks_off_gives_what_is_whole(tmp_path):
    whole = {f"{number}.mid": os.urandom(3000) for number in range(20)}
    for name, mode in (("x.tar", "w"), ("x.tar.gz", "w:gz")):
        path = write_tar(tmp_path / name, mode, contents=whole)
        path.write_bytes(path.read_bytes()[:30_100])
        *found, last = entries(path)
        assert "is damaged after" in last.damage and reason(last) == last.damage and last.name == str(path)
        good, bad = 0, []
        with Reader() as reader:
            for entry in found:
                try:
                    assert reader.read(entry) == whole[entry.member]
                    good += 1
                except EntryError as error:
                    bad.append(str(error))
        assert good >= 7 and len(bad) <= 1 and len(found) < 20, (name, good, bad)


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", contents={f"{number}.mid": b"x" * 512 for number in range(5)})
    content = bytearray(path.read_bytes())
    content[2 * 1024 : 2 * 1024 + 8] = b"garbage!"
    path.write_bytes(content)
    assert [entry.member for entry in entries(path)] == ["0.mid", "1.mid", ""]
    assert reason(entries(path)[-1]) == "is damaged after 2 members (bad checksum)"


def test_archives_that_are_none_are_refused(tmp_path):
    for name in ("x.tar", "x.tar.gz", "x.tgz", "x.zip", "x.tar.xz"):
        for content in (b"", b"no archive at all" * 100):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=rf"{name} cannot be opened as an archive .*; download it again"):
                entries(tmp_path / name)


def test_an_archive_changed_after_planning_is_noticed(tmp_path):
    for path in (
        write_tar(tmp_path / "x.tar"),
        write_tar(tmp_path / "x.tar.gz", "w:gz"),
        write_zip(tmp_path / "x.zip"),
    ):
        found = entries(path)
        path.write_bytes(b"\1" * path.stat().st_size)
        assert all(reason(replace(entry, mtime_ns=0)) for entry in found), "of the same time"
        os.utime(path, ns=(0, 1))
        with (
            pytest.raises(midi_files.ChangedSource, match=f"{path} was changed since it was planned"),
            Reader() as reader,
        ):
            reader.read(found[0])
    found = [replace(entry, mtime_ns=0) for entry in entries(write_tar(tmp_path / "y.tar.gz", "w:gz"))]
    write_tar(tmp_path / "y.tar.gz", "w:gz", contents=dict(reversed(CONTENTS.items())))
    assert "the archive was changed" in reason(found[0])
    (tmp_path / "y.tar.gz").unlink()
    with pytest.raises(FileNotFoundError):  # a disk that is away is no fault of the file's
        Reader().read(found[0])


def test_hard_links_in_a_tar_are_named(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name, kind in (("1.mid", tarfile.REGTYPE), ("2.mid", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, "1.mid", 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    found = entries(tmp_path / "x.tar")
    assert [entry.member for entry in found] == ["1.mid", "2.mid"]
    assert reason(found[1]) == "is a hard link to 1.mid of the archive"


def test_zip_members_that_cannot_be_read_say_why(tmp_path):
    path = write_zip(tmp_path / "x.zip")
    first, *_, last = entries(path)
    content = bytearray(path.read_bytes())
    content[first.offset + 30 + len("a/one.mid") + 5] ^= 1
    central = content.rindex(b"PK\1\2", 0, content.rindex(b"PK\1\2"))  # of the entry before the link
    content[central + 8] |= 1
    path.write_bytes(content)
    first, *_, last = entries(path)
    assert "is damaged in the archive" in reason(first) and reason(last) == "is encrypted in the archive"
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.mid", b"x")
    assert "zip method 14" in reason(entries(tmp_path / "y.zip")[0])


def test_too_large_a_file_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(midi_files, "MAX_FILE_BYTES", 999)
    (tmp_path / "x.mid").write_bytes(bytes(1000))
    found = entries(tmp_path / "x.mid", write_tar(tmp_path / "x.tar.gz", "w:gz"), write_zip(tmp_path / "x.zip"))
    large = [entry for entry in found if entry.size > 999]
    assert len(large) == 5
    assert {reason(entry).partition(" bytes")[0] for entry in large} == {"has 1,000", "has 3,000", "has 76,800"}
    (tmp_path / "x.mid").write_bytes(b"")
    small = replace(entries(tmp_path / "x.mid")[0], mtime_ns=0)
    (tmp_path / "x.mid").write_bytes(bytes(1001))  # it has grown since
    assert "1,001 bytes, more than the 999" in reason(small)
