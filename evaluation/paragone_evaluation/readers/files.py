"""Rows of a file with their line numbers: JSON Lines, gzipped or not, JSON arrays, and parquet."""

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paragone_evaluation.errors import DataError

__all__ = ["SUFFIXES", "Row", "file_hash", "rows_of"]

Row = dict[str, Any]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Kinds of files that are read."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: of the file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def rows_of(path: Path) -> Iterator[tuple[int, Row | str]]:
    """Yield the line number of each row, from 1, and the row; a text in its place says why it is none.

    In JSON arrays and parquet files the number is that of the row. Empty lines are passed over.

    Args:
        path: a file of one of ``SUFFIXES``.

    Raises:
        DataError: if the file is of another kind or cannot be read.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"cannot read {path}: it must end in one of {', '.join(SUFFIXES)}")
    if name.endswith(".parquet"):
        yield from _parquet(path)
        return
    try:
        content = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if name.removesuffix(".gz").endswith(".json"):
        yield from _array(path, content)
        return
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            yield number, _object(line)


def _object(line: bytes) -> Row | str:
    try:
        value = json.loads(line)
    except UnicodeDecodeError:
        return "the line is not UTF-8"
    except json.JSONDecodeError as error:
        # Its own text counts lines within this one.
        return f"the line is not JSON: {error.msg} at column {error.colno}"
    except ValueError as error:
        return f"the line is not JSON: {error}"
    return value if isinstance(value, dict) else f"the line must be a JSON object, not {type(value).__name__}"


def _array(path: Path, content: bytes) -> Iterator[tuple[int, Row | str]]:
    try:
        values = json.loads(content)
    except ValueError as error:
        raise DataError(
            f"cannot read {path}: it is not JSON: {error}. Lines of JSON belong in a .jsonl file"
        ) from error
    if not isinstance(values, list):
        raise DataError(f"cannot read {path}: a .json file must hold one array of rows")
    for number, value in enumerate(values, start=1):
        yield (number, value if isinstance(value, dict) else f"a row must be an object, not {type(value).__name__}")


def _parquet(path: Path) -> Iterator[tuple[int, Row | str]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            number = 0
            for batch in table.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error
