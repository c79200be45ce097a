"""The files of a run: what is done so far, where it goes on, and the output, which appears whole.

Beside the output ``OUT``, while it is made, there is a folder ``OUT.partial``: the rows that were answered, one JSON
object a line, and those that failed. Failures of a chunk are written before its rows, so every row up to the last one
that was written is in one of the two files, and a run that was killed at any moment goes on behind it. In the end the
rows become ``OUT``, the failures ``OUT.failures.jsonl``, and ``OUT.run.json`` says how they were made.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from pydantic_core import from_json, to_json

from paragone_evaluation.errors import DataError, EvaluationError
from paragone_evaluation.readers.containers import container_of
from paragone_evaluation.readers.writing import packed_stream

__all__ = ["RunFiles", "cannot_write", "is_kept", "is_own"]

Fields = dict[str, Any]

_ROWS, _FAILED, _DONE = "rows.jsonl", "failures.jsonl", "done"
_REASONS = 3  # that are shown where nothing was answered
_TAIL = 1 << 16  # bytes that are read at once from the end of a file
_GROUP_ROWS, _GROUP_BYTES = 10_000, 32 << 20  # of a parquet file's row groups

# Settings of a run that are no option of the command.
_WORDS = {
    "identity": "the model identity",
    "fingerprint": "the model fingerprint",
    "sources": "the files",
    "sha256": "files of the SHA-256",
}

# Columns of tables before those of the answers. Messages are JSON: a column holds texts or lists, and not both.
_COLUMNS: Mapping[str, str] = {
    "row": "count", "file": "text", "line": "count", "id": "text", "split": "text", "group": "text", "subset": "text",
    "prompt": "json", "tools": "json", "responses": "[json]", "comparisons": "comparisons", "ratings": "[json]",
}  # fmt: skip


class RunFiles:
    """What a run of ``annotate`` has on disk.

    Args:
        output: the file that is made; its name says how.
        settings: everything that the answers depend on; a run goes on only with the same.
        columns: of the answers, with their types.

    Attributes:
        done: number of the last row that is on disk; −1 where there is none.
        asked: whether an earlier run asked about every row.
        whole: whether it finished the output too.
        counts: rows and failures of the files so far.

    Raises:
        EvaluationError: if the output is there already, made with other settings, or the begun run has others.
        DataError: if the name ends in something that is not written.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any], columns: Mapping[str, str]) -> None:
        container = container_of(output)
        if container is None or container[0] not in (".jsonl", ".ndjson", ".parquet"):
            raise DataError(
                f"cannot write {output}: its name must end in .jsonl, .ndjson or .parquet; "
                ".gz, .zst, .bz2 or .xz may follow the first two"
            )
        if container[0] == ".parquet":
            import pyarrow  # noqa: F401 (what is not installed is said before the rows are asked about, not after)
        self.output, self._container, self._columns = output, container, columns
        self.failed = output.with_name(f"{output.name}.failures.jsonl")
        self._folder = _folder_of(output)
        self._record = output.with_name(f"{output.name}.run.json")
        # As JSON has it, so that what was read back compares.
        self._settings: Fields = json.loads(json.dumps(settings))
        self._open: list[BinaryIO] = []
        self.done, self.asked, self.whole = -1, False, False
        self.counts = {"rows": 0, "failed_rows": 0, "failures": 0}

    def __enter__(self) -> Self:
        try:
            self._begin()
        except OSError as error:
            raise cannot_write(self.output, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._open:
            file.close()
        if error is not None and self._is_bare():
            # Another input or model may have the name: nothing would be mixed.
            self._remove()

    def _is_bare(self) -> bool:
        written = (self._folder / name for name in (_ROWS, _FAILED, _DONE))
        return self._folder.exists() and not any(path.exists() and path.stat().st_size for path in written)

    def _remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._record.unlink(missing_ok=True)

    def _begin(self) -> None:
        begun = json.loads(self._record.read_bytes()) if self._record.exists() else None
        if begun is None and self.output.exists():
            raise EvaluationError(f"{self.output} is there already: remove it, or write to another name")
        if begun is not None:
            self._check_same(begun["settings"])
            self.asked = self.whole = "counts" in begun and self.output.exists()
            if self.whole:
                self.counts = begun["counts"]
                shutil.rmtree(self._folder, ignore_errors=True)
                return
        if begun is None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self.output.parent.mkdir(parents=True, exist_ok=True)
            self._write_record()  # before the folder, which says nothing of its settings
        self._folder.mkdir(exist_ok=True)
        if (self._folder / _DONE).exists():  # only the end was missing
            self.counts = json.loads((self._folder / _DONE).read_bytes())
            self.asked = True
            return
        self._go_on()

    def _check_same(self, begun: Fields) -> None:
        # A file of answers of two models, or about two inputs, would look like one.
        for name, value in self._settings.items():
            if begun.get(name) != value:
                raise EvaluationError(
                    f"{self.output} was begun with {_setting(name, begun.get(name))}, and this command has "
                    f"{_setting(name, value)}: repeat the command as it was, write to another name, or remove "
                    f"{self._record.name}, {self._folder.name} and what was written"
                )

    def _write_record(self, **finished: Any) -> None:
        _replace(self._record, json.dumps({"settings": self._settings, **finished}, indent=1, ensure_ascii=False))

    def _go_on(self) -> None:
        """Cut both files to what is whole, and find the last row that is in them."""
        rows, failed = self._folder / _ROWS, self._folder / _FAILED
        for path in (rows, failed):
            path.touch()
            _cut_to_lines(path)
        last = _last_line(rows)
        self.done = -1 if last is None else int(json.loads(last)["row"])
        # Failures are written first: those behind the last row are of a chunk that is asked for again.
        failures = kept = 0
        with failed.open("rb") as file:
            for line in file:
                if from_json(line)["row"] > self.done:
                    break
                failures, kept = failures + 1, kept + len(line)
        os.truncate(failed, kept)
        self._open = [rows.open("ab", buffering=0), failed.open("ab", buffering=0)]
        with rows.open("rb") as file:
            count = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
        self.counts = {"rows": count, "failed_rows": self.done + 1 - count, "failures": failures}

    def add(self, rows: Sequence[bytes], failures: Iterable[Fields], failed_rows: int) -> None:
        """Write the next rows, a line each, and the failures among them.

        Raises:
            EvaluationError: if the disk takes no more.
        """
        failed = [to_json(one) + b"\n" for one in failures]
        try:
            for file, lines in zip(reversed(self._open), (failed, rows), strict=True):
                content = memoryview(b"".join(lines))
                while content:
                    content = content[file.write(content) :]
        except OSError as error:
            raise cannot_write(self.output, error) from error
        self.counts["rows"] += len(rows)
        self.counts["failed_rows"] += failed_rows
        self.counts["failures"] += len(failed)

    def rows(self) -> Iterator[Fields]:
        """Yield the rows that were answered, in order."""
        with (self._folder / _ROWS).open("rb") as file:
            for line in file:
                yield from_json(line)

    def abandon(self) -> str:
        """Remove what was written, of a run in which nothing was answered; return its first reasons in words."""
        reasons: dict[str, int] = {}
        with (self._folder / _FAILED).open("rb") as file:
            for line in file:
                reason = json.loads(line)["message"]
                if reason in reasons or len(reasons) < _REASONS:
                    reasons[reason] = reasons.get(reason, 0) + 1
        self._remove()
        return "; ".join(f"{reason} ({count} {'row' if count == 1 else 'rows'})" for reason, count in reasons.items())

    def finish(self, **more: Any) -> None:
        """Make the output of what was written; killed at any moment, it is done again from the start.

        Args:
            more: what else the record of the run says.
        """
        try:
            self._finish(more)
        except OSError as error:
            raise cannot_write(self.output, error) from error

    def _finish(self, more: Fields) -> None:
        _replace(self._folder / _DONE, json.dumps(self.counts))
        rows, failed, fresh = self._folder / _ROWS, self._folder / _FAILED, self._folder / "fresh"
        if self.counts["failures"]:
            shutil.copyfile(failed, fresh)
            fresh.replace(self.failed)
        kind, packing = self._container
        if kind == ".parquet":
            self._write_table(fresh)
        else:
            with fresh.open("wb") as file, packed_stream(file, packing) as stream, rows.open("rb") as plain:
                shutil.copyfileobj(plain, stream, 1 << 20)
        fresh.replace(self.output)
        self._write_record(counts=self.counts, **more)
        shutil.rmtree(self._folder)

    def _write_table(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        types = {**_COLUMNS, **self._columns}
        schema = pyarrow.schema([(name, _arrow(kind)) for name, kind in types.items()])
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            for group in _groups(self._folder / _ROWS):
                columns = {name: [_cell(row.get(name), kind) for row in group] for name, kind in types.items()}
                writer.write_table(pyarrow.Table.from_pydict(columns, schema=schema))


def cannot_write(path: Path, error: OSError) -> EvaluationError:
    """Return the error for a file that the disk does not take."""
    kept = "; what was answered is kept, and with more room the same command goes on"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return EvaluationError(f"cannot write {path}: {error.strerror or error}{kept if full else ''}")


def is_kept(output: Path) -> bool:
    """Return whether a run that ended early left answers behind, with which the same command goes on."""
    return _folder_of(output).exists()


def is_own(output: Path, name: str) -> bool:
    """Return whether a file is one that the run with this output writes, and so none of its input."""
    path, beside = Path(name).absolute(), output.absolute()
    stem = output.name.partition(".")[0]
    names = (output.name, *(f"{output.name}.{end}" for end in ("failures.jsonl", "run.json")), f"{stem}.pairs.jsonl")
    return _folder_of(beside) in path.parents or (path.parent == beside.parent and path.name in names)


def _folder_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.partial")


def _setting(name: str, value: Any) -> str:
    """Return a setting as it is known to whoever types the command."""
    words = _WORDS.get(name, f"--{name}")
    return f"no {words}" if value in (None, {}, []) else f"{words} {_shown(value)}"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.write_text(text + "\n", encoding="utf-8")
    fresh.replace(path)


def _cut_to_lines(path: Path) -> None:
    """Cut what was being written when the run was killed."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        end = size
        while end:
            start = max(0, end - _TAIL)
            file.seek(start)
            at = file.read(end - start).rfind(b"\n")
            if at >= 0:
                end = start + at + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _last_line(path: Path) -> bytes | None:
    """Return the last line of a file of whole lines, its end included."""
    end = path.stat().st_size
    if not end:
        return None
    with path.open("rb") as file:
        start, tail = end, b""
        while start and b"\n" not in tail[:-1]:
            before = max(0, start - _TAIL)
            file.seek(before)
            tail = file.read(start - before) + tail
            start = before
    return tail[tail[:-1].rfind(b"\n") + 1 :]


def _groups(path: Path) -> Iterator[list[Fields]]:
    group: list[Fields] = []
    size = 0
    with path.open("rb") as file:
        for line in file:
            group.append(from_json(line))
            size += len(line)
            if len(group) >= _GROUP_ROWS or size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
    if group:
        yield group


def _arrow(kind: str) -> Any:
    import pyarrow

    if kind.startswith("["):
        return pyarrow.list_(_arrow(kind[1:-1]))
    if kind == "comparisons":
        sides = [("first", pyarrow.int64()), ("second", pyarrow.int64()), ("label", pyarrow.string())]
        return pyarrow.list_(pyarrow.struct([*sides, ("strength", pyarrow.float64())]))
    types = {"count": pyarrow.int64, "number": pyarrow.float64, "text": pyarrow.string, "json": pyarrow.string}
    return types[kind]()


def _cell(value: Any, kind: str) -> Any:
    if kind == "json":
        return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind == "[json]" and value is not None:
        return [_cell(one, "json") for one in value]
    return value
