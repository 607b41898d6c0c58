"""Finished shards to a dataset: what goes where, and what a merge survives."""

import json
import os
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
from tiny_shards import TinyFile, write_shards

from megatron_music.data import merge
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.index_file import IndexWriter
from megatron_music.data.merge import BuildError, merge_shards
from megatron_music.data.shard_reader import DamagedShard
from megatron_music.data.token_counts import IdCounter, add_json, as_json
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.bpe import read_bpe
from megatron_music.tokens.density import open_bar_ids, open_track_ids
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding

SPLITS = ("train", "valid", "test")
PLAIN = BuildOptions(fractions=(0.5, 0.25, 0.25))
DOUBLE = replace(PLAIN, copies=2, permute_tracks=True)


def song(number: int, windows: int = 2, copies: int = 1) -> TinyFile:
    """A file whose documents say where they come from: its number, the copy and the window."""
    return TinyFile(
        [
            [
                [v.PIECE_START, v.NOTE_ON + number, v.NOTE_ON + copy] + [v.NOTE_OFF] * (window + 1)
                for window in range(windows)
            ]
            for copy in range(copies)
        ]
    )


def documents(out: Path, split: str) -> list[list[int]]:
    dataset = IndexedDataset(str(out / split))
    return [dataset[number].tolist() for number in range(len(dataset))]


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a dataset, its report without the rates."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    report = json.loads(found.pop("report.json"))
    del report["rates"], found["report.md"]
    return found | {"report.json": json.dumps(report).encode()}


@settings(max_examples=25)
@given(st.lists(st.integers(1, 40), max_size=12), st.integers(1, 5))
def test_the_index_is_megatron_cores(tmp_path_factory, lengths, at_once):
    folder = tmp_path_factory.mktemp("index")
    theirs = IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=np.uint16)
    for length in lengths:
        theirs.add_document(np.zeros(length, np.uint16), [length])
    theirs.finalize(str(folder / "theirs.idx"))
    ours = IndexWriter(folder / "ours.idx", len(lengths))
    for first in range(0, len(lengths), at_once):
        ours.add(np.array(lengths[first : first + at_once], np.int32))
    ours.finish()
    assert (folder / "ours.idx").read_bytes() == (folder / "theirs.idx").read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(0, 65535), max_size=9), max_size=5), st.integers(0, 40_000))
def test_ids_are_counted_as_they_come(runs, repeats):
    counter = IdCounter()
    arrays = [np.array(run * repeats, np.uint16) for run in runs]  # some are longer than what is counted at once
    for ids in arrays:
        counter.add(ids)
    wanted = sum((np.bincount(ids, minlength=65536) for ids in arrays), np.zeros(65536, np.int64))
    assert np.array_equal(counter.counts(), wanted)
    again = wanted.copy()
    add_json(again, json.loads(json.dumps(as_json(wanted))))
    assert np.array_equal(again, 2 * wanted)


def test_every_document_is_there_once_and_in_order(tmp_path):
    files = [song(number, windows=number % 4 + 1) for number in range(30)]
    write_shards(tmp_path / "out", files, PLAIN, files_per_shard=7)
    report = merge_shards(tmp_path / "out")
    found = {split: documents(tmp_path / "out", split) for split in SPLITS}
    everything = [[*document, v.DOCUMENT_END] for file in files for document in file.copies[0]]
    assert sorted(sum(found.values(), [])) == sorted(everything)
    for split in SPLITS:
        place = [everything.index(document) for document in found[split]]
        assert place == sorted(place) and place
        assert report["splits"][split]["documents"] == len(place)
        assert report["splits"][split]["tokens"] == sum(map(len, found[split]))
        assert report["splits"][split]["bytes"] == (tmp_path / "out" / f"{split}.bin").stat().st_size
    assert not (tmp_path / "out.building").exists()


def test_the_result_does_not_depend_on_the_shards(tmp_path):
    options = replace(DOUBLE, formats=("megatron", "text"), encoding=Encoding(density=3))
    files = [*(song(number, 3, 2) for number in range(40)), TinyFile(damage="torn"), TinyFile(left_out="short")]
    for name, files_per_shard in (("one", 100), ("many", 1), ("some", 9)):
        write_shards(tmp_path / name, files, options, files_per_shard)
        merge_shards(tmp_path / name)
    assert contents(tmp_path / "one") == contents(tmp_path / "many") == contents(tmp_path / "some")


def test_copies_share_a_split_or_are_dropped(tmp_path):
    first = [replace(song(number), content=f"{number:032x}", digest=f"{number:032x}" * 2) for number in range(20)]
    same = [replace(file) for file in first[:5]]
    near = [
        replace(song(100 + number), content=first[number].content, digest=f"{100 + number:032x}" * 2)
        for number in range(3)
    ]
    for name, drop in (("kept", False), ("dropped", True)):
        write_shards(tmp_path / name, first + same + near, replace(PLAIN, drop_duplicates=drop))
    kept, dropped = merge_shards(tmp_path / "kept")["files"], merge_shards(tmp_path / "dropped")["files"]
    assert (kept["copies"], kept["near_copies"], kept["dropped_copies"], kept["used"]) == (5, 3, 0, 28)
    assert (dropped["copies"], dropped["near_copies"], dropped["dropped_copies"], dropped["used"]) == (5, 3, 8, 20)
    for split in SPLITS:
        of_music = [document[1] - v.NOTE_ON for document in documents(tmp_path / "kept", split)]
        group = lambda number: number % 100
        for number in {group(number) for number in of_music}:
            files = sum(group(k) == number for k in of_music)
            assert files == 2 * (1 + (number < 5) + (number < 3)), "all copies are in this split"
    everything = sum((documents(tmp_path / "dropped", split) for split in SPLITS), [])
    assert sorted({document[1] - v.NOTE_ON for document in everything}) == list(range(20)), "the first of each stays"
    assert len(everything) == 40


def test_augmented_copies_only_train(tmp_path):
    write_shards(tmp_path / "out", [song(number, 2, 3) for number in range(20)], DOUBLE, files_per_shard=3)
    report = merge_shards(tmp_path / "out")
    copies = {split: [document[2] - v.NOTE_ON for document in documents(tmp_path / "out", split)] for split in SPLITS}
    assert set(copies["valid"]) == set(copies["test"]) == {0}
    assert copies["train"] == [0, 0, 1, 1, 2, 2] * report["splits"]["train"]["files"]


def open_song(tracks: list[int], bars: list[int], content: str) -> TinyFile:
    slots = np.concatenate([open_track_ids(np.array(tracks)), open_bar_ids(np.array(bars))])
    return TinyFile([[[v.PIECE_START, *slots.tolist()]]], content)


def test_density_levels_are_those_of_train(tmp_path):
    """Two files train, one does not: nine tracks of 1 to 9 notes, bars of 0, 0, 2, 4 and 6."""
    encoding = Encoding(density=4, bar_density=2)
    files = [open_song([1, 2, 3, 4], [0, 2, 4], "a" * 32), open_song([5, 6, 7, 8, 9], [0, 6], "d" * 32)]
    held_out = open_song([500, 600, 0, 5], [700], "f" * 32)
    write_shards(tmp_path / "out", [held_out, *files], BuildOptions(encoding, fractions=(0.6, 0.4, 0), seed=4))
    report = merge_shards(tmp_path / "out")
    assert [report["splits"][split]["files"] for split in SPLITS] == [2, 1, 0]
    closed = read_encoding(tmp_path / "out" / "tokenizer")
    assert (closed.density_bins, closed.bar_density_bins) == ((3, 5, 7), (4,))
    levels = lambda document: [i - v.DENSITY for i in document[1:-1]]
    assert [levels(document) for document in documents(tmp_path / "out", "train")] == [
        [0, 0, 1, 1, 0, 0, 1],
        [2, 2, 3, 3, 3, 0, 1],
    ]
    assert [levels(document) for document in documents(tmp_path / "out", "valid")] == [[3, 3, 0, 2, 1]]


def test_text_is_one_window_a_line(tmp_path):
    options = replace(DOUBLE, formats=("text", "megatron"), encoding=Encoding(labels=(("GENRE", ("JAZZ",)),)))
    labelled = TinyFile([[[v.PIECE_START, v.IDS["GENRE=0"], v.TRACK_START]]], "1" * 32)
    write_shards(tmp_path / "out", [labelled, *(song(number, 2, 2) for number in range(10))], options)
    report = merge_shards(tmp_path / "out")
    lines = {split: (tmp_path / "out" / f"{split}.txt").read_text().splitlines() for split in SPLITS}
    named = "PIECE_START GENRE=JAZZ TRACK_START"
    for split in SPLITS:
        wanted = [v.to_text(document[:-1]) for document in documents(tmp_path / "out", split)]
        assert lines[split] == [line.replace("GENRE=0", "GENRE=JAZZ") for line in wanted]
        assert report["splits"][split]["text_bytes"] == (tmp_path / "out" / f"{split}.txt").stat().st_size
    assert sum(lines.values(), []).count(named) == 1 and report["files"]["labelled"] == 1


def test_text_alone_writes_no_bin(tmp_path):
    write_shards(tmp_path / "out", [song(number) for number in range(9)], replace(PLAIN, formats=("text",)))
    report = merge_shards(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("t*.*")) == ["test.txt", "train.txt"]
    assert report["splits"]["train"]["bytes"] == 0 < report["splits"]["train"]["text_bytes"]


def test_merged_tokens_spell_the_same(tmp_path):
    pattern = [
        v.BAR_START,
        v.NOTE_ON + 60,
        v.TIME_DELTA + 4,
        v.NOTE_OFF + 60,
        v.NOTE_ON + 64,
        v.TIME_DELTA + 4,
        v.BAR_END,
    ]
    files = [TinyFile([[[v.PIECE_START, v.INST + number, *pattern * 3]] * 2]) for number in range(20)]
    write_shards(tmp_path / "plain", files, PLAIN)
    write_shards(tmp_path / "merged", files, replace(PLAIN, encoding=Encoding(bpe=5)))
    plain, merged = merge_shards(tmp_path / "plain"), merge_shards(tmp_path / "merged")
    bpe = read_bpe(tmp_path / "merged" / "tokenizer")
    assert read_encoding(tmp_path / "merged" / "tokenizer").bpe == bpe.size == merged["bpe"]["merges"] > 0
    for split in SPLITS:
        spelled = [bpe.decode(np.array(document)).tolist() for document in documents(tmp_path / "merged", split)]
        assert spelled == documents(tmp_path / "plain", split)
    tokens = lambda report: sum(row["tokens"] for row in report["splits"].values())
    assert merged["bpe"]["tokens_before"] == tokens(plain) > tokens(merged) == merged["bpe"]["tokens_after"]
    assert sum(source["tokens"] for source in merged["sources"]) == tokens(merged)


def test_the_report_counts_what_there_is(tmp_path):
    files = [
        TinyFile([[[v.PIECE_START, v.INST + 5, v.INST + 128]] * 2], "1" * 32),
        TinyFile([[[v.PIECE_START, v.INST + 5]] * 2], "2" * 32, source=1),
        TinyFile(damage="no MIDI file", path="/music/a.zip", member="b/c.mid"),
        TinyFile(left_out="no part in 4/4", source=1),
    ]
    write_shards(tmp_path / "out", files, BuildOptions(fractions=(1, 0, 0)), sources=2)
    report = merge_shards(tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"] == {
        "found": 4,
        "used": 2,
        "copies": 0,
        "near_copies": 0,
        "dropped_copies": 0,
        "quarantined": 1,
        "rescued": 0,
        "left_out": {"no part in 4/4": 1},
    }
    assert report["sources"] == [
        {"name": "source0", "found": 2, "used": 1, "documents": 2, "tokens": 8, "bytes": 16},
        {"name": "source1", "found": 2, "used": 1, "documents": 2, "tokens": 6, "bytes": 12},
    ]
    assert report["windows_left_out"] == {"too quiet": 2}
    assert report["quantization"]["notes_in"] == 8 and report["quantization"]["mean_onset_error_steps"] == 1 / 8
    assert report["histograms"]["instruments"] == {"5": 4, "DRUMS": 2}
    assert report["histograms"]["document_tokens"] == {"edges": [3, 4, 5], "counts": [2, 2]}
    assert report["histograms"]["density"][0] == 4 and len(report["histograms"]["density"]) == 128
    shares = np.array([4, 4, 2, 4]) / 14
    assert report["unigram_entropy_nats"] == pytest.approx(-(shares * np.log(shares)).sum())
    assert json.loads((tmp_path / "out" / "quarantine.jsonl").read_text()) == {
        "path": "/music/a.zip!b/c.mid",
        "reason": "no MIDI file",
    }


@pytest.mark.parametrize("density", [0, 3])
def test_ids_of_copies_and_dropped_files_are_not_counted_where_they_are_not_written(tmp_path, density):
    """Train's counts are what is left of the shards' once all else is taken away."""
    files = [song(number, 3, 2) for number in range(20)]
    for number, file in enumerate(files):
        file.copies = [[[*document, v.INST + number % 5] for document in copy] for copy in file.copies]
    files += [replace(files[0], content="c" * 32), replace(files[1], content="c" * 32, digest="d" * 64)]
    options = replace(DOUBLE, drop_duplicates=True, encoding=Encoding(density=density))
    write_shards(tmp_path / "out", files, options, files_per_shard=3)
    report = merge_shards(tmp_path / "out")
    assert report["files"]["dropped_copies"] == 1 and all(report["splits"][split]["files"] for split in SPLITS)
    counts = [np.bincount(np.fromfile(tmp_path / "out" / f"{split}.bin", "<u2"), minlength=768) for split in SPLITS]
    shares = counts[0][counts[0] > 0] / counts[0].sum()
    assert report["unigram_entropy_nats"] == pytest.approx(-(shares * np.log(shares)).sum())
    wanted = {str(number): count for number, count in enumerate(sum(counts)[v.INST : v.INST + 5].tolist())}
    assert report["histograms"]["instruments"] == wanted


def test_a_build_without_a_document_is_refused_and_leaves_nothing(tmp_path):
    write_shards(tmp_path / "out", [TinyFile(damage="torn"), TinyFile(left_out="short")], PLAIN)
    with pytest.raises(BuildError, match=r"no document in 2 files .1 damaged, 1 left out; for one: torn"):
        merge_shards(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def _change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "suffix", "said"),
    [
        (_change, ".bin", "00001.bin was changed since it was written"),
        (_change, ".lengths", "00001.lengths was changed since it was written"),
        (lambda path: os.truncate(path, 2), ".bin", "00001.bin has 2 bytes where its record says"),
        (Path.unlink, ".lengths", "00001.lengths has 0 bytes where its record says"),
        (Path.unlink, ".json", "00001.json is missing: the shard is not finished"),
        (lambda path: os.truncate(path, 20), ".json", "00001.json is no completion record"),
        (
            lambda path: path.write_bytes(path.with_name("00000.json").read_bytes()),
            ".json",
            "is of other files or options",
        ),
    ],
)
def test_a_damaged_shard_is_named_and_can_be_made_again(tmp_path, harm, suffix, said):
    building = write_shards(tmp_path / "out", [song(number) for number in range(9)], PLAIN)
    path = building / "shards" / f"00001{suffix}"
    whole = path.read_bytes()
    harm(path)
    with pytest.raises(DamagedShard, match=said):
        merge_shards(tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(building.glob("merge-*"))
    path.write_bytes(whole)
    assert merge_shards(tmp_path / "out")["files"]["used"] == 9


@pytest.mark.parametrize(
    "asked",
    [
        replace(PLAIN, formats=("text",)),
        replace(PLAIN, encoding=Encoding(density=3)),
        replace(PLAIN, encoding=Encoding(bpe=2)),
    ],
)
def test_ids_that_there_are_not_are_found_before_they_are_used(tmp_path, asked):
    building = write_shards(tmp_path / "out", [song(number) for number in range(9)], asked)
    for path in (building / "shards").glob("*.bin"):
        path.write_bytes(b"\xff" * path.stat().st_size)
    with pytest.raises(DamagedShard, match=r"00000.bin was changed since it was written"):
        merge_shards(tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(building.glob("merge-*"))


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from megatron_music.data import index_file, merge, split_writer
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
{where}
merge.merge_shards({out!r})
"""


def later(target: str, call: int) -> str:
    """Python that kills the process at the n-th call of something."""
    return (
        f"original, calls = {target}, iter(range({call}))\n"
        f"{target} = lambda *a, **k: original(*a, **k) if next(calls, None) is not None else die()"
    )


@pytest.mark.parametrize(
    "where",
    [
        later("merge.Tally.add", 2),
        later("split_writer.SplitWriter.add", 3),
        later("split_writer.SplitWriter.finish", 0),
        later("index_file.IndexWriter.finish", 1),  # train is whole; valid has its .bin and no .idx
        "merge.write_tokenizer_folder = die",
        "merge.write_markdown = die",
        "merge.sync_tree = die",
        "merge._take_name = die",
        "merge.remove_building = die",
        later("merge.Path.unlink", 6),  # the dataset has its name; its working folder is half gone
        later("merge.Path.unlink", 1),
        "merge.Path.rmdir = die",
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path, where):
    options = replace(DOUBLE, encoding=Encoding(density=3), formats=("megatron", "text"))
    files = [song(number, 2, 2) for number in range(12)]
    for name in ("calm", "killed"):
        write_shards(tmp_path / name, files, options, files_per_shard=3)
    script = KILLED.format(tests=str(Path(__file__).parents[1]), where=where, out=str(tmp_path / "killed"))
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    merge_shards(tmp_path / "calm")
    merge_shards(tmp_path / "killed")
    assert contents(tmp_path / "calm") == contents(tmp_path / "killed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "killed"]


@contextmanager
def small_disk(folder: Path, size: int):
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(
            f"NOT TESTED: a full disk, since this machine lets nobody mount one ({mounted.stderr.decode().strip()})"
        )
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_said_and_the_merge_goes_on_after_room_is_made(tmp_path):
    files = [TinyFile([[[v.PIECE_START, *[v.NOTE_ON + number] * 4000]] * 8]) for number in range(6)]
    write_shards(tmp_path / "calm", files, PLAIN)
    merge_shards(tmp_path / "calm")
    with small_disk(tmp_path / "disk", 1_200_000) as disk:
        building = write_shards(disk / "out", files, PLAIN)
        (disk / "ballast").write_bytes(bytes(500_000))
        before = {path.name: path.read_bytes() for path in (building / "shards").iterdir()}
        with pytest.raises(OSError, match=r"No space left on device.*out.building"):
            merge_shards(disk / "out")
        assert {path.name: path.read_bytes() for path in (building / "shards").iterdir()} == before
        assert sorted(path.name for path in building.iterdir()) == ["entries.jsonl", "plan.json", "shards"]
        (disk / "ballast").unlink()
        merge_shards(disk / "out")
        assert contents(disk / "out") == contents(tmp_path / "calm")


def test_what_filled_the_place_meanwhile_is_left_alone(tmp_path, monkeypatch):
    building = write_shards(tmp_path / "out", [song(number) for number in range(9)], PLAIN)

    def meanwhile(report, folder):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")

    monkeypatch.setattr(merge, "write_figures", meanwhile)
    with pytest.raises(BuildError, match="was filled while this build ran"):
        merge_shards(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert (building / "shards" / "00000.bin").exists()
    with pytest.raises(BuildError, match="is not empty and holds no dataset"):
        merge_shards(tmp_path / "out")


def test_merging_again_finds_the_work_done(tmp_path):
    write_shards(tmp_path / "out", [song(number) for number in range(9)], PLAIN)
    assert merge_shards(tmp_path / "out") == merge_shards(tmp_path / "out")


def test_pictures_come_with_the_report(tmp_path):
    write_shards(tmp_path / "out", [song(number) for number in range(9)], PLAIN)
    merge_shards(tmp_path / "out")
    assert "figures/splits.svg" in (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "figures" / "splits.svg").read_bytes().startswith(b"<svg")


def test_memory_does_not_grow_with_the_windows(tmp_path):
    """24 MB of documents, 60,000 windows, in far less."""
    long = TinyFile([[[v.PIECE_START, *[v.NOTE_ON] * 200]] * 10_000])
    files = [replace(long, content=f"{number:032x}") for number in range(6)]
    write_shards(tmp_path / "out", files, PLAIN, files_per_shard=1)
    tracemalloc.start()
    merge_shards(tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16e6
