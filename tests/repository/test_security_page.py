"""SECURITY.md claims nothing that has no test, and names no flag that does not exist."""

import re
from pathlib import Path

from paragone_service.config import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()


def test_every_test_that_the_page_names_exists():
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) >= 10
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert {name for name in named if f"def {name}(" not in code} == set()


def test_every_row_of_the_page_names_a_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 9
    assert all("`test_" in row for row in rows)


def test_every_flag_of_the_page_is_a_setting():
    flags = set(re.findall(r"`--([a-z-]+)`", PAGE))
    assert {flag for flag in flags if flag.replace("-", "_") not in Settings.model_fields} == set()
