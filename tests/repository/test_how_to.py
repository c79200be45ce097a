"""The how-to pages: one task each, and code that stands in an example that is run. test_blocks.py has the rest."""

import re

import pytest

from tests.repository.documents import ROOT, blocks, name_of

PAGES = sorted((ROOT / "docs" / "how-to").glob("*.md"))
# Its blocks are one script, which tests/examples/test_trl.py runs.
SCRIPTS = ("judge-for-trl",)


def plain(code):
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem not in SCRIPTS], ids=name_of)
def test_every_piece_of_python_stands_in_an_example(page):
    sources = [plain(path.read_text(encoding="utf-8")) for path in (ROOT / "examples").rglob("*.py")]
    for block in blocks(page, "python"):
        assert any(plain(block) in source for source in sources), block


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_is_one_task_and_short(page):
    assert 20 <= len(page.read_text(encoding="utf-8").splitlines()) <= 90
    languages = set(re.findall(r"^```(\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert languages <= {"sh", "toml", "yaml", "python", "text"}
    assert blocks(page, "sh")
