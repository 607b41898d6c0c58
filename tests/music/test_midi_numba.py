"""The compiled loop, the same loop as Python and array arithmetic read the same, and refuse the same; other rules of
reading.
"""

import struct
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mutants import mutant
from tiny import scores, tiny_score

from megatron_music.music import midi, midi_tables
from megatron_music.music.score import Score, Track

compiled_midi = pytest.importorskip(
    "megatron_music.music.midi_numba", reason="numba is not installed: the extra `fast`"
)

END = b"\x00\xff\x2f\x00"


def smf(*chunks: bytes, form: int = 1, division: int = 480, count: int | None = None) -> bytes:
    """A file of these MTrk chunks."""
    head = b"MThd" + struct.pack(">IHHH", 6, form, len(chunks) if count is None else count, division)
    return head + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in chunks)


def outcome(read, content: bytes) -> Score | str:
    try:
        return read(content)
    except midi.MidiError as error:
        return str(error)


LOOP = midi.Engine(midi_tables.loop_tables, midi.PLAIN.lengthen)


def read_by_loop(content: bytes, sanitize: bool = False, voices: str = "auto", pedal: str = "ignore") -> Score:
    return midi.read_bytes(content, "the file", sanitize, voices, pedal, LOOP)


def both(content: bytes) -> Score | str:
    """What both engines and the loop as Python read, or say."""
    found = []
    for options in ({}, {"sanitize": True}, {"pedal": "extend"}, {"pedal": "auto", "voices": "off"}):
        one = outcome(partial(compiled_midi.read_midi, **options), content)
        for read in (midi.read_midi, read_by_loop):
            other = outcome(partial(read, **options), content)
            assert one == other
            if isinstance(one, Score):
                assert np.array_equal(one.columns, other.columns)
                assert one.content.counts == other.content.counts
                assert np.array_equal(one.content.pedal_lengthening, other.content.pedal_lengthening)
        found.append(one)
    return found[0]


@st.composite
def quantities(draw) -> bytes:
    """A variable-length quantity: mostly small, at times long, now and then with more bytes than it needs."""
    value = draw(st.one_of(st.integers(0, 40), st.integers(0, 20_000), st.integers(0, (1 << 21) - 1)))
    groups = [value >> shift & 127 for shift in (21, 14, 7, 0)]
    while len(groups) > 1 and not groups[0] and draw(st.integers(0, 30)):
        groups = groups[1:]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


KEYS, FORCE, CHANNELS = st.integers(58, 61), st.sampled_from([0, 0, 1, 64, 127]), st.sampled_from([0, 0, 1, 9, 15])
META = st.sampled_from(
    [
        b"\xff\x51\x03\x07\xa1\x20",
        b"\xff\x51\x03\x05\x00\x01",
        b"\xff\x58\x04\x03\x02\x18\x08",
        b"\xff\x58\x04\x06\x03\x18\x08",
        b"\xff\x03\x04Alto",
        b"\xff\x03\x00",
        b"\xff\x01\x02hi",
        b"\xff\x59\x02\x00\x00",
        b"\xff\x21\x01\x00",
        b"\xff\x7f\x03\x00\x01\x41",
        b"\xf0\x05\x7e\x7f\x09\x01\xf7",
        b"\xf7\x02\x01\x41",
        b"\xb0\x40\x7f",
        b"\xb0\x40\x00",
        b"\xb1\x40\x50",
        b"\xff\x06\x01A",
        b"\xff\x05\x02la",
        b"\xff\x05\x01\xe9",
        b"\xff\x03\x03\xc3\xa9\x00",
        b"\xff\x54\x05\x00\x00\x00\x00\x00",
    ]
)
ODD = st.sampled_from(
    [
        b"\xff\x05\x00",
        b"\xff\x03\x02\xe9a",
        b"\xff\x03\x03\xed\xa0\x80",
        b"\xff\x51\x03\x00\x00\x00",
        b"\xff\x51\x02\x07\xa1",
        b"\xff\x58\x04\x00\x02\x18\x08",
        b"\xff\x58\x04\x04\x09\x18\x08",
        b"\xff\x58\x01\x04",
        b"\xf7\x01\x00",
        b"\xf8",
        b"\x90\x3c\x90",
        b"\x90\xbc\x40",
        b"\xb0\x07\x80",
        b"\xc0\x80",
        b"\x3c\x40",
        END[1:],
        b"\xff\x03\x60",
        b"\xe0\x00\x80",
        b"\xd0\x90",
    ]
)


@st.composite
def chunks(draw, odd: bool) -> bytes:
    """Events of one MTrk, with running status where it may stand."""
    out, running = b"", 0
    for _ in range(draw(st.integers(0, 25))):
        out += draw(quantities())
        kind = draw(st.sampled_from([8, 9, 9, 9, 9, 9, 11, 12, 14, 13, 10, 0, 1 if odd else 0]))
        if kind <= 1:
            event = draw(ODD if kind else META)
            running = 0 if event[0] != 0xFF else running
            out += event
            continue
        status = kind << 4 | draw(CHANNELS)
        data = bytes([draw(KEYS), draw(FORCE)]) if kind not in (12, 13) else bytes([draw(st.integers(0, 3))])
        out += data if status == running and draw(st.booleans()) else bytes([status]) + data
        running = status
    return out + (END if draw(st.integers(0, 9)) else b"")


@settings(max_examples=700, deadline=None)
@given(st.data(), st.booleans())
def test_any_events_are_read_alike_by_both(data, odd):
    both(smf(*data.draw(st.lists(chunks(odd), min_size=1, max_size=4)), form=data.draw(st.sampled_from([0, 1, 1, 2]))))


@settings(max_examples=150, deadline=None)
@given(scores(any_meter=True))
def test_scores_are_read_alike_by_both(tmp_path_factory, score):
    path = tmp_path_factory.mktemp("score") / "x.mid"
    midi.write_midi(score, path)
    both(path.read_bytes())


def test_damaged_files_are_refused_alike_by_both(tmp_path):
    midi.write_midi(tiny_score(), tmp_path / "x.mid")
    midi.write_midi(Score((Track(tiny_score().tracks[0].notes, 7, name="Piano"),), 4), tmp_path / "y.mid")
    files = [(tmp_path / name).read_bytes() for name in ("x.mid", "y.mid")]
    found = [both(mutant(files, number, seed=5)[1]) for number in range(600)]
    assert any(isinstance(one, str) for one in found) and any(isinstance(one, Score) for one in found)


def test_the_oldest_note_of_a_key_ends_first():
    chunk = (
        b"\x00\x90\x3c\x50"
        + b"\x0a\x90\x3c\x51"
        + b"\x0a\x80\x3c\x00"
        + b"\x0a\x80\x3c\x00"
        + b"\x00\x80\x3c\x00"
        + END
    )
    assert [tuple(note) for note in both(smf(chunk)).tracks[0]] == [(0, 20, 60, 80), (10, 30, 60, 81)]


def test_a_note_across_a_change_of_program_stays_with_the_first():
    chunk = b"\x00\xc0\x05\x00\x90\x3c\x50\x0a\xc0\x02\x0a\x80\x3c\x00\x00\x90\x3c\x50\x0a\x80\x3c\x00" + END
    score = both(smf(chunk))
    assert [(track.program, track.notes.tolist()) for track in score.tracks] == [
        (2, [[20, 30, 60, 80]]),
        (5, [[0, 20, 60, 80]]),
    ]


def test_lyrics_and_notes_without_an_end_make_no_track():
    score = both(smf(b"\x00\xcf\x07\x00\xff\x05\x02la\x00\x90\x3c\x50\x0a\x80\x3c\x00" + END))
    assert [(track.program, len(track)) for track in score.tracks] == [(0, 1)] and score.content.counts["lyrics"] == 1
    silent, sounding = b"\x00\x91\x3c\x50" + END, b"\x00\x90\x3c\x50\x0a\x80\x3c\x00\x0a\x90\x3d\x50" + END
    score = both(smf(silent, sounding))
    assert [len(track) for track in score.tracks] == [1] and score.content.counts["notes never switched off"] == 2
    assert both(smf(silent, b"\x00\x81\x3c\x00" + sounding)) == score  # of another chunk: it ends nothing there


@pytest.mark.parametrize("count", [2, 20, 60])
def test_many_events_at_one_time_keep_the_files_order(count):
    tempos = b"".join(
        b"\x00\xff\x51\x03" + struct.pack(">I", 400_000 + 7919 * number % 101 * 1000)[1:] for number in range(count)
    )
    score = both(smf(tempos + b"\x00\x90\x3c\x50\x60\x3c\x00" + END, tempos + END))
    assert [round(60e6 / tempo.quarters_per_minute) for tempo in score.tempos] == [
        400_000 + 7919 * number % 101 * 1000 for number in range(count)
    ] * 2


def test_more_tracks_and_notes_than_there_is_room_for_at_first(monkeypatch):
    for module in (midi_tables, compiled_midi):
        monkeypatch.setattr(module, "FIRST_ROOM", 16)
    notes = b"".join(
        bytes([0, 0xC0 | channel, program, 0, 0x90 | channel, 60, 80, 1, 60, 0])
        for channel in range(16)
        for program in range(128)
    )
    assert len(both(smf(notes + END)).tracks) == 2048


def test_tracks_of_a_chunk_come_by_channel_and_program():
    order = [(3, 7), (1, 9), (0, 3), (9, 0), (0, 2)]
    notes = b"".join(bytes([0, 0xC0 | c, p, 0, 0x90 | c, 40 + p, 80, 9, 40 + p, 0]) for c, p in order)
    tracks = both(smf(notes + END)).tracks
    assert [(track.program, track.is_drum, int(track.rows[0, 2])) for track in tracks] == [
        (2, False, 42),
        (3, False, 43),
        (9, False, 49),
        (7, False, 47),
        (0, True, 40),
    ]


@pytest.mark.parametrize("cut", [*range(14, 60)])
def test_cut_files(cut):
    content = smf(b"\x00\xff\x51\x03\x07\xa1\x20" + END, b"\x00\x90\x3c\x50\x60\x3c\x00" + END)
    if len(content[:cut]) >= 22:
        both(content[:cut])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_header_that_counts_otherwise(count):
    both(smf(b"\x00\x90\x3c\x50\x60\x3c\x00" + END, b"\x00\x90\x3e\x50\x60\x3e\x00" + END, count=count))


def test_many_programs_in_running_status_are_read():
    end = b"\x00\xff\x2f\x00"
    note = b"\x00\x90\x3c\x40\x60\x80\x3c\x00"
    score = both(smf(note + b"\x00\xc0\x01" + b"\x01\x02" * 3000 + end, note + end))
    assert sum(len(track) for track in score.tracks) == 2


def test_pedals_do_not_make_programs_of_another_chunk_slow():
    """A program is looked up among programs: with 20,000 pedals among them this took half a minute."""
    end = b"\x00\xff\x2f\x00"
    pedals = b"".join(b"\x01\xb1\x40" + bytes([127 * (place % 2)]) for place in range(20_000))
    score = both(smf(b"\x00\xc1\x05" + pedals + end, b"\x01\x91\x3c\x40\x01\x81\x3c\x00" * 20_000 + end))
    assert [(track.program, len(track)) for track in score.tracks] == [(5, 20_000)]
