"""One pass over a file, and the doors that are made of it: pairs, ratings and prompts.

Every command reads through ``FilePass``, so all of them see the same rows. Nothing is left out in silence: a row that
cannot be read refuses the file, and a row of no use is counted by its reason.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from paragone_evaluation.dataset import LeftOut
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.containers import Fields, fields_of
from paragone_evaluation.readers.layouts import FILE_LAYOUTS, FileLayout, layout_of
from paragone_evaluation.readers.rows import (
    BadRowError,
    DataRow,
    LeftOutError,
    Pair,
    Prompt,
    Rating,
    identifier,
    prompt_of,
    split_name,
    split_of,
    value_of,
)

__all__ = ["LAYOUTS", "FilePass", "read_fields", "read_pairs", "read_prompts", "read_ratings"]

logger = logging.getLogger(__name__)

LAYOUTS = tuple(dict.fromkeys(["pairs", "groups", "ratings", *(layout.name for layout in FILE_LAYOUTS)]))
"""Names of the layouts, as ``--layout`` takes them beside ``auto``, our own first."""

_SHOWN = 5
_Made = TypeVar("_Made")


@dataclass
class _RowAccount:
    """What happened to the rows of a file that did not become data.

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
        """Refuse the file if a row of it cannot be read.

        Raises:
            DataError: with the lines, and what is wrong with each of them.
        """
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
        accepts: whether rows of a split are read; it may raise ``BadRowError``.
        prompts: read nothing of a row but its prompt; rows need no layout then.

    Attributes:
        account: of the rows that are not yielded.
        layout: the one that was read, None before the first row.
        passed_over: rows of splits that were not accepted.
        splits: names that were met.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        layout: str = "auto",
        accepts: Callable[[str | None], bool] = lambda _: True,
        prompts: bool = False,
    ) -> None:
        if layout not in ("auto", *LAYOUTS):
            raise DataError(f"layout is {layout!r}; it must be auto or one of {', '.join(LAYOUTS)}")
        self.account = _RowAccount(Path(path))
        self._accepts, self._prompts, self._detects = accepts, prompts, layout == "auto"
        self._candidates = [known for known in FILE_LAYOUTS if layout in ("auto", known.name)]
        self.layout: FileLayout | None = None
        self.passed_over = 0
        self.splits: set[str] = set()
        self._lines: dict[str, int] = {}

    def __iter__(self) -> Iterator[DataRow]:
        for line, fields in fields_of(self.account.path):
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

    def _row(self, line: int, fields: Fields | str) -> DataRow | None:
        if isinstance(fields, str):
            raise BadRowError(fields)
        split = split_of(fields)
        if split is not None:
            self.splits.add(split)
        # A row of another split is not read any further: what is wrong with it stops nobody who does not use it.
        if not self._accepts(split):
            self.passed_over += 1
            return None
        if self._prompts:
            known = layout_of(fields, FILE_LAYOUTS)
            prompt = known.prompt(fields) if known else prompt_of(fields)
            return DataRow(line, prompt, id=identifier(fields), split=split)
        row = self._layout(fields).row(fields, line)
        # Rows without an id may well be alike. An id that stands for two rows is a mistake in the file.
        if row.id is not None and (before := self._lines.setdefault(row.id, line)) != line:
            raise BadRowError(f"id {row.id.removeprefix(f'{row.subset}/')[:60]!r} is on line {before} already")
        return self._decidable(row)

    def _layout(self, fields: Fields) -> FileLayout:
        known = layout_of(fields, self._candidates)
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

    def _decidable(self, row: DataRow) -> DataRow | None:
        """Return the row without judgements between two equal texts, which say nothing about either."""
        kept = [label for label in row.labels if row.responses[label.first] != row.responses[label.second]]
        if len(kept) == len(row.labels):
            return row
        self.account.unused.append((row.line, "the two responses that are compared are the same"))
        return replace(row, labels=tuple(kept)) if kept else None


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

    A prompt without an id is called by its place among those that were read.

    Args:
        split: rows of this split are read, and rows without one.

    Raises:
        DataError: if a file cannot be read, has bad rows, two prompts share an id, or nothing is left.
    """
    prompts: dict[str, Prompt] = {}
    texts: set[str] = set()
    for path in paths:
        reading = FilePass(path, accepts=lambda row_split: row_split in (None, split_name(split)), prompts=True)
        for row in reading:
            prompt = Prompt(str(len(prompts)) if row.id is None else row.id, row.prompt)
            # Files of pairs repeat a prompt in every row; a policy meets it once, whatever the rows are called.
            if prompt.text in texts:
                continue
            if prompt.id in prompts:
                reading.account.bad.append((row.line, f"id {prompt.id!r} belongs to another prompt already"))
            texts.add(prompt.text)
            prompts[prompt.id] = prompt
        reading.account.check()
    if not prompts:
        raise DataError(f"{', '.join(map(str, paths))}: no prompt whose split is {split!r}")
    return list(prompts.values())


def read_fields(path: str | Path, *names: str) -> list[Fields]:
    """Return the rows of a file as they are, for whoever needs neither layouts nor labels.

    Args:
        names: fields that every row must have.

    Raises:
        DataError: if the file cannot be read, or a row lacks a field.
    """
    account, rows = _RowAccount(Path(path)), []
    for line, fields in fields_of(account.path):
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
            if reading.layout is not None and reading.layout.rates != rates:
                kinds = ("responses that people rated", "responses that people compared")
                present, needed = kinds if reading.layout.rates else kinds[::-1]
                raise DataError(f"{path}: it has {present} (layout {reading.layout.name}); {needed} are needed here")
            try:
                made += make(row, path)
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
