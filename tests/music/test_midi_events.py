"""A file read as events and written again is the same file."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_midi import END, META, chunks, events_of, smf

from megatron_music.music.midi_events import Event, OtherChunk, read_events

PACKETS = st.one_of(META, st.sampled_from([b"\xf7\x05\x00\x7f\x00\x41\xf7", b"\xf7\x02\x01\x41", b"\xf0\x02\x41\x10"]))
NOTE = b"\x00\x90\x3c\x50\x60\x80\x3c\x00"


def rewritten(content: bytes) -> bytes:
    """Every track written anew from its events."""
    midi = read_events(content)
    return midi.with_tracks(track.edited(track.events) for track in midi.tracks).to_bytes()


@settings(max_examples=300, deadline=None)
@given(st.lists(chunks(PACKETS), min_size=1, max_size=3), st.sampled_from([0, 1, 1, 2]))
def test_events_are_what_an_independent_reader_finds_before_and_after(tracks, form):
    content = smf(*tracks[: 1 if form == 0 else None], form=form)
    assert read_events(content).to_bytes() == content
    assert events_of(rewritten(content)) == events_of(content)
    for track, read in zip(read_events(content).tracks, events_of(content), strict=True):
        assert [tick for tick, _ in track.events] == [tick for tick, _ in read]
        for (_, ours), (_, theirs) in zip(track.events, read, strict=True):
            assert ours == theirs or ours[0] in (0xF0, 0xF7, 0xFF)  # which mido writes anew, or without their length


def test_running_status_goes_on_across_a_packet_and_a_meta_event():
    running = b"\x00\x90\x3c\x50\x60\x3c\x00" + b"\x00\xf0\x01\xf7\x00\x3e\x50" + b"\x00\xff\x01\x00\x30\x3e\x00"
    (track,) = read_events(smf(running + END)).tracks
    assert [(tick, message) for tick, message in track.events if message[0] == 0x90] == [
        (0, b"\x90\x3c\x50"),
        (0x60, b"\x90\x3c\x00"),
        (0x60, b"\x90\x3e\x50"),
        (0x90, b"\x90\x3e\x00"),
    ]


def test_bytes_after_the_end_of_a_track_and_of_the_file_stay():
    content = smf(NOTE + END + b"\x00\x90junk") + b"more"
    assert read_events(content).to_bytes() == content
    assert rewritten(content) == content
    (track,) = read_events(content).tracks
    assert track.tail == b"\x00\x90junk" and len(track.events) == 2


def test_chunks_of_other_kinds_and_a_long_header_stay():
    head, track = smf(NOTE + END)[:14], smf(NOTE + END)[14:]
    content = (
        b"MThd\x00\x00\x00\x08" + head[8:] + b"\x01\x02" + b"XFIH\x00\x00\x00\x03abc" + track + b"XFKM\x00\x00\x00\x00"
    )
    midi = read_events(content)
    assert midi.chunks[0] == OtherChunk(b"XFIH", b"abc") and len(midi.tracks) == 1
    assert midi.to_bytes() == content == rewritten(content)


def test_an_rmid_file_is_unwrapped():
    content = smf(NOTE + END)
    data = b"RMIDINFO\x00\x00\x00\x00data" + len(content).to_bytes(4, "little") + content
    assert read_events(b"RIFF" + len(data).to_bytes(4, "little") + data).to_bytes() == content


def test_a_length_that_is_too_great_is_the_files_end():
    content = smf(NOTE + END)
    longer = content[:18] + (1000).to_bytes(4, "big") + content[22:]
    assert [len(track.events) for track in read_events(longer).tracks] == [2]


def test_a_track_without_an_end_gets_one_when_it_is_edited():
    assert rewritten(smf(NOTE)) == smf(NOTE + END)
    (track,) = read_events(smf(NOTE)).tracks
    assert track.edited([*track.events, Event(0x400, b"\x90\x3c\x00")]).end == Event(0x400, END[1:])


def test_a_path_is_read(tmp_path):
    (tmp_path / "x.mid").write_bytes(smf(NOTE + END))
    assert read_events(tmp_path / "x.mid") == read_events(smf(NOTE + END))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "not a MIDI file"),
        (b"RIFF\x10\x00\x00\x00RMIDdata", "not a MIDI file"),
        (smf(NOTE + END, NOTE + b"\x00\x90\x3c"), "track chunk 2 of the file breaks off inside an event"),
        (smf(b"\x00\xff\x01\x10abc"), "breaks off inside an event"),
        (smf(b"\x00\x3c\x50"), "track chunk 1 of the file is damaged .byte 1 is data without a status"),
    ],
)
def test_what_is_damaged_is_refused_with_its_place(content, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_events(content)
