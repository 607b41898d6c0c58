import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial

import pytest

from megatron_music.corpora.midi_files import find_files
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.building import building_folder, held
from megatron_music.data.plan import fingerprint, plan_build, read_plan
from megatron_music.tokens.encoding import Encoding

OPTIONS = BuildOptions()
HOLD = """
import sys, time
from megatron_music.data.plan import held
with held(sys.argv[1]):
    print(flush=True)
    time.sleep(600)
"""


@pytest.fixture
def midi(tmp_path):
    folder = tmp_path / "midi"
    folder.mkdir()
    for number in range(100):
        (folder / f"{number:03}.mid").write_bytes(b"%d" % number)
    return folder


def tree(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files_per_shard", "sizes"), [(None, [32, 32, 32, 4]), (7, [7] * 14 + [2]), (100, [100]), (1000, [100])]
)
def test_shards_are_runs_of_all_entries(midi, tmp_path, files_per_shard, sizes):
    plan = plan_build([midi], tmp_path / "out", OPTIONS, files_per_shard)
    assert [shard.files for shard in plan.shards] == sizes and plan.files == 100
    entries = [entry for number in range(len(sizes)) for entry in plan.read_entries(number)]
    assert [entry.path for entry in entries] == [str(midi / f"{number:03}.mid") for number in range(100)]
    assert [shard.first for shard in plan.shards] == [sum(sizes[:number]) for number in range(len(sizes))]


@pytest.mark.parametrize(("count", "shards"), [(1, 1), (32, 1), (33, 2), (1000, 11), (20_000, 40)])
def test_a_few_files_make_work_for_several(midi, tmp_path, count, shards):
    files = [find_files([midi])[0]] * count
    plan = plan_build([midi], tmp_path / "out", OPTIONS, files=files)
    assert len(plan.shards) == shards and plan.files == count


def test_a_plan_is_read_back_by_either_name(midi, tmp_path):
    options = replace(OPTIONS, copies=2, transpose=(-5, 6), encoding=Encoding(bars=8, meters=("3/4", "4/4")))
    plan = plan_build([midi], tmp_path / "out", options)
    assert read_plan(tmp_path / "out") == read_plan(tmp_path / "out.building") == plan
    assert plan.options == options and plan.building == building_folder(tmp_path / "out") == tmp_path / "out.building"


def test_the_same_plan_is_used_again_and_another_refused(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 10)
    (plan.building / "shards" / "00000.bin").write_bytes(b"work")
    before = tree(plan.building)
    assert plan_build([midi], tmp_path / "out", OPTIONS, 50) == plan and tree(plan.building) == before
    for options in (replace(OPTIONS, seed=1), replace(OPTIONS, encoding=Encoding(hop=2))):
        with pytest.raises(
            ValueError, match=r"out.building holds an unfinished build of other files or options; finish it"
        ):
            plan_build([midi], tmp_path / "out", options)
    (midi / "000.mid").write_bytes(b"changed")
    with pytest.raises(ValueError, match="of other files or options"):
        plan_build([midi], tmp_path / "out", OPTIONS)
    assert tree(plan.building) == before


def test_the_fingerprint_follows_what_the_output_follows_from(midi, tmp_path, monkeypatch):
    labels = tmp_path / "labels.csv"
    labels.write_text("path,GENRE\n000.mid,Jazz\n")
    options = replace(OPTIONS, labels=str(labels))
    prints = [fingerprint(find_files([midi]), OPTIONS), fingerprint(find_files([midi]), options)]
    monkeypatch.chdir(tmp_path)
    assert fingerprint(find_files(["midi"]), replace(OPTIONS, labels="labels.csv")) == prints[1]
    labels.write_text("path,GENRE\n001.mid,Jazz\n")
    prints.append(fingerprint(find_files([midi]), options))
    os.utime(midi / "050.mid", ns=(1, 1))
    prints.append(fingerprint(find_files([midi]), options))
    (midi / "050.mid").rename(midi / "0505.mid")
    prints.append(fingerprint(find_files([midi]), options))
    assert len(set(prints)) == 5


def test_names_of_labels_are_found(midi, tmp_path, monkeypatch):
    (tmp_path / "labels.csv").write_text("path,GENRE\n000.mid,Jazz\n001.mid,Rock\n")
    monkeypatch.chdir(tmp_path)
    plan = plan_build([midi], tmp_path / "out", replace(OPTIONS, labels="labels.csv"))
    assert plan.options.encoding.labels == (("GENRE", ("JAZZ", "ROCK")),)
    assert plan.options.labels == str(tmp_path / "labels.csv") and read_plan("out") == plan
    with pytest.raises(ValueError, match=r"gone.csv cannot be read \(No such file or directory\)"):
        plan_build([midi], tmp_path / "other", replace(OPTIONS, labels="gone.csv"))


def test_nothing_is_left_of_a_plan_that_fails(midi, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"no archive")
    (tmp_path / "empty.tar").write_bytes(bytes(10240))
    for sources, message in (([midi, "bad.zip"], "cannot be opened"), (["empty.tar"], "no MIDI files")):
        with pytest.raises(ValueError, match=message):
            plan_build(sources, tmp_path / "out", OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.zip", "empty.tar", "midi"]


def test_shards_without_their_plan_are_not_trusted(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    (plan.building / "plan.json").unlink()
    (plan.building / "shards" / "00000.json").write_text("{}")
    assert plan_build([midi], tmp_path / "out", OPTIONS) == plan
    assert not list((plan.building / "shards").iterdir())


def test_a_missing_or_damaged_plan_is_named(midi, tmp_path):
    with pytest.raises(ValueError, match=r"out.building/plan.json is missing; run `megatron-music build plan` first"):
        read_plan(tmp_path / "out")
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    path = plan.building / "plan.json"
    content = path.read_text()
    for damaged in (content[:50], json.dumps({"version": "0"}), content.replace('"bars"', '"beers"'), "[]"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"plan.json is damaged \(.*\); remove .*out.building and plan again"):
            read_plan(tmp_path / "out")


def in_another_thread(action) -> str:
    """What the action raises, done by someone who holds nothing."""
    said = []

    def attempt():
        try:
            action()
            said.append("")
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    return said[0]


def test_one_alone_or_several_together(tmp_path):
    building = tmp_path / "out.building"

    def take(shared: bool):
        with held(building, shared):
            pass

    assert in_another_thread(lambda: take(True)) == f"{building} is missing; run `megatron-music build plan` first"
    refusal = (
        f"another build works in {building} (process {os.getpid()} on {os.uname().nodename!r}); wait for it to end, "
        f"or stop it"
    )
    with held(building):
        (building / "plan.json").touch()
        for shared in (False, True):
            assert in_another_thread(partial(take, shared)) == refusal
            take(shared)  # whoever holds it alone may hold it again
    with held(building, shared=True):
        assert in_another_thread(lambda: take(True)) == ""
        assert "another build works" in in_another_thread(lambda: take(False))
        with pytest.raises(ValueError, match="another build works"):
            take(False)
    assert in_another_thread(lambda: take(False)) == ""


def test_the_folder_goes_when_only_the_lock_is_in_it(tmp_path):
    building = tmp_path / "out.building"
    with held(building), held(building):
        assert building.is_dir()
    assert not building.exists()
    with held(building):
        (building / "plan.json").touch()
    assert building.is_dir()
    with held(building):  # the merge takes everything away
        for path in building.iterdir():
            path.unlink()
        building.rmdir()
    assert not building.exists()


def test_the_lock_of_a_killed_build_is_free(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path / "out.building"], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(ValueError, match="another build works"), held(tmp_path / "out.building"):
            pass
        process.kill()
    with held(tmp_path / "out.building"):
        pass
