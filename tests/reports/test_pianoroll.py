"""A piece as a picture: rows, names, fonts, and the bars that are asked for."""

import struct
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager
from tiny import tiny_score

from megatron_music.cli.entry import main
from megatron_music.music.midi import write_midi
from megatron_music.music.score import Note, Score, TimeSignature, Track
from megatron_music.reports.pianoroll import (
    MAX_ROWS,
    NO_FONT,
    plot_score,
    rows_of_bars,
    score_pixels,
)


@pytest.fixture
def few_fonts():
    """Fonts as on a machine with none for East Asian letters; those that a test adds are gone after it."""
    before = list(font_manager.fontManager.ttflist)
    font_manager.fontManager.ttflist[:] = [font for font in before if font.name.startswith("DejaVu")]
    yield
    font_manager.fontManager.ttflist[:] = before


@pytest.fixture
def words(tmp_path):
    """Draws a score as SVG, whose texts stay texts."""

    def draw(score, **options) -> list[str]:
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            plot_score(score, tmp_path / "roll.svg", **options)
        tree = ElementTree.parse(tmp_path / "roll.svg")
        return ["".join(element.itertext()) for element in tree.iter("{http://www.w3.org/2000/svg}text")]

    return draw


def named(*names: str, program: int = 0, bars: int = 4) -> Score:
    """A track for each name, a third apart, playing in quarters."""
    tracks = [
        Track([Note(4 * beat, 4 * beat + 4, 60 + 3 * number) for beat in range(4 * bars)], program + number, name=name)
        for number, name in enumerate(names)
    ]
    return Score(tuple(tracks), steps_per_quarter=4)


def test_a_song_of_hundreds_of_bars_is_drawn_in_rows(tmp_path, words):
    rows = rows_of_bars(tiny_score(300))
    assert rows[0] == (1, 16) and rows[-1] == (289, 300) and len(rows) == 19
    assert [last + 1 for _, last in rows[:-1]] == [first for first, _ in rows[1:]]
    plot_score(tiny_score(300), tmp_path / "long.png")
    plot_score(tiny_score(8), tmp_path / "short.png")
    (width, height), (short_width, short_height) = (
        struct.unpack(">II", (tmp_path / name).read_bytes()[16:24]) for name in ("long.png", "short.png")
    )
    assert width == short_width < 1600 and height > 5 * short_height
    said = words(tiny_score(300))
    assert said.count("pitch") == 19 and {"1", "17", "289", "300"} <= set(said) and "301" not in said


def test_a_piece_of_ten_thousand_bars_can_still_be_opened_and_says_how_to_read_it(tmp_path):
    (remark,) = plot_score(tiny_score(10_000), tmp_path / "roll.png")
    assert "10,000 bars are 252 in a row, too many to read; draw a part with --bars 1-64" in remark
    assert max(struct.unpack(">II", (tmp_path / "roll.png").read_bytes()[16:24])) < 1 << 14
    assert len(rows_of_bars(tiny_score(10_000))) <= MAX_ROWS


def test_long_bars_are_fewer_in_a_row():
    slow = Score(tiny_score(32).tracks, 4, (TimeSignature(0, 12, 4),))
    assert slow.num_bars == 11 and rows_of_bars(slow) == [(1, 8), (9, 11)]


def test_bars_that_are_asked_for_are_drawn_alone(words):
    said = words(tiny_score(40), bars=(9, 12))
    assert [word for word in said if word.isdigit()] == ["9", "10", "11", "12"]


def test_a_track_that_rests_in_the_bars_is_not_in_their_legend(words):
    lead, late = named("Lead", "Late", bars=8).tracks
    late = Track(late.notes[16:], late.program, name="Late")
    score = Score((lead, late), steps_per_quarter=4)
    assert "Late" not in words(score, bars=(1, 4)) and "Late" in words(score, bars=(4, 5))


def test_a_note_across_two_rows_is_drawn_in_both(tmp_path):
    score = Score((Track([Note(0, 16 * 32, 60), Note(16 * 31, 16 * 32, 72)]),), steps_per_quarter=4)
    assert rows_of_bars(score) == [(1, 16), (17, 32)]
    pixels = score_pixels(score).astype(int)
    blue = (abs(pixels - (0x2B, 0x6C, 0xB0)).sum(2) < 12).sum(1)
    rows = np.flatnonzero(blue > 1000)
    assert len(rows) and rows[-1] - rows[0] > pixels.shape[0] / 3, "a long line in the upper and in the lower half"


@pytest.mark.parametrize(
    ("bars", "said"),
    [
        ("0-3", "bars 0-3 are not in the piece, which has bars 1-4"),
        ("3-9", "bars 3-9 are not in the piece, which has bars 1-4"),
        ("3-2", "bars 3-2 are not in the piece"),
        ("x", "--bars is 'x'; give the first and the last bar, such as 9-16"),
        ("1-", "--bars is '1-'"),
    ],
)
def test_bars_that_are_not_there_are_one_sentence(tmp_path, capsys, bars, said):
    write_midi(tiny_score(), tmp_path / "a.mid")
    assert main(["plot", str(tmp_path / "a.mid"), "-o", str(tmp_path / "a.png"), "--bars", bars]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("bars", ["2-3", "2..3", "2"])
def test_the_command_takes_bars(tmp_path, bars):
    write_midi(tiny_score(), tmp_path / "a.mid")
    assert main(["plot", str(tmp_path / "a.mid"), "-o", str(tmp_path / "a.png"), "--bars", bars]) == 0


def test_a_track_without_a_name_is_called_by_its_instrument(words):
    said = words(named("", "", program=40))
    assert "Violin" in said and "Viola" in said and not [word for word in said if "Program" in word]


def test_names_from_files_are_drawn_as_they_are(words):
    names = [r"$\frac$", "cost $1 or $2", "_hidden", "Flûte à bec", "e\u0301tude", "a\nb", "<b>&amp;"]
    said = [word.strip() for word in words(named(*names), title="$x$ <song>.mid")]
    for name in ("$x$ <song>.mid", r"$\frac$", "cost $1 or $2", "_hidden", "Flûte à bec", "étude", r"a\nb", "<b>&amp;"):
        assert name in said


def test_a_long_name_does_not_widen_the_picture(tmp_path):
    plot_score(
        named("x" * 500, *("a rather long name of a track, really" for _ in range(30))),
        tmp_path / "roll.png",
        title="t" * 500,
    )
    width, height = struct.unpack(">II", (tmp_path / "roll.png").read_bytes()[16:24])
    assert width < 1600 and height < 1600


def test_a_name_that_no_font_has_gives_way_to_the_instrument(tmp_path, words, few_fonts):
    score = named("音楽", program=73)
    said = words(score, title="song 音楽.mid")
    assert f"Flute ({NO_FONT})" in said and "song ….mid" in said
    (remark,) = plot_score(score, tmp_path / "roll.png")
    assert "楽 音" in remark and "install a font such as Noto Sans CJK" in remark


def test_a_name_is_drawn_with_the_font_that_has_it(tmp_path, words, few_fonts):
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen

    pen = TTGlyphPen(None)
    for x, y in ((0, 0), (0, 700), (700, 700)):
        (pen.moveTo if (x, y) == (0, 0) else pen.lineTo)((x, y))
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "triangle"])
    builder.setupCharacterMap({ord("音"): "triangle"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "triangle": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (700, 0), "triangle": (700, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Only One Letter", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "one.ttf")
    font_manager.fontManager.addfont(tmp_path / "one.ttf")
    assert plot_score(named("letter 音", program=73), tmp_path / "roll.png") == []
    assert "letter 音" in words(named("letter 音", program=73))
    assert "Only One Letter" in (tmp_path / "roll.svg").read_text(encoding="utf-8")
