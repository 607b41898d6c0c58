"""A real folder of music: many meters, lone 1/4s, pickups, damaged files, odd names, and the splits of pieces."""

import itertools
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import TinyFile, write_shards

from megatron_music.data.build import build_tokens
from megatron_music.data.build_options import DEFAULT_ENCODING, BuildOptions
from megatron_music.data.grouping import Grouping
from megatron_music.data.indexed import open_split
from megatron_music.data.merge import BuildError, merge_shards
from megatron_music.data.splits import KEY_BYTES, assign_splits
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Note, Score, TimeSignature, Track
from megatron_music.reports.dataset import describe, markdown
from megatron_music.tokens.density import quantile_bins, without_empty_levels
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.tokenizer_folder import read_encoding

QUARTER = 480


def tune(number: int, *meters: tuple[float, int, int], quarters: int = 48, push: int = 0) -> Score:
    """A melody of eighths of its own; meters as (quarter, numerator, denominator), ``push`` in ticks, drawn for each
    note.
    """
    chance = np.random.default_rng(number)
    starts = np.arange(2 * quarters) * QUARTER // 2 + (chance.integers(0, push, 2 * quarters) if push else 0)
    notes = [
        Note(int(start), int(start) + 200, int(pitch))
        for start, pitch in zip(starts, chance.integers(50, 80, len(starts)), strict=False)
    ]
    return Score(
        (Track(notes, 40),), QUARTER, tuple(TimeSignature(int(start * QUARTER), *meter) for start, *meter in meters)
    )


def mixed_folder(folder: Path) -> Path:
    """Jigs, waltzes and polkas, pop songs with a lone 1/4, scores with pickups, songs in 4/4, damaged files,
    odd names.
    """
    made = {
        **{f"tunes/jig {n}.mid": tune(n, (0, 6, 8)) for n in range(8)},
        **{f"tunes/waltz é{n}.mid": tune(20 + n, (0, 3, 4)) for n in range(5)},
        **{f"tunes/polka#{n}.kar": tune(40 + n, (0, 2, 2)) for n in range(4)},
        **{f"pop/song ({n}).mid": tune(60 + n, (0, 1, 4)) for n in range(6)},
        **{f"scores/pickup{n}.midi": tune(80 + n, (0, 1, 4), (1, 4, 4), (33, 3, 4)) for n in range(3)},
        **{f"songs/{n}.mid": tune(100 + n, (0, 4, 4)) for n in range(2)},
    }
    for name, score in made.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_midi(score, folder / name)
    (folder / "tunes/broken.mid").write_bytes((folder / "tunes/jig 0.mid").read_bytes()[:40])
    (folder / "readme.mid").write_text("no music")
    (folder / "tunes" / os.fsdecode(b"caf\xe9.mid")).write_bytes((folder / "songs/0.mid").read_bytes())
    return folder


def file_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "files.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixed_folder(tmp_path_factory.mktemp("mixed") / "my midi")


@pytest.fixture(scope="module")
def built(folder):
    report = build_tokens([folder], folder.parent / "data")
    return report, folder.parent / "data"


def test_a_mixed_folder_is_used(built):
    report, out = built
    assert (report["files"]["found"], report["files"]["used"], report["files"]["quarantined"]) == (31, 29, 2)
    assert report["meters"] == {
        "files": {"6/8": 8, "1/4": 6, "3/4": 5, "2/2": 4, "4/4": 6},
        "left_out": {},
        "undeclared": {"1/4": 6},
        "changing": 3,
    }
    assert read_encoding(out / "tokenizer") == DEFAULT_ENCODING
    said = describe(report, out)
    assert "meters   8 in 6/8, 6 in 1/4 (as if not declared), 6 in 4/4" in said
    assert [line for line in said.splitlines() if line.startswith("warning")] == [
        "warning: valid has 1 file: its loss judges one piece; use --split with a larger share, or more files"
    ]


def test_a_lone_quarter_is_written_in_four_four(built):
    _, out = built
    pop = [line for line in file_lines(out) if "/pop/" in line["path"]]
    assert len(pop) == 6 and all(line["meter"] == "1/4" and line["documents"] == 48 // 4 - 3 for line in pop)


def test_the_articles_encoding_names_what_it_leaves_out_and_the_way_out(folder, tmp_path):
    report = build_tokens([folder], tmp_path / "data", BuildOptions(Encoding()))
    said = describe(report, tmp_path / "data")
    assert "files left out: no part in 4/4 (8 in 6/8" in said and "--meters all takes them" in said
    assert any(line.startswith("warning: ") and "of the files were left out" in line for line in said.splitlines())
    assert "> **Warning:**" in markdown(report)
    with pytest.raises(BuildError, match=r"mostly in 3/4; for one: no part in 4/4.; --meters all takes them"):
        build_tokens([folder / f"tunes/waltz é{n}.mid" for n in range(5)], tmp_path / "none", BuildOptions(Encoding()))


def test_every_file_has_a_line_and_its_documents_are_where_it_says(built):
    report, out = built
    lines = file_lines(out)
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines) and len(lines) == report["files"][
        "found"
    ]
    for split, said in report["splits"].items():
        rows = [line for line in lines if line["split"] == split]
        assert [row["first_document"] for row in rows] == [
            sum(r["documents"] for r in rows[:place]) for place in range(len(rows))
        ]
        assert sum(row["documents"] for row in rows) == said["documents"] == len(open_split(out, split))
    reasons = {Path(line["path"]).name: line["reason"] for line in lines if line["split"] is None}
    assert set(reasons) == {"broken.mid", "readme.mid"} and all(reasons.values())
    (copy,) = [line for line in lines if "same_notes_as" in line]
    assert os.fsencode(copy["path"]).endswith(b"caf\xe9.mid")
    first = lines[copy["same_notes_as"] - 1]
    assert first["path"].endswith("songs/0.mid") and first["split"] == copy["split"]


def test_members_of_an_archive_are_listed_by_name(folder, tmp_path):
    with tarfile.open(tmp_path / "music.tar.gz", "w:gz") as archive:
        archive.add(folder, "music")
    build_tokens([tmp_path / "music.tar.gz"], tmp_path / "data")
    names = [line["path"].rpartition("!") for line in file_lines(tmp_path / "data")]
    assert {archive for archive, _, _ in names} == {str(tmp_path / "music.tar.gz")} and len(names) == 31
    assert all((folder.parent / "my midi" / name.removeprefix("music/")).exists() for _, _, name in names)


def test_the_list_does_not_depend_on_the_shards(tmp_path):
    files = [TinyFile([[[1, 60 + n]] * (n % 3 + 1)]) for n in range(20)] + [
        TinyFile(damage="torn"),
        TinyFile(left_out="no part in 4/4"),
    ]
    for name, size in (("one", 100), ("many", 1), ("some", 7)):
        write_shards(tmp_path / name, files, BuildOptions(), size)
        merge_shards(tmp_path / name)
    lists = [(tmp_path / name / "files.jsonl").read_bytes() for name in ("one", "many", "some")]
    assert lists[0] == lists[1] == lists[2] and lists[0].count(b"\n") == 22


def test_a_performance_without_a_grid_is_said_to_be_one(tmp_path):
    for number in range(6):
        for name, push in (("played", 120), ("written", 0)):
            (tmp_path / name).mkdir(exist_ok=True)
            write_midi(tune(number, (0, 4, 4), push=push), tmp_path / name / f"{number}.mid")
    played, written = (
        describe(build_tokens([tmp_path / name], tmp_path / f"{name}-data"), "x") for name in ("played", "written")
    )
    assert "in 6 of 6 files onsets lie as chance would put them" in played and "chance" not in written


def pieces(tmp_path, count=12, versions=3):
    """Composer/Piece/version.mid, as ASAP has it."""
    for number in range(count):
        for version in range(versions):
            path = tmp_path / f"asap/Composer{number % 2}/Piece{number}/v{version}.mid"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_midi(tune(100 * number + version, (0, 4, 4), quarters=20), path)
    return tmp_path / "asap"


HALVES = {"fractions": (0.5, 0.25, 0.25)}


@pytest.mark.parametrize("split_by", ["folder", r"/(Piece\d+)/", "{csv}:piece"])
def test_versions_of_a_piece_stay_in_one_split(tmp_path, split_by):
    source = pieces(tmp_path)
    rows = [f"{path.relative_to(source)},{path.parent.name}" for path in sorted(source.rglob("*.mid"))]
    (tmp_path / "pieces.csv").write_text("\n".join(["midi_filename,piece", *rows]))
    # A version of one piece with the notes of another: both pieces must be in one split.
    (source / "Composer0/Piece0/same.mid").write_bytes((source / "Composer1/Piece1/v0.mid").read_bytes())
    options = BuildOptions(split_by=split_by.format(csv=tmp_path / "pieces.csv"), **HALVES)
    report = build_tokens([source], tmp_path / "data", options)
    splits: dict[str, set] = {}
    for line in (line for line in file_lines(tmp_path / "data") if "group" in line):
        splits.setdefault(Path(line["path"]).parent.name, set()).add(line["split"])
    by_csv = "csv" in split_by
    assert all(len(found) == 1 for found in splits.values()), splits
    assert by_csv or splits["Piece0"] == splits["Piece1"]
    assert {split for found in splits.values() for split in found} == {"train", "valid", "test"}
    assert report["split_by"]["groups"] == 12 and report["split_by"]["files_without"] == by_csv
    assert "splits   by " in describe(report, "x") and "12 groups" in describe(report, "x")


def test_a_given_split_is_obeyed_and_contradictions_are_counted(tmp_path):
    """As MAESTRO's CSV gives it, `validation` and all."""
    source = pieces(tmp_path, 6, 2)
    paths = sorted(source.rglob("*.mid"))
    names = ["train", "validation", "test"]
    given = {str(path): names[number % 3] for number, path in enumerate(paths)}
    paths[1].write_bytes(paths[0].read_bytes())  # train and validation
    lines = [
        "canonical_title,split,midi_filename",
        *(f'"a, b",{split},{Path(path).relative_to(source)}' for path, split in given.items()),
    ]
    (tmp_path / "maestro.csv").write_text("\n".join(lines))
    options = BuildOptions(split_by=f"{tmp_path / 'maestro.csv'}:split")
    report = build_tokens([source], tmp_path / "data", options)
    found = {line["path"]: line["split"] for line in file_lines(tmp_path / "data")}
    assert found == {path: {"validation": "valid"}.get(split, split) for path, split in given.items()}
    assert report["split_by"]["contradictions"] == 1 and report["split_by"]["given"]
    assert "1 piece given to more than one split" in describe(report, "x")
    assert "as given by" in describe(report, "x")


@pytest.mark.parametrize(
    ("split_by", "said"),
    [
        ("no group", "has no group in parentheses"),
        ("(", "is no regular expression"),
        ("/(nothing here)/", "finds nothing in"),
        ("no.csv:piece", "no.csv cannot be read"),
        ("{csv}:composer", "has no column 'composer'"),
        ("{csv}:split", "finds the splits train and test, and 'spare', which is none"),
    ],
)
def test_a_split_by_that_says_nothing_is_refused_before_the_build(tmp_path, split_by, said):
    source = pieces(tmp_path, 3, 1)
    csv = tmp_path / "a.csv"
    rows = [
        f"{path.relative_to(source)},{split}"
        for path, split in zip(sorted(source.rglob("*.mid")), ("train", "test", "spare"), strict=False)
    ]
    csv.write_text("\n".join(["path,split", *rows]))
    with pytest.raises(ValueError, match=said):
        build_tokens([source], tmp_path / "data", BuildOptions(split_by=split_by.format(csv=csv)))
    assert not (tmp_path / "data").exists() and not (tmp_path / "data.building").exists()


def test_loose_files_of_a_collection_are_no_group(tmp_path):
    from megatron_music.corpora.archives import Entry

    value_of = Grouping.of("folder", [tmp_path]).value_of
    assert value_of(Entry(str(tmp_path / "a.mid"))) is None
    assert value_of(Entry(str(tmp_path / "x/a.mid"))) == str(tmp_path / "x")
    assert (
        value_of(Entry("/m.zip", member="a.mid")) is None and value_of(Entry("/m.zip", member="p/a.mid")) == "/m.zip/p"
    )


def test_groups_and_notes_are_joined_in_chains():
    numbers = [0, 1, 1, 2, 2, 3, 4]  # contents
    groups = np.array([0, 0, 1, 1, 2, -1, 3])
    keys = np.array([list(number.to_bytes(KEY_BYTES, "big")) for number in numbers], np.uint8)
    for seed in range(20):
        found = assign_splits(keys, keys, seed, (0.4, 0.3, 0.3), groups=groups)
        assert len(set(found.splits[:5].tolist())) == 1 and found.joined == 3


@pytest.mark.parametrize(
    ("counts", "asked", "bins"),
    [
        ([0, 0, 0, 9, 0, 0, 3], 10, (5,)),
        ([0, 5], 4, ()),
        ([4, 0, 0, 9, 1], 3, (3,)),
        ([0, 9, 9, 9, 9], 2, (3,)),
    ],
)
def test_levels_that_never_occur_are_merged(counts, asked, bins):
    found = without_empty_levels(quantile_bins(np.array(counts), asked), np.array(counts))
    edges = [0, *found, len(counts)]
    assert all(sum(counts[low:high]) for low, high in itertools.pairwise(edges))
    assert set(found) <= set(quantile_bins(np.array(counts), asked))
    assert found == bins


def test_fewer_levels_than_asked_for_are_said_and_no_other_is_offered(tmp_path):
    from megatron_music.generation.controls import bar_density_id, density_ids

    for number in range(8):
        (tmp_path / "midi").mkdir(exist_ok=True)
        write_midi(tune(number, (0, 4, 4), quarters=24 + 2 * number), tmp_path / "midi" / f"{number}.mid")
    encoding = Encoding(density=10, bar_density=10)
    report = build_tokens([tmp_path / "midi"], tmp_path / "data", BuildOptions(encoding))
    made = read_encoding(tmp_path / "data" / "tokenizer")
    levels = report["density_levels"]["bar_density"]["levels"]
    assert made.bar_density == len(levels) < 10 and all(level["members"] for level in levels)
    assert f"--bar-density 10 gives {len(levels)} level" in describe(report, "x")
    with pytest.raises(ValueError, match="none of the model's levels"):
        bar_density_id(9, made)
    older = Encoding(density=4, density_bins=(4, 4, 7))
    assert older.density_levels("density") == (0, 2, 3) and density_ids([2], None, older)
    with pytest.raises(ValueError, match="use one of 0, 2, 3"):
        density_ids([1], None, older)


def test_a_file_that_is_too_short_is_not_counted_as_one_of_an_unknown_meter(tmp_path):
    (tmp_path / "midi").mkdir()
    write_midi(tune(1, (0, 4, 4), quarters=2), tmp_path / "midi" / "short.mid")
    write_midi(tune(2, (0, 4, 4)), tmp_path / "midi" / "long.mid")
    write_midi(tune(3, (0, 11, 16)), tmp_path / "midi" / "eleven.mid")
    report = build_tokens([tmp_path / "midi"], tmp_path / "data", BuildOptions(Encoding(bars=4, meters=("4/4",))))
    assert report["meters"]["left_out"] == {"11/16": 1}
    reasons = [line["reason"] or "" for line in file_lines(tmp_path / "data")]
    assert sorted(reasons) == ["", "no part in 4/4", "no part in 4/4 of 4 bars"]
