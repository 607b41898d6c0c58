import errno
import hashlib
import json
import os
import random
import re
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_score, transposed

from megatron_music.data import worker_pool as supervisor
from megatron_music.data.build_options import BuildOptions
from megatron_music.data.building import held, sweep_shards, temporary_shard
from megatron_music.data.encode import encode_content
from megatron_music.data.merge import merge_shards
from megatron_music.data.plan import plan_build, read_plan
from megatron_music.data.shard import encode_shard, is_finished
from megatron_music.data.shard_reader import read_record
from megatron_music.data.worker_pool import run_shards
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Score
from megatron_music.storage.holding import token_of

OPTIONS = BuildOptions()
EARLIER: frozenset[str] = frozenset()
FAULTY = [sys.executable, str(Path(__file__).parents[1] / "faulty_worker.py")]
ENCODE = "import sys\nfrom megatron_music.data.shard import encode_shard\nencode_shard(sys.argv[1], workers=2)"


def write_corpus(folder: Path, count: int = 12) -> Path:
    folder.mkdir(exist_ok=True)
    write_midi(tiny_score(6), folder / "first")
    for number in range(count):
        tracks = tuple(transposed(t, number % 30) for t in tiny_score(6).tracks)
        write_midi(Score(tracks, 4), folder / f"{number:02}.mid")
    return folder


@pytest.fixture
def midi(tmp_path):
    return write_corpus(tmp_path / "midi")


def shards(out: Path) -> dict[str, bytes]:
    """The files of all shards; hidden ones too."""
    return {path.name: path.read_bytes() for path in sorted(Path(f"{out}.building", "shards").iterdir())}


def records(out: Path) -> list[dict]:
    """The records of all files, with what their shards leave out because it is empty."""
    found = [json.loads(content) for name, content in shards(out).items() if name.endswith("json")]
    return [
        {"entry": entry, "content": "", "damage": "", "left_out": "", "documents": [], "tokens": []} | file
        for record in found
        for entry, file in enumerate(record["files"], start=record["first"])
    ]


def documents(out: Path) -> bytes:
    """The ids of all shards, in order."""
    return b"".join(content for name, content in shards(out).items() if name.endswith("bin"))


def run_faulty(plan, workers: int = 1) -> int:
    return len(list(run_shards(plan, range(len(plan.shards)), workers, [*FAULTY, str(plan.building)])))


def run_elsewhere(out: Path, program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program, out], stderr=subprocess.PIPE, text=True, check=False)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def listed_children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


@pytest.fixture(autouse=True)
def earlier(monkeypatch):
    """Children that this process had before the test, such as the resource tracker of multiprocessing, which stays to
    the end.
    """
    monkeypatch.setattr(sys.modules[__name__], "EARLIER", frozenset(listed_children()))


def children() -> list[str]:
    """The processes that the test started and that still live."""
    return [child for child in listed_children() if child not in EARLIER]


def test_a_shard_is_what_its_files_encode_to(midi, tmp_path):
    (midi / "05.mid").write_text("no music")
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 5)
    assert encode_shard(tmp_path / "out") == {"shards": 3, "found": 0, "files": 12}
    assert sorted(shards(tmp_path / "out")) == [
        f"0000{n}.{part}" for n in range(3) for part in ("bin", "json", "lengths")
    ]
    encoded = [encode_content(path.read_bytes(), OPTIONS) for path in sorted(midi.glob("*.mid"))]
    for number, run in enumerate((slice(0, 5), slice(5, 10), slice(10, 12))):
        files = encoded[run]
        parts = {
            "bin": np.concatenate([file.ids for file in files]).tobytes(),
            "lengths": np.concatenate([file.lengths for file in files]).tobytes(),
        }
        record = json.loads(shards(tmp_path / "out")[f"0000{number}.json"])
        for part, content in parts.items():
            assert shards(tmp_path / "out")[f"0000{number}.{part}"] == content
            assert record[part] == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        assert record["density"] == sum(file.density for file in files).tolist() and sum(record["density"])
        assert record["onset_error"] == sum(file.onset_error for file in files).tolist() and sum(record["onset_error"])
        notes = [file.notes for file in files if file.notes]
        assert record["notes"] == {name: [row[name] for row in notes] for name in notes[0]} and sum(
            record["notes"]["notes_out"]
        )
        assert record["first"] == run.start
        ids, times = record["ids"]
        assert np.array_equal(np.repeat(ids, times), np.sort(np.concatenate([file.ids for file in files])))
        assert record["files"] == [
            {
                name: value
                for name, value in {
                    "digest": file.digest,
                    "content": file.content,
                    "documents": list(file.copies),
                    "tokens": [int(file.lengths.sum())] if len(file.lengths) else [],
                    "damage": file.damage,
                    "left_out": file.left_out,
                    "rescued": file.rescued,
                    "windows_left_out": file.windows_left_out,
                    "unheld": file.unheld,
                    "meter": file.meters.longest if file.meters else "",
                }.items()
                if value
            }
            for file in files
        ]
    assert "no MIDI" in records(tmp_path / "out")[5]["damage"]
    assert all(is_finished(plan, number) for number in range(3))


def test_tokens_are_counted_copy_by_copy(midi, tmp_path):
    options = replace(OPTIONS, copies=3, transpose=(-2, 2))
    plan_build([midi], tmp_path / "out", options)
    encode_shard(tmp_path / "out")
    lengths = np.frombuffer(shards(tmp_path / "out")["00000.lengths"], "<i4")
    for file in records(tmp_path / "out"):
        wanted = []
        for count in file["documents"]:
            wanted.append(lengths[:count].sum())
            lengths = lengths[count:]
        assert file["tokens"] == wanted and len(wanted) == 3 and min(file["documents"]) == 3
    assert not len(lengths)


def test_neither_workers_nor_ranks_nor_shards_matter(midi, tmp_path):
    for out in ("one", "two", "three"):
        plan_build([midi], tmp_path / out, OPTIONS, 2)
    encode_shard(tmp_path / "one")
    encode_shard(tmp_path / "two", workers=2)
    assert [encode_shard(tmp_path / "three.building", rank, 4)["shards"] for rank in (3, 0, 2, 1)] == [1, 2, 1, 2]
    assert shards(tmp_path / "one") == shards(tmp_path / "two") == shards(tmp_path / "three")
    plan_build([midi], tmp_path / "four", OPTIONS, 5)
    encode_shard(tmp_path / "four")
    strip = ("entry", "digest", "documents", "tokens")
    assert documents(tmp_path / "four") == documents(tmp_path / "one")
    assert [[file[key] for key in strip] for file in records(tmp_path / "four")] == [
        [file[key] for key in strip] for file in records(tmp_path / "one")
    ]


def test_archives_give_what_their_folder_gives(midi, tmp_path):
    names = sorted(midi.glob("*.mid"))
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar, zipfile.ZipFile(tmp_path / "x.zip", "w", 8) as archive:
        for path in names:
            tar.add(path, f"in/{path.name}")
            archive.write(path, f"in/{path.name}")
    results = []
    for source in (midi, tmp_path / "x.tar.gz", tmp_path / "x.zip"):
        out = tmp_path / f"out-{source.name}"
        plan_build([source], out, OPTIONS, 4)
        encode_shard(out, workers=2)
        results.append((documents(out), records(out)))
    assert results[0] == results[1] == results[2]


def test_labels_reach_files_and_members(midi, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(midi / "00.mid", "in/00.mid")
    (tmp_path / "labels.csv").write_text("path,GENRE\nx.zip/in/00.mid,Jazz\nmidi/00.mid,Rock\n")
    options = replace(OPTIONS, labels=str(tmp_path / "labels.csv"))
    heads = []
    for source in (midi / "00.mid", tmp_path / "x.zip", midi / "01.mid"):
        out = tmp_path / f"out-{source.name}"
        plan_build([source], out, options)
        encode_shard(out)
        heads.append(np.frombuffer(documents(out), "<u2")[1])
    assert len(set(heads)) == 3


def test_progress_counts_every_file_once(midi, tmp_path):
    (midi / "03.mid").write_bytes(b"crash")
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 6)
    assert run_faulty(plan) == 12
    seen = []
    plan_build([midi], tmp_path / "other", OPTIONS, 5)
    encode_shard(tmp_path / "other", 1, 2, progress=lambda items, total: seen.append((total, len(list(items)))) or [])
    assert seen == [(5, 5)]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (b"crash", "the parser crashed (signal 11)"),
        (b"leave", "the parser crashed (exit status 7)"),
        (b"memory", "needs more memory than a worker may use"),
        (b"hang", "takes longer than 2 s"),
    ],
)
def test_a_fault_costs_its_file_only(midi, tmp_path, fault, reason):
    options = replace(OPTIONS, seconds_per_file=2.0)
    for number in (0, 3, 11):
        (midi / f"{number:02}.mid").write_text("no music")
    plan_build([midi], tmp_path / "sound", options, 6)
    encode_shard(tmp_path / "sound")
    for number in (0, 3, 11):
        (midi / f"{number:02}.mid").write_bytes(fault)
    before = descriptors()
    plan = plan_build([midi], tmp_path / "out", options, 6)
    run_faulty(plan, 2)
    assert descriptors() == before and not children()
    assert [(file["entry"], file["damage"]) for file in records(tmp_path / "out") if file["damage"]] == [
        (number, reason) for number in (0, 3, 11)
    ]
    assert documents(tmp_path / "out") == documents(tmp_path / "sound") and len(documents(tmp_path / "out")) > 1000
    assert all(is_finished(plan, number) for number in range(2))


def test_what_a_parser_prints_garbles_nothing(midi, tmp_path):
    (midi / "03.mid").write_bytes(b"chatter")
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    assert run_faulty(plan) == 12
    assert [file["entry"] for file in records(tmp_path / "out") if file["damage"]] == [3]


def test_a_worker_that_is_killed_from_outside_is_given_a_second_chance(midi, tmp_path):
    (midi / "03.mid").write_bytes(b"killed " + os.fsencode(tmp_path / "remembers"))
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    assert run_faulty(plan) == 12 and (tmp_path / "remembers").exists()
    assert "no MIDI file" in records(tmp_path / "out")[3]["damage"]


def test_workers_that_cannot_live_end_the_build(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 2)
    before = descriptors()
    for program, cause in (("import no_such", "No module named 'no_such'"), ("raise SystemExit(3)", "exit status 3")):
        with pytest.raises(ChildProcessError, match=f"worker processes die outside of any file .*{cause}"):
            list(run_shards(plan, [0, 1], 2, [sys.executable, "-c", program]))
    assert descriptors() == before and not children()


@pytest.mark.parametrize(
    "text", ["path,GENRE\n00.mid,Rock\n01.mid,Jazz\n", "path,GENRE\n00.mid,Folk\n01.mid,Pop\n", "nonsense\n"]
)
def test_labels_that_changed_since_the_plan_are_refused_by_name(midi, tmp_path, text):
    labels = tmp_path / "labels.csv"
    labels.write_text("path,GENRE\n00.mid,Jazz\n01.mid,Rock\n")
    plan = plan_build([midi], tmp_path / "out", replace(OPTIONS, labels=str(labels)))
    labels.write_text(text)
    with pytest.raises(
        ValueError,
        match=f"{labels} was changed since it was planned; restore it, or remove {plan.building} and plan again",
    ):
        encode_shard(tmp_path / "out")
    with pytest.raises(
        (ValueError, OSError), match=r"labels.csv (was changed since|has the columns)"
    ):  # a worker that starts later
        run_faulty(plan)
    labels.unlink()
    with pytest.raises(ValueError, match=r"labels.csv cannot be read .*; restore the labels"):
        encode_shard(tmp_path / "out")


def as_planned(path):
    """The file's times and size."""
    return path.stat().st_size, path.stat().st_mtime_ns


@pytest.mark.parametrize("change", ["size", "time", "archive"])
def test_a_midi_file_that_changed_since_the_plan_is_refused_by_name(midi, tmp_path, change):
    changed, sources = midi / "07.mid", [midi]
    if change == "archive":
        changed = tmp_path / "music.zip"
        with zipfile.ZipFile(changed, "w") as archive:
            archive.write(midi / "07.mid", "07.mid")
        sources = [changed]
    plan = plan_build(sources, tmp_path / "out", OPTIONS)
    before = as_planned(changed)
    if change == "size":
        changed.write_bytes((midi / "08.mid").read_bytes() + b"\0")
        os.utime(changed, ns=(before[1], before[1]))
    else:
        os.utime(changed, ns=(before[1], before[1] + 1000))
    with pytest.raises(
        ValueError, match=f"{changed} was changed since it was planned; remove {plan.building} and plan again"
    ):
        encode_shard(tmp_path / "out")
    assert not [name for name in shards(tmp_path / "out") if not name.endswith("json")], "nothing is left of the shard"


def damaged(content: bytes, random) -> bytes:
    """The content with one to three bytes changed, so that it may still be JSON."""
    found = bytearray(content)
    for place in random.sample(range(len(found)), random.randint(1, 3)):
        found[place] = random.choice(b"0123456789abcdef")
    return bytes(found)


def test_no_damaged_record_or_plan_is_taken_for_another(midi, tmp_path):
    chance = random.Random(0)
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 6)
    encode_shard(tmp_path / "out")
    record, entries, planned = (
        plan.building / "shards" / "00000.json",
        plan.building / "entries.jsonl",
        plan.building / "plan.json",
    )
    whole = read_record(plan, 0)
    for path, read in (
        (record, lambda: read_record(plan, 0)),
        (planned, lambda: read_plan(tmp_path / "out")),
        (entries, lambda: plan.read_entries(1)),
    ):
        content, right = path.read_bytes(), read()
        for _ in range(200):
            path.write_bytes(damaged(content, chance))
            try:
                assert read() == right, "what was changed is of no effect, such as a part that is not read"
            except ValueError as error:
                assert str(path) in str(error) and re.search("; (delete|remove) ", str(error))
        path.write_bytes(content)
    record.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=r"00000.json is no completion record .*does not begin with its hash"):
        merge_shards(tmp_path / "out")


def test_stopping_midway_leaves_no_process(midi, tmp_path):
    plan_build([midi], tmp_path / "out", OPTIONS, 2)

    def stop(items, total):
        for number, item in enumerate(items):
            if number == 5:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        encode_shard(tmp_path / "out", workers=2, progress=stop)
    assert not children() and not [name for name in shards(tmp_path / "out") if name.startswith(".")]
    assert encode_shard(tmp_path / "out")["found"] >= 1


def workers_of(building: Path) -> list[str]:
    """Worker processes of a build, whoever is their parent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"megatron_music.data.worker" in words and os.fsencode(building) in words:
                found.append(folder.name)
        except OSError:
            continue
    return found


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    midi = write_corpus(tmp_path / "midi", 60)
    for out in ("calm", "killed"):
        plan = plan_build([midi], tmp_path / out, OPTIONS, 4)
    encode_shard(tmp_path / "calm")
    for kill in range(3):
        with subprocess.Popen([sys.executable, "-c", ENCODE, tmp_path / "killed"]) as process:
            while sum(is_finished(plan, number) for number in range(15)) < 3 * kill + 1 and process.poll() is None:
                time.sleep(0.005)
            time.sleep(random.random() / 20)
            process.kill()
        deadline = time.monotonic() + 10
        while workers_of(plan.building):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.01)
    found = sum(is_finished(plan, number) for number in range(15))
    assert encode_shard(tmp_path / "killed", workers=2)["found"] == found >= 7
    assert shards(tmp_path / "killed") == shards(tmp_path / "calm")


def test_a_torn_shard_is_done_again(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 4)
    encode_shard(tmp_path / "out")
    whole = shards(tmp_path / "out")
    folder = plan.building / "shards"
    (folder / "00000.bin").write_bytes(b"short")
    (folder / "00001.json").write_text(whole["00001.json"].decode()[:100])
    (folder / "00002.json").write_text(whole["00002.json"].decode().replace(plan.fingerprint, "0" * 64))
    assert encode_shard(tmp_path / "out") == {"shards": 3, "found": 0, "files": 12}
    assert shards(tmp_path / "out") == whole


def test_only_what_dead_workers_left_is_swept(tmp_path):
    building = tmp_path / "out.building"
    (building / "shards").mkdir(parents=True)
    other, theirs = building / "shards" / "00000.bin", building / "shards" / ".notes.txt.tmp"
    with held(building, shared=True):
        alive = temporary_shard(other, token_of(building / "lock"))
        dead = temporary_shard(other, "0123456789abcdef")
        for path in (alive, dead, other, theirs):
            path.touch()
        sweep_shards(building)
        assert sorted(building.glob("shards/*")) == sorted([alive, other, theirs])
    sweep_shards(building)
    assert sorted(building.glob("shards/*")) == sorted([other, theirs])


def test_a_full_disk_is_said_and_finished_shards_stay(midi, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(disk)]
    if subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        plan = plan_build([midi], disk / "out", OPTIONS, 2)
        plan_build([midi], tmp_path / "calm", OPTIONS, 2)
        encode_shard(tmp_path / "calm")
        (disk / "ballast").write_bytes(bytes(108 << 10))
        with pytest.raises(OSError, match="No space left on device") as caught:
            encode_shard(disk / "out")
        assert caught.value.errno == errno.ENOSPC and str(plan.building) in caught.value.filename and not children()
        taken = sum(is_finished(plan, number) for number in range(6))
        assert 0 < taken < 6 and not [name for name in shards(disk / "out") if name.startswith(".")]
        (disk / "ballast").unlink()
        assert encode_shard(disk / "out", workers=2)["found"] == taken
        assert shards(disk / "out") == shards(tmp_path / "calm")
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_file_that_may_not_grow_is_said_and_finished_shards_stay(midi, tmp_path):
    write_midi(tiny_score(60), midi / "11.mid")
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 3)
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
    done = run_elsewhere(tmp_path / "out", limit + ENCODE.replace("workers=2", "workers=1"))
    assert ".00003.bin" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("OSError: [Errno 27] File too large")
    assert [is_finished(plan, number) for number in range(4)] == [True, True, True, False]
    assert encode_shard(tmp_path / "out")["found"] == 3


def test_two_at_once(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 2)
    with subprocess.Popen([sys.executable, "-c", ENCODE, tmp_path / "out"]) as process:
        assert encode_shard(tmp_path / "out", workers=2)["shards"] == 6  # the same rank, by mistake
        assert process.wait() == 0
    plan_build([midi], tmp_path / "calm", OPTIONS, 2)
    encode_shard(tmp_path / "calm")
    assert shards(tmp_path / "out") == shards(tmp_path / "calm")
    with held(plan.building):
        done = run_elsewhere(tmp_path / "out", ENCODE)
    assert done.returncode == 1 and "another build works in" in done.stderr


def test_no_more_workers_than_are_asked_for_or_needed(midi, tmp_path, monkeypatch):
    started, alive = [], []
    start, kill = supervisor._Worker.__init__, supervisor._Worker.kill

    def counted(worker, *given):
        start(worker, *given)
        started.append(len(children()))

    monkeypatch.setattr(supervisor._Worker, "__init__", counted)
    monkeypatch.setattr(supervisor._Worker, "kill", lambda worker: alive.append(1) or kill(worker))
    plan = plan_build([midi], tmp_path / "out", OPTIONS, 4)
    encode_shard(tmp_path / "out", workers=2)
    assert started == [1, 2] and len(alive) == 2
    (plan.building / "shards" / "00001.json").unlink()
    encode_shard(tmp_path / "out", workers=8)
    assert started == [1, 2, 1]
    encode_shard(tmp_path / "out", workers=8)  # nothing is left to do
    assert started == [1, 2, 1]


def test_entries_that_changed_since_the_plan_are_refused_by_name(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    (plan.building / "entries.jsonl").write_text("{}\n")
    with pytest.raises(
        ValueError, match=r"entries.jsonl was changed since it was planned; remove .*out.building and plan again"
    ):
        encode_shard(tmp_path / "out")


def test_a_fault_of_ours_is_no_fault_of_a_file(midi, tmp_path):
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    broken = (
        "import sys\nfrom megatron_music.data import worker\n"
        "def fail(*_): raise RuntimeError('ours')\nworker.write_shard = fail\nworker.main(sys.argv[1])"
    )
    with pytest.raises(supervisor.WorkerError, match=r"a worker failed on shard 0 .RuntimeError: ours"):
        list(run_shards(plan, [0], 1, [sys.executable, "-c", broken, str(plan.building)]))


@pytest.mark.parametrize(("rank", "world_size", "workers"), [(1, 1, 1), (-1, 2, 1), (0, 0, 1), (0, 1, 0)])
def test_wrong_use_is_named(midi, tmp_path, rank, world_size, workers):
    plan_build([midi], tmp_path / "out", OPTIONS)
    with pytest.raises(ValueError, match="; use "):
        encode_shard(tmp_path / "out", rank, world_size, workers)
    with pytest.raises(ValueError, match="run `megatron-music build plan` first"):
        encode_shard(tmp_path / "nothing")


def test_input_that_is_away_stops_the_shard_and_is_no_quarantine(midi, tmp_path):
    plan_build([midi], tmp_path / "out", OPTIONS, files_per_shard=6)
    midi.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError):
        encode_shard(tmp_path / "out")
    assert not [name for name in shards(tmp_path / "out") if name.endswith("json")]
    (tmp_path / "away").rename(midi)
    encode_shard(tmp_path / "out")
    assert not any(record["damage"] for record in records(tmp_path / "out"))


def test_a_worker_that_can_encode_nothing_ends_the_build(midi, tmp_path):
    """A fault of the installation is none of the files'."""
    plan = plan_build([midi], tmp_path / "out", OPTIONS)
    broken = (
        "import sys\nfrom megatron_music.data import encode, worker\n"
        "def fail(): raise RuntimeError('no place')\nencode.fastest_engine = fail\nworker.main(sys.argv[1])"
    )
    with pytest.raises(ChildProcessError, match=r"a good file cannot be encoded .RuntimeError: no place"):
        list(run_shards(plan, range(len(plan.shards)), 1, [sys.executable, "-c", broken, str(plan.building)]))
