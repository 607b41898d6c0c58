"""The charts of a report as pictures."""

from unicodedata import east_asian_width
from xml.etree import ElementTree

import pytest
from tiny_report import older_report, tiny_report

from megatron_music.reports.dataset_charts import charts
from megatron_music.reports.svg_charts import (
    LEFT,
    LETTER,
    NAME_LETTERS,
    RIGHT,
    WIDTH,
    write_figures,
)

NAMES = ["splits", "sources", "document_tokens", "instruments", "density", "onset_error", "exclusions"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    return folder, write_figures(tiny_report(), folder)


def words(path) -> list[str]:
    return [element.text or "" for element in ElementTree.parse(path).iter(f"{SVG}text")]


def test_every_chart_is_a_picture_with_its_words(drawn):
    folder, paths = drawn
    assert paths == [folder / "figures" / f"{name}.svg" for name in NAMES]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(f"{name}.svg" for name in NAMES)
    for path, chart in zip(paths, charts(tiny_report()), strict=True):
        root = ElementTree.parse(path).getroot()
        assert root.tag == f"{SVG}svg" and root.get("width") == str(WIDTH) and 100 < int(root.get("height")) < 900
        assert words(path)[0] == chart.title


def test_a_bar_is_as_long_as_its_number(drawn):
    rows = tiny_report()["splits"]
    tokens = [rows[split]["tokens"] for split in rows]
    tree = ElementTree.parse(drawn[1][0])
    bars = [float(bar.get("width")) for bar in tree.iter(f"{SVG}rect") if bar.get("x") == str(LEFT)][: len(tokens)]
    assert [width / bars[0] for width in bars] == pytest.approx([count / tokens[0] for count in tokens], abs=0.001)
    assert [f"{count:,}" for count in tokens] == [word for word in words(drawn[1][0]) if "," in word][: len(tokens)]


def test_a_histogram_is_as_high_as_its_counts(drawn):
    counts = tiny_report()["histograms"]["onset_error"]
    tree = ElementTree.parse(drawn[1][NAMES.index("onset_error")])
    bars = [float(bar.get("height")) for bar in tree.iter(f"{SVG}rect") if bar.find(f"{SVG}title") is not None]
    assert [height / max(bars) for height in bars] == pytest.approx(
        [count / max(counts) for count in counts if count], abs=0.001
    )


def test_nothing_is_drawn_outside_the_picture(drawn):
    for path in drawn[1]:
        tree = ElementTree.parse(path)
        height = int(tree.getroot().get("height"))
        for box in tree.iter(f"{SVG}rect"):
            if box.get("x"):
                assert float(box.get("x")) >= 0 and float(box.get("x")) + float(box.get("width")) <= RIGHT
                assert float(box.get("y")) >= 0 and float(box.get("y")) + float(box.get("height")) <= height


def test_the_same_report_gives_the_same_bytes(drawn, tmp_path):
    again = write_figures(tiny_report(), tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn[1]]


def test_other_numbers_give_another_picture(drawn, tmp_path):
    report = tiny_report()
    report["splits"]["test"]["tokens"] += 300_000
    (splits, *_) = write_figures(report, tmp_path)
    assert splits.read_bytes() != drawn[1][0].read_bytes()


def test_strangers_names_are_words_and_no_markup(tmp_path):
    row = tiny_report()["sources"][0]
    names = ["\udcff\n音楽", "$\\frac", "a" * 300, "", "</text><script>alert(1)</script>"]
    write_figures(tiny_report(sources=[{**row, "name": name, "text_bytes": 8} for name in names]), tmp_path)
    tree = ElementTree.parse(tmp_path / "figures" / "sources.svg")
    assert not [element for element in tree.iter() if element.tag.endswith("script")]
    said = words(tmp_path / "figures" / "sources.svg")
    assert (
        r"\udcff\n音楽" in said and "$\\frac" in said and any(word.startswith("aaa") and "…" in word for word in said)
    )
    assert max(map(len, said)) < 60


def test_an_empty_split_and_an_older_report(tmp_path):
    report = older_report()
    report["splits"] = {
        split: dict.fromkeys(("files", "documents", "tokens", "bytes"), 0) for split in report["splits"]
    }
    report["files"]["quarantined"] = 0
    assert (
        [path.stem for path in write_figures(report, tmp_path)]
        == ["splits"]
        == [chart.name for chart in charts(report)]
    )


def test_a_long_reason_is_on_two_lines_and_a_longer_one_loses_its_middle(tmp_path):
    long = "a reason that goes on and on, far beyond two lines of thirty-four letters each"
    reasons = {"no part in any meter of the vocabulary of 4 bars": 7, long: 3}
    report = tiny_report()
    report["files"]["left_out"] = reasons
    write_figures(report, tmp_path)
    said = words(tmp_path / "figures" / "exclusions.svg")
    place = said.index("no part in any meter of the")
    assert said[place + 1] == "vocabulary of 4 bars"
    second = said[said.index("a reason that goes on and on, far") + 1]
    assert "…" in second and second.endswith("letters each")
    titles = [
        element.text for element in ElementTree.parse(tmp_path / "figures" / "exclusions.svg").iter(f"{SVG}title")
    ]
    assert set(reasons) <= set(titles), "the whole name, where the pointer rests"


def test_names_in_east_asian_letters_do_not_leave_the_picture(tmp_path):
    names = ["音楽" * 8, "音楽" * 20, "음악 " * 20, "a" * 34]
    row = tiny_report()["sources"][0]
    write_figures(tiny_report(sources=[{**row, "name": name} for name in names]), tmp_path)
    for element in ElementTree.parse(tmp_path / "figures" / "sources.svg").iter(f"{SVG}text"):
        if element.get("text-anchor") == "end":
            columns = sum(2 if east_asian_width(letter) in "WF" else 1 for letter in element.text)
            assert columns <= NAME_LETTERS and float(element.get("x")) - columns * LETTER >= 0, element.text
    assert names[0] in words(tmp_path / "figures" / "sources.svg")
