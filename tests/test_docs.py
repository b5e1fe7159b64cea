"""What the pages name exists: files, links, and the tests that catch planted slips."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "docs").glob("*.ipynb")])


def text_of(page: Path) -> str:
    """Return the text of a page; of a notebook that of its cells in Markdown."""
    text = page.read_text()
    if page.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_exist(page):
    text = text_of(page)
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    files = re.findall(r"`((?:src|tests|studies|examples|results)/[\w./-]+)", text)
    wanted = {page.parent / link for link in links} | {ROOT / file for file in files}
    assert [str(path) for path in wanted if not path.exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_into_a_page_name_one_of_its_headings(page):
    """The anchor of a heading as GitHub makes it: lower case, hyphens, no punctuation."""
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)", text_of(page))
    for file, anchor in links:
        target = text_of(page.parent / file if file else page)
        headings = re.findall(r"^#+ (.+)$", target, flags=re.M)
        known = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in known, f"{page.name}: {file}#{anchor}"


def test_the_named_tests_exist():
    """After a test has moved, docs/testing.md names its new file."""
    rows = re.findall(r"`([\w/]+\.py)`: `(\w+)`", (ROOT / "docs" / "testing.md").read_text())
    assert len(rows) > 100
    missing = {
        (file, name)
        for file, name in rows
        if not (path := ROOT / "tests" / file.removeprefix("tests/")).exists()
        or f"def test_{name}(" not in path.read_text()
    }
    assert missing == set()
