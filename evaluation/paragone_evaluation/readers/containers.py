"""The rows that a file holds, whatever holds them: JSON, CSV, parquet or Arrow, packed or not, in UTF-8 or UTF-16.

| suffix | rows |
|---|---|
| ``.jsonl``, ``.ndjson``, ``.json`` | one JSON object a line; one array of objects; objects over several lines |
| ``.csv``, ``.tsv`` | a header, then one row a record; cells of columns that hold no text are JSON |
| ``.parquet``, ``.arrow`` | a row each |

Text may be packed by gzip, zstd, bzip2 or xz, whose suffix follows then. Nothing here knows what a column means.
"""

import codecs
import contextlib
import csv
import io
import itertools
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic_core import from_json

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.layouts.cells import cell_of
from paragone_evaluation.readers.rows import Fields

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["SUFFIXES", "NumberedRow", "container_of", "rows_of_batch", "rows_of_file"]

NumberedRow = tuple[int, Fields | str]
"""The number of a row and its fields; a text in their place says why they cannot be read."""

_TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow")
SUFFIXES = (*_TEXTS, *_TABLES)
"""Kinds of files that are read."""
_PACKINGS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
_LISTS = frozenset({"train", "validation", "val", "valid", "dev", "test", "data", "rows"})
"""Keys of a lone object whose lists are rows."""
_CHUNK = 1 << 20  # bytes that are read at once, where a row may be longer than a line
_BATCH = 4096  # rows of a table that are made into objects at once


def container_of(path: Path) -> tuple[str, str] | None:
    """Return the suffixes that say what a file holds and how it is packed, or None for a file that is not read."""
    name = path.name.lower()
    packing = next((suffix for suffix in _PACKINGS if name.endswith(suffix)), "")
    kind = Path(name.removesuffix(packing)).suffix
    return (kind, packing) if kind in _TEXTS or (kind in _TABLES and not packing) else None


def rows_of_file(path: Path) -> Iterator[NumberedRow]:
    """Yield the number of each row and its fields.

    The number is that of the line where the row begins, from 1. Arrays and tables have no lines of their own: there the
    rows are counted. Empty lines are passed over.

    Raises:
        DataError: if the file cannot be read.
    """
    container = container_of(path)
    if container is None:
        raise DataError(
            f"cannot read {path}: its name must end in one of {', '.join(SUFFIXES)}; "
            f"{', '.join(_PACKINGS)} may follow a text's"
        )
    kind, packing = container
    try:
        if kind in _TABLES:
            yield from enumerate(_table(path, kind), start=1)
            return
        with _utf8(_unpacked(path, packing)) as stream:
            yield from _csv(stream, "\t" if kind == ".tsv" else "") if kind in (".csv", ".tsv") else _json(path, stream)
    except UnicodeDecodeError as error:
        raise DataError(f"cannot read {path}: it is not UTF-8 ({error.reason}): save it as UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _unpacked(path: Path, packing: str) -> io.BufferedReader:
    if not packing:
        return path.open("rb")
    if packing == ".xz":
        return io.BufferedReader(cast("io.RawIOBase", lzma.open(path)))
    import pyarrow

    # pyarrow's streams refuse a file that was cut short; zstandard's own end there without a word.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=_PACKINGS[packing]))


def _utf8(stream: io.BufferedReader) -> io.BufferedReader:
    """Return a stream of UTF-8 without a byte-order mark. Windows programs write marks, and UTF-16."""
    start = stream.peek(4)[:4]
    # By the marks, or by the zeros in what begins with an ASCII character, as JSON and headers do.
    encoding = json.detect_encoding(start)
    if encoding == "utf-8-sig":
        stream.read(len(codecs.BOM_UTF8))
    elif encoding != "utf-8":
        return io.BufferedReader(_Recoded(stream, encoding), _CHUNK)
    return stream


class _Recoded(io.RawIOBase):
    """The UTF-8 of a stream in another encoding."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream, self._decoder = stream, codecs.getincrementaldecoder(encoding)()
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self._ready:
            content = self._stream.read(_CHUNK)
            # A lone surrogate is refused where the line is parsed, with its number.
            self._ready = self._decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")
            if not content:
                break
        count = min(len(view), len(self._ready))
        view[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


def _json(path: Path, stream: io.BufferedReader) -> Iterator[NumberedRow]:
    # People call lines .json and arrays .jsonl, so the beginning decides: no row of ours begins with a bracket.
    start = stream.peek(1).lstrip()
    if start[:1] == b"[":
        yield from enumerate(map(_object, _array(path, stream)), start=1)
        return
    # A brace alone on its line begins an object that is spread over lines, as pretty-printers write them.
    if start[:1] == b"{" and start[1:].lstrip(b" \t")[:1] in (b"\r", b"\n"):
        values = list(_values(path, stream))
        yield from enumerate(map(_object, _listed(values)), start=1)
        return
    # Binary lines end at \n alone. Text lines would end at U+2028 as well, which stands inside of JSON strings.
    lines = ((number, *_parsed(line)) for number, line in enumerate(stream, start=1) if line.strip())
    if (first := next(lines, None)) is None:
        return
    if (second := next(lines, None)) is None and not first[2]:
        yield from enumerate(map(_object, _listed([first[1]])), start=1)
        return
    for number, value, problem in itertools.chain([first], [second] if second else [], lines):
        yield number, f"the line is {problem}" if problem else _object(value)


def _parsed(content: bytes) -> tuple[Any, str]:
    """Return the value of a JSON text and an empty text, or None and what is wrong."""
    # Rust's parser takes half of the time. What it refuses, Python's may still take, or say better what is wrong.
    with contextlib.suppress(ValueError):
        return from_json(content), ""
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


def _listed(values: list[Any]) -> Iterable[Any]:
    """Return the rows of objects that were read whole: a lone object may hold them, as ``{"train": [...]}`` does."""
    (first, *more) = values or [None]
    if more or not isinstance(first, dict) or not first:
        return values
    parts = list(first.values())
    if set(first) <= _LISTS and all(isinstance(part, list) and _are(dict, part) for part in parts):
        named = {name for name in first if name not in ("data", "rows")}
        return [({"split": name} if name in named else {}) | row for name, rows in first.items() for row in rows]
    # What pandas writes: a column each, by the numbers of the rows or as a list, or a row each by its number.
    if _are(dict, parts) and all(name.isdecimal() for name in first):
        return parts
    if _are(dict, parts) and parts[0] and all(part.keys() == parts[0].keys() for part in parts):
        places = list(parts[0])
        if all(place.isdecimal() for place in places):
            return [{name: part[place] for name, part in first.items()} for place in places]
    # One row may have lists of messages, or of responses beside a text; columns are lists of texts throughout.
    columns = all(
        isinstance(part, list) and not any(isinstance(value, dict | list) for value in part) for part in parts
    )
    if columns and len(parts) > 1 and len({len(part) for part in parts}) == 1:
        return [dict(zip(first, row, strict=True)) for row in zip(*parts, strict=True)]
    return values


def _are(kind: type, values: Iterable[Any]) -> bool:
    return all(isinstance(value, kind) for value in values)


def _array(path: Path, stream: io.BufferedReader) -> Iterator[Any]:
    """Yield the values of an array, without having the whole of it in memory."""
    scanner = _Scanner(path, stream)
    scanner.skip("[")
    if scanner.next() == "]":
        scanner.skip("]")
    else:
        while True:
            yield scanner.value()
            if scanner.next() == "]":
                scanner.skip("]")
                break
            scanner.skip(",")
    if scanner.next():
        raise DataError(f"cannot read {path}: line {scanner.line} has something behind the end of the array: remove it")


def _values(path: Path, stream: io.BufferedReader) -> Iterator[Any]:
    """Yield JSON values that follow one another."""
    scanner = _Scanner(path, stream)
    while scanner.next():
        yield scanner.value()


class _Scanner:
    """Reads JSON piece by piece from a stream."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self._path, self._stream = path, stream
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at, self._lines, self._ended = "", 0, 1, False

    @property
    def line(self) -> int:
        """The line of the next character."""
        return self._lines + self._text.count("\n", 0, self._at)

    def _more(self) -> bool:
        if self._ended:
            return False
        self._lines += self._text.count("\n", 0, self._at)
        # As much again as is left: a value longer than a chunk is not scanned once for every chunk of it.
        content = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        self._ended = not content
        self._text, self._at = self._text[self._at :] + self._decode(content, final=self._ended), 0
        return True

    def next(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def skip(self, expected: str) -> None:
        """Pass over a character."""
        if (here := self.next()) != expected:
            raise DataError(self._not_json(f"{expected!r} is missing" + ("" if here else ": the file ends there")))
        self._at += 1

    def value(self) -> Any:
        """Return the next value."""
        self.next()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
            except json.JSONDecodeError as error:
                if self._more():
                    continue
                self._at = min(error.pos, len(self._text))
                raise DataError(self._not_json(error.msg)) from None
            except (ValueError, RecursionError) as error:
                raise DataError(self._not_json(str(error))) from None
            # A number at the end of what was read may go on.
            if end == len(self._text) and self._more():
                continue
            self._at = end
            return value

    def _not_json(self, problem: str) -> str:
        return f"cannot read {self._path}: not JSON: {problem} (line {self.line})"


def _csv(stream: io.BufferedReader, delimiter: str) -> Iterator[NumberedRow]:
    # Not pyarrow's reader: it guesses types, and a response "42" must stay a text. Python's also counts lines.
    csv.field_size_limit(2**31 - 1)
    # Where a comma is part of numbers, spreadsheets write semicolons.
    header = stream.peek(1).split(b"\n", 1)[0]
    delimiter = delimiter or max((",", ";", "\t"), key=lambda mark: header.count(mark.encode()))
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        reader = csv.DictReader(text, strict=True, delimiter=delimiter)
        names = list(reader.fieldnames or ())
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise csv.Error(f"the header has {', '.join(map(repr, twice))} twice: name each column once")
        line = reader.line_num + 1
        for row in reader:
            number, line = line, reader.line_num + 1  # a cell may hold newlines: a row begins after the one before it
            if None in row:
                yield number, f"the row has more cells than the header, which has {len(names)}"
            else:
                yield number, {name: cell_of(name, value) for name, value in row.items()}


def _table(path: Path, kind: str) -> Iterator[Fields]:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    try:
        if kind == ".parquet":
            with pyarrow.parquet.ParquetFile(path) as table:
                for batch in table.iter_batches(_BATCH):  # the whole table as Python objects is many times as large
                    yield from rows_of_batch(batch)
            return
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            # The file format has a directory at its end, the stream format has none. `datasets` writes streams.
            opened = pyarrow.ipc.open_file(file) if start == b"ARROW1" else pyarrow.ipc.open_stream(file)
            batches = map(opened.get_batch, range(opened.num_record_batches)) if start == b"ARROW1" else iter(opened)
            for batch in batches:
                for at in range(0, batch.num_rows, _BATCH):
                    yield from rows_of_batch(batch.slice(at, _BATCH))
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error


def rows_of_batch(batch: Any) -> Iterator[Fields]:
    """Yield the rows of a batch of pyarrow, as JSON would have them: texts, numbers, and objects without null keys."""
    import pyarrow
    from pyarrow import types

    for place, field in enumerate(batch.schema):
        wanted = None
        if types.is_decimal(field.type):
            wanted = pyarrow.float64()
        elif types.is_binary(field.type) or types.is_large_binary(field.type):
            wanted = pyarrow.large_string()
        if wanted is not None:
            # Bytes that are no text stay bytes: only whoever needs the column refuses them.
            with contextlib.suppress(pyarrow.ArrowInvalid):
                batch = batch.set_column(place, field.name, batch.column(place).cast(wanted))
    # A struct has all keys that it has in any row: null stands for one that this row lacks, in a tool's schema too.
    nested = [field.name for field in batch.schema if "struct" in str(field.type)]
    for row in cast("Iterable[Fields]", batch.to_pylist(maps_as_pydicts="strict")):
        for name in nested:
            row[name] = _without_nulls(row[name])
        yield row


def _without_nulls(value: Any) -> Any:
    """Return the value without keys whose value is null, at any depth; elements of lists keep their places."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value
