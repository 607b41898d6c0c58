import io
import struct

import miditoolkit
import mido
import pytest
from hypothesis import HealthCheck, given, settings
from tiny import scores, tiny_score

from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi, to_miditoolkit, write_midi
from megatron_music.music.midi_tables import MidiError
from megatron_music.music.score import (
    FOUR_FOUR,
    Note,
    Score,
    Tempo,
    TimeSignature,
    Track,
    name_voices,
)


def midi_bytes(*events: bytes, division: int = 480) -> bytes:
    """A format 0 file of one track of raw events."""
    track = b"".join(events) + b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, division) + b"MTrk" + struct.pack(">I", len(track)) + track


NOTE = b"\x00\x90\x3c\x50" + b"\x83\x60\x80\x3c\x00"  # middle C for 480 ticks


def test_one_note():
    score = read_midi(midi_bytes(NOTE))
    assert score.steps_per_quarter == 480
    assert [list(track) for track in score.tracks] == [[Note(0, 480, 60, 80)]]


def test_a_path_the_bytes_and_a_midifile_give_the_same(tmp_path):
    path = tmp_path / "a.mid"
    write_midi(tiny_score(), path)
    from_path = read_midi(path)
    assert read_midi(str(path)) == from_path == read_midi(path.read_bytes())
    midi = miditoolkit.MidiFile(str(path))
    assert read_midi(midi).tracks == from_path.tracks
    assert len(midi.instruments) == 4


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(scores())
def test_quantised_scores_survive_a_file(tmp_path, score):
    quantized = quantize(score)
    write_midi(quantized, tmp_path / "x.mid")
    to_miditoolkit(quantized).dump(str(tmp_path / "y.mid"))
    for name in ("x.mid", "y.mid"):
        assert sounds(quantize(read_midi(tmp_path / name))) == sounds(quantized)


def sounds(score: Score) -> list[tuple]:
    """All but voices, which a file has only as names."""
    return [(track.program, track.is_drum, track.notes.tolist()) for track in score.tracks]


def test_voices_survive_a_file(tmp_path):
    for score in (tiny_score(), Score(tiny_score().tracks[1:3], 4)):
        write_midi(score, tmp_path / "x.mid")
        assert quantize(read_midi(tmp_path / "x.mid")) == score


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(scores())
def test_our_reader_and_miditoolkit_read_the_same_notes(tmp_path, score):
    write_midi(quantize(score), tmp_path / "x.mid")
    ours = read_midi(tmp_path / "x.mid")
    theirs = miditoolkit.MidiFile(str(tmp_path / "x.mid"))
    ours = [(t.program, t.is_drum, sorted(map(tuple, t.notes.tolist()))) for t in ours.tracks if len(t)]
    theirs = [
        (t.program, t.is_drum, sorted((n.start, n.end, n.pitch, n.velocity) for n in t.notes))
        for t in theirs.instruments
    ]
    assert sorted(ours) == sorted(theirs)


def test_tempo_and_meter_survive(tmp_path):
    score = Score(
        (Track([Note(0, 480, 60, 80)], program=3, name="Piano"),),
        480,
        (TimeSignature(0, 3, 4), TimeSignature(1440, 4, 4)),
        (Tempo(0, 90.0),),
    )
    write_midi(score, tmp_path / "x.mid")
    read = read_midi(tmp_path / "x.mid")
    assert read.time_signatures == score.time_signatures and read.tracks == score.tracks
    assert read.tempos[0].quarters_per_minute == pytest.approx(90, abs=0.01)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"RIFF" + bytes(40), "is no MIDI file"),
        (b"not music at all, just text in a file", "is no MIDI file"),
        (midi_bytes(NOTE, division=0), "0 ticks in a quarter"),
        (midi_bytes(NOTE, division=0xE728), "SMPTE"),
        (midi_bytes(b"\x00\xff\x58\x04\x00\x02\x18\x08", NOTE), "the meter 0/4"),
        (midi_bytes(b"\x00\xff\x58\x04\x04\xff\x18\x08", NOTE), "the meter 4/0"),
        (midi_bytes(), "has no notes"),
        (midi_bytes(b"\xff\xff\xff\x7f\x90\x3c\x50", b"\x60\x80\x3c\x00"), "in which no note begins: a damaged time"),
        (midi_bytes(NOTE)[:30], "is damaged|has no notes"),
    ],
)
def test_what_is_no_music_is_refused_with_a_reason(tmp_path, content, sentence):
    path = tmp_path / "bad.mid"
    path.write_bytes(content)
    with pytest.raises(MidiError, match=sentence) as error:
        read_midi(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_named():
    with pytest.raises(MidiError, match=r"nowhere.mid cannot be read"):
        read_midi("nowhere.mid")


def test_miditoolkits_nonsense_is_refused_too():
    midi = miditoolkit.MidiFile(ticks_per_beat=0)
    midi.instruments = [miditoolkit.Instrument(0)]
    midi.instruments[0].notes = [miditoolkit.Note(80, 60, 0, 480)]
    with pytest.raises(MidiError, match="0 ticks"):
        read_midi(midi)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.mid"
    write_midi(tiny_score(), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="track 1 has a pitch"):
        write_midi(Score((Track([Note(0, 4, 1000)]),), 4), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_voices_are_named_by_order_or_by_name():
    unnamed = tuple(Track(track.notes, 0) for track in tiny_score().tracks)
    assert [t.voice for t in name_voices(Score(unnamed, 4)).tracks] == ["SOPRANO", "ALTO", "TENOR", "BASS"]
    assert [t.voice for t in name_voices(Score(unnamed[::-1], 4)).tracks] == [""] * 4
    mixed = tuple(
        Track(t.notes, n, name=name)
        for n, (t, name) in enumerate(zip(unnamed, ("Bass", "Alto ", "tenor", "SOPRANO"), strict=True))
    )
    assert [t.voice for t in name_voices(Score(mixed, 4)).tracks] == ["BASS", "ALTO", "TENOR", "SOPRANO"]
    chords = (*unnamed[:3], Track([Note(0, 8, 40), Note(4, 12, 43)]))
    assert [t.voice for t in name_voices(Score(chords, 4)).tracks] == [""] * 4
    assert Score(unnamed, 4).time_signatures == FOUR_FOUR


def programs_by_channel(content: bytes) -> dict[tuple[int, int], set[int]]:
    """Programs of each port and channel, as mido reads them."""
    found: dict[tuple[int, int], set[int]] = {}
    for track in mido.MidiFile(file=io.BytesIO(content)).tracks:
        port = next((message.port for message in track if message.type == "midi_port"), 0)
        for message in track:
            if message.type == "program_change":
                found.setdefault((port, message.channel), set()).add(message.program)
    return found


@pytest.mark.parametrize(
    "programs",
    [
        range(19),
        [*range(15)],
        [*range(16)],
        [0] * 40,
        [0, 1, 2] * 10,
        [*range(128)],
        [5] * 14 + [6, 7],
    ],
)
def test_no_channel_of_a_port_plays_two_programs(programs, tmp_path):
    tracks = [Track([Note(480 * n, 480 * n + 480, 60, 80)], program) for n, program in enumerate(programs)]
    drums = Track([Note(0, 480, 36, 80)], is_drum=True)
    score = Score((*tracks[:3], drums, *tracks[3:]), 480)
    write_midi(score, tmp_path / "x.mid")
    found = programs_by_channel((tmp_path / "x.mid").read_bytes())
    melodic = {place: programs for place, programs in found.items() if place[1] != 9}
    assert all(len(programs) == 1 for programs in melodic.values()) and 9 in {channel for _, channel in found}
    has_ports = any(port for port, _ in found)
    assert has_ports == (len(programs) > 15 and len(set(programs)) > 15)
    if len(programs) <= 15:
        assert len(melodic) == len(programs)
    read = read_midi(tmp_path / "x.mid")
    assert [(t.program, t.is_drum, t.notes.tolist()) for t in read.tracks] == [
        (t.program, t.is_drum, t.notes.tolist()) for t in score.tracks
    ]


def test_names_are_written_in_utf_8(tmp_path):
    write_midi(Score((Track([Note(0, 480, 60, 80)], 73, name="Flöte 笛"),), 480), tmp_path / "x.mid")
    track = mido.MidiFile(tmp_path / "x.mid", charset="utf-8").tracks[0]
    assert [message.name for message in track if message.type == "track_name"] == ["Flöte 笛"]
    assert read_midi(tmp_path / "x.mid").tracks[0].name == "Flöte 笛"
