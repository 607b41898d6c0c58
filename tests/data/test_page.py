"""A dataset on one page."""

import re
import subprocess
import sys

import numpy as np
import pytest
from contrast import contrast, schemes
from page_reader import Reader
from tiny_report import DUET, older_report, tiny_dataset, tiny_report

from megatron_music.data.page import page, read_documents, write_page
from megatron_music.music.score import Note, Score, Track
from megatron_music.reports.dataset import OLDER
from megatron_music.reports.html_charts import draw_roll
from megatron_music.tokens import vocabulary

MISCHIEF = (
    ("<script>alert(1)</script>/a&b.mid", '"><img src=x onerror=alert(2)>'),
    ("caf\udce9\x00\u202e.mid", "no header"),
)


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tiny_dataset(tmp_path_factory.mktemp("page") / "my <set>", quarantine=MISCHIEF)
    write_page(folder, folder.parent / "page.html")
    assert [path.name for path in folder.parent.iterdir() if path.is_file()] == ["page.html"]
    return (folder.parent / "page.html").read_text(encoding="utf-8")


def test_it_is_html_that_nests(content):
    read = Reader(content)
    assert content.startswith("<!doctype html>") and ("lang", "en") in read.attributes
    assert read.elements.count("h1") == 1 and read.elements.count("title") > 1  # the page's, and those of bars


def test_it_needs_no_network_no_script_and_no_other_file(content):
    read = Reader(content)
    assert not re.search(r"https?:|//|url\(|@import|@font-face", content)
    assert not {"script", "link", "img", "iframe", "object", "base"} & set(read.elements)
    assert not [name for name, _ in read.attributes if name.startswith("on") or name in ("src", "href")]


def test_strangers_names_are_words_and_no_markup(content):
    read = Reader(content)
    assert "<script>alert(1)</script>/a&b.mid" in read.text and '"><img src=x onerror=alert(2)>' in read.text
    assert "<b>$x$|songs" in read.text and "my <set>" in read.text
    assert r"caf\udce9\x00\u202e.mid" in read.text


def test_it_holds_the_numbers_of_the_report(content):
    text = Reader(content).text
    for said in (
        "20,012",
        "5,137,797",
        "10.3 MB",
        "of 1,409 MIDI files used",
        "4,545,563",
        "15,012",
        "41,322",
        "Grand piano",
        "13 others",
        "no part in 4/4",
        "1,530",
        "0.183",
        "3.812 nats",
        "2.00 times fewer",
        "3 levels, cut at 4, 9 notes",
        "2bb40d65",
        "250 to 299 tokens: 6,800 windows",
        "4 notes: 30 tracks in windows",
    ):
        assert said in text, said


def test_every_drawing_says_in_words_what_it_shows(content):
    drawings = re.findall(r"<svg[^>]*>", content)
    assert len(drawings) == 3 + 4 and all('role="img"' in drawing and "aria-label=" in drawing for drawing in drawings)
    assert "Piano roll of document 0 of train: 1 bar, 3 notes, 2 tracks" in content
    assert "prefers-color-scheme:dark" in content


def test_a_piano_roll_draws_each_note_where_it_sounds(content):
    roll = content[content.index("Piano roll of document 0") :]
    boxes = re.findall(r'<rect x="(\d+)" y="([\d.]+)" width="([\d.]+)" height="0.9"/>', roll)[:3]
    # 76 is the upper edge: two above the highest pitch. Each note ends a little early, to be told from the next.
    assert boxes == [("0", "3.05", "7.76"), ("8", "1.05", "7.76"), ("0", "27.05", "15.76")]
    assert "Soprano" in roll and "Acoustic bass" in roll


def test_documents_are_read_evenly_without_megatron_core(tmp_path):
    folder = tiny_dataset(tmp_path / "set", documents=10)
    read = read_documents(folder, "train", 4)
    assert [number for number, _ in read] == [0, 3, 6, 9]
    assert all(np.array_equal(ids, vocabulary.to_ids(DUET)) for _, ids in read)
    assert [number for number, _ in read_documents(tiny_dataset(tmp_path / "two", documents=2), "train", 4)] == [0, 1]
    assert read_documents(folder, "train", 0) == []


def test_damage_is_one_sentence(tmp_path):
    folder = tiny_dataset(tmp_path / "set")
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match=r"train.idx is damaged .train.bin is shorter than it says.; build"):
        page(folder)
    for damage in (b"", b"MMIDIDX", (folder / "train.idx").read_bytes()[:60]):
        (folder / "train.idx").write_bytes(damage)
        with pytest.raises(ValueError, match=r"train.idx is damaged .*; build the dataset again"):
            page(folder)
    tiny_dataset(tmp_path / "other")
    (tmp_path / "other" / "quarantine.jsonl").write_text("3\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"quarantine.jsonl is damaged"):
        write_page(tmp_path / "other", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_only_the_first_lines_of_a_long_quarantine(tmp_path):
    text = Reader(page(tiny_dataset(tmp_path / "set", quarantine=[(f"{k}.mid", "empty") for k in range(23)]))).text
    assert "19.mid" in text and "20.mid" not in text and "The first 20; 3 more are in quarantine.jsonl." in text


def test_an_older_report_and_a_dataset_without_bin(tmp_path):
    folder = tiny_dataset(tmp_path / "set", older_report())
    (folder / "train.idx").unlink()
    text = Reader(page(folder)).text
    assert OLDER in text and "This dataset has no .bin and .idx to draw from." in text
    assert OLDER not in Reader(page(tiny_dataset(tmp_path / "new"))).text


def test_a_document_without_notes_is_said_so(tmp_path):
    folder = tiny_dataset(tmp_path / "set", tiny_report(), documents=1)
    ids = vocabulary.to_ids(DUET)
    ids[(ids >= vocabulary.NOTE_ON) & (ids < vocabulary.NOTE_ON + 128)] = vocabulary.PAD
    (folder / "train.bin").write_bytes(ids.astype("<u2").tobytes())
    assert "No note sounds in it." in Reader(page(folder)).text


def test_it_loads_neither_torch_nor_matplotlib():
    heavy = {"torch", "megatron.core", "matplotlib"}
    code = f"import sys, megatron_music.data.page; sys.exit(bool({heavy!r} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_words_stand_out_in_both_schemes(content):
    for scheme, colours in schemes(content).items():
        for paper in ("paper", "card"):
            assert contrast(colours["ink"], colours[paper]) >= 7 and contrast(colours["soft"], colours[paper]) >= 4.5, (
                scheme
            )
        assert contrast(colours["warn"], colours["paper"]) >= 3


def test_every_colour_of_a_drawing_has_a_dark_counterpart(content):
    used = set(re.findall(r"var\(--(c-[0-9a-f]+)\)", content))
    found = schemes(content)
    assert len(used) == 4 and used <= found["light"].keys() and used <= found["dark"].keys()
    assert not re.search(r'(fill="|background:|fill:)#', content[content.index("</style>") :]), (
        "a colour that is the same in the dark"
    )


def test_a_roll_of_one_note_names_an_octave():
    for pitch in (0, 61, 66, 71, 127):
        roll = draw_roll(Score((Track([Note(0, 4, pitch)]),), 4), "a piece")
        assert re.search(r'<div class="y" aria-hidden="true"><span style="top:[\d.]+%">C-?\d</span>', roll), pitch
        assert "1 bar, 1 note, 1 track" in roll


def test_two_tracks_of_one_instrument_are_told_apart_in_a_roll():
    tracks = (Track([Note(0, 4, 60)], 40), Track([Note(0, 4, 64)], 40))
    roll = draw_roll(Score(tracks, 4), "a piece")
    assert "Violin 1</li>" in roll and "Violin 2</li>" in roll
