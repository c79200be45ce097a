"""Write rows of any layout in our own: ``paragone data --convert``."""

import bz2
import gzip
import json
import lzma
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, cast

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.containers import container_of
from paragone_evaluation.readers.rows import DataRow

__all__ = ["RowWriter", "own_rows", "packed_stream"]

_TELLING = ("chosen", "first", "comparisons", "ratings")  # fields that tell our layouts apart
_KINDS = (".jsonl", ".ndjson", ".parquet")


def own_rows(row: DataRow, *, signed: bool = True) -> Iterator[dict[str, Any]]:
    """Yield a row in our own layout: ``pairs`` where strengths are the file's own, ``groups`` or ``ratings`` otherwise.

    A row of which people rated each response becomes a row for each. Which responses a benchmark calls right is kept as
    comparisons alone.

    Args:
        signed: whether either response may be the preferred one; otherwise pairs are ``chosen`` and ``rejected``.
    """
    shared: dict[str, Any] = {
        "prompt": row.prompt, "split": row.split, "group": row.group, "subset": row.subset,
        "tools": list(row.tools) if row.tools else None, "reason": row.reason,
    }  # fmt: skip
    responses = [response if isinstance(response, str) else _messages(response) for response in row.responses]
    if row.ratings:
        for at, (response, ratings) in enumerate(zip(responses, row.given_ratings, strict=True)):
            name = row.id if row.id is None or len(responses) == 1 else f"{row.id}/{at}"
            yield _without_nulls({"id": name, **shared, "response": response, "ratings": ratings})
        return
    label = row.labels[0] if len(row.labels) == 1 and len(responses) == 2 else None
    if label and label.strength > 0 and not signed:
        sides = {"chosen": responses[label.first], "rejected": responses[label.second]}
        strength = {"strength": label.strength} if row.graded else {}
        yield _without_nulls({"id": row.id, **shared, **sides, **strength})
        return
    if label and row.graded:
        sides = {"first": responses[label.first], "second": responses[label.second], "strength": label.strength}
        yield _without_nulls({"id": row.id, **shared, **sides})
        return
    comparisons = [
        {"first": label.first, "second": label.second, "label": _winner(label.strength)} for label in row.labels
    ]
    if responses:
        yield _without_nulls({"id": row.id, **shared, "responses": responses, "comparisons": comparisons})
    else:
        yield _without_nulls({"id": row.id, **shared})


def _winner(strength: float) -> str:
    return "tie" if not strength else "first" if strength > 0 else "second"


def _messages(response: Any) -> Any:
    return [dict(message) for message in response] if isinstance(response, tuple | list) else dict(response)


def _without_nulls(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class RowWriter:
    """Writes rows into a file whose name says how: JSON lines, packed or not, or parquet. The file appears whole.

    Raises:
        DataError: if the name ends in something else, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        container = container_of(path)
        if container is None or container[0] not in _KINDS:
            raise DataError(
                f"cannot write {path}: its name must end in one of {', '.join(_KINDS)}; "
                ".gz, .zst, .bz2 or .xz may follow the first two"
            )
        self.count, self._fields = 0, ""
        self._path, (self._kind, self._packing) = path, container
        self._partial = path.with_name(f"{path.name}.partial")
        self._stack, self._rows = ExitStack(), list[dict[str, Any]]()
        self._stream: Any = None

    def __enter__(self) -> Self:
        try:
            self._stream = self._stack.enter_context(self._partial.open("wb"))
            if self._kind != ".parquet":
                self._stream = self._stack.enter_context(packed_stream(self._stream, self._packing))
        except OSError as error:
            raise DataError(f"cannot write {self._path}: {error.strerror or error}") from error
        return self

    def write(self, row: DataRow, *, signed: bool = True) -> None:
        """Write a row; ``signed`` as of ``own_rows``.

        Raises:
            DataError: if the row would be of another layout than those before it.
        """
        for fields in own_rows(row, signed=signed):
            self.count += 1
            kind = next((name for name in _TELLING if name in fields), "prompt")
            self._fields = self._fields or kind
            if kind != self._fields:
                raise DataError(
                    f"cannot write {self._path}: rows with {self._fields!r} and rows with {kind!r} do not go into one "
                    "file: convert their files apart"
                )
            if self._kind == ".parquet":
                self._rows.append(fields)
            else:
                self._stream.write(json.dumps(fields, ensure_ascii=False).encode() + b"\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._kind == ".parquet":
            self._write_table()
        self._stack.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)

    def _write_table(self) -> None:
        import pyarrow
        import pyarrow.parquet

        # The columns of all rows: a table's schema is that of its first row otherwise.
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        try:
            table = pyarrow.Table.from_pydict({name: [row.get(name) for row in self._rows] for name in names})
        except pyarrow.ArrowException as error:
            raise DataError(
                f"cannot write {self._path}: its columns would hold texts and messages side by side ({error}): "
                "write .jsonl"
            ) from error
        pyarrow.parquet.write_table(table, self._stream)


def packed_stream(stream: BinaryIO, packing: str) -> Any:
    """Return a stream that packs what is written as the suffix says and leaves the given one open; a context."""
    if packing == ".gz":
        return gzip.GzipFile(fileobj=stream, mode="wb", mtime=0)
    if packing == ".bz2":
        return bz2.BZ2File(stream, "wb")
    if packing == ".xz":
        return lzma.LZMAFile(stream, "wb")
    if packing == ".zst":
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(cast("Any", stream), closefd=False)
    return _Plain(stream)


class _Plain:
    """A stream whose closing is somebody else's."""

    def __init__(self, stream: BinaryIO) -> None:
        self.write = stream.write

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return
