"""Every option of a build alone and with every other: laws of the documents of each file, and of the dataset."""

import json
import os
import random
import shutil
from collections import Counter
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from itertools import combinations, zip_longest
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import check_file, split
from tiny import scores, tiny_score

from megatron_music.corpora.labels import Labels
from megatron_music.corpora.midi_files import Reader
from megatron_music.data.build import build_tokens
from megatron_music.data.build_options import BuildOptions, Filters
from megatron_music.data.encode import EncodedFile, encode_content
from megatron_music.data.merge import merge_shards
from megatron_music.data.plan import plan_build
from megatron_music.data.shard import write_shard
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.density import OPEN_BAR, OPEN_TRACK
from megatron_music.tokens.encoding import Encoding
from megatron_music.tokens.lexicon import read_wording

SPLITS = ("train", "valid", "test")
SETTINGS = {
    "clip": {"bar_line": "clip"},
    "split": {"bar_line": "split"},
    "12 steps": {"steps_per_quarter": 12},
    "hop 1": {"hop": 1},
    "whole pieces": {"bars": 0},
    "4 bars": {"bars": 4},
    "3/4 and 4/4": {"meters": ("3/4", "4/4")},
    "all meters": {"meters": ("all",)},
    "unknown 1/4": {"unknown_meters": ("1/4",)},
    "lone 1/4": {"lone_quarter_undeclared": True},
    "velocity": {"velocity": True},
    "tempo": {"tempo": True},
    "density": {"density": 4},
    "bar density": {"bar_density": 3},
    "infill": {"infill": 0.5},
    "infill all": {"infill": 1.0},
    "labels": {"labels": "labels.csv"},
    "bpe": {"bpe": 100},
    "transpose": {"copies": 3, "transpose": (-5, 6)},
    "permute": {"copies": 3, "permute_tracks": True},
    "voices by name": {"voices": "names"},
    "no voices": {"voices": "off"},
    "pedal": {"pedal": "extend"},
    "no pedal": {"pedal": "ignore"},
    "drop duplicates": {"drop_duplicates": True},
    "piece bars": {"piece_bars": (4, 9)},
    "tracks": {"tracks": (2, 3)},
    "notes": {"notes_per_bar": (2.5, 14.0)},
    "empty tracks": {"empty_tracks": (None, 0)},
    "pitches": {"pitches": (36, 84)},
    "no sanitize": {"sanitize": False},
    "text": {"formats": ("text",)},
    "both formats": {"formats": ("megatron", "text")},
    "split by pattern": {"split_by": "/([ab])/"},
    "split and seed": {"seed": 7, "fractions": (0.5, 0.25, 0.25)},
}
REFUSED = {("whole pieces", "infill"), ("whole pieces", "infill all")}
FILTERS = ("piece bars", "tracks", "notes", "empty tracks", "pitches")


def together(*names: str) -> dict | None:
    """The fields of some settings; None where two want different things of one field."""
    wanted: dict = {}
    for name in names:
        if any(wanted.get(field, value) != value for field, value in SETTINGS[name].items()):
            return None
        wanted |= SETTINGS[name]
    return wanted


def options_of(wanted: dict, folder: Path) -> BuildOptions:
    values = {"bars": 2, "hop": 2} | wanted
    if "labels" in values:
        values["labels"] = str(folder / values["labels"])
    of = lambda kind: {field.name: values[field.name] for field in fields(kind) if field.name in values}
    labels = Labels.read(values["labels"]).names if "labels" in values else ()
    encoding = Encoding(**of(Encoding) | {"infill": "infill" in values, "labels": labels})
    return BuildOptions(**of(BuildOptions) | {"encoding": encoding, "filters": Filters(**of(Filters))})


ALONE = [(name,) for name in SETTINGS]
PAIRS = [pair for pair in combinations(SETTINGS, 2) if together(*pair) and pair not in REFUSED]


def groups_of(pairs: list[tuple[str, str]], size: int) -> list[tuple[str, ...]]:
    """Groups of at most ``size`` settings that go together, every pair in one of them; always the same groups.

    Of what leaves music out, or little of it off the grid, a group has two at most: enough is left to check the others
    by.
    """
    scarce, left, found = {*FILTERS, "whole pieces", "4 bars", "12 steps"}, set(pairs), []
    for pair in pairs:
        group = set(pair) if pair in left else set()
        while group and len(group) < size:
            able = [
                name
                for name in SETTINGS
                if name not in group
                and together(*group, name)
                and group_pairs(group, name) <= set(pairs)
                and len(scarce & {*group, name}) <= 2
            ]
            best = max(able, key=lambda name: len(group_pairs(group, name) & left), default=None)
            if not best or not group_pairs(group, best) & left:
                break
            group.add(best)
        if group:
            found.append(tuple(name for name in SETTINGS if name in group))
            left -= set(combinations(found[-1], 2))
    return found


def group_pairs(group: set[str], name: str) -> set[tuple[str, str]]:
    """What ``name`` makes a pair with, each in the order of the settings."""
    names = list(SETTINGS)
    return {(one, name) if names.index(one) < names.index(name) else (name, one) for one in group}


GROUPS = groups_of(PAIRS, 6)


def test_what_does_not_go_together_is_refused(music):
    for pair in REFUSED:
        with pytest.raises(ValueError, match="infill needs windows"):
            options_of(together(*pair), music)


def test_every_option_has_a_setting():
    """A new option that nobody tests here is noticed."""
    found = {field.name for kind in (Encoding, BuildOptions, Filters) for field in fields(kind)}
    derived = {"encoding", "filters", "density_bins", "bar_density_bins", "vocabulary_name", "vocabulary_hash"}
    assert {field for setting in SETTINGS.values() for field in setting} == found - derived - {"seconds_per_file"}


QUARTER = 480


def melody(chance: random.Random, quarters: int, **kind) -> Track:
    """Notes and chords off the grid, over bar lines, at every strength; triplets; a pitch struck while it sounds."""
    notes, now = [], 0
    while now < quarters * QUARTER:
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            length = chance.choice((80, 160, 240, 480, 480, 960, 2500))
            pitch = chance.choice((30, 38, 42)) if kind.get("is_drum") else chance.randint(45, 80)
            notes.append(Note(now, now + length, pitch, chance.randint(1, 127)))
        now += chance.choice((120, 160, 240, 480, 480, 960)) + chance.choice((0, 0, 0, 17))
    return Track(notes, **kind)


def band(chance: random.Random, quarters: int, meters=((0, 4, 4),), **more) -> Score:
    """Piano, bass, drums and a track that never plays; ``meters`` begin at quarters."""
    tracks = (
        melody(chance, quarters),
        Track([Note(n.start_step, n.end_step, n.pitch - 12, n.velocity) for n in melody(chance, quarters)], 33),
        melody(chance, quarters, is_drum=True),
        Track((), 40, name="nobody"),
    )
    signatures = tuple(TimeSignature(int(start * QUARTER), *meter) for start, *meter in meters)
    return Score(tracks, QUARTER, signatures, **more)


def pieces() -> dict[str, Score]:
    chance = random.Random(5)
    tempos = (Tempo(0, 97.0), Tempo(5 * QUARTER, 150.0), Tempo(12 * QUARTER, 60.0))
    quiet = Score(
        (
            Track([Note(0, 480, 60), Note(480, 9000, 64, 30)], 6),  # one note over four bars
            Track([Note(15_360, 15_840, 50), Note(17_000, 17_100, 52, 127)], 7),  # after two bars of silence
        ),
        QUARTER,
    )
    tune = band(chance, 26, tempos=tempos)
    higher = [
        Track(np.add(t.notes, (0, 0, 0 if t.is_drum else 2, 0)), t.program, t.is_drum) for t in tune.tracks if len(t)
    ]
    wide = Track([Note(960 * n, 960 * n + 500, (0, 127)[n % 2]) for n in range(9)], 5)  # fits in no other key
    found = {
        "a/voices.mid": tiny_score(6),
        "a/tune.mid": tune,
        "a/meters.mid": band(chance, 30, ((0, 4, 4), (8, 3, 4), (14, 6, 8), (20, 5, 16), (22.5, 4, 4)), tempos=tempos),
        "a/inside.mid": band(chance, 30, ((0, 4, 4), (9, 3, 4), (21, 4, 4))),  # 3/4 begins inside a bar
        "a/pop.mid": band(chance, 16, ((0, 1, 4),)),
        "a/quiet.mid": quiet,
        "a/short.mid": Score((Track([Note(0, 480, 60)]),), QUARTER),
        "a/near.mid": Score(higher, QUARTER),
        "b/wide.mid": Score((wide, melody(chance, 18)), QUARTER),
        "b/long.mid": band(chance, 90, ((0, 16, 2),)),  # rests of more than 48 steps
        "b/odd.mid": band(chance, 12, ((0, 17, 4),)),  # a meter without a token
        "b/damaged.mid": band(chance, 16, tempos=tempos),
        "b/labelled.mid": band(chance, 20),
    }
    return found | {f"b/{number}.mid": band(chance, 12 + number) for number in range(5)}


@pytest.fixture(scope="module")
def music(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    for part in "ab":
        (folder / part).mkdir()
    for name, score in pieces().items():
        write_midi(score, folder / name)
    (folder / "b" / "voices-again.mid").write_bytes((folder / "a" / "voices.mid").read_bytes())
    (folder / "b" / "text.mid").write_text("no music")
    damaged = bytearray((folder / "b" / "damaged.mid").read_bytes())
    damaged[damaged.index(b"\x90") + 2] = 0xC8  # a velocity above 127
    (folder / "b" / "damaged.mid").write_bytes(damaged)
    (folder / "labels.csv").write_text("path,genre,mood\nlabelled.mid,jazz,happy\na/tune.mid,rock,\nb/0.mid,,happy\n")
    return folder


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a thousand builds wait for no disk


def build(music: Path, out: Path, options: BuildOptions, files_per_shard: int, done: dict[str, EncodedFile]) -> dict:
    """A build within this process; what each file gave is put into ``done``, or taken from there."""
    plan = plan_build([music / "a", music / "b"], out, options, files_per_shard)
    labels = Labels.read(options.labels) if options.labels else None

    def encode(entry, content: bytes) -> EncodedFile:
        if entry.path not in done:
            own = labels.ids_for(entry.path, content) if labels else ()
            done[entry.path] = encode_content(content, plan.options, own)
        return done[entry.path]

    with Reader() as reader:
        for number in range(len(plan.shards)):
            write_shard(plan, number, reader, encode, {}, lambda entry: None)
    return merge_shards(out)


def contents(out: Path) -> dict[str, bytes]:
    """Every file of a dataset, its report without the rates."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    report = json.loads(found.pop("report.json"))
    del report["rates"], found["report.md"]
    return found | {"report.json": json.dumps(report).encode()}


@dataclass
class Split:
    """A split, read by the plain words of its formats; ``documents`` are of base ids."""

    documents: list[bytes]
    lengths: list[int]  # in tokens, after merging
    bytes: int
    text_bytes: int


def read_split(out: Path, split: str, formats: tuple[str, ...]) -> Split:
    _, bpe, wording = read_wording(out / "tokenizer")
    suffixes = {"megatron": (".bin", ".idx"), "text": (".txt",)}
    assert {path.suffix for path in out.glob(f"{split}.*")} == {suffix for name in formats for suffix in suffixes[name]}
    lines = (out / f"{split}.txt").read_text().splitlines() if "text" in formats else []
    written = [np.append(wording.to_ids(line), np.uint16(v.DOCUMENT_END)) for line in lines]
    if "megatron" not in formats:
        merged = [bpe.encode(ids, np.array([len(ids)]))[0] if bpe else ids for ids in written]
        return Split([ids.tobytes() for ids in written], [*map(len, merged)], 0, (out / f"{split}.txt").stat().st_size)
    content = (out / f"{split}.idx").read_bytes()
    count, bounds = np.frombuffer(content, "<u8", 2, 18).tolist()
    assert content[:18] == b"MMIDIDX\0\0" + bytes([1, 0, 0, 0, 0, 0, 0, 0, 8]) and bounds == count + 1
    lengths = np.frombuffer(content, "<i4", count, 34)
    starts = np.frombuffer(content, "<i8", count, 34 + 4 * count)
    assert np.frombuffer(content, "<i8", count + 1, 34 + 12 * count).tolist() == [*range(count + 1)]
    ids = np.fromfile(out / f"{split}.bin", "<u2")
    ends = np.cumsum(lengths, dtype=np.int64)
    assert starts.tolist() == (2 * (ends - lengths)).tolist() and len(ids) == lengths.sum()
    documents = np.split(ids, ends[:-1]) if count else []
    base = [bpe.decode(document).astype("<u2") if bpe else document for document in documents]
    if bpe:
        again = [bpe.encode(document, np.array([len(document)]))[0] for document in base]
        assert [ids.tolist() for ids in again] == [ids.tolist() for ids in documents]
    assert not lines or [ids.tobytes() for ids in written] == [ids.tobytes() for ids in base]
    text_bytes = (out / f"{split}.txt").stat().st_size if lines else 0
    return Split([ids.tobytes() for ids in base], lengths.tolist(), 2 * len(ids), text_bytes)


def check_dataset(out: Path, report: dict, options: BuildOptions, done: dict[str, EncodedFile]) -> None:
    """The dataset holds the documents of its files, each file in one split, and the report says what is in it."""
    assert json.loads((out / "report.json").read_text()) == report
    labels = Labels.read(options.labels) if options.labels else None
    for path, file in done.items():
        content = Path(path).read_bytes()
        check_file(file, content, options, labels.ids_for(path, content) if labels else ())
    encoding = check_tokenizer(out, report, options)
    splits = [read_split(out, split, options.formats) for split in SPLITS]
    used, split_of, opens = find_files(splits, options, encoding, done)

    kept = {path: sum(file.copies if split_of[path] == 0 else file.copies[:1]) for path, file in used.items()}
    for number, (name, found) in enumerate(zip(SPLITS, splits, strict=True)):
        said = report["splits"][name]
        assert said.get("text_bytes", 0) == found.text_bytes and ("text_bytes" in said) == ("text" in options.formats)
        assert {kind: count for kind, count in said.items() if kind != "text_bytes"} == {
            "files": sum(split == number for split in split_of.values()),
            "documents": len(found.documents),
            "tokens": sum(found.lengths),
            "bytes": found.bytes,
        }
    given = [file for file in done.values() if file.copies]
    same = [file for number, file in enumerate(given) if file.content in {other.content for other in given[:number]}]
    copies = [
        file for file in same if file.digest in {other.digest for other in given if other is not file}
    ]  # of bytes
    assert len(used) == len(given) - (len(same) if options.drop_duplicates else 0)
    files = report["files"]
    is_label = [v.TOKENS[file.ids[1]].startswith(("STYLE=", "GENRE=", "RESERVED=")) for file in used.values()]
    assert files.get("labelled", 0) == sum(is_label) and ("labelled" in files) == bool(options.labels)
    assert {name: count for name, count in files.items() if name != "labelled"} == {
        "found": len(done),
        "used": len(used),
        "copies": len(copies),
        "near_copies": len(same) - len(copies),
        "dropped_copies": len(given) - len(used),
        "quarantined": sum(bool(file.damage) for file in done.values()),
        "rescued": sum(file.rescued for file in done.values()),
        "left_out": dict(Counter(file.left_out for file in done.values() if file.left_out)),
    }
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert lines == [{"path": path, "reason": file.damage} for path, file in done.items() if file.damage]
    assert report["windows_left_out"] == dict(
        sum((Counter(file.windows_left_out) for file in done.values()), Counter())
    )
    for source in report["sources"]:
        paths = {path for path in done if Path(path).parent.name == source["name"]}
        assert source["found"] == len(paths) and source["used"] == len(paths & used.keys())
        assert source["documents"] == sum(kept[path] for path in paths & used.keys())
    for kind in ("documents", "tokens", "bytes"):
        assert sum(source[kind] for source in report["sources"]) == sum(
            said[kind] for said in report["splits"].values()
        )
    check_figures(report, splits, encoding, done)
    check_bins(encoding, options.encoding, [ids for path, ids in opens.items() if split_of[path] == 0])


def check_tokenizer(out: Path, report: dict, options: BuildOptions) -> Encoding:
    """The tokenizer folder reads back as what was asked for, with what the build found."""
    encoding, bpe, _ = read_wording(out / "tokenizer")
    found = {
        name: getattr(encoding, name) for name in ("density", "density_bins", "bar_density", "bar_density_bins", "bpe")
    }
    assert encoding == replace(options.encoding, **found)
    assert (encoding.bpe > 0) == (options.encoding.bpe > 0) == bool(bpe) and (
        encoding.bpe < 128 or encoding.bpe % 128 == 0
    )
    assert report["encoding"] == json.loads((out / "tokenizer" / "mmmtrack.json").read_text())
    return encoding


def find_files(splits: list[Split], options: BuildOptions, encoding: Encoding, done: dict[str, EncodedFile]):
    """Read the splits as the files' documents, one file after another: which files are in, their splits, their open
    ids.

    The same music must not be in two splits, and nothing may be left over.
    """
    places, used, split_of, opens, seen = [0, 0, 0], {}, {}, {}, {}
    for path, file in done.items():
        if not file.copies or (options.drop_duplicates and file.content in seen):
            continue
        documents = [closed(ids, encoding).astype("<u2").tobytes() for ids in split(file.ids, file.lengths)]
        wanted = (documents, documents[: file.copies[0]], documents[: file.copies[0]])  # only train has the copies
        ahead = [splits[n].documents[places[n] : places[n] + len(wanted[n])] for n in range(3)]
        found = [n for n in range(3) if ahead[n] == wanted[n]]
        assert len(found) == 1, f"{path} is in {len(found)} splits"
        assert seen.setdefault(file.content, found[0]) == found[0]
        places[found[0]] += len(wanted[found[0]])
        used[path], split_of[path] = file, found[0]
        opens[path] = file.ids[: int(file.lengths[: file.copies[0]].sum())]
    assert places == [len(found.documents) for found in splits]
    return used, split_of, opens


def closed(ids: np.ndarray, encoding: Encoding) -> np.ndarray:
    """Ids with DENSITY where a count stood."""
    ids = ids.copy()
    for first, last, bins in (
        (OPEN_TRACK, OPEN_BAR, encoding.density_bins),
        (OPEN_BAR, 1 << 16, encoding.bar_density_bins),
    ):
        for place in np.flatnonzero((ids >= first) & (ids < last)).tolist():
            ids[place] = v.DENSITY + sum(int(ids[place]) - first >= limit for limit in bins)
    return ids


def check_bins(encoding: Encoding, asked: Encoding, opens: list[np.ndarray]) -> None:
    """The bins are quantiles of the training files' own windows, without those that part nothing."""
    ids = np.concatenate(opens).astype(np.int64)
    tracks = sorted((ids[(ids >= OPEN_TRACK) & (ids < OPEN_BAR)] - OPEN_TRACK).tolist())
    bars = sorted((ids[ids > OPEN_BAR] - OPEN_BAR).tolist())
    rests = bool((ids == OPEN_BAR).any())  # bars of rest set no level, and have the lowest
    for levels, bins, counts, zeros in (
        (asked.density, encoding.density_bins, tracks, []),
        (asked.bar_density, encoding.bar_density_bins, bars, [0] * rests),
    ):
        places = [Fraction(level * (len(counts) - 1), levels) for level in range(1, levels)]
        below = [counts[int(place)] for place in places]
        above = [counts[min(int(place) + 1, len(counts) - 1)] for place in places]
        members = zip(below, above, places, strict=True)
        halves = [low + (high - low) * (place % 1) + Fraction(1, 2) for low, high, place in members]
        cuts, wanted = sorted({int(half) for half in halves}), []
        for cut in cuts:
            lower = [count for count in [*zeros, *counts] if count < cut and (not wanted or count >= wanted[-1])]
            wanted += [cut] * bool(lower and max(counts, default=0) >= cut)
        assert bins == tuple(wanted)
        assert len(bins) + 1 in (encoding.density, encoding.bar_density) or not levels


def check_figures(report: dict, splits: list[Split], encoding: Encoding, done: dict[str, EncodedFile]) -> None:
    """Quantisation, histograms, entropy and merging, from the documents."""
    notes = [file.notes for file in done.values() if file.notes]
    said = report["quantization"]
    for name in ("notes_in", "notes_out", "notes_lost", "notes_shortened", "notes_lengthened", "onsets_on_grid"):
        assert said[name] == sum(one[name] for one in notes)
    mean = sum(one["onset_error_sum"] for one in notes) / said["notes_in"]
    assert said["mean_onset_error_steps"] == pytest.approx(mean) and 0 < mean < said["max_onset_error_steps"] <= 0.5
    figures = report["histograms"]
    for name in ("density", "onset_error"):
        assert figures[name] == sum(getattr(file, name) for file in done.values()).tolist()
    lengths = [length for found in splits for length in found.lengths]
    edges, counts = figures["document_tokens"].values()
    assert counts == np.histogram(lengths, [*edges[:-1], edges[-1] - 0.5])[0].tolist()
    base = [np.frombuffer(b"".join(found.documents), "<u2") for found in splits]
    every = Counter(v.TOKENS[token_id] for ids in base for token_id in ids.tolist())
    assert figures["instruments"] == {token[5:]: count for token, count in every.items() if token.startswith("INST=")}
    if encoding.bpe:
        assert report["bpe"] == {
            "merges": encoding.bpe,
            "tokens_before": sum(map(len, base)),
            "tokens_after": sum(lengths),
        }
        assert sum(lengths) < sum(map(len, base))
    else:
        assert report["bpe"] is None
        share = np.bincount(base[0]) / len(base[0])
        assert report["unigram_entropy_nats"] == pytest.approx(-sum(share[share > 0] * np.log(share[share > 0])))


def test_every_pair_is_in_a_group():
    assert {pair for group in GROUPS for pair in combinations(group, 2)} == set(PAIRS)


EACH_PAIR = [pytest.param(pair, marks=pytest.mark.exhaustive) for pair in PAIRS]  # make test-all


@pytest.mark.parametrize("names", [*ALONE, *GROUPS, *EACH_PAIR], ids=" + ".join)
def test_the_laws(names, music, tmp_path):
    options = options_of(together(*names), music)
    done: dict[str, EncodedFile] = {}
    report = build(music, tmp_path / "one", options, 100, done)
    build(music, tmp_path / "two", options, 7, done)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    check_dataset(tmp_path / "one", report, options, done)
    assert report["splits"]["train"]["documents"] > 0
    shutil.rmtree(tmp_path)


EVERYTHING = (
    "split",
    "12 steps",
    "all meters",
    "unknown 1/4",
    "velocity",
    "tempo",
    "density",
    "bar density",
    "infill",
    "labels",
    "bpe",
    "transpose",
    "permute",
    "drop duplicates",
    "piece bars",
    "tracks",
    "pitches",
    "both formats",
    "split and seed",
)


def test_everything_at_once(music, tmp_path):
    options = options_of(together(*EVERYTHING) | {"piece_bars": (3, 30)}, music)
    done: dict[str, EncodedFile] = {}
    report = build(music, tmp_path / "one", options, 100, done)
    before = contents(tmp_path / "one")
    check_dataset(tmp_path / "one", report, options, done)
    assert all(report["splits"][split]["documents"] for split in SPLITS) and report["files"]["labelled"]
    build(music, tmp_path / "two", options, 1, done)
    build_tokens([music / "a", music / "b"], tmp_path / "workers", options, workers=2)
    assert contents(tmp_path / "two") == contents(tmp_path / "workers") == before


def test_nothing_asked_for_through_workers(music, tmp_path):
    options = options_of({}, music)
    done: dict[str, EncodedFile] = {}
    report = build(music, tmp_path / "one", options, 4, done)
    build_tokens([music / "a", music / "b"], tmp_path / "workers", options)
    assert contents(tmp_path / "one") == contents(tmp_path / "workers")
    check_dataset(tmp_path / "one", report, options, done)


def encoded(music: Path, *names: str) -> list[EncodedFile]:
    options = options_of(together(*names), music)
    return [encode_content(path.read_bytes(), options) for path in sorted(music.glob("?/*.mid"))]


def by_copy(file: EncodedFile) -> list[list[bytes]]:
    documents = [document.tobytes() for document in split(file.ids, file.lengths)]
    return [documents[copy * file.copies[0] : (copy + 1) * file.copies[0]] for copy in range(len(file.copies))]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("others", [(), ("transpose", "permute", "infill", "density")], ids=["plain", "changed"])
def test_a_filter_takes_windows_out_and_changes_none(name, others, music):
    """The copies of a window do not depend on which other windows are left."""
    gone = 0
    for file, filtered in zip(encoded(music, *others), encoded(music, name, *others), strict=True):
        for copy, left in zip_longest(by_copy(file), by_copy(filtered), fillvalue=[]):
            rest = iter(copy)
            assert all(document in rest for document in left), "in the same order"
            gone += len(copy) - len(left)
    assert gone > 0


def test_a_hop_changes_no_window(music):
    others = ("transpose", "permute", "infill", "density", "tempo")
    for close, far in zip(encoded(music, "hop 1", *others), encoded(music, *others), strict=True):
        assert all(set(more) >= set(fewer) for more, fewer in zip(by_copy(close), by_copy(far), strict=True))


CHANGES = [("transpose",), ("permute",), ("transpose", "permute", "all meters", "tempo")]


@pytest.mark.parametrize("names", CHANGES, ids=" + ".join)
def test_copies_are_changed(names, music):
    """Few windows come out of two copies alike: transposed by 12 shifts, or in one of 6 orders."""
    documents = [copies for file in encoded(music, *names) for copies in zip(*by_copy(file), strict=True)]
    for one, other in combinations(range(3), 2):
        alike = sum(copies[one] == copies[other] for copies in documents)
        assert alike < len(documents) / (2 if "permute" in names else 3)


def test_about_the_share_of_windows_has_holes(music):
    files = encoded(music, "hop 1", "transpose", "infill")
    documents = [document for file in files for document in split(file.ids, file.lengths)]
    holes = sum(bool((document == v.FILL_IN).any()) for document in documents)
    assert len(documents) > 150 and 0.35 < holes / len(documents) < 0.65  # half, give or take 4 standard deviations


@settings(max_examples=200, deadline=None)
@given(scores(any_meter=True), st.lists(st.sampled_from(sorted(SETTINGS)), max_size=9, unique=True), st.integers(1, 3))
def test_any_options_on_any_score(music, score, names, hop):
    wanted: dict = {}
    for name in names:  # what does not go with those before it is left out
        if not any(wanted.get(field, value) != value for field, value in SETTINGS[name].items()):
            wanted |= SETTINGS[name]
    if wanted.get("bars") == 0:
        wanted.pop("infill", None)
    options = options_of({"hop": hop} | wanted, music)
    labels = tuple(options.encoding.label_ids.values())[:1]
    write_midi(score, music / "any.mid")
    content = (music / "any.mid").read_bytes()
    check_file(encode_content(content, options, labels), content, options, labels)
