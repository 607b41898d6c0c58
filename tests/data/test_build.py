import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tiny import tiny_score, write_corpus

from megatron_music.data import building, merge
from megatron_music.data.build import build_tokens, plan_tokens
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.building import building_folder
from megatron_music.data.indexed import open_split, unigram_counts
from megatron_music.data.merge import BuildError, merge_shards
from megatron_music.data.shard import encode_shard
from megatron_music.music.grid import quantize, slice_bars
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Note, Score, TimeSignature, Track
from megatron_music.tokens import vocabulary
from megatron_music.tokens.bpe import read_bpe
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.mmmtrack import decode_piece
from megatron_music.tokens.tokenizer_folder import read_encoding

SPLITS = ("train", "valid", "test")


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "midi")
    return tmp_path / "midi"


def documents(out, split: str) -> list[np.ndarray]:
    """Copies: megatron-core's arrays lie in a file mapping that ends with the dataset."""
    dataset = open_split(out, split)
    return [np.array(dataset[number]) for number in range(len(dataset))]


def contents(out) -> dict[str, bytes]:
    """Every file of a dataset, its report without the rates."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    report = json.loads(found.pop("report.json"))
    del report["rates"], found["report.md"]
    return found | {"report.json": json.dumps(report).encode()}


def test_every_window_is_there_and_is_music(corpus, tmp_path):
    report = build_tokens([corpus], tmp_path / "out", BuildOptions(Encoding(bars=4, hop=1)))
    found = [document for split in SPLITS for document in documents(tmp_path / "out", split)]
    assert len(found) == 12 * 3 == sum(report["splits"][split]["documents"] for split in SPLITS)
    assert all(document.dtype == np.uint16 and document[-1] == vocabulary.DOCUMENT_END for document in found)
    wanted = {
        tuple(map(tuple, slice_bars(quantize(read_midi(path)), first, 4).tracks[0].notes.tolist()))
        for path in corpus.iterdir()
        for first in range(3)
    }
    assert {tuple(map(tuple, decode_piece(document).tracks[0].notes.tolist())) for document in found} == wanted
    assert read_encoding(tmp_path / "out" / "tokenizer").bars == 4


def test_megatron_reads_what_it_is_given(corpus, tmp_path):
    report = build_tokens([corpus], tmp_path / "out")
    for split in SPLITS:
        dataset = IndexedDataset(str(tmp_path / "out" / split))
        assert len(dataset) == len(dataset.document_indices) - 1 == report["splits"][split]["documents"] > 0
        assert int(dataset.sequence_lengths.sum()) == report["splits"][split]["tokens"]
        assert (tmp_path / "out" / f"{split}.bin").stat().st_size == report["splits"][split]["bytes"]


def test_the_output_does_not_depend_on_the_workers(corpus, tmp_path):
    build_tokens([corpus], tmp_path / "one", workers=1)
    build_tokens([corpus], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_bad_files_go_to_quarantine_with_a_reason(corpus, tmp_path):
    (corpus / "text.mid").write_text("no music")
    (corpus / "cut.mid").write_bytes((corpus / "00.mid").read_bytes()[:100])
    (corpus / "waltz.mid").write_bytes(b"")
    write_midi(Score(tiny_score(6).tracks, 4, (TimeSignature(0, 3, 4),)), corpus / "waltz.mid")
    write_midi(Score((Track([Note(0, 4, 60)]),), 4), corpus / "short.mid")
    report = build_tokens([corpus], tmp_path / "out", BuildOptions(Encoding()))
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(corpus / "cut.mid"), str(corpus / "text.mid")]
    assert "no MIDI file" in lines[1]["reason"]
    assert report["files"] == {
        "found": 16,
        "used": 12,
        "copies": 0,
        "near_copies": 0,
        "dropped_copies": 0,
        "quarantined": 2,
        "rescued": 0,
        "left_out": {"no part in 4/4": 1, "no part in 4/4 of 4 bars": 1},
    }


def test_copies_share_a_split(tmp_path):
    write_corpus(tmp_path / "midi", 30)
    for path in list((tmp_path / "midi").iterdir()):
        (tmp_path / "midi" / f"copy-{path.name}").write_bytes(path.read_bytes())
    report = build_tokens(
        [tmp_path / "midi"], tmp_path / "out", BuildOptions(Encoding(hop=4), fractions=(0.5, 0.25, 0.25))
    )
    assert report["files"]["copies"] == 30
    digests = [
        {hashlib.sha256(document.tobytes()).hexdigest() for document in documents(tmp_path / "out", split)}
        for split in SPLITS
    ]
    assert all(digests) and not digests[0] & digests[1] and not digests[0] & digests[2] and not digests[1] & digests[2]


def test_a_tiny_corpus_still_has_a_validation_split(tmp_path):
    write_corpus(tmp_path / "midi", 3)
    report = build_tokens([tmp_path / "midi"], tmp_path / "out")
    assert [report["splits"][split]["files"] for split in SPLITS] == [1, 1, 1]
    write_corpus(tmp_path / "one", 1)
    report = build_tokens([tmp_path / "one"], tmp_path / "out1")
    assert [report["splits"][split]["files"] for split in SPLITS] == [1, 0, 0]
    with pytest.raises(ValueError, match=r"valid.bin is empty"):
        open_split(tmp_path / "out1", "valid")


def test_building_again_finds_the_work_done(corpus, tmp_path):
    first = build_tokens([corpus], tmp_path / "out")
    before = (tmp_path / "out" / "train.bin").stat().st_mtime_ns
    assert build_tokens([corpus], tmp_path / "out") == first
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == before
    with pytest.raises(BuildError, match="holds a dataset of other files or options"):
        build_tokens([corpus], tmp_path / "out", BuildOptions(seed=1))


def test_a_folder_with_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(BuildError, match="is not empty and holds no dataset"):
        build_tokens([corpus], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_nothing_to_encode_writes_nothing(tmp_path):
    (tmp_path / "midi").mkdir()
    with pytest.raises(ValueError, match="no MIDI files"):
        build_tokens([tmp_path / "midi"], tmp_path / "out")
    (tmp_path / "midi" / "a.mid").write_text("no music")
    with pytest.raises(BuildError, match=r"no document in 1 file .1 damaged"):
        build_tokens([tmp_path / "midi"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["midi"]


def test_a_build_that_fails_keeps_its_shards_and_goes_on(corpus, tmp_path, monkeypatch):
    build_tokens([corpus], tmp_path / "calm")
    with monkeypatch.context() as full:
        full.setattr(merge, "write_tokenizer_folder", raising(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match=r"No space left on device.*out.building"):
            build_tokens([corpus], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    times = {path: path.stat().st_mtime_ns for path in (building_folder(tmp_path / "out") / "shards").iterdir()}
    with monkeypatch.context() as counting:
        counting.setattr(building, "remove_shards", lambda path: None)  # so that the shards can be looked at afterwards
        build_tokens([corpus], tmp_path / "out")
    assert times and times == {path: path.stat().st_mtime_ns for path in times}, "no shard was made again"
    assert contents(tmp_path / "out") == contents(tmp_path / "calm")


def raising(error: BaseException):
    def fail(*_, **__):
        raise error

    return fail


def test_what_a_finished_build_left_over_is_swept(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(merge, "remove_building", raising(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            build_tokens([corpus], tmp_path / "out")
    assert (tmp_path / "out").exists() and (tmp_path / "out.building" / "plan.json").exists()
    build_tokens([corpus], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["midi", "out"]


HOLDER = """
import sys, time
from megatron_music.data.plan import held
with held(sys.argv[1]):
    print(flush=True)
    time.sleep(60)
"""


def test_the_second_of_two_builds_is_refused(corpus, tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out.building"], stdout=subprocess.PIPE)
    try:
        first.stdout.readline()
        with pytest.raises(ValueError, match="another build works in"):
            build_tokens([corpus], tmp_path / "out")
        with pytest.raises(ValueError, match="another build works in"):
            merge_shards(tmp_path / "out")
    finally:
        first.kill()
        first.communicate()
    assert build_tokens([corpus], tmp_path / "out")["files"]["used"] == 12


def test_an_unfinished_build_of_other_options_is_not_mixed_in(corpus, tmp_path):
    plan_tokens([corpus], tmp_path / "out", BuildOptions())
    with pytest.raises(ValueError, match="unfinished build of other files or options"):
        build_tokens([corpus], tmp_path / "out", BuildOptions(seed=1))


def test_a_job_scripts_verbs_give_the_same_bytes(corpus, tmp_path):
    options = BuildOptions(
        Encoding(density=4, bar_density=3), copies=2, transpose=(-3, 3), formats=("megatron", "text")
    )
    write_corpus(corpus, 70)
    build_tokens([corpus], tmp_path / "at once", options)
    plan_tokens([corpus], tmp_path / "in parts", options)
    assert {encode_shard(tmp_path / "in parts", rank, 2)["shards"] for rank in (1, 0)} == {1, 2}
    merge_shards(tmp_path / "in parts")
    assert contents(tmp_path / "at once") == contents(tmp_path / "in parts")


def test_every_option_at_once_reads_back(corpus, tmp_path):
    """Whatever is written decodes to windows of the right length, and no open id is left."""
    (tmp_path / "labels.csv").write_text("file,genre\n00.mid,baroque\n01.mid,jazz\n")
    encoding = Encoding(bars=2, meters=("all",), velocity=True, tempo=True, density=5, bar_density=3, bpe=128)
    options = BuildOptions(
        encoding,
        copies=3,
        transpose=(-2, 2),
        permute_tracks=True,
        labels=str(tmp_path / "labels.csv"),
        drop_duplicates=True,
    )
    report = build_tokens([corpus], tmp_path / "out", options)
    closed = read_encoding(tmp_path / "out" / "tokenizer")
    assert closed.labels == (("GENRE", ("BAROQUE", "JAZZ")),)
    # All the tracks of this corpus have the same number of notes: one level.
    assert (closed.density, closed.density_bins, closed.bar_density, closed.bar_density_bins) == (1, (), 1, ())
    bpe = read_bpe(tmp_path / "out" / "tokenizer")
    assert report["bpe"]["tokens_after"] < report["bpe"]["tokens_before"]
    for split in SPLITS:
        for document in documents(tmp_path / "out", split):
            assert document.max() < closed.vocab_size
            assert decode_piece(bpe.decode(document)).num_bars == 2


def test_an_archive_gives_what_its_folder_gives(corpus, tmp_path):
    (corpus / "bad.mid").write_text("no music")
    with tarfile.open(tmp_path / "midi.tar.gz", "w:gz") as archive:
        for path in sorted(corpus.iterdir()):
            archive.add(path, f"midi/{path.name}")
    build_tokens([corpus], tmp_path / "folder")
    build_tokens([tmp_path / "midi.tar.gz"], tmp_path / "archive")
    folder, archive = contents(tmp_path / "folder"), contents(tmp_path / "archive")
    names = [f"{split}.{kind}" for split in SPLITS for kind in ("bin", "idx")]
    assert [folder[name] for name in names] == [archive[name] for name in names]
    line = json.loads((tmp_path / "archive" / "quarantine.jsonl").read_text())
    assert line["path"] == f"{tmp_path / 'midi.tar.gz'}!midi/bad.mid"


def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path):
    write_corpus(tmp_path / "midi", 90)
    build_tokens([tmp_path / "midi"], tmp_path / "calm")
    command = [sys.executable, "-m", "megatron_music", "build", "tokens", tmp_path / "midi", "-o", tmp_path / "killed"]
    for seconds in (0.4, 0.9, 1.6, 2.4):
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
        time.sleep(seconds)
        run.send_signal(signal.SIGKILL)
        run.wait()
    build_tokens([tmp_path / "midi"], tmp_path / "killed")
    assert contents(tmp_path / "calm") == contents(tmp_path / "killed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calm", "killed", "midi"]


def test_odd_names_links_and_copies_of_paths(corpus, tmp_path):
    odd = os.fsencode(corpus) + b"/caf\xe9 *[1].mid"
    with open(odd, "wb") as file:
        file.write(b"no music")
    (tmp_path / "link").symlink_to(corpus)
    (tmp_path / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "empty")
    report = build_tokens([corpus, tmp_path / "link", corpus / "00.mid"], tmp_path / "out")
    assert report["files"]["found"] == 13 and report["files"]["quarantined"] == 1
    assert (tmp_path / "empty" / "train.bin").is_file()
    assert build_tokens([os.path.relpath(corpus)], tmp_path / "out") == report


def test_whole_pieces_and_counts(corpus, tmp_path):
    build_tokens([corpus], tmp_path / "out", BuildOptions(Encoding(bars=0)))
    train = open_split(tmp_path / "out", "train")
    counts = unigram_counts(train)
    assert counts[vocabulary.PIECE_START] == len(train) == counts[vocabulary.DOCUMENT_END]
    assert counts.sum() == train.sequence_lengths.sum()


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"train.bin is missing"):
        open_split(tmp_path, "train")
