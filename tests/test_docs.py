"""The pages: links lead somewhere, and the old dialect stays out."""

import re
from pathlib import Path

import lanes
import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Phrases that read as translated; STYLE: the field's own words, short sentences.
DIALECT = (
    "leave it out",
    "so many times",
    "costs itself",
    "is told on the way",
    "words to music",
    "knows nothing about",
    "of late",
    "a stranger's",
    "goes before what",
    "the walk:",
)
HISTORY = ("CHANGELOG.md", "log.md")  # kept as it was written


def prose(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.M)
    words = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in words}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading_that_exist(page):
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        assert not anchor or anchor in anchors(target), f"{page}: no heading for {link}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: str(page.relative_to(ROOT))
)
def test_pages_are_in_plain_english(page):
    text = prose(page).lower()
    found = [phrase for phrase in DIALECT if re.search(rf"\b{re.escape(phrase)}(?!\w)", text)]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page):
    named = (
        re.findall(r"`(tests/[\w/]+(?:\.py)?)", page.read_text(encoding="utf-8")) if page.name not in HISTORY else []
    )
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_suites_of_make_test_latest_exist():
    suites = [path for paths in lanes.SUITES.values() for path in paths]
    assert [path for path in suites if not (ROOT / "tests" / path).exists()] == [] and len(suites) > 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_imports_from_where_things_are(page):
    for module, names in re.findall(r"^from (megatron_music[\w.]*) import ([\w, ]+)$", page.read_text("utf-8"), re.M):
        path = ROOT / module.replace(".", "/")
        here = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        defined = here.read_text(encoding="utf-8")
        for name in names.split(", "):
            is_module = path.is_dir() and ((path / f"{name}.py").exists() or (path / name).is_dir())
            assert is_module or re.search(rf"^(def|class) {name}\b|^{name}\b.* =", defined, re.M), (module, name)
