"""Chorales from music21's own scores."""

import music21
import pytest

from megatron_music.corpora import bach
from megatron_music.corpora.bach import chorale_score, write_chorales
from megatron_music.music.grid import quantize
from megatron_music.music.midi import read_midi
from megatron_music.music.score import TimeSignature


def parse(name: str) -> music21.stream.Score:
    (path,) = [path for path in music21.corpus.getComposer("bach") if path.name == name]
    converter = music21.converter.Converter()
    converter.parseFileNoPickle(path)
    return converter.stream


def test_an_upbeat_stands_before_a_bar_line():
    score = chorale_score(parse("bwv101.7.mxl"))
    assert [track.voice for track in score.tracks] == ["SOPRANO", "ALTO", "TENOR", "BASS"]
    assert score.time_signatures == (TimeSignature(0, 4, 4),)
    assert min(int(track.notes[0, 0]) for track in score.tracks) == 3 * bach.TICKS_PER_QUARTER
    soprano = [tuple(note)[:3] for note in quantize(score).tracks[0]][:3]
    assert soprano == [(12, 16, 69), (16, 20, 69), (20, 24, 65)]


def test_other_parts_are_left_out():
    score = chorale_score(parse("bwv1.6.mxl"))  # with two horns
    assert [track.name for track in score.tracks] == ["SOPRANO", "ALTO", "TENOR", "BASS"]


def test_scores_without_the_four_voices_give_nothing():
    stream = music21.stream.Score([music21.stream.Part([music21.note.Note("C4")])])
    assert chorale_score(stream) is None


@pytest.mark.parametrize("name", ["bwv276.mxl", "bwv324.mxl", "bwv4.8.mxl"])
def test_chorales_whose_bar_lines_would_be_off_are_left_out(name):
    assert chorale_score(parse(name)) is None


def test_a_bar_that_a_repeat_divides_and_a_long_last_one_are_whole():
    for name in ("bwv101.7.mxl", "bwv119.9.mxl"):
        assert chorale_score(parse(name)) is not None


def test_files_are_written_once(tmp_path, monkeypatch):
    paths = [path for path in music21.corpus.getComposer("bach") if path.name in ("bwv101.7.mxl", "bwv1.6.mxl")]
    monkeypatch.setattr(music21.corpus, "getComposer", lambda _: paths)
    assert list(write_chorales(tmp_path, workers=1)) == [(1, 2), (2, 2)]
    assert quantize(read_midi(tmp_path / "bwv101.7.mid")).tracks[3].voice == "BASS"
    assert list(write_chorales(tmp_path, workers=1)) == []
