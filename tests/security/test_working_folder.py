"""A folder that happens to have the name of a build's working folder, or lies within it, keeps every file that is not
the build's.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import write_corpus
from tiny_sounds import tiny_sounds

from megatron_music.cli.entry import main
from megatron_music.data.building import (
    building_folder,
    check_building,
    remove_building,
)
from megatron_music.data.folders import files_below


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def midi(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "midi"
    write_corpus(folder)
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "thesis.txt",
        "important/thesis.txt",
        "shards/my.txt",
        "shards/00000.bin.bak",
        "shards/00000.bin/thesis.txt",
        "merge-1/thesis.txt",
        "merge-notes/a",
        "lock.txt",
        "records/a.json",
        "plan.json/a",
        "plan.json.bak",
    ],
)
def test_a_foreign_working_folder_is_refused_by_name_and_stays(midi, tmp_path, capsys, name):
    foreign = tmp_path / "out.building" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("years of work")
    for verb in ("tokens", "plan"):
        assert main(["build", verb, str(midi), "-o", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert (
            "out.building" in said
            and "which is not of a build; move it away, or name another output" in said
            and said.count("\n") == 1
        )
    assert tree(tmp_path) == {f"out.building/{name}": b"years of work"}


@pytest.mark.parametrize("place", ["", "inside/deeper"])
def test_a_source_in_the_working_folder_is_refused(midi, tmp_path, capsys, place):
    source = tmp_path / "out.building" / place
    shutil.copytree(midi, source)
    before = tree(tmp_path)
    for words in ([str(source)], [str(next(source.glob("*.mid")))], [str(midi), str(source)]):
        assert main(["build", "tokens", *words, "-o", str(tmp_path / "out")]) == 2
        assert "the working folder of this build, which goes at its end; name another output" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_what_is_put_into_the_working_folder_while_a_build_waits_stays(midi, tmp_path, capsys):
    assert main(["build", "plan", str(midi), "-o", str(tmp_path / "out")]) == 0
    assert main(["build", "shard", str(tmp_path / "out")]) == 0
    building = building_folder(tmp_path / "out")
    (building / "shards" / "notes.txt").write_text("mine")
    assert main(["build", "merge", str(tmp_path / "out")]) == 2
    assert (
        "holds shards/notes.txt, which is not of a build" in capsys.readouterr().err
        and (building / "plan.json").is_file()
    )
    (building / "shards" / "notes.txt").unlink()
    (building / "merge-0123456789abcdef").mkdir()  # of a merge that was killed
    (building / "merge-0123456789abcdef" / "train.bin").touch()
    assert main(["build", "merge", str(tmp_path / "out")]) == 0 and not building.exists()


def test_what_comes_while_a_build_ends_stays_and_so_does_what_links_lead_to(tmp_path, capsys):
    building = tmp_path / "out.building"
    (building / "shards").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").write_text("mine")
    for name in ("plan.json", "entries.jsonl", "shards/00000.bin", "shards/00000.json"):
        (building / name).touch()
    (building / "shards" / "00001.bin").symlink_to(tmp_path / "precious" / "a")
    (building / "merge-0123456789abcdef").symlink_to(tmp_path / "precious")
    (building / "thesis.txt").write_text("mine")
    remove_building(building)
    assert tree(tmp_path) == {"out.building/thesis.txt": b"mine", "precious/a": b"mine"}
    assert "out.building stays, since it holds thesis.txt" in capsys.readouterr().err


def test_the_working_folder_of_a_build_that_was_killed_is_not_foreign(midi, tmp_path):
    """Killed at the moment its first shard has its name, with temporary files about."""
    code = (
        "import os, signal, sys; from megatron_music.data import shard; from megatron_music.cli.entry import main\n"
        "shard.run_shards = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "main(['build', 'tokens', sys.argv[1], '-o', sys.argv[2]])"
    )
    assert subprocess.run([sys.executable, "-c", code, midi, tmp_path / "out"], check=False).returncode == -9
    building = building_folder(tmp_path / "out")
    (building / "shards" / ".00000.bin.0123456789abcdef-0123456789abcdef.tmp").touch()
    (building / "shards" / ".00000.bin.host-123.tmp").touch()  # of an earlier version
    (building / ".plan.json.0123456789abcdef.tmp").touch()
    check_building(building)
    assert main(["build", "tokens", str(midi), "-o", str(tmp_path / "out")]) == 0 and not building.exists()


def test_build_latents_refuses_a_foreign_working_folder_and_its_own_source(tmp_path, capsys):
    sounds = tiny_sounds(tmp_path / "sounds")
    for name in ("records/thesis.txt", "out/thesis.txt", "thesis.txt"):
        foreign = tmp_path / "data.building" / name
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("mine")
        assert main(["build", "latents", str(sounds), "-o", str(tmp_path / "data")]) == 2
        assert "which is not of a build; move it away" in capsys.readouterr().err
        assert tree(tmp_path / "data.building") == {name: b"mine"}
        foreign.unlink()
        shutil.rmtree(tmp_path / "data.building")
    shutil.copytree(sounds, tmp_path / "data.building")
    assert main(["build", "latents", str(tmp_path / "data.building"), "-o", str(tmp_path / "data")]) == 2
    assert "the working folder of this build, which goes at its end" in capsys.readouterr().err
    assert tree(tmp_path / "data.building") == tree(sounds)


@pytest.mark.parametrize("link", ["tokenizer/readme.txt", "tokenizer/deeper", "tokenizer"])
def test_links_below_a_dataset_are_not_followed_into_checkpoints(tmp_path, link):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("key")
    (tmp_path / "data").mkdir()
    if link != "tokenizer":
        (tmp_path / "data" / "tokenizer").mkdir()
        (tmp_path / "data" / "tokenizer" / "mmmtrack.json").write_text("{}")
    (tmp_path / "data" / link).symlink_to(tmp_path / "secret" / ("key" if link.endswith(".txt") else ""))
    with pytest.raises(ValueError, match=f"data/{link} is a link, which is not followed into checkpoints"):
        files_below(tmp_path / "data", "tokenizer")
