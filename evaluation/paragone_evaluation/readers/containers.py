"""Containers: from the bytes of a file to its rows, whatever the layout of their columns.

| suffix | rows |
|---|---|
| ``.jsonl``, ``.ndjson``, ``.json`` | one JSON object a line, or one array of objects |
| ``.csv`` | a header, then one row a record; cells of columns that hold no text are JSON |
| ``.parquet`` | a row each |

All but parquet may end in ``.gz`` or ``.zst`` as well. Text is UTF-8, with or without a byte-order mark.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from paragone_evaluation.errors import DataError

__all__ = ["SUFFIXES", "Fields", "fields_of", "file_hash"]

Fields = dict[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Kinds of files that are read; ``.gz`` and ``.zst`` may follow all but the last."""

_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_NUMBERS = {"strength", "preference_strength", "num_correct"}
_ATTRIBUTES = {"helpfulness", "correctness", "coherence", "complexity", "verbosity"}
_JSON_CELLS = {*_NUMBERS, *_ATTRIBUTES, "ratings", "responses", "comparisons", "completions", "tools"}
"""Columns of a CSV file whose cells are JSON: a number, a list or an object."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: if it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def fields_of(path: Path) -> Iterator[tuple[int, Fields | str]]:
    """Yield the number of each row and its fields; a text in their place says why they cannot be read.

    The number is that of the line where the row begins, from 1. Arrays and parquet files have no lines of their own:
    there the rows are counted. Empty lines are passed over.

    Args:
        path: a file whose name ends in one of ``SUFFIXES``.

    Raises:
        DataError: if the file is of another kind or cannot be read.
    """
    name = path.name.lower()
    packing = next((suffix for suffix in _PACKINGS if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packing)).suffix
    if kind not in SUFFIXES or (packing and kind == ".parquet"):
        raise DataError(
            f"cannot read {path}: its name must end in one of {', '.join(SUFFIXES)}; .gz or .zst may follow"
        )
    try:
        if kind == ".parquet":
            yield from enumerate(_parquet(path), start=1)
            return
        with _unpacked(path, packing) as stream:
            _skip_mark(path, stream)
            yield from _csv(stream) if kind == ".csv" else _json(path, stream)
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not UTF-8 ({error.reason}): save it as UTF-8") from error


def _unpacked(path: Path, packing: str) -> io.BufferedReader:
    if not packing:
        return path.open("rb")
    import pyarrow

    # pyarrow's streams refuse a file that was cut short; zstandard's own end there without a word.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=_PACKINGS[packing]))


def _skip_mark(path: Path, stream: io.BufferedReader) -> None:
    """Pass over a byte-order mark, as Windows programs write one; refuse UTF-16, which they write as well."""
    start = stream.peek(3)[:3]
    if start.startswith(_UTF16_MARKS):
        raise DataError(f"cannot read {path}: it is UTF-16: save it as UTF-8")
    if start == _UTF8_MARK:
        stream.read(3)


def _json(path: Path, stream: io.BufferedReader) -> Iterator[tuple[int, Fields | str]]:
    # People call lines .json and arrays .jsonl, so the first character decides: no row of ours begins with a bracket.
    if stream.peek(1).lstrip()[:1] == b"[":
        values, problem = _parsed(stream.read())
        if problem:
            raise DataError(f"cannot read {path}: the array is {problem}")
        yield from ((number, _object(value)) for number, value in enumerate(values, start=1))
        return
    # Binary lines end at \n alone. Text lines would end at U+2028 as well, which stands inside of JSON strings.
    for number, line in enumerate(stream, start=1):
        if line.strip():
            value, problem = _parsed(line)
            yield number, f"the line is {problem}" if problem else _object(value)


def _parsed(content: bytes) -> tuple[Any, str]:
    """Return the value of a JSON text and an empty text, or None and what is wrong."""
    try:
        return json.loads(content), ""
    except UnicodeDecodeError:
        return None, "not UTF-8"
    except json.JSONDecodeError as error:
        # The error's line number counts lines within this text, so only the column is of use.
        return None, f"not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return None, f"not JSON that can be read: {error}"


def _object(value: Any) -> Fields | str:
    return value if isinstance(value, dict) else f"a row must be a JSON object, not {type(value).__name__}"


def _csv(stream: io.BufferedReader) -> Iterator[tuple[int, Fields | str]]:
    # Not pyarrow's reader: it guesses types, and a response "42" must stay a text. Python's also counts lines.
    csv.field_size_limit(2**31 - 1)
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        columns = len(reader.fieldnames or ())
        line = reader.line_num + 1
        for row in reader:
            number, line = line, reader.line_num + 1  # a cell may hold newlines: a row begins after the one before it
            if None in row:
                yield number, f"the row has more cells than the header, which has {columns}"
            else:
                yield number, {name: _cell(name, value) for name, value in row.items()}


def _cell(name: str, text: str | None) -> Any:
    """Return what a cell holds: text, JSON where the column's values are no texts, or messages written as JSON."""
    if text is None:
        return None
    messages = text.startswith("[{") and '"role"' in text
    if messages or (name in _JSON_CELLS and text):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text  # what the column may hold is the layout's to say
        return value if name in _JSON_CELLS or _are_messages(value) else text
    return text if text or name not in _JSON_CELLS else None


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def _parquet(path: Path) -> Iterator[Fields]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                yield from cast("Iterable[Fields]", batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot read {path}: {error}") from error
