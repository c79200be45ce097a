"""What the documentation of the models claims: its code runs, its tables name what exists."""

import doctest
import importlib
import re
from dataclasses import fields
from pathlib import Path

import pytest

from paragone_models.kinds import KINDS
from paragone_models.spec import ModelSpec

DOCS = Path(__file__).parents[2] / "docs"
DOCTESTED = ["scores", "comparator", "model", "files.options"]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_every_python_block_of_the_models_page_runs_and_shows_its_result(monkeypatch, published_folder, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "gpm").symlink_to(published_folder)
    found = blocks("models.md")
    assert len(found) >= 4
    globs: dict[str, object] = {}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for number, block in enumerate(found):
        test = doctest.DocTestParser().get_doctest(block, globs, f"models.md block {number}", "models.md", 0)
        assert test.examples, block
        runner.run(test, clear_globs=False)
        globs.update(test.globs)
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("module", DOCTESTED)
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"paragone_models.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


def test_the_models_page_has_every_kind_and_every_field_of_the_spec():
    page = (DOCS / "models.md").read_text(encoding="utf-8")
    for name in [*KINDS, *(field.name for field in fields(ModelSpec))]:
        assert f"`{name}`" in page
