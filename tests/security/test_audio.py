"""Audio, MIDI and answers of processes that somebody made to fill the memory or to wait for ever: each costs itself."""

import json
import os
import re
import struct
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import soundfile

sys.path.insert(0, str(Path(__file__).parents[1]))
from tiny_sounds import tiny_sounds

from megatron_music.audio import music_encoder, waveform
from megatron_music.audio.waveform import Waveform, read_waveform
from megatron_music.cli.entry import main
from megatron_music.corpora.captioned import Captioned
from megatron_music.data import crops as crops_module
from megatron_music.data.build_latents import build_latents
from megatron_music.data.crops import Crops
from megatron_music.data.latents_options import LatentsOptions

OPTIONS = {
    "seconds": 0.512,
    "autoencoder": "tiny",
    "autoencoder_steps": 2,
    "min_seconds": 0.2,
    "valid_fraction": 0,
    "test_fraction": 0,
}


def wav(rate: int, channels: int, data: bytes, bits: int = 16, kind: int = 1) -> bytes:
    """A WAV file; ``kind`` 1 is whole numbers, 3 is float."""
    width = channels * bits // 8
    head = struct.pack("<IHHIIHH", 16, kind, channels, rate, rate * width & 0xFFFFFFFF, width, bits)
    return (
        b"RIFF" + struct.pack("<I", 36 + len(data)) + b"WAVEfmt " + head + b"data" + struct.pack("<I", len(data)) + data
    )


def floats(*values: float) -> bytes:
    return np.tile(np.array(values, "<f4"), 16000).tobytes()


NOISE = np.random.default_rng(0).integers(-9000, 9000, 400_000).astype("<i2").tobytes()
HOSTILE = {
    "one.wav": (wav(1, 2, NOISE[:80000]), "sample rate of 1 Hz, where 1,000 to 384,000 are read"),
    "three.wav": (wav(3, 2, NOISE), "sample rate of 3 Hz"),
    "prime.wav": (wav(15485863, 2, NOISE), "sample rate of 15,485,863 Hz"),
    "odd.wav": (wav(383983, 2, NOISE), "383,983 Hz, which does not go into 16,000 Hz"),
    "none.wav": (wav(16000, 0, NOISE), "Channel count is zero"),
    "many.wav": (wav(16000, 64, NOISE), "has 64 channels, where up to 24 are read"),
    "loud.wav": (wav(16000, 2, floats(1e38, -1e38), 32, 3), "samples up to 1e+38, where 1 is full scale"),
    "nan.wav": (wav(16000, 2, floats(0.1, np.nan), 32, 3), "samples that are not finite"),
    "late.wav": (wav(16000, 2, floats(0.1, 0.2) * 20 + floats(np.inf, 0), 32, 3), "samples that are not finite"),
    "empty.wav": (b"", "is no sound that can be read"),
}


def caption(folder: Path, *names: str) -> None:
    with open(folder / "captions.jsonl", "a") as file:
        file.writelines(json.dumps({"path": name, "caption": "a sound"}) + "\n" for name in names)


def memory_of(process: int) -> int:
    """Bytes of a process and of all below it, shared pages once."""
    found = 0
    for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
        found += int(line.split()[1]) << 10 if line.startswith("Pss:") else 0
    for children in Path(f"/proc/{process}/task").glob("*/children"):
        found += sum(memory_of(int(child)) for child in children.read_text().split())
    return found


def test_each_hostile_file_costs_itself_and_the_build_stays_below_2_gib(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 6)
    for name, (content, _) in HOSTILE.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "a.wav")
    (folder / "device.wav").symlink_to("/dev/zero")
    soundfile.write(folder / "whole.flac", np.random.default_rng(0).standard_normal((160000, 2)) * 0.1, 16000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:100_000])
    with soundfile.SoundFile(folder / "hours.flac", "w", 8000, 1, format="FLAC") as file:
        minute = (0.3 * np.sin(np.arange(480_000) * 0.01)).astype(np.float32)
        for _ in range(360):
            file.write(minute)
    caption(folder, *HOSTILE, "a.wav", "device.wav", "cut.flac", "hours.flac")
    options = OPTIONS | {"crops_per_file": 200}
    command = [sys.executable, "-m", "megatron_music", "build", "latents", str(folder), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, *(f"--{name.replace('_', '-')}={value}" for name, value in options.items())], stderr=subprocess.PIPE
    )
    most = 0
    while process.poll() is None:
        with suppress(OSError):  # one of them ended meanwhile
            most = max(most, memory_of(process.pid))
        time.sleep(0.05)
    assert process.communicate()[1].decode().count("Traceback") == 0 and process.returncode == 0
    assert 100 << 20 < most < 2 << 30
    told = {
        entry["path"]: entry
        for entry in map(json.loads, (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines())
    }
    assert told.keys() == {*HOSTILE, "a.wav", "device.wav", "cut.flac"}
    for name, (_, words) in HOSTILE.items():
        assert words in told[name]["reason"] and told[name]["kind"] == "unreadable" and name in told[name]["reason"]
    assert all(
        f"{name} cannot be read: it is not a regular file" in told[name]["reason"] for name in ("a.wav", "device.wav")
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["samples"]["train"] == 6 * 2 + 200, "the six hours are a legitimate file"
    assert not (tmp_path / "out.building").exists()


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("os.kill(os.getpid(), 11)", r"the parser crashed \(signal 11\)"),
        ("time.sleep(600)", "takes longer than 2 s"),
        ("np.ones(1 << 28)", "needs more memory than a worker may use"),
        ("os._exit(3)", r"the parser crashed \(exit status 3\)"),
    ],
)
def test_a_decoder_that_crashes_hangs_or_fills_the_memory_costs_the_file(tmp_path, monkeypatch, action, reason):
    """What a fault of a decoder's does, at one file of six; its crops before it are forgotten."""
    folder = tiny_sounds(tmp_path / "audio", 6)
    program = (
        "import os, sys, time\nimport numpy as np\nfrom megatron_music.data import audio_worker\npieces = "
        "audio_worker.pieces\n"
        f"def faulty(path, name, *cut):\n    for piece in pieces(path, name, *cut):\n        yield piece\n        if "
        f"'003' in path: {action}\n"
        "audio_worker.pieces, audio_worker.PART_BYTES = faulty, 1\naudio_worker.main(sys.argv[1])"
    )
    monkeypatch.setattr(crops_module, "SECONDS_PER_FILE", 2.0)
    with Crops(folder, LatentsOptions(**OPTIONS)) as crops:
        crops._workers._command = [sys.executable, "-c", program, str(crops._room)]
        sounds = [Captioned(f"{number:03}.wav", ("words",), "") for number in range(6)]
        found = list(crops.read(sounds, 16000, 2, 8192))
    kept = {
        number: sum(len(read.crops) for read in found if read.number == number) for number in range(6) if number != 3
    }
    assert set(kept.values()) == {2} and [read.number for read in found if read.ends] == list(range(6))
    (last,) = [read for read in found if read.number == 3 and read.ends]
    assert last.left_out.kind == "unreadable"
    assert re.search(reason, str(last.left_out)) and "003.wav" in str(last.left_out)


def silence(path: Path, seconds: int) -> None:
    """A WAV file of zeros that takes no room on the disk."""
    size = 2 * 44100 * seconds
    path.write_bytes(wav(44100, 1, b"")[:40] + struct.pack("<I", size))
    os.truncate(path, 44 + size)


def test_a_long_file_that_is_being_decoded_is_not_taken_for_one_that_hangs(tmp_path, monkeypatch):
    """On a disk that gives a block every fifth of a second."""
    silence(tmp_path / "long.wav", 180)
    program = (
        "import sys, time\nfrom megatron_music.audio import excerpts\nfrom megatron_music.data import audio_worker\n"
        "read_blocks = excerpts.read_blocks\ndef slow(path):\n    for block in read_blocks(path):\n        "
        "time.sleep(0.2)\n"
        "        yield block\nexcerpts.read_blocks = slow\naudio_worker.main(sys.argv[1])"
    )
    monkeypatch.setattr(crops_module, "SECONDS_PER_FILE", 3.0)
    with Crops(tmp_path, LatentsOptions(**OPTIONS)) as crops:
        crops._workers._command = [sys.executable, "-c", program, str(crops._room)]
        begun = time.monotonic()
        (read,) = crops.read([Captioned("long.wav", ("words",), "")], 16000, 2, 8192)
    assert time.monotonic() - begun > 5, "the file is too short to show anything"
    assert (read.left_out.kind, str(read.left_out)) == ("silent", "long.wav is silent; remove it")


def test_a_file_of_more_samples_than_are_read_is_refused(tmp_path, monkeypatch):
    silence(tmp_path / "x.wav", 10)
    monkeypatch.setattr(waveform, "MAX_VALUES", 440_000)
    with pytest.raises(
        ValueError, match=r"x.wav has more than 440,000 samples on 1 channels; cut it into shorter files"
    ):
        read_waveform(tmp_path / "x.wav")


def test_a_disk_that_is_gone_is_no_damage_of_a_file(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 1)
    program = (
        "import errno, os, sys\nfrom megatron_music.audio import waveform\nfrom megatron_music.data import "
        "audio_worker\n"
    )
    program += "def gone(path, **options):\n    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), path)\n"
    program += "waveform.regular = gone\naudio_worker.main(sys.argv[1])"
    with Crops(folder, LatentsOptions(**OPTIONS)) as crops:
        crops._workers._command = [sys.executable, "-c", program, str(crops._room)]
        with pytest.raises(OSError, match=r"Stale file handle.*000.wav"):
            list(crops.read([Captioned("000.wav", ("words",), "")], 16000, 2, 8192))


def test_channels_that_cannot_be_mixed_are_told_with_the_file(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 1)
    with Crops(folder, LatentsOptions(**OPTIONS)) as crops:
        (read,) = crops.read([Captioned("000.wav", ("words",), "")], 16000, 6, 8192)
    assert "000.wav cannot be used: a sound of 2 channels cannot become one of 6" in str(read.left_out)


def test_a_package_that_is_missing_is_named_and_costs_no_file(tmp_path):
    folder = tiny_sounds(tmp_path / "audio", 2)
    code = (
        "import sys; sys.modules['scipy.signal'] = None; from megatron_music.cli.entry import main; "
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["build", "latents", str(folder), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "this command needs" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["written to", "removed"])
def test_a_file_that_changes_while_a_build_is_under_way_is_refused_by_name(tmp_path, change):
    folder = tiny_sounds(tmp_path / "audio", 6)

    def say(line: str) -> None:  # the files were listed, and nothing of them was read
        if line.startswith("fitting the Oobleck"):
            if change == "removed":
                (folder / "004.wav").unlink()
            else:
                (folder / "004.wav").write_bytes((folder / "001.wav").read_bytes())

    with pytest.raises(
        ValueError, match=r"004.wav was changed while the build was under way; restore it, or build into another folder"
    ):
        build_latents(folder, tmp_path / "out", LatentsOptions(**OPTIONS), say=say)
    assert not (tmp_path / "out").exists()


def test_audio_to_continue_is_bounded_too(tmp_path):
    for name, (content, words) in HOSTILE.items():
        if name != "odd.wav":
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ValueError, match=words.split(",")[0].replace("+", r"\+")):
                read_waveform(tmp_path / name)
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(ValueError, match=r"a.wav cannot be read: it is not a regular file; remove it"):
        read_waveform(tmp_path / "a.wav")


def midi_of_a_note(ticks: bytes) -> bytes:
    """One note of so many ticks, as MIDI writes numbers, 24 to the quarter note of 16.8 seconds."""
    track = (
        bytes([0, 0xFF, 0x51, 3, 0xFF, 0xFF, 0xFF, 0, 0x90, 60, 64]) + ticks + bytes([0x80, 60, 0, 0, 0xFF, 0x2F, 0])
    )
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 24) + b"MTrk" + struct.pack(">I", len(track)) + track


@pytest.mark.parametrize("ticks", [bytes([0x85, 0xEE, 0]), bytes([0xFF, 0xFF, 0xFF, 0x7F])], ids=["19 hours", "years"])
def test_a_note_of_hours_is_not_rendered(tmp_path, capsys, ticks):
    (tmp_path / "long.mid").write_bytes(midi_of_a_note(ticks))
    for options in ([], ["--own"]):
        assert main(["render", str(tmp_path / "long.mid"), "-o", str(tmp_path / "long.wav"), *options]) == 2
        said = capsys.readouterr().err
        assert re.search(
            r"67,1\d\d s, where 3,600 are rendered; raise --max-seconds, or cut the piece|no note begins: a damaged "
            r"time",
            said,
        )
        assert said.count("\n") == 1 and not (tmp_path / "long.wav").exists()


def test_the_longest_piece_that_is_rendered_can_be_chosen(tmp_path, capsys):
    (tmp_path / "short.mid").write_bytes(midi_of_a_note(bytes([6])))  # 4.2 s
    command = ["render", str(tmp_path / "short.mid"), "-o", str(tmp_path / "short.wav"), "--own", "--max-seconds"]
    assert main([*command, "4"]) == 2 and "where 4 are rendered" in capsys.readouterr().err
    assert main([*command, "5"]) == 0
    assert main([*command, "nan"]) == 2 and "--max-seconds is nan; use more than 0" in capsys.readouterr().err


MUQ = """
import os, sys, time
sys.path[:0] = {path!r}
import numpy as np
from safetensors.numpy import save
def send(values):
    content = save(values)
    os.write(1, len(content).to_bytes(8, 'little') + content)
send({{'ready': np.ones(1, np.float32)}})
{action}
time.sleep(600)
"""
READ = "sys.stdin.buffer.read(int.from_bytes(sys.stdin.buffer.read(8), 'little'))\n"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("", "has not taken 9,600,[0-9]+ bytes within 2 s"),
        ("while sys.stdin.buffer.read(100000): pass", "has not answered within 2 s"),
        (READ + "send({'embedding': np.full(512, np.nan, np.float32)})", "not an embedding of 512 finite numbers"),
        (READ + "send({'embedding': np.ones(3, np.float32)})", "not an embedding of 512 finite numbers"),
        (READ + "send({})", "not an embedding of 512 finite numbers"),
        (READ + "os.write(1, (2**60).to_bytes(8, 'little'))", "has sent 1,152,921,504,606,846,976 bytes, or printed"),
        (READ + "print('a line of a library', flush=True)", "or printed to its standard output"),
        (READ + "os.close(1)", "has not answered"),
        (READ + "os.write(1, (5).to_bytes(8, 'little') + b'abcde')", "has sent no tensors"),
    ],
    ids=["never reads", "never answers", "NaN", "other size", "nothing", "length", "line", "closed", "no tensors"],
)
def test_a_process_of_muq_that_fails_is_one_sentence_and_ended(tmp_path, monkeypatch, action, words):
    (tmp_path / "server.py").write_text(MUQ.format(path=sys.path, action=action))
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/server.py\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(music_encoder, "MUQ_SECONDS", 30.0)
    encoder = music_encoder.MuQMuLanProcess(str(tmp_path / "python"))
    monkeypatch.setattr(music_encoder, "MUQ_SECONDS", 2.0)
    with pytest.raises(ValueError, match=words) as error:
        encoder.embed_audio([Waveform(np.ones((1, 2_400_000), np.float32), 24000)])
    assert "\n" not in str(error.value)
    assert not Path(f"/proc/{encoder._process.pid}").exists(), "the process is left"
