"""The page of training loops shows what the examples, which are run, say."""

import re

from tests.examples.conftest import EXAMPLES

PAGE = (EXAMPLES.parent / "docs" / "loops.md").read_text()


def plain(code):
    """Return code without indentation, line ends and trailing commas: a block of the page has its own."""
    return re.sub(r",(?=[)\]}])", "", re.sub(r"\s+", "", code))


def test_every_python_block_of_the_page_stands_in_an_example():
    sources = [plain(path.read_text()) for path in EXAMPLES.rglob("*.py")]
    assert len(sources) > 4
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        assert any(plain(block) in source for source in sources), block


def test_every_example_is_named_on_the_page():
    files = [path for path in EXAMPLES.iterdir() if path.name != "__pycache__"]
    assert len(files) > 1
    assert [path.name for path in files if f"examples/{path.name}" not in PAGE] == []
