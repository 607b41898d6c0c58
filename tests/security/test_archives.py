"""Archives made to fill the memory or to take for ever cost themselves, not the build."""

import gzip
import io
import lzma
import os
import struct
import tarfile
import zipfile
import zlib

import pytest
from bounded import run_bounded, run_command

from megatron_music.corpora import archives
from megatron_music.corpora.archives import Entry, EntryError
from megatron_music.corpora.midi_files import Reader, find_entries, find_files
from megatron_music.corpora.tar_stream import HEADER_BYTES

MIDI = bytes.fromhex("4d54686400000006000000010018 4d54726b00000014 00ff580404021808 00903c40 18803c40 00ff2f00")
BLOCK = 512
PLAN = """
from megatron_music.corpora.archives import Entry, EntryError
from megatron_music.corpora.midi_files import find_entries, find_files
answer([[entry.member, entry.damage] for entry in find_entries(find_files(sys.argv[1:]))])
"""


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(content), kind) + content + b"\0" * (-len(content) % BLOCK)


def packed(head: bytes, mebibytes: int, piece: bytes = b"a", tail: bytes = b"") -> bytes:
    """A gzip of a head, of so much of a piece, and of a tail; a stream of gzip is any number of them one after
    another.
    """
    filler = gzip.compress(piece * ((16 << 20) // len(piece)), 6)
    return gzip.compress(head) + filler * (mebibytes // 16) + gzip.compress(tail)


def sparse_without_end() -> bytes:
    head = bytearray(header("a.mid", BLOCK, tarfile.GNUTYPE_SPARSE))
    head[482] = 1  # further blocks of the map follow
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    pair = b"00000000001\0" * 2
    return packed(bytes(head), 1024, pair * 21 + b"\1" + b"\0" * 7)


def signed_size(size: int) -> bytes:
    head = bytearray(header("a.mid", 0))
    head[124:136] = (size % (1 << 96)).to_bytes(12, "big")  # GNU's base 256: the first bit is set
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    return bytes(head)


def global_headers() -> bytes:
    found = b""
    for number in range(64):
        value = b"v" * (HEADER_BYTES - 8192)
        record = f" key{number}=".encode() + value + b"\n"
        length = len(record) + 7
        found += member("g", f"{length:7}".replace(" ", "0").encode() + record, tarfile.XGLTYPE) + member(
            f"{number}.txt", b""
        )
    return gzip.compress(found, 1)


HOSTILE_TARS = {
    "long name": lambda: packed(header("././@LongLink", 1536 << 20, tarfile.GNUTYPE_LONGNAME), 1536),
    "long link": lambda: packed(header("././@LongLink", 1536 << 20, tarfile.GNUTYPE_LONGLINK), 1536),
    "pax header": lambda: packed(header("x", 1024 << 20, tarfile.XHDTYPE), 1024, b"9 a=bcd\n\0\0\0\0\0\0\0"),
    "global header": lambda: packed(header("g", 1024 << 20, tarfile.XGLTYPE), 1024, b"16 comment=1234\n"),
    "many global headers": global_headers,
    "sparse map": sparse_without_end,
    "chain of names": lambda: gzip.compress(member("././@LongLink", b"n.mid\0", tarfile.GNUTYPE_LONGNAME) * 100_000),
    "size below zero": lambda: gzip.compress(signed_size(-2 * BLOCK)),
    "sparse map of letters": lambda: gzip.compress(
        member("x", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n", tarfile.XHDTYPE) + member("a.mid", b"letters\n")
    ),
}


@pytest.mark.parametrize("hostile", HOSTILE_TARS)
def test_a_header_that_would_fill_the_memory_costs_the_rest_of_its_archive_alone(tmp_path, hostile):
    good = gzip.compress(member("good.mid", MIDI))
    (tmp_path / "x.tar.gz").write_bytes(good + HOSTILE_TARS[hostile]())
    (tmp_path / "y.mid").write_bytes(MIDI)
    found = run_bounded(PLAN, tmp_path / "x.tar.gz", tmp_path / "y.mid", mib=700, seconds=300)
    assert found.value[0] == ["good.mid", ""] and found.value[-1] == ["", ""]
    assert "is damaged after" in found.value[-2][1], found.value
    assert found.peak_mib < 300


def test_honest_long_names_and_records_are_read(tmp_path):
    name = "/".join(["folder" * 10] * 60) + "/a.mid"
    records = {"comment": "c" * 200_000, "SCHILY.xattr.user.x": "x" * 60_000}
    for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for mode in ("w", "w:gz", "w:bz2", "w:xz"):
            path = tmp_path / f"x.tar{mode[1:].replace(':', '.')}"
            with tarfile.open(path, mode, format=kind) as archive:
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(MIDI), records if kind == tarfile.PAX_FORMAT else {}
                archive.addfile(info, io.BytesIO(MIDI))
            (entry,) = find_entries(find_files([path]))
            assert entry.member == name
            with Reader() as reader:
                assert reader.read(entry) == MIDI


def test_an_xz_that_asks_for_gigabytes_is_refused(tmp_path):
    content = bytearray(lzma.compress(member("a.mid", MIDI)))
    size = (content[12] + 1) * 4
    block = content[12 : 12 + size]
    place = block.index(b"\x21\x01") + 2  # LZMA2, and one byte that states the dictionary
    block[place] = 39  # 3 GiB
    block[-4:] = struct.pack("<I", zlib.crc32(bytes(block[:-4])))
    content[12 : 12 + size] = block
    (tmp_path / "x.tar.xz").write_bytes(content)
    with pytest.raises(ValueError, match=r"x.tar.xz cannot be opened as an archive \(Memory usage limit exceeded\)"):
        list(find_entries(find_files([tmp_path / "x.tar.xz"])))


def test_members_of_several_xz_streams_are_read(tmp_path):
    both = member("a.mid", MIDI) + member("b.mid", MIDI[::-1])
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(both[:700]) + b"\0" * 8 + lzma.compress(both[700:]))
    found = list(find_entries(find_files([tmp_path / "x.tar.xz"])))
    with Reader() as reader:
        assert [reader.read(entry) for entry in found] == [MIDI, MIDI[::-1]]


def test_padding_of_any_length_behind_an_xz_stream_is_passed_over(tmp_path):
    both = member("a.mid", MIDI) + member("b.mid", MIDI[::-1])
    padding = bytes(3 << 20)
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(both[:700]) + padding + lzma.compress(both[700:]) + padding)
    found = run_bounded(PLAN, tmp_path / "x.tar.xz", mib=700, seconds=60)
    assert found.value == [["a.mid", ""], ["b.mid", ""]]


def test_a_zip_of_more_members_than_are_read_is_refused_as_a_tar_is(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for number in (3, 4):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name in range(number):
                archive.writestr(f"{name}.mid", MIDI)
    assert len(list(find_entries(find_files([tmp_path / "3.zip"])))) == 3
    with pytest.raises(
        ValueError, match=r"4.zip has 4 members, where up to 3 are read; split it into smaller archives"
    ):
        list(find_entries(find_files([tmp_path / "4.zip"])))


def test_zip_members_that_share_one_packed_body_are_read_once(tmp_path):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("first.mid", bytes(60 << 20))
        archive.writestr("good.mid", MIDI)
        first, good = archive.infolist()
        for number in range(1000):
            twin = zipfile.ZipInfo(f"{number}.mid")
            for field in ("header_offset", "compress_size", "file_size", "CRC", "compress_type"):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
    found = list(find_entries(find_files([path])))
    assert [entry.member for entry in found if not entry.damage] == ["first.mid", "good.mid"]
    assert {entry.damage for entry in found[2:]} == {"shares its bytes in the archive with another member"} and len(
        found
    ) == 1002
    with Reader() as reader:
        assert reader.read(found[1]) == MIDI


def test_a_member_that_overlaps_half_of_another_is_refused(tmp_path):
    path = tmp_path / "x.zip"
    inner = (
        struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, zlib.crc32(MIDI), len(MIDI), len(MIDI), 7, 0)
        + b"twin.mid"[:7]
        + MIDI
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("outer.mid", inner)
        twin = zipfile.ZipInfo("twin.mi.mid")
        twin.header_offset, twin.compress_size, twin.file_size, twin.CRC = (
            30 + len("outer.mid"),
            len(MIDI),
            len(MIDI),
            zlib.crc32(MIDI),
        )
        archive.filelist.append(twin)
    assert [bool(entry.damage) for entry in find_entries(find_files([path]))] == [False, True]


def test_the_way_past_a_long_member_is_not_time_of_the_next_file(tmp_path):
    good = member("b.mid", MIDI)
    (tmp_path / "x.tar.gz").write_bytes(packed(header("long.bin", 2048 << 20), 2048, bytes(16), good))
    out = tmp_path / "out"
    done = run_command("build", "tokens", tmp_path / "x.tar.gz", "-o", out, "--seconds-per-file", "1", "--bars", "0")
    assert done.returncode == 0, done.stderr
    assert (out / "quarantine.jsonl").read_text() == ""


def test_a_pipe_that_has_the_name_of_an_archive_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.tar.gz")
    with pytest.raises(ValueError, match="neither a file nor a folder"):
        find_files([tmp_path / "x.tar.gz"])
    with Reader() as reader:
        for entry in (Entry(str(tmp_path / "x.tar.gz"), member="a.mid", number=0), Entry(str(tmp_path / "x.tar.gz"))):
            with pytest.raises(EntryError):
                reader.read(entry)
