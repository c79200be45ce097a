"""docs/reliability.md names tests that exist, and every code of the wire."""

import re
from pathlib import Path

from paragone.codes import ErrorCode

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 30
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file() or (name and f"def {name}(" not in (ROOT / file).read_text())
    ]
    assert missing == []


def test_every_script_that_the_page_names_exists():
    scripts = re.findall(r"benchmarks/reliability/\w+\.py", PAGE)
    assert scripts
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_every_code_of_the_wire_stands_on_the_page():
    assert [code for code in ErrorCode if f"`{code}`" not in PAGE] == []
