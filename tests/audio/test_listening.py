"""The page to listen to pieces on."""

import re

import pytest
from contrast import contrast, schemes
from page_reader import Reader
from tiny import tiny_score

from megatron_music.audio.listening import render_files, write_listening_page
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Note, Score, Track

NAMES = ("one.mid", "two <b>&amp; 音楽.mid")


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    write_midi(tiny_score(), folder / NAMES[0])
    notes = {pitch: [Note(8 * beat, 8 * beat + 8, pitch) for beat in range(200)] for pitch in (60, 64, 67)}
    pianos = tuple(Track(notes[pitch], 0, name=name) for pitch, name in ((60, ""), (64, ""), (67, "<i>&")))
    write_midi(Score(pianos, 4), folder / NAMES[1])
    pieces = list(render_files([(folder / name, folder / f"{name}.wav") for name in NAMES], 8000, own=True))
    write_listening_page(folder / "page.html", "New & old", "Some <pieces>.", pieces)
    return (folder / "page.html").read_text(encoding="utf-8")


class Page(Reader):
    """A page with a form control and an audio element."""

    def handle_starttag(self, tag, attributes):
        super().handle_starttag(tag, attributes)
        if tag == "input":
            self.open.pop()


def test_it_is_a_page_with_a_language_a_title_and_landmarks(content):
    read = Page(content)
    assert content.startswith("<!doctype html>") and ("lang", "en") in read.attributes
    assert [read.elements.count(tag) for tag in ("h1", "main", "header", "footer")] == [1, 1, 1, 1]
    assert read.elements.count("h2") == 2 and ("name", "viewport") in read.attributes
    assert "<title>New &amp; old</title>" in content


def test_it_needs_no_network(content):
    without_audio = re.sub(r"data:audio/wav;base64,[^\"]*", "", content)
    assert not re.search(r"https?:|//|url\(|@import", without_audio.replace("// ", ""))


def test_names_from_files_are_words_and_no_markup(content):
    read = Page(content)
    assert NAMES[1] in read.text and "Some <pieces>." in read.text and "<i>&" in read.text
    assert "b" not in read.elements and "pieces" not in read.elements


def test_every_control_has_a_name_of_its_own(content):
    labels = [value for name, value in Page(content).attributes if name == "aria-label"]
    for piece in NAMES:
        assert {f"Play {piece}", f"Position in {piece}", f"Piano roll of {piece}"} <= set(labels)
    assert re.search(r'<div class="window" tabindex="0" role="region"', content), (
        "the keyboard reaches a roll that scrolls"
    )


def test_two_tracks_of_one_instrument_are_told_apart_in_the_legend(content):
    legend = re.findall(r'<li><i style="--c:(.*?)"></i>(.*?)</li>', content)
    assert [label for _, label in legend[4:]] == ["Grand piano 1", "Grand piano 2", "&lt;i&gt;&amp;"]
    assert len({colour for colour, _ in legend[4:]}) == 3


def test_bars_are_numbered_without_numbers_upon_each_other(content):
    one, two = re.findall(r'<div class="numbers" aria-hidden="true">(.*?)</div>', content)
    assert re.findall(r">(\d+)<", one) == ["1", "2", "3", "4"]
    places = [float(place) for place in re.findall(r"left:([\d.]+)%", two)]
    assert len(places) == 100 and places == sorted(places) and places[-1] < 100
    dense = re.findall(r"left:([\d.]+)%", one)
    assert float(dense[1]) - float(dense[0]) > 10


def test_space_starts_and_stops_one_piece_at_a_time(content):
    script = content[content.index("<script>") :]
    assert "event.code !== 'Space'" in script and "chosen.toggle()" in script and "event.preventDefault()" in script
    assert "event.target.closest('button, audio')" in script, "a focused button keeps its own Space"
    assert re.search(r"audio\.onplay = .*other\.audio\.pause\(\)", script), "whatever starts a piece stops the others"
    assert "<kbd>Space</kbd>" in content


def test_words_and_focus_are_seen_in_both_schemes(content):
    for scheme, colours in schemes(content).items():
        for paper in ("paper", "card"):
            assert contrast(colours["ink"], colours[paper]) >= 7, scheme
            assert contrast(colours["soft"], colours[paper]) >= 4.5, scheme
            assert contrast(colours["focus"], colours[paper]) >= 3, scheme
        assert contrast(colours["accent"], colours["on"]) >= 4.5, scheme
    assert ":focus-visible{outline:" in content
