"""The documents: short sentences, links and file names that lead somewhere, a README of a few pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.commands import ROOT

GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *GUIDES, *sorted((ROOT / "docs" / "results").glob("*.md"))]
PLAIN = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + GUIDES
MOST_WORDS = 35
MOST_LINES = 150
OURS = ("edge_runtime", "cloud_bridge", "export", "personalization", "cogenesis", "tests", "benchmarks", "examples")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_readme_is_a_few_pages():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PLAIN, ids=name)
def test_no_sentence_is_longer_than_one_breath(page):
    long = [sentence for sentence in sentences(page.read_text(encoding="utf-8")) if words(sentence) > MOST_WORDS]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for target, heading in re.findall(r"\]\(([^)#:\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        file = page.parent / target if target else page
        assert file.exists(), f"{name(page)} links to {target}"
        if heading and file.suffix == ".md":
            assert heading in headings(file.read_text(encoding="utf-8")), f"{name(page)} links to {target}#{heading}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_every_file_of_the_project_that_a_page_names_is_there(page):
    named = re.findall(rf"`((?:{'|'.join(OURS)})/[\w/.-]+\.\w+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


def sentences(text: str) -> list[str]:
    """The prose of a page, sentence by sentence: no code, no tables, no headings; an item of a list ends one."""
    text = re.sub(r"^---\n.*?^---\n", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(```|~~~).*?^\1.*?$", "\n", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(\||#| {4}).*$", "\n", text, flags=re.MULTILINE)
    text = re.sub(r"^\s*(?:[-*]|\d+\.) ", "\n\n", text, flags=re.MULTILINE)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "Code", text)
    return [part for block in re.split(r"\n\s*\n", text) for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\d*`\"(])", block)]


def words(sentence: str) -> int:
    return sum(any(letter.isalnum() for letter in word) for word in sentence.split())


def headings(text: str) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_the_counter_sees_a_long_sentence():
    long = "word " * MOST_WORDS + "more."
    assert [words(part) > MOST_WORDS for part in sentences(f"Short.\n\n{long}\n\n```\n{long}\n```\n")] == [
        False,
        True,
        False,
    ]
