"""Read a file of any kind row by row, and what training takes of it: pairs, ratings and prompts.

| suffix | rows |
|---|---|
| ``.jsonl``, ``.ndjson``, ``.json`` | one JSON object a line, or one array of objects |
| ``.csv`` | a header, then one row a record; cells of columns that hold no text are JSON |
| ``.parquet`` | a row each |

All but parquet may end in ``.gz`` or ``.zst`` as well. Text is UTF-8, with or without a byte-order mark.

Every command reads through ``FilePass``, so all of them see the same rows. Nothing is left out in silence: a row that
cannot be read refuses the file, and a row of no use is counted by its reason.
"""

import csv
import hashlib
import io
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from paragone_evaluation.dataset import LeftOut
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.layouts import (
    FILE_LAYOUTS,
    FileLayout,
    fitting_layout,
    prompt_row,
    split_name,
    split_of,
    value_of,
)
from paragone_evaluation.readers.rows import (
    BadRowError,
    DataRow,
    Fields,
    LeftOutError,
    Pair,
    Prompt,
    Rating,
)

__all__ = ["LAYOUTS", "SUFFIXES", "FilePass", "read_fields", "read_pairs", "read_prompts", "read_ratings"]

logger = logging.getLogger(__name__)

LAYOUTS = tuple(dict.fromkeys(["pairs", "groups", "ratings", *(layout.name for layout in FILE_LAYOUTS)]))
"""Names of the layouts, as ``--layout`` takes them beside ``auto``, our own first."""

_SHOWN = 5  # lines of a complaint, and complaints of a file: enough to see what is wrong with the rest
_Made = TypeVar("_Made")

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
"""Kinds of files that are read; ``.gz`` and ``.zst`` may follow all but the last."""

_PACKINGS = {".gz": "gzip", ".zst": "zstd"}
_UTF8_MARK, _UTF16_MARKS = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")
_NUMBERS = {"strength", "preference_strength", "num_correct"}
_ATTRIBUTES = {"helpfulness", "correctness", "coherence", "complexity", "verbosity"}
_JSON_CELLS = {*_NUMBERS, *_ATTRIBUTES, "ratings", "responses", "comparisons", "completions", "tools"}
"""Columns of a CSV file whose cells are JSON: a number, a list or an object."""


def _fields_of(path: Path) -> Iterator[tuple[int, Fields | str]]:
    """Yield the number of each row and its fields; a text in their place says why they cannot be read.

    The number is that of the line where the row begins, from 1. Arrays and parquet files have no lines of their own:
    there the rows are counted. Empty lines are passed over.
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
    # Every cell is tried by its first characters: parsing all texts as JSON would cost as much as reading the file.
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
            for batch in table.iter_batches():  # not the whole table, which as Python objects is many times as large
                yield from cast("Iterable[Fields]", batch.to_pylist())
    except pyarrow.ArrowException as error:
        raise DataError(f"cannot read {path}: {error}") from error


@dataclass
class _RowAccount:
    """The rows of a file that did not become data, and why.

    Attributes:
        count: rows of the file so far.
        bad: line and reason of each row that cannot be read.
        unused: line and reason of each row, or one of its responses, that is of no use.
    """

    path: Path
    count: int = 0
    bad: list[tuple[int, str]] = field(default_factory=list)
    unused: list[tuple[int, str]] = field(default_factory=list)

    def left_out(self) -> list[LeftOut]:
        """Return how many rows are in no measure, by reason."""
        reasons = _by_reason([*self.bad, *self.unused])
        return [LeftOut(reason, len(lines), tuple(lines[:_SHOWN])) for reason, lines in reasons.items()]

    def check(self, *, remedy: str = "Mend the file, or leave these rows out of it.") -> None:
        """Refuse the file if a row of it cannot be read, with the lines and what is wrong with each of them."""
        if not self.bad:
            return
        # A file in a layout that nobody knows has the same complaint in every row, and is told it once.
        reasons = _by_reason(self.bad)
        shown = "".join(f"  {_in_words(lines)}: {why}\n" for why, lines in itertools.islice(reasons.items(), _SHOWN))
        rest = sum(len(lines) for lines in itertools.islice(reasons.values(), _SHOWN, None))
        more = f"  … and {rest} more\n" if rest else ""
        rows = "1 row" if len(self.bad) == 1 else f"{len(self.bad)} rows"
        raise DataError(f"{self.path}: {rows} of {self.count} cannot be read:\n{shown}{more}{remedy}")


class FilePass:
    """The rows of a file, read once.

    Args:
        layout: of all rows; ``auto`` goes by the fields of the first one.
        split: the only split that is read; all of them if None.
        unmarked: rows without a split are of the one that is asked for; otherwise they are bad rows.
        prompts: read nothing of a row but its prompt; rows need no layout then.

    Attributes:
        layout: the one that was read, None before the first row.
        passed_over: how many rows are of splits that are not read.
        splits: names that were met.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: str = "auto",
        split: str | None = None,
        exclude_split: str | None = None,
        unmarked: bool = False,
        prompts: bool = False,
    ) -> None:
        if layout not in ("auto", *LAYOUTS):
            raise DataError(f"layout is {layout!r}; it must be auto or one of {', '.join(LAYOUTS)}")
        self.account = _RowAccount(Path(path))
        self.split, self.exclude_split = split_name(split), split_name(exclude_split)
        # Training takes rows without a split for training rows. For a measure nobody can tell that they belong to it.
        self._needs_split = self.split is not None and not unmarked
        self._prompts, self._detects = prompts, layout == "auto"
        self._candidates = [known for known in FILE_LAYOUTS if layout in ("auto", known.name)]
        self.layout: FileLayout | None = None
        self.passed_over = 0
        self.splits: set[str] = set()
        self._lines: dict[str, int] = {}

    def __iter__(self) -> Iterator[DataRow]:
        for line, fields in _fields_of(self.account.path):
            self.account.count += 1
            try:
                row = self._row(line, fields)
            except LeftOutError as error:
                self.account.unused.append((line, str(error)))
            except BadRowError as error:
                self.account.bad.append((line, str(error)))
            else:
                if row is not None:
                    yield row

    def sha256(self) -> str:
        """Return the SHA-256 of the file's bytes."""
        path = self.account.path
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"cannot read {path}: {error.strerror or error}") from error

    def _row(self, line: int, fields: Fields | str) -> DataRow | None:
        if isinstance(fields, str):
            raise BadRowError(fields)
        split = split_of(fields)
        if split is not None:
            self.splits.add(split)
        if split is None and self._needs_split:
            raise BadRowError(f"field 'split' is missing, and --split {self.split} asks for it")
        # A row of another split is not read any further: what is wrong with it stops nobody who does not use it.
        other = split == self.exclude_split if self.split is None else split != self.split
        if split is not None and other:
            self.passed_over += 1
            return None
        if self._prompts:
            return prompt_row(fields, line)
        known = fitting_layout(fields, self._candidates)
        # Nearly every row has the layout of the first one. Only the others are looked at more closely.
        layout = known if known and known is self.layout else self._settled(known, fields)
        row = layout.row(fields, line)
        # Rows without an id may well be alike. An id that stands for two rows is a mistake in the file.
        if row.id is not None and (before := self._lines.setdefault(row.id, line)) != line:
            raise BadRowError(f"id {row.id.removeprefix(f'{row.subset}/')[:60]!r} is on line {before} already")
        telling = row.telling_labels()
        if len(telling) == len(row.labels):
            return row
        self.account.unused.append((line, "the two responses that are compared are the same"))
        return replace(row, labels=telling) if telling else None

    def _settled(self, known: FileLayout | None, fields: Fields) -> FileLayout:
        """Return the file's layout for a row whose fields fit the known one or none; refuse a row of another layout."""
        if self.layout is None:
            self.layout = known if known or self._detects else self._candidates[0]
        if self.layout is None:
            names = ", ".join(sorted(fields)) or "(none)"
            raise BadRowError(f"the fields {names} fit no layout; known are {', '.join(LAYOUTS)}")
        # A row that fits no layout is the file's layout with a field too few, and is told which one.
        if known is None or known is self.layout:
            return self.layout
        if known.name == self.layout.name:
            raise BadRowError(f"the row has {known.schema}, and the file began with {self.layout.schema}")
        raise BadRowError(f"the row has the fields of {known.name}, and the file began with {self.layout.name}")


def read_pairs(*paths: str | Path) -> list[Pair]:
    """Return the pairs of files in any layout that compares responses, in order.

    Pairs of two identical responses, and rows that annotators found invalid, are left out and counted in the log.

    Raises:
        DataError: if a file cannot be read, has bad rows (they are named), or has no pair.
    """
    return _made(paths, DataRow.pairs, rates=False)


def read_ratings(*paths: str | Path) -> list[Rating]:
    """Return the ratings of files in any layout that rates single responses, in order.

    Raises:
        DataError: if a file cannot be read, has bad rows (they are named), or has no rating.
    """
    return _made(paths, DataRow.rated, rates=True)


def read_prompts(paths: Sequence[str | Path], *, split: str) -> list[Prompt]:
    """Return the prompts of files in any layout, each once, in their order.

    Rows of the split are read, and rows without one. A prompt without an id is called by its place among them.

    Raises:
        DataError: if a file cannot be read, has bad rows, two prompts share an id, or nothing is left.
    """
    prompts: dict[str, Prompt] = {}
    texts: set[str] = set()
    for path in paths:
        reading = FilePass(path, split=split, unmarked=True, prompts=True)
        for row in list(reading):  # one pass over the file, then one over its prompts
            prompt = Prompt(str(len(prompts)) if row.id is None else row.id, row.prompt)
            text = prompt.text
            # Files of pairs repeat a prompt in every row; a policy meets it once, whatever the rows are called.
            if text in texts:
                continue
            if prompt.id in prompts:
                reading.account.bad.append((row.line, f"id {prompt.id!r} belongs to another prompt already"))
            texts.add(text)
            prompts[prompt.id] = prompt
        reading.account.check()
    if not prompts:
        raise DataError(f"{', '.join(map(str, paths))}: no prompt whose split is {split!r}")
    return list(prompts.values())


def read_fields(path: str | Path, *names: str) -> list[Fields]:
    """Return the rows of a file as they are, for whoever needs neither layouts nor labels.

    Raises:
        DataError: if the file cannot be read, or a row lacks one of the fields named.
    """
    account, rows = _RowAccount(Path(path)), []
    for line, fields in _fields_of(account.path):
        account.count += 1
        try:
            if isinstance(fields, str):
                raise BadRowError(fields)
            for name in names:
                value_of(fields, name)
            rows.append(fields)
        except BadRowError as error:
            account.bad.append((line, str(error)))
    account.check()
    return rows


def _made(paths: Sequence[str | Path], make: Callable[[DataRow, Path], list[_Made]], *, rates: bool) -> list[_Made]:
    """Return what ``make`` gives for each row of the files."""
    made: list[_Made] = []
    for path in map(Path, paths):
        reading, before = FilePass(path), len(made)
        for row in reading:
            # Not before the first row, which is what tells the layout.
            if reading.layout is not None and reading.layout.rates != rates:
                kinds = ("responses that people rated", "responses that people compared")
                present, needed = kinds if reading.layout.rates else kinds[::-1]
                raise DataError(f"{path}: it has {present} (layout {reading.layout.name}); {needed} are needed here")
            try:
                made += make(row, path)
            # Collected to the end of the file: whoever mends a file wants all of its faults at once.
            except BadRowError as error:
                reading.account.bad.append((row.line, str(error)))
        reading.account.check()
        unused = reading.account.left_out()
        for left in unused:
            logger.info("%s: %d rows left out: %s", path, left.count, left.reason)
        if len(made) == before:
            why = "".join(f"; {left.count} left out: {left.reason}" for left in unused)
            raise DataError(f"{path} has no rows to learn from: {reading.account.count} were read{why}")
    return made


def _by_reason(rows: Sequence[tuple[int, str]]) -> dict[str, list[int]]:
    """Return the lines of each reason, in the order in which the reasons came up."""
    reasons: dict[str, list[int]] = {}
    for line, reason in rows:
        reasons.setdefault(reason, []).append(line)
    return reasons


def _in_words(lines: Sequence[int]) -> str:
    if len(lines) == 1:
        return f"line {lines[0]}"
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"lines {', '.join(map(str, lines[:_SHOWN]))}{more}"
