"""The public corpora, where the machine has them: what only real judgements can show is tested with these alone."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("PARAGONE_DATA", "no-corpora"))

needs_corpora = pytest.mark.skipif(
    "PARAGONE_DATA" not in os.environ,
    reason="only real judgements can show this: set PARAGONE_DATA to a folder that scripts/fetch_corpora.py wrote",
)


def corpus(name):
    """Return the path of one of the corpora's files, plain or gzipped."""
    zipped = FOLDER / f"{name}.jsonl.gz"
    return zipped if zipped.is_file() else FOLDER / f"{name}.jsonl"
