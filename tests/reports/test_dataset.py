"""A dataset's report in words, and its charts before they are drawn."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_report import older_report, tiny_report, write_report

from megatron_music.music.instruments import GENERAL_MIDI, instrument_name
from megatron_music.reports.dataset import (
    OLDER,
    describe,
    markdown,
    read_report,
    write_markdown,
)
from megatron_music.reports.dataset_charts import (
    Bars,
    charts,
    compact,
    megabytes,
    nice_ticks,
)
from megatron_music.reports.svg_charts import write_figures


def panels(report: dict) -> dict:
    return {chart.name: chart.panels for chart in charts(report)}


def test_the_report_in_the_terminal():
    assert describe(tiny_report(), "data").splitlines() == [
        "files    1,302 of 1,409 used, 26 in quarantine, 4 rescued (read after clamping their bytes)",
        "copies   3 byte for byte, 11 with the same notes, 2 left out",
        "         70 files left out: no part in 4/4; --meters all takes them",
        "         9 files left out: no window of 4 bars",
        "windows  4 bars, hop 1; 4 steps per quarter note; notes across bar lines: carried over (carry); velocity: "
        "written; "
        "density of a track: 3 levels, cut at 4, 9 notes",
        "         1,530 windows left out: fewer than 2 tracks",
        "notes    402,794 read, 759 lost, onsets moved 0.183 steps on average",
        "bpe      2,048 merges, 10,275,594 tokens became 5,137,797, 2.00 times fewer",
        "rate     143 files/s, 0.52 M tokens/s with 2 workers",
        "",
        "split             files  documents          tokens           bytes",
        "train             1,170     17,760       4,545,563       9,091,126",
        "valid                70      1,368         373,445         746,890",
        "test                 62        884         218,789         437,578",
        "",
        "source            files  documents          tokens           bytes",
        "chorales            500      5,000       1,200,000       2,400,000",
        "<b>$x$|songs        802     15,012       3,937,797       7,875,594",
        "",
        "damaged files and why: data/quarantine.jsonl",
    ]


def test_markdown_holds_every_number_and_no_strangers_markup():
    text = markdown(tiny_report())
    for said in (
        "1,302 of 1,409 MIDI files became 20,012 windows of 5,137,797 tokens (10.3 MB of ids)",
        "| train | 1,170 | 17,760 | 4,545,563 | 9,091,126 |",
        "| all | 1,302 | 20,012 | 5,137,797 | 10,275,594 |",
        r"| \<b\>\$x\$\|songs | 909 | 802 | 15,012 | 3,937,797 | 7,875,594 |",
        "| left out: no part in 4/4; --meters all takes them | 70 |",
        "| left out: damaged (in quarantine) | 26 |",
        "| fewer than 2 tracks | 1,530 |",
        r"| density of a track | 3 levels, cut at 4, 9 notes |",
        "| mean shift of an onset, steps | 0.183 |",
        "| Grand piano | INST=0 | 41,322 |",
        "Unigram entropy of train: 3.812 nats per token.",
    ):
        assert said in text
    assert "<b>" not in text
    assert "bytes as text" not in text  # no split says it


def test_markdown_does_not_depend_on_the_speed():
    other = tiny_report(rates={"seconds": 1.0, "workers": 9, "files_per_second": 1.0, "tokens_per_second": 1.0})
    assert markdown(other) == markdown(tiny_report())


def test_markdown_links_every_picture(tmp_path):
    pictures = write_figures(tiny_report(), tmp_path)
    write_markdown(tiny_report(), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "![Tokens and windows by split](figures/splits.svg)" in text
    assert sorted(re.findall(r"\]\((.*?)\)", text)) == sorted(f"figures/{path.name}" for path in pictures)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "report.md"]


def test_text_sizes_are_told_where_they_are_known():
    splits = {split: {**row, "text_bytes": 7 * row["bytes"]} for split, row in tiny_report()["splits"].items()}
    assert "| train | 1,170 | 17,760 | 4,545,563 | 9,091,126 | 63,637,882 |" in markdown(tiny_report(splits=splits))


def test_a_report_of_an_older_version_says_so_in_one_sentence(tmp_path):
    report = read_report(write_report(tmp_path / "old", older_report()))
    assert describe(report, "old").splitlines()[-1] == OLDER
    assert OLDER in markdown(report)
    assert [chart.name for chart in charts(report)] == ["splits", "exclusions"]
    assert OLDER not in describe(tiny_report(), "new") and OLDER not in markdown(tiny_report())


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{}",
        '{"files": 3}',
        json.dumps(tiny_report(histograms=[])),
        json.dumps(tiny_report(splits={"train": {}})),
        json.dumps(tiny_report(histograms={"document_tokens": {"edges": [0], "counts": [1, 2, 3, 4, 5, 6, 7]}})),
    ],
)
def test_a_damaged_report_is_one_sentence(tmp_path, damage):
    (tmp_path / "report.json").write_text(damage, encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no report of .*; build the dataset again"):
        read_report(tmp_path)
    with pytest.raises(ValueError, match="is missing; name a folder"):
        read_report(tmp_path / "nowhere")


def test_charts_of_a_report():
    found = panels(tiny_report())
    assert list(found) == [
        "splits",
        "sources",
        "document_tokens",
        "instruments",
        "density",
        "onset_error",
        "exclusions",
    ]
    assert found["splits"][0].values == (4545563, 373445, 218789)
    assert found["sources"][0].texts == ("2.4 MB", "7.88 MB")
    files, windows = found["exclusions"]
    assert files.names == (
        "no part in 4/4",
        "damaged (in quarantine)",
        "no window of 4 bars",
        "same notes as an earlier file",
    )
    assert windows == Bars("windows of used files", ("fewer than 2 tracks",), (1530,), ("1,530",), windows.colour)


def test_twenty_instruments_are_named_and_the_rest_is_one_bar():
    (bars,) = panels(tiny_report())["instruments"]
    assert bars.names[:4] == ("Grand piano", "Drums", "Soprano", "English horn")
    assert len(bars.names) == 21 and bars.names[-1] == "13 others" and bars.values[-1] == sum(range(40, 53))


def test_a_histogram_ends_where_almost_all_is_and_its_last_bar_is_the_rest():
    (density,) = panels(tiny_report(histograms={"density": [0, 501, 479, 15, *[0] * 123, 5]}))["density"]
    assert density.counts == (0, 501, 479, 15, 5) and density.names[-1] == "4 notes and more"
    assert density.median == (1.5, "median 1") and "the last bar is 4 and more" in density.x_label
    (lengths,) = panels(tiny_report())["document_tokens"]
    assert sum(lengths.counts) == 20012 and lengths.names[0] == "0 to 49 tokens"


def test_ticks_of_lengths_are_round_wherever_the_first_bin_is():
    edges = list(range(130, 130 + 21 * 10, 10))
    (lengths,) = panels(tiny_report(histograms={"document_tokens": {"edges": edges, "counts": [1] * 20}}))[
        "document_tokens"
    ]
    assert lengths.ticks == ((2, "150"), (7, "200"), (12, "250"), (17, "300"))


def test_a_build_of_text_alone_is_measured_in_text():
    report = tiny_report()
    for row in (*report["splits"].values(), *report["sources"]):
        row["bytes"] = 0
    for row in report["splits"].values():
        row["text_bytes"] = 6 * row["tokens"]
    assert "tokens (30.8 MB of text)" in markdown(report)
    assert [panel.heading for panel in panels(report)["sources"]] == ["tokens", "windows (documents)"]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=128).filter(any), st.booleans())
def test_no_count_is_lost_between_report_and_chart(counts, open_end):
    edges = [10 * place for place in range(len(counts) + (not open_end))]
    found = panels(tiny_report(histograms={"document_tokens": {"edges": edges, "counts": counts}, "density": counts}))
    for (histogram,) in (found["document_tokens"], found["density"]):
        assert sum(histogram.counts) == sum(counts) and len(histogram.names) == len(histogram.counts)
        assert 0 <= histogram.median[0] <= len(histogram.counts)
        assert all(0 <= place <= len(histogram.counts) for place, _ in histogram.ticks)


@given(st.one_of(st.integers(1, 10**13), st.floats(1e-3, 1e9)))
def test_ticks_are_few_and_reach_the_top(highest):
    ticks = nice_ticks(highest)
    assert ticks[0] == 0 and 2 <= len(ticks) <= 8 and highest * 0.99 <= ticks[-1] <= 3 * max(highest, 1)


def test_numbers_in_few_letters():
    assert [compact(value) for value in (0, 950, 12_000, 3_400_000, 2.5e9)] == ["0", "950", "12 k", "3.4 M", "2.5 G"]
    assert [megabytes(value) for value in (0.01304, 2.4, 1330.4)] == ["0.013 MB", "2.4 MB", "1,330 MB"]


def test_instruments_have_the_names_of_general_midi():
    assert len(GENERAL_MIDI) == len(set(GENERAL_MIDI)) == 128
    named = {0: "Grand piano", 40: "Violin", 52: "Choir aahs", 56: "Trumpet", 73: "Flute", 127: "Gunshot"}
    assert {program: instrument_name(str(program)) for program in named} == named
    assert [instrument_name(value) for value in ("DRUMS", "ALTO", "128", "²")] == ["Drums", "Alto", "128", "²"]


def test_a_slow_build_has_a_rate():
    rates = {"seconds": 276.0, "workers": 1, "files_per_second": 0.2536, "tokens_per_second": 3465.4}
    assert "rate     0.25 files/s, 0.0035 M tokens/s with 1 worker" in describe(tiny_report(rates=rates), "data")


def test_the_table_of_instruments_says_what_it_leaves_out():
    assert "The 20 most frequent of 33 instruments; the others have 598 tracks." in markdown(tiny_report())


@pytest.mark.parametrize(
    ("files", "tokens", "sentence"),
    [
        (1, 500, "valid has 1 file: its loss judges one piece; use --split with a larger share, or more files"),
        (4, 500, "valid has 4 files: its loss judges 4 pieces; use --split with a larger share, or more files"),
        (
            50,
            50,
            "valid has 0.5% of the tokens: its loss judges little music; use --split with a larger share, or more "
            "files",
        ),
        (5, 500, None),
    ],
)
def test_a_validation_split_that_says_little_is_a_warning(files, tokens, sentence):
    from megatron_music.reports.dataset_words import warnings

    report = tiny_report()
    report["options"]["fractions"] = [0.9, 0.05, 0.05]
    report["splits"] = {
        "train": {"files": 900, "documents": 900, "tokens": 9_000, "bytes": 18_000},
        "valid": {"files": files, "documents": files, "tokens": tokens, "bytes": 2 * tokens},
        "test": {"files": 50, "documents": 50, "tokens": 1_000 - tokens, "bytes": 0},
    }
    assert [said for said in warnings(report) if said.startswith("valid ")] == ([sentence] if sentence else [])
    report["options"]["fractions"] = [1.0, 0.0, 0.0]
    assert not [said for said in warnings(report) if said.startswith("valid ")]


def test_no_section_of_the_markdown_is_empty_or_speaks_of_what_was_left_out_where_nothing_was():
    report = tiny_report()
    report["files"] |= {"left_out": {}, "quarantined": 0, "dropped_copies": 0}
    report["windows_left_out"], report["unheld"] = {}, {}
    sections = re.split(r"^## .*\n", markdown(report), flags=re.M)[1:]
    assert all(re.search(r"^(\||!\[)", section, re.M) for section in sections), sections
    assert "Files and windows" not in markdown(report) and "Not represented" not in markdown(report)
