"""Notes written into a file: what changed changes, all else stays, event for event."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from raw_midi import END, chunks, events_of, smf

from megatron_music.music.midi import read_midi
from megatron_music.music.midi_edits import notes_of, parts_of, written_into
from megatron_music.music.midi_events import read_events
from megatron_music.music.midi_tables import MidiError
from megatron_music.music.score import Note, Score, TimeSignature, Track

NOTES = b"\x00\x90\x3c\x50\x60\x80\x3c\x40" + b"\x00\x90\x3e\x51\x60\x80\x3e\x41"  # two of 96 ticks


def with_notes(score: Score, number: int, notes: list[Note], **fields) -> Score:
    tracks = list(score.tracks)
    track = tracks[number]
    tracks[number] = Track(sorted(notes), track.program, track.is_drum, track.voice, track.name)
    return replace(score, tracks=tracks, length_steps=-1, **fields)


def notes_in(score: Score) -> list[Counter]:
    return [Counter(track) for track in score.tracks if len(track)]


def others_of(content: bytes) -> list[list[tuple[int, bytes]]]:
    """All events but notes and program changes."""
    return [[event for event in track if event[1][0] >> 4 not in (8, 9, 12)] for track in events_of(content)]


@st.composite
def files(draw, extra=None) -> bytes:
    form = draw(st.sampled_from([0, 1, 1]))
    content = smf(*draw(st.lists(chunks(), min_size=1, max_size=1 if form == 0 else 3)), form=form)
    try:
        read_midi(content)
    except MidiError:
        assume(False)
    return content


@settings(max_examples=200, deadline=None)
@given(files())
def test_the_notes_of_a_score_are_found_in_its_file(content):
    score, midi = read_midi(content), read_events(content)
    parts, own = parts_of(score, notes_of(midi))
    for track, part, notes in zip(score.tracks, parts, own, strict=True):
        assert (part is not None) == bool(len(track))
        assert Counter({note: len(found) for note, found in notes.items()}) == Counter(track)
        assert part is None or (part.channel == 9) == track.is_drum
    assert written_into(midi, score, score).to_bytes() == content


@settings(max_examples=300, deadline=None)
@given(files(), st.data())
def test_notes_are_removed_and_shortened_and_all_else_stays(content, data):
    score = read_midi(content)
    number = data.draw(st.sampled_from([number for number, track in enumerate(score.tracks) if len(track)]))
    notes = list(score.tracks[number])
    end = data.draw(st.integers(0, score.length_steps))
    gone = data.draw(st.sets(st.integers(0, len(notes) - 1)))
    left = [note for place, note in enumerate(notes) if place not in gone]
    kept = [note._replace(end_step=min(note.end_step, end)) if note.start_step < end else note for note in left]
    after = with_notes(score, number, kept)
    keys = Counter((part.track, part.channel) for part in parts_of(score, notes_of(read_events(content)))[0] if part)
    assume(max(keys.values()) == 1)
    written = written_into(read_events(content), score, after).to_bytes()
    assert notes_in(read_midi_or_none(written, score)) == notes_in(after)
    assert others_of(written) == others_of(content)


def read_midi_or_none(content: bytes, like: Score) -> Score:
    """The score, or one without tracks where no note is left."""
    try:
        return read_midi(content)
    except MidiError:
        return replace(like, tracks=())


@settings(max_examples=300, deadline=None)
@given(files(), st.data())
def test_notes_are_added_and_all_else_stays(content, data):
    """Wherever they are put; one within a note that sounds on its key is left out, and others end where it begins."""
    score = read_midi(content)
    number = data.draw(st.sampled_from([number for number, track in enumerate(score.tracks) if len(track)]))
    free = st.builds(
        lambda start, length, pitch: Note(start, start + length, pitch, 99),
        st.integers(0, score.length_steps + 500),
        st.integers(1, 600),
        st.integers(60, 63),
    )
    new, busy = [], {}
    for note in sorted(data.draw(st.lists(free, max_size=8))):  # as a model writes: never two at a time on a pitch
        if note.start_step >= busy.get(note.pitch, 0):
            new.append(note)
            busy[note.pitch] = note.end_step
    after = with_notes(score, number, [*score.tracks[number], *new])
    written = written_into(read_events(content), score, after).to_bytes()
    assert others_of(written) == others_of(content)
    old_events, new_events = events_of(content), events_of(written)
    for before, now in zip(old_events, new_events, strict=True):
        lost = Counter(before) - Counter(now)
        assert all(message[0] >> 4 in (8, 9) and not (message[0] >> 4 == 9 and message[2]) for _, message in lost)
    read = read_midi(written)
    kinds = [(track.program, track.is_drum) for track in score.tracks]
    # Tracks are read in the order of their first notes, and a program set for a new note can start a track of its own.
    assume(len(set(kinds)) == len(kinds) and kinds == [(track.program, track.is_drum) for track in read.tracks])
    for track, found in zip(score.tracks, read.tracks, strict=True):  # no note of the file is changed
        assert not Counter(track) - Counter(found)
    more = Counter(read.tracks[number]) - Counter(score.tracks[number])
    starts = {(note.start_step, note.pitch) for note in new}
    assert {(note.start_step, note.pitch) for note in more if note.velocity == 99} <= starts
    assert all(more[note] for note in new if note.start_step > score.length_steps)


def test_a_note_keeps_its_program_where_the_channel_has_changed_to_another():
    content = smf(b"\x00\xc0\x05" + NOTES + b"\x00\xc0\x07" + NOTES + b"\x00\x90\x40\x50\x60\x80\x40\x00" + END, form=0)
    score = read_midi(content)
    assert [track.program for track in score.tracks] == [5, 7]
    after = with_notes(score, 0, [*score.tracks[0], Note(384, 480, 70, 90)])
    read = read_midi(written_into(read_events(content), score, after).to_bytes())
    assert [(track.program, track.notes.tolist()) for track in read.tracks] == [
        (track.program, track.notes.tolist()) for track in after.tracks
    ]


def test_a_program_that_another_track_gives_a_channel_is_kept():
    content = smf(b"\x00\xc1\x28" + END, b"\x00\x91\x3c\x50\x60\x81\x3c\x00" + END)
    score = read_midi(content)
    sounding = next(number for number, track in enumerate(score.tracks) if len(track))
    after = with_notes(score, sounding, [*score.tracks[sounding], Note(96, 192, 62, 80)])
    written = written_into(read_events(content), score, after).to_bytes()
    assert [event for event in events_of(written)[1] if event[1][0] >> 4 == 12] == []


def test_a_note_that_is_never_switched_off_ends_where_its_key_is_struck_again():
    content = smf(NOTES + b"\x00\x90\x3c\x50" + END)
    score = read_midi(content)
    after = with_notes(score, 0, [*score.tracks[0], Note(480, 576, 60, 90)])
    read = read_midi(written_into(read_events(content), score, after).to_bytes())
    assert Counter(read.tracks[0]) == Counter([*after.tracks[0], Note(192, 480, 60, 80)])
    assert [one.note.end_step for one in notes_of(read_events(content)).by_key[0, 0, 60]] == [96, math.inf]


def test_a_stray_note_off_does_not_end_a_new_note():
    content = smf(NOTES + b"\x60\x80\x3c\x00" + b"\x60\x90\x3e\x50\x60\x80\x3e\x00" + END)
    score = read_midi(content)
    after = with_notes(score, 0, [*score.tracks[0], Note(200, 400, 60, 90)])
    assert notes_in(read_midi(written_into(read_events(content), score, after).to_bytes())) == notes_in(after)


def test_pedals_are_lifted_and_bends_centred_where_something_is_appended():
    down = b"\x00\xb0\x40\x7f\x00\xb0\x42\x50\x00\xb0\x43\x7f\x00\xe0\x00\x50\x00\xb0\x07\x30"
    other = b"\x00\x91\x3c\x50\x60\x81\x3c\x40" + b"\x00\xb1\x40\x7f\x00\xb1\x40\x00"
    content = smf(NOTES + down + b"\x83\x60\xb0\x40\x7f" + END, other + END)
    score = read_midi(content)
    written = events_of(written_into(read_events(content), score, score, release_at=200).to_bytes())
    more = [Counter(now) - Counter(before) for now, before in zip(written, events_of(content), strict=True)]
    assert (
        sorted(more[0])
        == [(200, b"\xb0\x40\x00"), (200, b"\xb0\x42\x00"), (200, b"\xe0\x00\x40"), (192 + 480, b"\xb0\x40\x00")]
        and not more[1]
    )
    assert written[0][-1] == (192 + 480, b"\xb0\x40\x00")  # the pedal that comes later is lifted after it


def test_meters_are_added_and_the_tracks_last_as_long_as_the_piece():
    content = smf(NOTES + END)
    score = read_midi(content)
    notes = [*score.tracks[0], Note(960, 1000, 60, 90)]
    after = replace(
        with_notes(score, 0, notes),
        time_signatures=(*score.time_signatures, TimeSignature(960, 6, 8)),
        length_steps=3000,
    )
    midi = written_into(read_events(content), score, after)
    assert (960, b"\xff\x58\x04\x06\x03\x18\x08") in events_of(midi.to_bytes())[0] and midi.tracks[0].end.tick == 3000


def test_a_score_of_another_file_is_refused():
    score = read_midi(smf(NOTES + END))
    with pytest.raises(ValueError, match="the notes of track 1 are not in the file's events"):
        written_into(read_events(smf(NOTES.replace(b"\x3c", b"\x3d") + END)), score, score)


def test_a_file_of_format_2_is_refused():
    score = read_midi(smf(NOTES + END, form=2))
    with pytest.raises(
        ValueError, match="the file is of format 2, whose patterns follow one another; export it as format 1"
    ):
        written_into(read_events(smf(NOTES + END, form=2)), score, score)
