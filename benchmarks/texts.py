"""Which texts a benchmark runs on: the public corpora in the folder of ``--data``, or the small set that ships."""

import argparse
import sys
from pathlib import Path
from typing import Any

from paragone_evaluation.readers import read_fields

SHIPPED = Path(__file__).parents[1] / "data"


def add_data(parser: argparse.ArgumentParser, *, otherwise: str | None = None) -> None:
    """Add ``--data`` to a benchmark's arguments; ``otherwise`` says what runs without it, None that nothing does."""
    help_text = "folder with the public corpora, from scripts/fetch_corpora.py"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=f"{help_text}; {otherwise or 'needed'}")


def corpora(folder: Path | None) -> Path:
    """Return the folder of the public corpora, or end with a line that says where they come from."""
    if folder is None or not folder.is_dir():
        missing = "--data is missing" if folder is None else f"--data: there is no folder {folder}"
        sys.exit(f"{missing}; give the folder that `python scripts/fetch_corpora.py FOLDER` wrote (data/README.md)")
    return folder


def corpus(folder: Path | None, name: str) -> Path:
    """Return the path of one of the corpora's files, plain or gzipped, or end with a line that says what lacks."""
    paths = [corpora(folder) / f"{name}.jsonl", corpora(folder) / f"{name}.jsonl.gz"]
    for path in paths:
        if path.is_file():
            return path
    sys.exit(f"--data: {folder} has no {paths[0].name}; `python scripts/fetch_corpora.py FOLDER` makes it")


def pair_rows(folder: Path | None) -> list[dict[str, Any]]:
    """Return the pairs of arguments in a folder of the corpora, or those of the shipped set where none is given."""
    path = SHIPPED / "everyday_pairs.jsonl" if folder is None else corpus(folder, "convincing_pairs")
    return read_fields(path, "prompt", "first", "second")
