import hashlib
import json
import os

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_music.data import build
from megatron_music.data.build import BuildError, build_tokens
from megatron_music.data.indexed import open_split, unigram_counts
from megatron_music.music.grid import quantize, slice_bars
from megatron_music.music.midi import read_midi, write_midi
from megatron_music.music.score import Note, Score, TimeSignature, Track
from megatron_music.tokens import vocabulary
from megatron_music.tokens.folder import Encoding, read_encoding
from megatron_music.tokens.mmmtrack import decode_piece
from tiny import tiny_score

SPLITS = ("train", "valid", "test")


def write_corpus(folder, count: int = 12) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        tracks = tuple(Track(t.notes + (0, 0, number, 0), t.program, voice=t.voice) for t in tiny_score(6).tracks)
        write_midi(Score(tracks, 4), folder / f"{number:02}.mid")


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "midi")
    return tmp_path / "midi"


def documents(out, split: str) -> list[np.ndarray]:
    """Copies: megatron-core's arrays lie in a file mapping that ends with the dataset."""
    dataset = open_split(out, split)
    return [np.array(dataset[number]) for number in range(len(dataset))]


def contents(out) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.*")) if path.suffix in (".bin", ".idx")}


def test_every_window_is_there_and_is_music(corpus, tmp_path):
    report = build_tokens([corpus], tmp_path / "out", Encoding(bars=4, hop=1))
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
    report = build_tokens([corpus], tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["path"] for line in lines] == [str(corpus / "cut.mid"), str(corpus / "text.mid")]
    assert "no MIDI file" in lines[1]["reason"]
    assert report["files"] == {
        "found": 16, "used": 12, "copies": 0, "quarantined": 2,
        "left_out": {"no part in 4/4": 1, "no part in 4/4 of 4 bars": 1},
    }  # fmt: skip


def test_copies_share_a_split(tmp_path):
    write_corpus(tmp_path / "midi", 30)
    for path in list((tmp_path / "midi").iterdir()):
        (tmp_path / "midi" / f"copy-{path.name}").write_bytes(path.read_bytes())
    report = build_tokens([tmp_path / "midi"], tmp_path / "out", Encoding(hop=4), fractions=(0.5, 0.25, 0.25))
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
    with pytest.raises(ValueError, match="valid.bin is empty"):
        open_split(tmp_path / "out1", "valid")


def test_building_again_finds_the_work_done(corpus, tmp_path):
    first = build_tokens([corpus], tmp_path / "out")
    before = (tmp_path / "out" / "train.bin").stat().st_mtime_ns
    assert build_tokens([corpus], tmp_path / "out") == first
    assert (tmp_path / "out" / "train.bin").stat().st_mtime_ns == before
    with pytest.raises(BuildError, match="holds a dataset of other files or options"):
        build_tokens([corpus], tmp_path / "out", seed=1)


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
    with pytest.raises(BuildError, match="none of the 1 files gives a document .1 damaged"):
        build_tokens([tmp_path / "midi"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["midi"]


def test_a_build_that_fails_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "write_tokenizer_folder", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_tokens([corpus], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["midi"]


def test_the_folder_of_a_killed_build_is_swept(corpus, tmp_path):
    stale, alive, other = (tmp_path / name for name in (".out.building-a", ".out.building-b", ".out2.building-c"))
    for folder in (stale, alive, other):
        folder.mkdir()
    with build._locked(alive):
        build_tokens([corpus], tmp_path / "out")
    assert not stale.exists() and alive.exists() and other.exists()


def test_the_second_of_two_builds_is_refused(corpus, tmp_path, monkeypatch):
    write = build.write_tokenizer_folder

    def meanwhile(folder, encoding):
        write(folder, encoding)
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "first").touch()

    monkeypatch.setattr(build, "write_tokenizer_folder", meanwhile)
    with pytest.raises(BuildError, match="was filled while this build ran"):
        build_tokens([corpus], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]


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
    build_tokens([corpus], tmp_path / "out", Encoding(bars=0))
    train = open_split(tmp_path / "out", "train")
    counts = unigram_counts(train)
    assert counts[vocabulary.PIECE_START] == len(train) == counts[vocabulary.DOCUMENT_END]
    assert counts.sum() == train.sequence_lengths.sum()


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"train.bin is missing"):
        open_split(tmp_path, "train")
