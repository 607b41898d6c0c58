"""What `inspect --verify` finds: every file of a dataset as it was built, or not."""

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny import write_corpus
from tiny_latents import tiny_latents

from megatron_music.cli.entry import main


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hashes")
    write_corpus(folder / "midi", 20)
    assert main(["build", "tokens", str(folder / "midi"), "-o", str(folder / "data"), "--format", "both"]) == 0
    return folder / "data"


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_dataset_is_verified_as_it_was_built(built, capsys):
    assert main(["inspect", str(built), "--verify"]) == 0
    hashes = json.loads((built / "report.json").read_text())["sha256"]
    assert sorted(hashes) == [name for name in files_of(built) if name != "report.json"]
    assert capsys.readouterr().out == f"{built} is as it was built: {len(hashes)} files compared\n"


def test_a_flipped_bit_of_any_file_is_found_by_name(built, tmp_path, capsys):
    for name in files_of(built):
        if name == "report.json":
            continue
        data = tmp_path / "data"
        shutil.copytree(built, data)
        content = bytearray((data / name).read_bytes())
        if content:
            content[len(content) * 2 // 3] ^= 0x10
        else:
            content += b"x"
        (data / name).write_bytes(content)
        capsys.readouterr()
        assert main(["inspect", str(data), "--verify"]) == 1, name
        assert f"{data / name} was changed since it was built" in capsys.readouterr().err
        shutil.rmtree(data)


def test_all_damaged_files_are_named_and_json_has_them(built, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(built, data)
    (data / "train.bin").unlink()
    os.truncate(data / "train.idx", 30)
    (data / "valid.bin").unlink()
    os.mkfifo(data / "valid.bin")
    capsys.readouterr()
    assert main(["inspect", str(data), "--verify"]) == 1
    said = capsys.readouterr().err
    for words in (
        "train.bin is missing",
        "train.idx was changed",
        "valid.bin cannot be read (it is not a regular file); build",
    ):
        assert words in said
    assert main(["inspect", str(data), "--verify", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["damaged"]) == 3
    assert main(["-q", "inspect", str(data), "--verify"]) == 1
    assert "train.bin is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (None, "has no hashes to verify the files with: an older version wrote it; build the dataset again"),
        ({}, "is damaged"),
        ([], "is damaged"),
        ({"../../secret": "0"}, "is damaged"),
        ({"/etc/passwd": "0"}, "is damaged"),
        ({"train.bin": 3}, "is damaged"),
        ({"a\0b": "0"}, "is damaged"),
    ],
)
def test_a_report_without_hashes_is_told_and_a_strangers_names_stay_in_the_folder(built, tmp_path, capsys, table, said):
    data = tmp_path / "data"
    shutil.copytree(built, data)
    report = json.loads((data / "report.json").read_text())
    report["sha256"] = table
    if table is None:
        del report["sha256"]
    (data / "report.json").write_text(json.dumps(report))
    capsys.readouterr()
    assert main(["inspect", str(data), "--verify"]) == 2
    assert said in capsys.readouterr().err


def test_verify_takes_nothing_else(built, capsys):
    assert main(["inspect", str(built), "--verify", "--document", "0"]) == 2
    assert "give two commands" in capsys.readouterr().err


def test_a_flipped_bit_in_latents_is_found_by_name(tmp_path, capsys):
    data = tiny_latents(tmp_path / "data")
    assert main(["inspect", str(data), "--verify"]) == 0 and "is as it was built" in capsys.readouterr().out
    for shard in sorted(data.glob("*/*.safetensors")):
        content = shard.read_bytes()
        shard.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
        assert main(["inspect", str(data), "--verify"]) == 1
        assert f"{shard} was changed since it was written" in capsys.readouterr().err
        shard.write_bytes(content)
    shard.unlink()
    assert main(["inspect", str(data), "--verify", "--json"]) == 1
    assert str(shard) in capsys.readouterr().out
