"""The explanations claim what the code does: their blocks run and show their results."""

import doctest
import re
from pathlib import Path

import pytest

from paragone_models.packing.tree import MIN_SHARED

PAGES = sorted((Path(__file__).parents[2] / "docs" / "explanation").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_an_explanation_runs_and_shows_its_result(page):
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert {language for language, _ in blocks} == {"python"}
    runner = doctest.DocTestRunner()
    globs: dict[str, object] = {}
    for _, block in blocks:
        test = doctest.DocTestParser().get_doctest(block, globs, page.name, page.name, 0)
        assert test.examples, block
        runner.run(test, clear_globs=False)
        globs.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0


def test_the_page_of_packing_has_the_number_of_the_code():
    (page,) = [page for page in PAGES if page.stem == "packing"]
    assert f"Shared runs count from {MIN_SHARED} tokens on" in page.read_text(encoding="utf-8")
