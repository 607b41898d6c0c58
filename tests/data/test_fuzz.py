"""Damaged MIDI files through the builder: none crashes it, each is encoded lawfully or has a reason.

The short form of ``benchmarks/fuzz.py``, which does twenty thousand.
"""

import io
import json
import tarfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from laws import check_file
from mutants import KINDS, mutant
from tiny import tiny_score

from megatron_music.data.build_options import BuildOptions
from megatron_music.data.encode import encode_content
from megatron_music.data.plan import plan_build
from megatron_music.data.shard import encode_shard
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding

GOLDEN = Path(__file__).parents[1] / "golden"
LABELS = (v.IDS["STYLE=1"], v.IDS["GENRE=2"])
EVERYTHING = BuildOptions(
    Encoding(bars=2, meters=("all",), velocity=True, tempo=True, density=4, bar_density=3, infill=True),
    copies=2,
    transpose=(-5, 6),
    permute_tracks=True,
    infill=0.5,
    seconds_per_file=10,
)
PLAIN = BuildOptions(Encoding(bars=4), seconds_per_file=10)
WHOLE = BuildOptions(Encoding(bars=0, bar_line="split", steps_per_quarter=12, meters=("all",), tempo=True))
MUTANTS = 400


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[bytes]:
    """Good files to damage: the golden ones, four voices, and a band in several meters and tempos."""
    signatures = (TimeSignature(0, 3, 4), TimeSignature(36, 6, 8), TimeSignature(72, 4, 4))
    notes = [Note(4 * n, 4 * n + 6 * (n % 3) + 2, 48 + 5 * n % 31, 20 + 3 * n) for n in range(34)]
    drums = Track([Note(2 * n, 2 * n + 1, 36 + n % 9, 90) for n in range(60)], is_drum=True)
    tracks = (Track(notes, 33), drums, Track((), 7))
    folder = tmp_path_factory.mktemp("scores")
    write_midi(tiny_score(6), folder / "voices.mid")
    write_midi(Score(tracks, 4, signatures, (Tempo(0, 90.0), Tempo(40, 180.0))), folder / "band.mid")
    return [path.read_bytes() for path in (*sorted(GOLDEN.glob("*.mid")), *sorted(folder.iterdir()))]


@pytest.mark.parametrize(
    ("options", "labels"), [(EVERYTHING, LABELS), (PLAIN, ()), (WHOLE, ())], ids=["everything", "plain", "whole"]
)
def test_each_is_encoded_lawfully_or_has_a_reason(files, options, labels):
    outcomes, kinds = Counter(), Counter()
    check_file(encode_content(files[0], options, labels), files[0], options, labels)  # loops are compiled, too
    for number in range(MUTANTS):
        kind, content = mutant(files, number)
        started = time.process_time()
        found = encode_content(content, options, labels)
        assert time.process_time() - started < 5, f"mutant {number} ({kind})"
        try:
            check_file(found, content, options, labels)
        except AssertionError as error:
            raise AssertionError(f"mutant {number} ({kind})") from error
        kinds[kind] += 1
        outcome = (
            "damage" if found.damage else "left out" if found.left_out else "rescued" if found.rescued else "encoded"
        )
        outcomes[outcome] += 1
    assert kinds.keys() == KINDS.keys()
    assert all(outcomes[outcome] >= MUTANTS // 20 for outcome in ("damage", "rescued", "encoded")), outcomes
    assert outcomes["left out"] or not options.encoding.bars


def test_worker_processes_survive_them(files, tmp_path):
    """Out of one archive: what is in the shards is what each file gives by itself."""
    contents = [mutant(files, number, seed=1)[1] for number in range(250)]
    with tarfile.open(tmp_path / "mutants.tar", "w") as archive:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number:03}.mid")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    plan = plan_build([tmp_path / "mutants.tar"], tmp_path / "out", EVERYTHING)
    assert encode_shard(tmp_path / "out", workers=2)["files"] == len(contents)
    parts = [plan.building / "shards" / f"{number:05}" for number in range(len(plan.shards))]
    records = [file for part in parts for file in json.loads(Path(f"{part}.json").read_bytes())["files"]]
    ids = np.concatenate([np.fromfile(f"{part}.bin", "<u2") for part in parts])
    lengths = np.concatenate([np.fromfile(f"{part}.lengths", "<i4") for part in parts])
    assert len(parts) > 1
    first_id = first = 0
    for record, content in zip(records, contents, strict=True):
        alone = encode_content(content, EVERYTHING)
        assert record.get("damage", "") == alone.damage and record.get("left_out", "") == alone.left_out
        assert tuple(record.get("documents", ())) == alone.copies
        assert bool(alone.copies) != bool(alone.damage or alone.left_out) and record["digest"] == alone.digest
        assert ids[first_id : first_id + len(alone.ids)].tolist() == alone.ids.tolist()
        assert lengths[first : first + len(alone.lengths)].tolist() == alone.lengths.tolist()
        first_id, first = first_id + len(alone.ids), first + len(alone.lengths)
    assert (first_id, first) == (len(ids), len(lengths))
