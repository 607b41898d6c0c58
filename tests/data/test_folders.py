"""The folders a run reads: alone, blended, damaged, read-only. Real datasets, real training."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from tiny_gpt import tiny_dataset, tiny_run

from megatron_music.cli.entry import main
from megatron_music.config.errors import ConfigError
from megatron_music.config.sections import DataConfig, ParallelConfig
from megatron_music.data import batches, index_file
from megatron_music.data.folders import (
    cache_folder,
    check_folders,
    record_of,
    user_cache,
)
from megatron_music.data.index_file import (
    HEADER_BYTES,
    IndexWriter,
    check_ids,
    check_index,
)
from megatron_music.parallel import distributed
from megatron_music.tokens.blend import blend_encodings
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding, write_tokenizer_folder
from megatron_music.training.loop import DONE, train


@pytest.fixture
def two(tmp_path):
    return tiny_dataset(tmp_path / "a"), tiny_dataset(tmp_path / "b", seed=1)


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.001, 0.999)])
def test_a_blend_trains(two, tmp_path, weights):
    blend = f"[{weights[0]},{two[0]},{weights[1]},{two[1]}]"
    assert (
        train(tiny_run(blend, f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=3", "train.eval_iters=1"))
        == DONE
    )
    assert len(losses(tmp_path / "run")) == 3


def test_three_folders_are_blended_and_the_first_does_not_decide(tmp_path):
    """The checkpoint's tokenizer offers what any part of the data had, in whatever order they are given."""
    folders = [tiny_dataset(tmp_path / name, seed=number) for number, name in enumerate("abc")]
    write_tokenizer_folder(folders[1] / "tokenizer", Encoding(tempo=True, meters=("all",)))
    write_tokenizer_folder(
        folders[2] / "tokenizer", Encoding(velocity=True, infill=True, labels=(("GENRE", ("JAZZ",)),))
    )
    for name, order in (("one", folders), ("other", folders[::-1])):
        path = "[" + ",".join(f"1,{folder}" for folder in order) + "]"
        assert train(tiny_run(path, f"checkpoint.save={tmp_path / name}", "train.train_iters=1")) == DONE
        assert read_encoding(tmp_path / name / "iter_0000001" / "tokenizer") == Encoding(
            tempo=True, meters=("all",), velocity=True, infill=True, labels=(("GENRE", ("JAZZ",)),)
        )


def test_the_difference_of_blended_folders_is_told(two, capsys):
    write_tokenizer_folder(two[1] / "tokenizer", Encoding(velocity=True))
    train(tiny_run(f"[1,{two[0]},1,{two[1]}]", "train.train_iters=1"))
    assert "the folders of data.path differ in velocity; the model's tokenizer has" in capsys.readouterr().err


DENSE = Encoding(density=3, density_bins=(2, 5))


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (Encoding(), Encoding(steps_per_quarter=12), "a .4. and b .12. differ in steps a quarter"),
        (Encoding(), Encoding(bpe=4), "differ in merged tokens"),
        (
            Encoding(labels=(("GENRE", ("JAZZ",)),)),
            Encoding(labels=(("GENRE", ("ROCK",)),)),
            "differ in the names of labels",
        ),
        (
            DENSE,
            replace(DENSE, density_bins=(2, 6)),
            "a .3 levels cut at 2, 5 notes.*differ in the levels of --density",
        ),
        (DENSE, replace(DENSE, bars=8), "windows of 4 bars.*windows of 8 bars.*differ in the levels"),
        (
            Encoding(bar_density=2, bar_density_bins=(3,)),
            Encoding(bar_density=2, bar_density_bins=(4,)),
            "--bar-density",
        ),
    ],
)
def test_encodings_whose_tokens_mean_different_things_are_refused(one, other, said):
    for names, pair in ((("a", "b"), (one, other)), (("b", "a"), (other, one))):
        with pytest.raises(ValueError, match="differ in") as found:
            blend_encodings(dict(zip(names, pair, strict=True)))
    with pytest.raises(ValueError, match=said):
        blend_encodings({"a": one, "b": other})
    assert str(found.value).count("; ") == 1


def test_encodings_that_differ_in_what_is_added_are_joined():
    found = blend_encodings(
        {"a": Encoding(bars=0, bar_line="clip"), "b": DENSE, "c": Encoding(bars=8, meters=("3/4",), hop=2)}
    )
    assert found == replace(DENSE, bars=4, meters=("4/4", "3/4"))


CUTS = [("train.bin", -1), ("train.idx", -1), ("valid.bin", 10), ("train.bin", None), ("train.idx", 5)]


@pytest.mark.parametrize(("name", "size"), CUTS)
def test_a_truncated_file_is_refused_by_name_before_the_first_step(tmp_path, capsys, name, size):
    data = tiny_dataset(tmp_path / "data")
    path = data / name
    if size is None:
        path.write_bytes(path.read_bytes() + b"\0\0")
    else:
        os.truncate(path, path.stat().st_size + size if size < 0 else size)
    for check in (
        lambda: train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}")),
        lambda: check_folders(DataConfig([0.5, str(tiny_dataset(tmp_path / "other")), 0.5, str(data)])),
    ):
        with pytest.raises(ConfigError, match=f"{name.replace('bin', 'idx')} is damaged .*build the dataset again"):
            check()
    assert not (tmp_path / "run").exists()
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1\nsrun true\n")
    capsys.readouterr()
    assert main(["preflight", str(script), "tiny", f"data.path={data}", f"checkpoint.save={tmp_path / 'run'}"]) != 0
    assert "is damaged" in capsys.readouterr().out


def rewritten(index: Path, change) -> None:
    """An ``.idx`` with its tables changed in place: ``change`` takes its type, lengths, offsets and documents."""
    data = bytearray(index.read_bytes())
    kind, (sequences, documents) = np.frombuffer(data, "u1", 1, 17), np.frombuffer(data, "<u8", 2, 18)
    change(
        kind,
        np.frombuffer(data, "<i4", sequences, HEADER_BYTES),
        np.frombuffer(data, "<i8", sequences, HEADER_BYTES + 4 * int(sequences)),
        np.frombuffer(data, "<i8", documents, HEADER_BYTES + 12 * int(sequences)),
    )
    index.write_bytes(data)


def put(table, row, value):
    table[row] = value


DAMAGES = {
    "sequence 3 has -5 tokens": lambda kind, lengths, offsets, documents: put(lengths, 3, -5),
    "sequence 4 begins at byte [0-9]+ where [0-9]+ is due": lambda kind, lengths, offsets, documents: put(
        lengths, 3, 2**31 - 1
    ),
    "sequence 0 begins at byte 8 where 0 is due": lambda kind, lengths, offsets, documents: put(offsets, 0, 8),
    "its tokens have the unknown type 77": lambda kind, lengths, offsets, documents: put(kind, 0, 77),
    "sequence 1 begins at byte": lambda kind, lengths, offsets, documents: put(kind, 0, 4),
    "document 0 begins with sequence 1, out of order": lambda kind, lengths, offsets, documents: put(documents, 0, 1),
    "document 7 begins with sequence 5, out of order": lambda kind, lengths, offsets, documents: put(documents, 7, 5),
    "its documents end at sequence [0-9]+ where there are": lambda kind, lengths, offsets, documents: put(
        documents, -1, documents[-1] + 1
    ),
    "the train.bin is shorter than it says": lambda kind, lengths, offsets, documents: put(
        lengths, -1, lengths[-1] + 1
    ),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    from tiny import write_corpus

    folder = tmp_path_factory.mktemp("built")
    write_corpus(folder / "midi")
    assert main(["build", "tokens", str(folder / "midi"), "-o", str(folder / "data"), "--bars", "1", "--hop", "1"]) == 0
    return folder / "data"


def refused_alike(data: Path, folder: Path, capsys, words: str, commands=("train", "preflight", "inspect")) -> None:
    """Every command refuses a dataset with the same words, and nothing is written."""
    script = folder / "job.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=1\nsrun true\n")
    run = ["tiny", f"data.path={data}", f"checkpoint.save={folder / 'run'}"]
    for command in commands:
        capsys.readouterr()
        arguments = {"train": run, "preflight": [str(script), *run], "inspect": [str(data)]}[command]
        assert main([command, *arguments]) != 0, command
        said = capsys.readouterr()
        assert re.search(words, said.out + said.err), (command, said)
    assert not (folder / "run").exists()


@pytest.mark.parametrize("words", DAMAGES)
def test_an_altered_index_of_the_right_size_is_refused_by_name(built, tmp_path, capsys, words):
    data = tmp_path / "data"
    shutil.copytree(built, data)
    rewritten(data / "train.idx", DAMAGES[words])
    refused_alike(data, tmp_path, capsys, f"train.idx is damaged .{words.removeprefix('the ')}")


def test_ids_outside_the_vocabulary_are_refused_by_name(built, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(built, data)
    ids = np.fromfile(data / "train.bin", "<u2")
    ids[5] = 0xFFFF
    ids.tofile(data / "train.bin")
    refused_alike(
        data, tmp_path, capsys, "train.bin is damaged .token 5 is 65535, and its tokenizer's ids are below [0-9]+"
    )


def with_a_wrong_id(folder: Path) -> tuple[Path, int]:
    """A dataset with an id outside the vocabulary where pieces of it do not reach, and its place."""
    data = tiny_dataset(folder / "data", documents={"train": 60_000})
    ids = np.fromfile(data / "train.bin", "<u2")
    assert ids.nbytes > 5 << 20
    place = len(ids) // 30 + (32 << 10)
    ids[place] = 0xFFFF
    ids.tofile(data / "train.bin")
    return data, place


def test_every_token_is_looked_at_before_the_first_step(tmp_path):
    data, place = with_a_wrong_id(tmp_path)
    with pytest.raises(
        ValueError, match=f"train.bin is damaged .token {place} is 65535, and its tokenizer's ids are below 768"
    ):
        train(tiny_run(data, f"checkpoint.save={tmp_path / 'run'}", "train.eval_iters=0"))
    assert not (tmp_path / "run").exists()


def test_a_wrong_id_in_a_large_dataset_is_named_when_its_sample_is_read(tmp_path, monkeypatch):
    """It would be an IndexError in the embedding, and on a GPU an assertion of the device."""
    monkeypatch.setattr(index_file, "_READ_WHOLE_BYTES", 5 << 20)
    data, place = with_a_wrong_id(tmp_path)
    check_ids(data / "train", Encoding().vocab_size)  # of a large file a sample
    with pytest.raises(ValueError, match=f"train.bin is damaged .token {place} is 65535"):
        check_ids(data / "train", Encoding().vocab_size, whole=True)
    epoch = (os.path.getsize(data / "train.bin") // 2 - 1) // 64
    other = tiny_dataset(tmp_path / "other")
    for path, samples in ((str(data), epoch), ([0.5, str(other), 0.5, str(data)], 2 * epoch)):
        distributed.start(ParallelConfig())
        try:
            train_set, *_ = batches.build_datasets(
                DataConfig(path, cache_path=str(tmp_path / "cache")), seq_length=64, seed=1, num_samples=(samples, 0, 0)
            )
            options = {"micro_batch_size": 1, "data_parallel_rank": 0, "data_parallel_size": 1, "consumed_samples": 0}
            with pytest.raises(OSError, match=f"{data}/train.bin is damaged .token {place} is 65535"):
                for _ in islice(batches.micro_batches(train_set, vocab_size=768, **options), samples):
                    pass
        finally:
            distributed.stop()


def test_files_that_are_not_those_of_the_report_are_refused(built, tmp_path, capsys):
    """As after a copy of half of a dataset that was built again: its .bin and .idx go together, and are of another
    build.
    """
    data = tmp_path / "data"
    shutil.copytree(built, data)
    other = tiny_dataset(tmp_path / "other")
    for suffix in ("bin", "idx"):
        shutil.copy(other / f"train.{suffix}", data)
    refused_alike(
        data,
        tmp_path,
        capsys,
        "train.bin and .idx have 60 documents in [0-9,]+ bytes, and .*report.json counts [0-9]+ in [0-9]+;",
    )
    shutil.copytree(built, data, dirs_exist_ok=True)
    for damage in ("{", "[]", '{"splits": {"train": 3}}', '{"splits": 7}'):
        (data / "report.json").write_text(damage)
        with pytest.raises(ConfigError, match=r"report.json is damaged"):
            check_folders(DataConfig(str(data)))
    (data / "report.json").unlink()
    check_folders(DataConfig(str(data)))


@pytest.mark.parametrize("name", ["valid.idx", "valid.bin", "train.idx", "train.bin"])
def test_one_file_of_a_split_without_the_other_is_refused_by_name(built, tmp_path, capsys, name):
    data = tmp_path / "data"
    shutil.copytree(built, data)
    for other in ("valid.idx", "valid.bin"):
        shutil.copy(data / other.replace("valid", "train"), data / other)
    (data / name).unlink()
    refused_alike(data, tmp_path, capsys, name)


def test_a_large_index_is_checked_in_portions(tmp_path):
    lengths = np.full(2_500_000, 2, np.int32)
    writer = IndexWriter(tmp_path / "x.idx", len(lengths))
    writer.add(lengths)
    writer.finish()
    (tmp_path / "x.bin").write_bytes(bytes(2 * int(lengths.sum())))
    assert check_index(tmp_path / "x") == len(lengths)
    rewritten(tmp_path / "x.idx", lambda kind, lengths, offsets, documents: put(documents, 2_000_000, 1))
    with pytest.raises(ValueError, match="document 2000000 begins with sequence 1, out of order"):
        check_index(tmp_path / "x")
    rewritten(tmp_path / "x.idx", lambda kind, lengths, offsets, documents: put(lengths, 1_500_000, 3))
    with pytest.raises(ValueError, match="sequence 1500001 begins at byte 6000004 where 6000006 is due"):
        check_index(tmp_path / "x")


def test_preflight_refuses_a_blend_that_train_refuses(two, tmp_path, capsys):
    write_tokenizer_folder(two[1] / "tokenizer", Encoding(steps_per_quarter=12))
    script = tmp_path / "job.sbatch"
    script.write_text("#!/bin/bash\nsrun true\n")
    run = ["tiny", f"data.path=[1,{two[0]},1,{two[1]}]", f"checkpoint.save={tmp_path / 'run'}"]
    assert main(["preflight", str(script), *run]) != 0
    assert "differ in steps a quarter" in capsys.readouterr().out
    assert main(["train", *run]) == 2
    assert "differ in steps a quarter" in capsys.readouterr().err


def test_inspect_refuses_a_truncated_dataset(tmp_path, capsys):
    from tiny import write_corpus

    write_corpus(tmp_path / "midi")
    assert main(["build", "tokens", str(tmp_path / "midi"), "-o", str(tmp_path / "data")]) == 0
    os.truncate(tmp_path / "data" / "train.bin", 100)
    for words in ([], ["--document", "0"], ["--html", str(tmp_path / "page.html")], ["--json"]):
        capsys.readouterr()
        assert main(["inspect", str(tmp_path / "data"), *words]) == 2, words
        assert "train.idx is damaged (train.bin is shorter than it says)" in capsys.readouterr().err


def test_the_index_cache_goes_to_the_runs_folder(two, tmp_path):
    before = sorted(two[0].iterdir())
    train(tiny_run(two[0], f"checkpoint.save={tmp_path / 'run'}", "train.train_iters=1"))
    assert sorted(two[0].iterdir()) == before and any((tmp_path / "run" / "cache").iterdir())
    assert cache_folder(DataConfig(str(two[0]), cache_path="/somewhere"), tmp_path / "run").as_posix() == "/somewhere"


def can_mount(folder) -> bool:
    """Whether this user may mount a folder onto itself, in a namespace of its own."""
    words = ["unshare", "-m", "mount", "--bind", str(folder), str(folder)]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


def test_a_read_only_dataset_trains_without_a_word_about_caches(tmp_path):
    if not can_mount(tmp_path):
        pytest.skip("this user may not mount")
    data = tiny_dataset(tmp_path / "data")
    program = (
        f"mount --bind {data} {data} && mount -o remount,bind,ro {data} && exec {sys.executable} -m megatron_music "
        f"train tiny"
    )
    for save in ("null", tmp_path / "run"):
        words = (
            f"data.path={data} checkpoint.save={save} train.train_iters=1 train.eval_iters=1 logging.tensorboard=false"
        )
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{program} {words}"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert not (data / "cache").exists()


def test_a_run_that_is_not_saved_keeps_its_index_cache_with_the_user(two, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = sorted(two[0].iterdir())
    train(tiny_run(two[0], "train.train_iters=1"))
    own = tmp_path / "cache" / "megatron-music"
    assert sorted(two[0].iterdir()) == before and any(own.iterdir()) and own.stat().st_mode & 0o077 == 0


def test_a_cache_that_others_can_write_to_is_not_used(two, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    own = tmp_path / "cache" / "megatron-music"
    own.mkdir(parents=True)
    own.chmod(0o777)
    assert user_cache().parent == tmp_path / "spare"
    user_cache().chmod(0o777)
    with pytest.raises(ConfigError, match=r"set data.cache_path to a folder"):
        user_cache()
    own.chmod(0o700)
    assert user_cache() == own


def test_temporary_files_of_one_machine_are_no_cache_for_several(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert user_cache().parent == tmp_path / "spare"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="that all machines see"):
        user_cache()


def test_an_evaluation_that_cannot_be_is_told_at_the_start(tmp_path, capsys):
    data = tiny_dataset(tmp_path / "data", documents={"train": 40, "valid": 0})
    train(tiny_run(data, "train.train_iters=1", "train.eval_iters=2"))
    assert capsys.readouterr().err.count("nothing to evaluate on: the validation split is empty") == 1
    train(tiny_run(data, "train.train_iters=1", "train.eval_iters=0"))
    assert "to evaluate on" not in capsys.readouterr().err


def test_a_record_is_of_the_content(two, tmp_path):
    record = record_of(DataConfig(str(two[0])))
    shutil.copytree(two[0], tmp_path / "copy")
    assert record_of(DataConfig(str(tmp_path / "copy"))) == record != record_of(DataConfig(str(two[1])))
    assert record["folders"][0]["train"]["documents"] == 60
    assert record_of(DataConfig([2, str(two[0]), 6, str(two[1])]))["weights"] == [0.25, 0.75]
