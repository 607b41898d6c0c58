"""``build latents``: complete, honest about what it leaves out, resumable, refusing what cannot be."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sounds import RATE, tiny_sounds

from megatron_music.audio.autoencoder import load_autoencoder
from megatron_music.audio.music_encoder import load_music_encoder
from megatron_music.audio.waveform import Waveform, read_waveform, write_waveform
from megatron_music.cli.entry import main
from megatron_music.corpora.captioned import read_captioned
from megatron_music.data.build_latents import _shared, build_latents
from megatron_music.data.building import held
from megatron_music.data.latents import LatentDataset, LatentItem
from megatron_music.data.latents_options import LatentsOptions
from megatron_music.data.latents_shards import _fill_in

OPTIONS = {
    "seconds": 0.512,
    "autoencoder": "tiny",
    "autoencoder_steps": 2,
    "min_seconds": 0.2,
    "files_per_shard": 3,
    "valid_fraction": 0.2,
    "test_fraction": 0.2,
}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory) -> Path:
    return tiny_sounds(tmp_path_factory.mktemp("sounds") / "audio")


@pytest.fixture(scope="module")
def built(sounds) -> Path:
    out = sounds.parent / "latents"
    build_latents(sounds, out, LatentsOptions(**OPTIONS))
    return out


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_samples_are_what_the_encoders_make_of_their_crops(sounds, built):
    autoencoder, music = (
        load(built / "encoders" / name)
        for load, name in (
            (load_autoencoder, "autoencoder"),
            (load_music_encoder, "music"),
        )
    )
    by_caption = {}
    for sound in read_captioned(sounds):
        by_caption.setdefault(sound.captions, []).append(read_waveform(sounds / sound.path))
    found = 0
    for split in ("train", "valid", "test"):
        dataset = LatentDataset(built, split)
        dataset.check()
        assert (dataset.info.seconds, dataset.info.channels, dataset.info.embedding_size) == (0.512, 2, 512)
        for number in range(len(dataset)):
            item = dataset[number]
            assert item.seconds_total == pytest.approx(1.1) and item.seconds_start in (0.0, pytest.approx(0.512))
            captions = tuple(dataset.caption(caption) for caption in item.captions)
            first = round(item.seconds_start * RATE)
            crops = [wave.samples[:, first : first + 8192] for wave in by_caption[captions]]
            latents = [autoencoder.encode(torch.from_numpy(crop)[None])[0].numpy() for crop in crops]
            errors = [np.abs(each - item.latents).max() for each in latents]
            assert min(errors) < 1e-4
            heard = music.embed_audio([Waveform(crops[int(np.argmin(errors))], RATE)])[0]
            assert heard @ item.embedding > 0.9999
            found += 1
    assert found == 24, "12 sounds of 1.1 s hold two crops of 0.512 s each, and a rest that is too short"


def test_sounds_of_a_group_share_a_split(built, sounds):
    groups = {}
    rows = {sound.captions: sound for sound in read_captioned(sounds)}
    assert len(rows) == 4
    for split in ("train", "valid", "test"):
        dataset = LatentDataset(built, split)
        groups[split] = len(dataset) // 4  # two sounds of two crops
        assert len(dataset) % 4 == 0
    assert sum(groups.values()) == 6 and all(groups.values())


def test_the_report_counts(built):
    report = json.loads((built / "report.json").read_text())
    assert report["sounds"] == {"listed": 12, "left_out": 0} and sum(report["samples"].values()) == 24
    assert report["captions"] == 8 and set(report["encoders"]) == {"autoencoder", "music", "text"}


def test_again_it_stays_and_other_options_are_refused(sounds, built):
    before = files_of(built)
    build_latents(sounds, built, LatentsOptions(**OPTIONS))
    assert files_of(built) == before
    with pytest.raises(ValueError, match="is there already, and not of these sounds and options"):
        build_latents(sounds, built, LatentsOptions(**OPTIONS, seed=1))


def test_a_second_build_at_a_time_is_refused(sounds, tmp_path):
    out = tmp_path / "latents"
    (tmp_path / "latents.building").mkdir()
    code = (
        "import sys, time; from megatron_music.data.plan import held\nwith held(sys.argv[1]): print('held', "
        "flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(out) + ".building"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="another build works in"):
            build_latents(sounds, out, LatentsOptions(**OPTIONS))
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert held  # the lock is the one that builds of tokens use


def start(sounds: Path, out: Path) -> subprocess.Popen:
    """The command in a process of its own: what torch's sums give depends on the number of threads."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [sys.executable, "-m", "megatron_music", "build", "latents", str(sounds), "-o", str(out), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def undisturbed(sounds) -> dict[str, bytes]:
    assert start(sounds, sounds.parent / "undisturbed").wait() == 0
    return files_of(sounds.parent / "undisturbed")


@pytest.mark.parametrize("moment", ["encoders/autoencoder", "train/00000.safetensors", "texts.safetensors"])
def test_killed_at_any_moment_the_same_command_goes_on_to_the_same_bytes(sounds, undisturbed, tmp_path, moment):
    out = tmp_path / "latents"
    process = start(sounds, out)
    while process.poll() is None and not (tmp_path / "latents.building" / "out" / moment).exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists(), "it was to be killed before it was done"
    assert start(sounds, out).wait() == 0
    assert files_of(out) == undisturbed
    assert not (tmp_path / "latents.building").exists()


def test_what_cannot_be_used_is_left_out_with_its_reason(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 6)
    quiet = np.zeros((2, RATE), np.float32)
    write_waveform(folder / "silent.wav", quiet, RATE)
    write_waveform(folder / "short.wav", quiet[:, :100] + 0.1, RATE)
    (folder / "text.wav").write_text("no sound at all")
    import soundfile

    soundfile.write(folder / "nan.wav", np.full((RATE, 2), np.nan, np.float32), RATE, subtype="FLOAT")
    mono = read_waveform(folder / "000.wav").samples[:1]
    write_waveform(folder / "mono.flac", np.repeat(mono, 3, axis=1)[:, ::1], 48000)
    names = ["missing.wav", "silent.wav", "short.wav", "text.wav", "nan.wav", "mono.flac"]
    with open(folder / "captions.jsonl", "a") as file:
        for name in names:
            file.write(json.dumps({"path": name, "caption": "a sound"}) + "\n")
        file.write(json.dumps({"path": "001.wav", "caption": " "}) + "\n")
        shutil.copy(folder / "002.wav", folder / "nothing.wav")
        file.write(json.dumps({"path": "nothing.wav", "caption": " "}) + "\n")
    report = build_latents(folder, tmp_path / "out", LatentsOptions(**OPTIONS))
    assert report["left_out"] == {"missing": 1, "silent": 1, "too short": 1, "unreadable": 2, "no caption": 1}
    told = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {entry["path"] for entry in told} == {*names[:-1], "nothing.wav"}
    assert all("\n" not in entry["reason"] and len(entry["reason"]) > 20 for entry in told)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seconds": 0.0}, "seconds is 0.0; use more than 0"),
        ({"autoencoder_steps": 0}, "autoencoder_steps is 0"),
        ({"valid_fraction": 0.6, "test_fraction": 0.5}, "leave a share for training"),
        ({"crops_per_file": -1}, "use 0 or more"),
        ({"autoencoder": "nowhere"}, "nowhere/config.json cannot be read"),
        ({"music_encoder": "nowhere"}, "nowhere holds no whole encoder of music"),
        ({"text_encoder": "/nowhere"}, "/nowhere holds no text encoder"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(sounds, tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        build_latents(sounds, tmp_path / "out", LatentsOptions(**OPTIONS | change))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_folders_without_captions_or_sound_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is no folder"):
        build_latents(tmp_path / "missing", tmp_path / "out", LatentsOptions(**OPTIONS))
    with pytest.raises(ValueError, match=r"holds no captions.jsonl or captions.csv"):
        build_latents(tmp_path, tmp_path / "out", LatentsOptions(**OPTIONS))
    (tmp_path / "captions.csv").write_text("path,caption\nmissing.wav,some words\n")
    with pytest.raises(ValueError, match="needs steps and a sound of"):
        build_latents(tmp_path, tmp_path / "out", LatentsOptions(**OPTIONS))
    assert not (tmp_path / "out").exists()


def test_listings(tmp_path):
    (tmp_path / "captions.csv").write_text("path,caption,group\nb.wav,x,g\na/a.wav,y z,\nb.wav,w,\n")
    found = read_captioned(tmp_path)
    assert [tuple(sound) for sound in found] == [("a/a.wav", ("y z",), "a/a.wav"), ("b.wav", ("x", "w"), "g")]
    for text, sentence in (
        ("path,caption\n../b.wav,x\n", "lies outside its folder"),
        ("caption\nx\n", "has no column path or file_name"),
        (b"path,caption\n\xff\xfe,x\n", "line 2, is not UTF-8"),
    ):
        (tmp_path / "captions.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(ValueError, match=sentence):
            read_captioned(tmp_path)
    (tmp_path / "captions.jsonl").write_text('{"path": "a.wav", "captions": ["x", "x", "y"]}\n\n[1]\n')
    with pytest.raises(ValueError, match="line 3, is no JSON object"):
        read_captioned(tmp_path)


def test_musicbench(tmp_path):
    rows = [
        {"location": "data/abc.wav", "main_caption": "a song", "alt_caption": "another", "prompt_key": "C"},
        {"location": "data_aug2/abc_3.wav", "main_caption": "a slow song", "alt_caption": ""},
    ]
    (tmp_path / "MusicBench_train.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "datashare").mkdir()
    found = read_captioned(tmp_path)
    assert [sound.path for sound in found] == ["datashare/data/abc.wav", "datashare/data_aug2/abc_3.wav"]
    assert [sound.captions for sound in found] == [("a song", "another"), ("a slow song",)]
    assert found[0].group == found[1].group == "abc", "a clip and its augmented copies share a split"


def test_music4all(tmp_path):
    (tmp_path / "id_genres.csv").write_text("id\tgenres\n0abc\tpop,rock\n1def\tjazz\n")
    (tmp_path / "id_tags.csv").write_text("id\ttags\n0abc\tpop,female vocalists\n")
    found = read_captioned(tmp_path)
    assert [tuple(sound[:2]) for sound in found] == [
        ("audios/0abc.mp3", ("pop, rock music", "pop, rock music: pop, female vocalists")),
        ("audios/1def.mp3", ("jazz music",)),
    ]
    (tmp_path / "id_genres.csv").write_text("id\tgenre\n")
    with pytest.raises(ValueError, match="has no column genres"):
        read_captioned(tmp_path)


def start_rank(sounds: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen:
    named = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [
        sys.executable,
        "-m",
        "megatron_music",
        "build",
        "latents",
        str(sounds),
        "-o",
        str(out),
        *named,
        *options,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def test_ranks_share_the_shards_and_give_the_bytes_of_one_process(sounds, undisturbed, tmp_path):
    out = tmp_path / "latents"
    ranks = [start_rank(sounds, out, "--rank", str(rank), "--world-size", "3") for rank in range(3)]
    said = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0], said
    assert files_of(out) == undisturbed and not (tmp_path / "latents.building").exists()
    assert sum("samples" in text for text in said) == 1, "the last one to finish tells what was written"
    assert sum("in 2 of 2 shards" in text or "in 1 of 1 shards" in text for text in said) >= 2, said


def test_ranks_one_after_the_other_and_one_that_was_killed(sounds, undisturbed, tmp_path):
    out = tmp_path / "latents"
    share = ("--rank", "1", "--world-size", "2")
    killed = start_rank(sounds, out, *share)
    while killed.poll() is None and not (tmp_path / "latents.building" / "records").exists():
        time.sleep(0.002)
    killed.kill()
    killed.communicate()
    for rank, expected in (
        (share, "the rank that finishes last writes"),
        (("--rank", "0", "--world-size", "2"), "samples"),
    ):
        process = start_rank(sounds, out, *rank)
        assert expected in process.communicate()[0] and process.returncode == 0
    assert files_of(out) == undisturbed and not (tmp_path / "latents.building").exists()


def test_under_torchrun_the_processes_share_the_work_and_one_speaks(sounds, undisturbed, tmp_path):
    named = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "megatron_music",
    ]
    command += ["build", "latents", str(sounds), "-o", str(tmp_path / "latents"), *named]
    for _ in range(2):  # the second time it is there already
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("samples") == 1, done.stdout
    assert files_of(tmp_path / "latents") == undisturbed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rank", "2", "--world-size", "2"], "rank is 2 of 2; use 0 to 1"),
        (["--rank", "0"], "--rank and --world-size go together"),
    ],
)
def test_a_wrong_rank_is_one_sentence(sounds, tmp_path, options, sentence):
    process = start_rank(sounds, tmp_path / "out", *options)
    said = process.communicate()[1]
    assert process.returncode == 2 and sentence in said and said.count("\n") == 1


def test_a_rank_that_is_at_work_is_not_started_twice(sounds, tmp_path):
    with _shared(tmp_path / "out.building", 0, 2):
        with pytest.raises(ValueError, match="another process works as rank-0-of-2"):
            build_latents(sounds, tmp_path / "out", LatentsOptions(**OPTIONS), rank=0, world_size=2)
        with pytest.raises(ValueError, match="another build works in"):
            build_latents(sounds, tmp_path / "out", LatentsOptions(**OPTIONS))


def test_batches_over_sounds_that_memory_cuts_give_each_sound_its_own_latents(built, sounds):
    """What a GPU does, on the CPU's device type: more sounds than a batch holds, and memory for fewer than one
    batch.
    """
    autoencoder = load_autoencoder(built / "encoders" / "autoencoder")
    waves = [read_waveform(path).samples[:, :8192] for path in sorted(sounds.glob("*.wav"))]

    class Small:
        """Memory for three sounds at a time."""

        @staticmethod
        def encode(samples):
            if len(samples) > 3:
                raise torch.OutOfMemoryError("out of memory")
            return autoencoder.encode(samples)

    items = [LatentItem(None, None, (), float(number), 0.0) for number in range(len(waves) + 1)]
    _fill_in(items, waves, Small, "cpu")
    assert items[0].latents is None, "an item before those that wait stays as it is"
    for item, wave in zip(items[1:], waves, strict=True):
        assert np.abs(item.latents - autoencoder.encode(torch.from_numpy(wave)[None])[0].numpy()).max() < 1e-4


def test_captions_that_hold_no_word_are_counted_and_said(tmp_path, capsys):
    folder = tiny_sounds(tmp_path / "audio", 6)
    lines = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    for line, captions in zip(lines, [["🎹"], ["!?"], ["遅いピアノ"], ["медленно"], ["بطيء"], ["slow"]], strict=True):
        line |= {"captions": captions}
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in (OPTIONS | {"valid_fraction": 0, "test_fraction": 0}).items()
    ]
    assert main(["build", "latents", str(folder), "-o", str(tmp_path / "out"), *options]) == 0
    told = capsys.readouterr()
    assert "2 of 6 captions hold no word that the text encoder knows, such as '🎹'" in told.err
    assert "autoencoder  Oobleck" in told.out and "samples      " in told.out
    assert told.err.splitlines()[-2:] == [
        f"megatron-music: next: megatron-music train demo-text2muq data.path={tmp_path / 'out'} checkpoint.save=STAGE1",
        f"megatron-music: next: megatron-music train demo-dit data.path={tmp_path / 'out'} checkpoint.save=STAGE2",
    ]
    assert main(["build", "latents", str(folder), "-o", str(tmp_path / "out"), *options]) == 0
    assert capsys.readouterr().out.endswith(
        f"already built: {tmp_path / 'out'}; nothing to do\n{told.out[told.out.index('samples  ') :]}"
    )
    words = json.loads((tmp_path / "out" / "encoders" / "text" / "words.json").read_text())["words"]
    assert {"медленно", "ピア", "بطيء", "slow"} <= set(words)


def test_notes_of_the_mp3_decoder_do_not_reach_the_terminal(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 6)
    import soundfile

    wave = read_waveform(folder / "000.wav")
    soundfile.write(folder / "broken.mp3", wave.samples.T, wave.sample_rate, format="MP3")
    content = bytearray((folder / "broken.mp3").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 300] = bytes(range(256)) + bytes(44)
    (folder / "broken.mp3").write_bytes(bytes(content))
    noisy = subprocess.run(
        [sys.executable, "-c", "import soundfile, sys; soundfile.read(sys.argv[1])", str(folder / "broken.mp3")],
        capture_output=True,
        text=True,
    )
    assert "mpg123" in noisy.stderr, "the decoder writes notes about this file"
    with open(folder / "captions.jsonl", "a") as file:
        file.write(json.dumps({"path": "broken.mp3", "caption": "slow"}) + "\n")
    process = start_rank(folder, tmp_path / "out")
    lines = process.communicate()[1].splitlines()
    assert all(line.startswith("megatron-music: next: ") for line in lines) and process.returncode == 0


def test_a_name_with_an_accent_is_found_in_either_form(tmp_path):
    import unicodedata

    folder = tiny_sounds(tmp_path / "audio", 6)
    (folder / "000.wav").rename(folder / unicodedata.normalize("NFD", "café.wav"))
    text = (folder / "captions.jsonl").read_text()
    (folder / "captions.jsonl").write_text(text.replace("000.wav", unicodedata.normalize("NFC", "café.wav")))
    assert build_latents(folder, tmp_path / "out", LatentsOptions(**OPTIONS))["left_out"] == {}


def test_a_link_to_a_place_for_the_dataset_is_followed_as_build_tokens_does(sounds, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "data")
    build_latents(sounds, tmp_path / "out", LatentsOptions(**OPTIONS))
    assert LatentDataset(tmp_path / "disk" / "data", "train").check() is None
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["data"] and [
        path.name for path in tmp_path.iterdir() if path.name != "disk"
    ] == ["out"]


def test_the_name_of_a_shard_is_on_the_disk_before_its_record_says_so(sounds, tmp_path, monkeypatch):
    """Every fsync and rename is done, and noted in its order."""
    done, fsync, replace = [], os.fsync, os.replace

    def noting_fsync(descriptor: int) -> None:
        fsync(descriptor)
        done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def noting_replace(source, target) -> None:
        replace(source, target)
        done.append(("name", str(target)))

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    build_latents(sounds, tmp_path / "out", LatentsOptions(**OPTIONS))
    made = tmp_path / "out.building" / "out"
    shards = [
        (place, Path(name))
        for place, (what, name) in enumerate(done)
        if what == "name" and Path(name).stem.isdigit() and name.endswith(".safetensors")
    ]
    assert len(shards) >= 3
    for place, shard in shards:
        record = done.index(
            ("name", str(tmp_path / "out.building" / "records" / f"{shard.parent.name}-{shard.stem}.json"))
        )
        assert ("sync", str(shard.parent)) in done[place:record], shard
    last = max(place for place, (what, _) in enumerate(done) if what == "name")
    assert {str(folder) for folder in (made, *(made / split for split in ("train", "valid", "test")))} <= {
        name for what, name in done[last:] if what == "sync"
    }


KILLED_AFTER_THE_RENAME = """
import os, sys
from megatron_music.cli.entry import main
from megatron_music.data import build_latents
build_latents._clear = lambda building: os.kill(os.getpid(), 9)
main(sys.argv[1:])
"""


def test_what_a_build_that_was_killed_at_its_very_end_left_goes_by_name_with_the_next(sounds, tmp_path):
    words = [
        "build",
        "latents",
        str(sounds),
        "-o",
        str(tmp_path / "out"),
        *(f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()),
    ]
    assert (
        subprocess.run(
            [sys.executable, "-c", KILLED_AFTER_THE_RENAME, *words], capture_output=True, check=False
        ).returncode
        == -9
    )
    building = tmp_path / "out.building"
    assert (tmp_path / "out" / "index.json").exists() and any((building / "records").iterdir())
    (building / "records" / "notes.txt").write_text("mine")
    assert main(words) == 0
    assert [path.relative_to(building).as_posix() for path in building.rglob("*")] == ["records", "records/notes.txt"]
    (building / "records" / "notes.txt").unlink()
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
