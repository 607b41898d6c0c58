"""A person's song is never changed: what continuing and infilling leave of a file with all that files have."""

from collections import Counter

import pytest
from raw_midi import events_of, smf
from songs import QUARTER, SONGS, at_times, quarters
from tiny import tiny_score
from tiny_gpt import RandomModel

from megatron_music.generation.continuing import Continuation
from megatron_music.generation.infill import Filling, parse_bars
from megatron_music.generation.midi import Composer
from megatron_music.music.midi import read_midi
from megatron_music.music.midi_edits import written_into
from megatron_music.music.midi_events import read_events
from megatron_music.music.score import Note, Score, Tempo, TimeSignature, Track
from megatron_music.tokens import vocabulary as v
from megatron_music.tokens.encoding import Encoding


def continued(content: bytes, encoding: Encoding, bars: int = 3, seeds=(0, 1)) -> list[bytes]:
    score = read_midi(content)
    song = Continuation(score, encoding)
    scores = Composer(None, encoding, 2000, next_logits=RandomModel).continue_scores(
        [song.opening] * len(seeds), bars, seeds
    )
    return [written_into(read_events(content), score, song.extended(new), song.join).to_bytes() for new in scores]


def added(before: bytes, after: bytes) -> list[list[tuple[int, bytes]]]:
    """What each track has more; all it had must be there in the same order."""
    found = []
    for old, new in zip(events_of(before), events_of(after), strict=True):
        rest = iter(new)
        assert all(event in rest for event in old)
        found.append(sorted((Counter(new) - Counter(old)).elements()))
    return found


@pytest.mark.parametrize("form", SONGS)
@pytest.mark.parametrize("options", [{}, {"velocity": True, "tempo": True, "meters": ("all",)}, {"bars": 1}])
def test_a_continued_song_has_every_event_it_had(form, options):
    first, second = continued(SONGS[form], Encoding(**options))
    assert first != second
    for content in (first, second):
        new = [event for track in added(SONGS[form], content) for event in track]
        assert min(tick for tick, _ in new) >= 22 * QUARTER  # nothing before the join
        assert {message[0] for _, message in new} <= {0x80, 0x90, 0x89, 0x99, 0xB0}  # no tempo, meter or program
        assert [event for event in new if event[1][0] == 0xB0] == [
            (22 * QUARTER, b"\xb0\x40\x00")
        ]  # the pedal is lifted
        score = read_midi(content)
        assert (
            score.tempos == read_midi(SONGS[form]).tempos
            and score.time_signatures == read_midi(SONGS[form]).time_signatures
        )
        assert score.length_steps <= (22 + 12) * QUARTER
    assert events_of(first)[0][0] == events_of(SONGS[form])[0][0]


def test_new_bars_are_as_loud_as_the_last_ones_where_the_model_writes_no_velocities():
    content, _ = continued(SONGS[1], Encoding())
    _, piano, drums = added(SONGS[1], content)
    assert {message[2] for _, message in piano if message[0] == 0x90} == {64}  # of the last four bars, 14 quarters
    assert {message[2] for _, message in drums if message[0] == 0x99} == {94}
    own, _ = continued(SONGS[1], Encoding(velocity=True))
    assert len({message[2] for _, message in added(SONGS[1], own)[1] if message[0] == 0x90}) > 3


def test_a_file_that_lasts_longer_than_its_notes_is_continued_after_its_last_bar_with_notes():
    silence = at_times(*quarters(0, 60, 50, 8), (5000, b"\xb0\x07\x00"))
    content, _ = continued(smf(silence, division=QUARTER), Encoding())
    (new,) = added(smf(silence, division=QUARTER), content)
    assert 8 * QUARTER <= min(tick for tick, _ in new) < 12 * QUARTER
    assert read_events(content).tracks[0].end.tick == 5000


@pytest.mark.parametrize(("tick", "join"), [(8 * QUARTER, 8 * QUARTER), (9 * QUARTER, 12 * QUARTER)])
def test_a_meter_after_the_last_bar_with_notes_does_not_hold_for_the_new_bars(tick, join):
    content = smf(at_times(*quarters(0, 60, 50, 8), (tick, b"\xff\x58\x04\x03\x02\x18\x08")), division=QUARTER)
    song = Continuation(read_midi(content), Encoding())
    assert song.join == join
    (new,) = added(content, continued(content, Encoding())[0])
    assert (join, b"\xff\x58\x04\x04\x02\x18\x08") in new and min(new)[0] == join


def test_a_note_that_ends_a_little_late_makes_no_bar_of_its_own():
    score = Score((Track([(0, 485, 60, 80), (480, 1925, 60, 80)]),), 480)
    assert Continuation(score, Encoding()).join == 1920
    assert Continuation(Score((Track([(0, 1920 + 60, 60, 80)]),), 480), Encoding()).join == 3840


def test_a_piece_that_ends_in_a_meter_the_model_does_not_know_is_refused():
    signatures = (TimeSignature(0, 4, 4), TimeSignature(32, 3, 4))
    score = Score(tiny_score(6).tracks, 4, signatures)
    with pytest.raises(
        ValueError,
        match=r"the piece ends in 3/4 .bar 8., which the model has no token for; it has 4/4; continue a piece",
    ):
        Continuation(score, Encoding())
    assert Continuation(score, Encoding(unknown_meters=("3/4",))).opening.num_bars == 6


def test_a_piece_in_24_16_is_continued_in_12_8_under_its_own_time_signature():
    content = smf(at_times(*quarters(0, 60, 50, 12), (0, b"\xff\x58\x04\x18\x04\x18\x08")), division=QUARTER)
    encoding = Encoding(meters=("all",))
    song = Continuation(read_midi(content), encoding)
    assert song.opening.time_signatures == ((0, 12, 8),) and song.join == 12 * QUARTER
    (new,) = added(content, continued(content, encoding)[0])
    assert new and not [message for _, message in new if message[:2] == b"\xff\x58"]


def test_a_continuation_stays_in_the_last_meter_and_tempo():
    encoding = Encoding(meters=("3/4", "4/4"), tempo=True)
    signatures = (TimeSignature(0, 4, 4), TimeSignature(64, 3, 4))
    score = Score(tiny_score(7).tracks[:2], 4, signatures, (Tempo(0, 60.0), Tempo(0, 90.0), Tempo(64, 150.0)))
    song = Continuation(score, encoding)
    assert [tempo.quarters_per_minute for tempo in song.opening.tempos] == pytest.approx([90, 150], rel=0.04)
    composer = Composer(None, encoding, 2000, next_logits=RandomModel)
    for new in composer.continue_scores([song.opening] * 4, 9, range(4)):
        assert new.time_signatures == song.opening.time_signatures and new.tempos == song.opening.tempos


@pytest.mark.parametrize("form", SONGS)
@pytest.mark.parametrize(("words", "channels"), [("track 1 bars 2, 5", {0}), ("bar 5", {0, 9}), ("track 2", {9})])
def test_an_infilled_song_has_all_but_the_notes_of_the_chosen_bars(form, words, channels):
    content, encoding = SONGS[form], Encoding(infill=True)
    score = read_midi(content)
    for filled in Composer(None, encoding, 2000, next_logits=RandomModel).fill(score, parse_bars(words), [0, 1]):
        written = written_into(read_events(content), score, filled).to_bytes()
        assert written != content
        chosen = {"track 1 bars 2, 5": ((4, 8), (14, 18)), "bar 5": ((14, 18),), "track 2": ((0, 8), (10, 22))}[words]
        for old, new in zip(events_of(content), events_of(written), strict=True):
            for tick, message in [*(Counter(old) - Counter(new)), *(Counter(new) - Counter(old))]:
                assert message[0] >> 4 in (8, 9) and message[0] & 15 in channels
                assert any(first * QUARTER - 12 <= tick <= after * QUARTER + 2 for first, after in chosen)
        read = read_midi(written)
        assert [sorted(track) for track in read.tracks] == [sorted(track) for track in filled.tracks]


def test_lyrics_are_no_instrument():
    lyrics = at_times((0, b"\xff\x05\x02la"), (96, b"\xff\x05\x02lu"))
    content = smf(
        lyrics,
        at_times((0, b"\xc1\x28"), *quarters(1, 60, 50, 16)),
        at_times(*quarters(9, 36, 50, 16)),
        division=QUARTER,
    )
    score = read_midi(content)
    for words, changed in (("track 1 bar 3", [1]), ("bar 3", [1, 2])):
        (filled,) = Composer(None, Encoding(infill=True), 2000, next_logits=RandomModel).fill(
            score, parse_bars(words), [0]
        )
        written = written_into(read_events(content), score, filled).to_bytes()
        tracks = enumerate(zip(events_of(content), events_of(written), strict=True))
        assert [number for number, (old, new) in tracks if old != new] == changed
    assert (
        v.INST + 40
        in Composer(None, Encoding(), 2000, next_logits=RandomModel)
        ._opening(Continuation(score, Encoding()).opening, False)[0]
        ._instruments
    )


PEDAL = [
    (0, b"\xb0\x40\x7f"),
    *[(place * QUARTER, bytes((0x90, 60 + place % 2, 80))) for place in range(8)],
    *[(place * QUARTER + 20, bytes((0x80, 60 + place % 2, 0))) for place in range(8)],
    (8 * QUARTER - 4, b"\xb0\x40\x00"),
]


@pytest.mark.parametrize("verb", ["continue", "infill"])
def test_the_model_reads_notes_as_long_as_its_data_have_them_and_the_file_keeps_its_own(verb):
    content = smf(at_times(*PEDAL), division=QUARTER)
    given, sounding = read_midi(content), read_midi(content, pedal="extend")
    assert max(note.end_step - note.start_step for note in given.tracks[0]) == 20
    encoding = Encoding(bars=2, pedal="extend", infill=True)
    if verb == "continue":
        opening = Continuation(given, encoding, sounding).opening
        assert opening.tracks[0].notes[0].tolist()[:2] == [0, 8], "until the same key is struck again"
        assert Continuation(given, encoding).opening.tracks[0].notes[0].tolist()[:2] == [0, 1]
        return
    filling = Filling(given, [(0, 1)], encoding, sounding=sounding)
    of_sounding, of_keys = (Filling(score, [(0, 1)], encoding).next_window(4000).prompt for score in (sounding, given))
    assert filling.next_window(4000).prompt == of_sounding != of_keys
    kept = filling.score.tracks[0].notes
    assert (kept[:, 1] - kept[:, 0] == 20).all(), "of the file itself nothing is lengthened"


def test_a_piece_that_ends_in_a_bar_cut_short_is_told_as_that():
    meters = [(0, b"\xff\x58\x04\x04\x02\x18\x08"), (10 * QUARTER, b"\xff\x58\x04\x03\x02\x18\x08")]
    notes = [
        (place * QUARTER, message) for place in range(10) for message in (bytes((0x90, 60, 80)), bytes((0x80, 60, 0)))
    ]
    notes = [(tick + (90 if message[0] == 0x80 else 0), message) for tick, message in notes]
    with pytest.raises(ValueError, match="bar 3, which the next time signature cuts short"):
        Continuation(read_midi(smf(at_times(*meters, *notes), division=QUARTER)), Encoding(meters=("4/4",)))


@pytest.mark.parametrize("verb", ["continue", "infill"])
def test_a_program_on_another_port_is_not_that_of_the_channel(verb):
    """Channel 1 of port 1 is another instrument than channel 1 of port 0, also where notes are added."""
    first = at_times(*quarters(0, 60, 50))
    second = at_times((0, b"\xff\x21\x01\x01"), (0, b"\xc0\x0a"), (700, b"\xc0\x14"), *quarters(0, 67, 50))
    content = smf(first, second, division=QUARTER)
    encoding = Encoding(bars=2, infill=True)
    score = read_midi(content)
    assert {track.program for track in score.tracks} == {0, 10, 20}
    if verb == "continue":
        edited = continued(content, encoding, seeds=(0,))[0]
    else:
        old = score.tracks[0]
        tracks = [Track([*old, Note(5, 20, 72, 99)], old.program, old.is_drum, old.voice, old.name), *score.tracks[1:]]
        edited = written_into(
            read_events(content), score, Score(tracks, score.steps_per_quarter, score.time_signatures, score.tempos)
        ).to_bytes()
    was, now = (
        Counter((track.program, note) for track in read_midi(song).tracks for note in track)
        for song in (content, edited)
    )
    assert not was - now and {program for program, _ in now - was} <= {track.program for track in score.tracks}
