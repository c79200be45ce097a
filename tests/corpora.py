"""The public corpora, where the machine has them, and the scripts of the repository that make data."""

import gzip
import importlib.util
import json
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


def corpus_rows(name):
    """Return the rows of one of the corpora's files."""
    path = corpus(name)
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def script(name):
    """Return a file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def stand_in(folder, **files):
    """Give a folder files of the corpora's names with these rows in them, so that a recipe which names them can run."""
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
