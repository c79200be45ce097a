"""What docs/papers.md claims: each equation has a function and a test that exist."""

import pkgutil
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_line_of_the_papers_page_names_a_function_and_a_test_that_exist():
    page = (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\| `(\w+)\.([\w.]+)` \| `(tests/[\w/.]+)::(test_\w+)` \|$", page, re.MULTILINE)
    assert len(rows) >= 15
    assert len(rows) == len(re.findall(r"::test_", page))
    for package, name, file, test in rows:
        pkgutil.resolve_name(f"{package}.{name}")
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8")
