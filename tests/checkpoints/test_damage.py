"""Damaged and hostile checkpoints: found out, said aloud, and never executed."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from tiny_gpt import tiny_dataset, tiny_run
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

from megatron_music.checkpoints.find import find_checkpoint
from megatron_music.checkpoints.folder import prune, remove
from megatron_music.checkpoints.manifest import read_manifest, write_manifest
from megatron_music.checkpoints.reader import IndexReader
from megatron_music.config.errors import ConfigError
from megatron_music.generation.load_models import load_model_for_inference
from megatron_music.parallel import distributed
from megatron_music.training.loop import DONE, train


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("damage") / "data")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert (
        train(tiny_run(data, f"checkpoint.save={folder}", "train.train_iters=3", "checkpoint.save_interval=1")) == DONE
    )
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A run of three checkpoints, to be damaged."""
    return shutil.copytree(finished, tmp_path / "run")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def lead_out(path: Path) -> None:
    path.write_text(path.read_text().replace('"state.json"', '"../../state.json"'))


DAMAGES = [
    ("__0_0.distcp", cut, "__0_0.distcp has"),
    ("__0_0.distcp", flip, "__0_0.distcp does not have the content"),
    ("__0_0.distcp", Path.unlink, "__0_0.distcp is missing"),
    ("state.json", replace_by_link, "state.json is a link"),
    ("tokenizer/mmmtrack.json", cut, "tokenizer/mmmtrack.json has"),
    (".metadata", flip, ".metadata does not have the content"),
    ("manifest.json", Path.unlink, "has no manifest.json"),
    ("manifest.json", lambda path: path.write_bytes(path.read_bytes()[:100]), "cannot be read"),
    ("manifest.json", lambda path: path.write_text("{}"), "does not say which files"),
    ("manifest.json", lambda path: path.write_text('{"version": 9, "files": {}}'), "of version 9"),
    ("manifest.json", lead_out, "which is not below it"),
    (".", shutil.rmtree, "has no manifest.json"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used_aloud(run, capfd, name, damage, reason):
    damage(run / "iter_0000003" / name)
    assert find_checkpoint(run) == run / "iter_0000002"
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "iter_0000003 is damaged" in said and f"using {run / 'iter_0000002'}" in said
    assert reason in said
    with pytest.raises(ConfigError, match=r"iter_0000003 (is damaged|holds no checkpoint)"):
        find_checkpoint(run / "iter_0000003")


@pytest.mark.parametrize(
    ("latest", "complaint"),
    [
        (None, "is missing"),
        ("", "is empty"),
        ("iter_", "'iter_'"),
        ("../finished", "no checkpoint's name"),
        ("\0\n", "says"),
    ],
)
def test_without_a_good_latest_the_newest_whole_one_is_used_aloud(run, capfd, latest, complaint):
    (run / "latest").unlink() if latest is None else (run / "latest").write_text(latest)
    cut(run / "iter_0000003" / ".metadata")
    assert find_checkpoint(run) == run / "iter_0000002"
    assert "iter_0000003 is damaged" in capfd.readouterr().err
    shutil.rmtree(run / "iter_0000003")
    assert find_checkpoint(run) == run / "iter_0000002"
    said = capfd.readouterr().err
    assert complaint in said and f"using {run / 'iter_0000002'}" in said


def test_a_latest_that_names_an_older_one_is_obeyed(run, capfd):
    (run / "latest").write_text("iter_0000002\n")
    assert find_checkpoint(run) == run / "iter_0000002" and capfd.readouterr().err == ""
    cut(run / "iter_0000002" / ".metadata")
    assert find_checkpoint(run) == run / "iter_0000001"


def test_where_none_is_whole_one_sentence_says_so(data, run):
    for checkpoint in run.glob("iter_*"):
        cut(checkpoint / ".metadata")
    for use in (
        lambda: find_checkpoint(run),
        lambda: load_model_for_inference(run),
        lambda: train(tiny_run(data, f"checkpoint.save={run}", "train.train_iters=3")),
        lambda: train(tiny_run(data, f"checkpoint.load={run}", "train.train_iters=3")),
    ):
        with pytest.raises(ConfigError, match=r"no checkpoint of .* is whole") as refused:
            use()
        assert "\n" not in str(refused.value)


def test_a_run_goes_on_from_the_one_before_and_ends_the_same(data, finished, run, capfd):
    flip(run / "iter_0000003" / "__0_0.distcp")
    assert train(tiny_run(data, f"checkpoint.save={run}", "train.train_iters=3", "checkpoint.save_interval=1")) == DONE
    assert "iter_0000003 is damaged" in capfd.readouterr().err
    manifests = [read_manifest(folder / "iter_0000003") for folder in (finished, run)]
    assert manifests[0]["__0_0.distcp"] == manifests[1]["__0_0.distcp"]
    assert sorted(path.name for path in run.glob(".*")) == []


def test_an_explicit_load_of_a_damaged_one_is_refused(data, run, tmp_path):
    flip(run / "iter_0000003" / "__0_0.distcp")
    with pytest.raises(ConfigError, match="iter_0000003 is damaged"):
        train(tiny_run(data, f"checkpoint.load={run / 'iter_0000003'}", f"checkpoint.save={tmp_path / 'new'}"))
    assert not (tmp_path / "new").exists()


def test_old_checkpoints_go_and_the_newest_stays(tmp_path):
    def names():
        return [int(path.name[5:]) for path in sorted(tmp_path.glob("*iter_*"))]

    for iteration in range(10, 70, 10):
        (tmp_path / f"iter_{iteration:07d}").mkdir()
    assert prune(tmp_path, 1, 0) == []  # nothing is known of what is newest
    (tmp_path / "latest").write_text("iter_0000050\n")
    assert prune(tmp_path, 0, 20) == []
    prune(tmp_path, 2, 20)
    assert names() == [20, 40, 50, 60]  # 60 came after what the run goes on from
    prune(tmp_path, 1, 0)
    assert names() == [50, 60]
    remove(tmp_path / "iter_0000060")
    assert names() == [50]


def test_a_removal_that_is_killed_leaves_nothing_that_looks_like_a_checkpoint(run, monkeypatch):
    def killed(path, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(run / "iter_0000001")
    assert not (run / "iter_0000001").exists() and (run / ".iter_0000001.removed").is_dir()


class Malice:
    """What runs a command when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def poison_index(checkpoint: Path, malice: Malice) -> None:
    (checkpoint / ".metadata").write_bytes(pickle.dumps(malice))


def poison_inside_index(checkpoint: Path, malice: Malice) -> None:
    index = pickle.loads((checkpoint / ".metadata").read_bytes())  # our own, before it is poisoned
    index.planner_data = {"more": malice}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def poison_tensors(checkpoint: Path, malice: Malice) -> None:
    """Another object in the place of every tensor of a file; the index is made to fit."""
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    torch.save(malice, checkpoint / "__0_0.distcp")
    size = (checkpoint / "__0_0.distcp").stat().st_size
    for place in index.storage_data.values():
        place.offset, place.length = 0, size
    with open(checkpoint / "__0_0.distcp", "ab") as file:
        file.write(bytes(1 << 20))  # as large as the model's tensors are
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def lead_index_out(checkpoint: Path, malice: Malice) -> None:
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    torch.save(malice, checkpoint.parent / "outside.distcp")
    for place in index.storage_data.values():
        place.relative_path = "../outside.distcp"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


class Attribute:
    """What asks for an attribute when it is unpickled, as some Pythons write members of an enumeration."""

    def __init__(self, owner, name: str):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def poison_by_attribute(checkpoint: Path, malice: Malice) -> None:
    index = pickle.loads((checkpoint / ".metadata").read_bytes())
    index.planner_data = {"more": Attribute(Path, "home")}
    (checkpoint / ".metadata").write_bytes(pickle.dumps(index))


def test_an_index_of_any_python_is_read(run):
    """Members of an enumeration are written as calls of getattr by some Pythons, such as 3.11.2, and by value by
    others.
    """
    path = run / "iter_0000003" / ".metadata"
    index = pickle.loads(path.read_bytes())
    members = [Attribute(type(member), member.name) for member in _MEM_FORMAT_ENCODING]
    index.planner_data = members
    path.write_bytes(pickle.dumps(index))
    assert IndexReader(path.parent).read_metadata().planner_data == list(_MEM_FORMAT_ENCODING)


@pytest.mark.parametrize(
    ("poison", "reason"),
    [
        (poison_by_attribute, "asks for an attribute"),
        (poison_index, "posix.system"),
        (poison_inside_index, "posix.system"),
        (poison_tensors, "[Ww]eights"),
        (lead_index_out, "no file of tensors"),
    ],
)
def test_a_hostile_checkpoint_runs_nothing(data, run, tmp_path, poison, reason):
    poison(run / "iter_0000003", Malice(tmp_path / "marker"))
    write_manifest(run / "iter_0000003")  # who writes all files writes the manifest, too
    for use in (
        lambda: load_model_for_inference(run),
        lambda: train(tiny_run(data, f"checkpoint.save={run}", "train.train_iters=4")),
        lambda: train(tiny_run(data, f"checkpoint.load={run / 'iter_0000003'}", "train.train_iters=4")),
    ):
        with pytest.raises(ConfigError, match=f"iter_0000003 cannot be loaded .*{reason}") as refused:
            use()
        distributed.stop()
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "marker").exists()
    Malice(tmp_path / "marker").__reduce__()[0](f"touch {tmp_path / 'marker'}")
    assert (tmp_path / "marker").exists(), "the poison itself does nothing, so this test shows nothing"


def test_files_that_nobody_needs_to_unpickle_are_not_read(run, tmp_path):
    torch.save(Malice(tmp_path / "marker"), run / "iter_0000003" / "common.pt")
    write_manifest(run / "iter_0000003")
    load_model_for_inference(run)
    distributed.stop()
    assert not (tmp_path / "marker").exists()
