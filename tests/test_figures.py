"""The charts of a report as pictures."""

import struct

import pytest
from tiny_report import older_report, tiny_report

from megatron_music.data.charts import charts
from megatron_music.data.figures import write_figures

NAMES = ["splits", "sources", "document_tokens", "instruments", "density", "onset_error", "exclusions"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    return folder, write_figures(tiny_report(), folder)


def test_every_chart_is_a_picture(drawn):
    folder, paths = drawn
    assert paths == [folder / "figures" / f"{name}.png" for name in NAMES]
    assert sorted(path.name for path in (folder / "figures").iterdir()) == sorted(f"{name}.png" for name in NAMES)
    for path in paths:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", content[16:24])
        assert width == 960 and 150 < height < 1000


def test_the_same_report_gives_the_same_bytes_whatever_the_style(drawn, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "savefig.dpi": 20}):
        again = write_figures(tiny_report(), tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in drawn[1]]
    assert all(b"tEXt" not in path.read_bytes() for path in again)  # no date, no version


def test_other_numbers_give_another_picture(drawn, tmp_path):
    report = tiny_report()
    report["splits"]["test"]["tokens"] += 300_000
    (splits, *_) = write_figures(report, tmp_path)
    assert splits.read_bytes() != drawn[1][0].read_bytes()


def test_names_no_font_has_and_endless_ones_are_drawn(tmp_path):
    row = tiny_report()["sources"][0]
    names = ["\udcff\n音楽", "$\\frac", "a" * 300, ""]
    write_figures(tiny_report(sources=[{**row, "name": name, "text_bytes": 8} for name in names]), tmp_path)
    content = (tmp_path / "figures" / "sources.png").read_bytes()
    assert struct.unpack(">I", content[16:20]) == (960,)


def test_an_empty_split_and_an_older_report(tmp_path):
    report = older_report()
    report["splits"] = {split: dict.fromkeys(("files", "documents", "tokens", "bytes"), 0) for split in report["splits"]}
    report["files"]["quarantined"] = 0
    assert [path.stem for path in write_figures(report, tmp_path)] == ["splits"] == [chart.name for chart in charts(report)]
