"""docs/security.md says what the code does: the limits are those of the constants, and every limit of the bounded
reader is there.
"""

import importlib
import re
from pathlib import Path

import pytest

from megatron_music.storage import reading

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| [^|]+ \| ([^|]+) \| `([\w.]+)` \|$", PAGE, re.MULTILINE)


def as_written(value: float, text: str) -> str:
    """A value as the page writes one of its kind."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if text.endswith(unit):
            return f"{value / size:g} {unit}"
    return f"{value:g} s" if text.endswith(" s") else f"{value:,}"


@pytest.mark.parametrize(("text", "constant"), ROWS, ids=[constant for _, constant in ROWS])
def test_a_limit_of_the_page_is_the_one_of_the_code(text, constant):
    module, _, name = constant.rpartition(".")
    assert as_written(getattr(importlib.import_module(f"megatron_music.{module}"), name), text) == text


def test_the_page_has_every_limit_of_the_bounded_reader():
    names = {
        name
        for name, value in vars(reading).items()
        if name.isupper() and not name.startswith("_") and isinstance(value, int) and name != "MIB"
    }
    assert (
        names == {constant.rpartition(".")[2] for _, constant in ROWS if constant.startswith("storage.reading.")}
        and len(ROWS) > 10
    )


def test_one_page_holds_the_promise_and_the_others_lead_to_it():
    for page in ("SECURITY.md", "docs/formats.md", "docs/README.md"):
        assert "security.md)" in (ROOT / page).read_text(encoding="utf-8"), page
    pages = [
        path
        for path in (ROOT / "docs").rglob("*.md")
        if "weights_only" in path.read_text(encoding="utf-8") and path.name != "log.md"
    ]
    assert [path.name for path in pages if "unpickler" in path.read_text(encoding="utf-8")] == ["security.md"]


@pytest.mark.parametrize("word", ["MEGATRON_MUSIC_MUQ_PYTHON", "MEGATRON_MUSIC_MUQ_MODEL"])
def test_variables_that_the_page_names_are_those_of_the_code(word):
    from megatron_music.audio import music_encoder

    assert word in PAGE and word in (music_encoder.MUQ_PYTHON, music_encoder.MUQ_MODEL)
