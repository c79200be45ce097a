"""The rows that did not become data, by reason and place: one account for every command, log, card and report."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from paragone_evaluation.dataset import LeftOut
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.sources import describe_hub_parts

__all__ = ["RowAccount"]

_SHOWN = 5  # lines of a complaint, and complaints of a file: enough to see what is wrong with the rest
_MOST_REASONS = 20  # of a report; a reason that names a value may have as many forms as there are rows
_REMEDY = "Mend the file, or leave these rows out with bad_rows = leave-out (they are counted)."


@dataclass(frozen=True, slots=True)
class _Place:
    """A row: the file that it is in, and its line."""

    file: str
    line: int


@dataclass
class RowAccount:
    """The rows of one or several files that did not become data, and why.

    Attributes:
        count: rows of the files so far.
        files: names of the files so far.
        bad: place and reason of each row that cannot be read.
        unused: place and reason of each row, or one of its responses, that is of no use.
        strengths: how many pairs have a strength of the file's own, by what it is read from.
        notes: what else happened to rows, in words.
    """

    count: int = 0
    files: list[str] = field(default_factory=list)
    bad: list[tuple[_Place, str]] = field(default_factory=list)
    unused: list[tuple[_Place, str]] = field(default_factory=list)
    strengths: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    def refuse(self, file: str, line: int, reason: str) -> None:
        """Note a row that cannot be read."""
        self.bad.append((_Place(file, line), reason))

    def leave_out(self, file: str, line: int, reason: str) -> None:
        """Note a row that is right and of no use."""
        self.unused.append((_Place(file, line), reason))

    def take(self) -> list[tuple[str, int, str]]:
        """Return file, line and reason of the rows noted so far, by file and line, and forget them."""
        order = {name: at for at, name in enumerate(self.files)}
        noted = [(place.file, place.line, reason) for place, reason in [*self.bad, *self.unused]]
        self.bad, self.unused = [], []
        return sorted(noted, key=lambda row: (order.get(row[0], 0), row[1]))

    def add(self, other: "RowAccount") -> None:
        """Take in the account of other files, or of another pass over these."""
        self.count += other.count
        self.files += [name for name in other.files if name not in self.files]
        self.bad += other.bad
        self.unused += other.unused
        self.strengths += other.strengths
        self.notes += other.notes

    def left_out(self) -> list[LeftOut]:
        """Return how many rows are in no measure, by reason."""
        reasons = _by_reason([*self.bad, *self.unused])
        rows = [LeftOut(reason, len(places), self._lines(places)) for reason, places in reasons.items()]
        if len(rows) <= _MOST_REASONS:
            return rows
        rest = rows[_MOST_REASONS:]
        first = tuple(line for left in rest for line in left.lines)[:_SHOWN]
        return [*rows[:_MOST_REASONS], LeftOut("other reasons", sum(left.count for left in rest), first)]

    def describe(self) -> list[str]:
        """Return the notes, and a line for each reason: how many rows, why, and where they are."""
        return [
            *self.notes,
            *(
                f"{left.count} {'row' if left.count == 1 else 'rows'} left out: {left.reason} "
                f"({'line' if left.count == 1 else 'lines'} {', '.join(map(str, left.lines))}"
                f"{', …' if left.count > len(left.lines) else ''})"
                for left in self.left_out()
            ),
        ]

    def describe_strengths(self) -> list[str]:
        """Return a line for each thing that strengths are read from."""
        return [
            f"{count} {'pair has' if count == 1 else 'pairs have'} a strength, read from: {source}"
            for source, count in self.strengths.items()
        ]

    def describe_hub(self) -> list[str]:
        """Return a line for each data set of the Hub that was read, with its commit."""
        return describe_hub_parts(self.files)

    def log(self, logger: logging.Logger) -> None:
        """Log what is left out, and where strengths come from."""
        for line in [*self.describe(), *self.describe_strengths()]:
            logger.info("%s: %s", self.title, line)

    @property
    def title(self) -> str:
        """The files, as messages call them."""
        return self.files[0] if len(self.files) == 1 else f"{len(self.files)} files, {self.files[0]} the first"

    def check(self, *, remedy: str = _REMEDY) -> None:
        """Refuse the files if a row cannot be read, with the lines and what is wrong with each of them.

        Raises:
            DataError: as described.
        """
        if not self.bad:
            return
        # A file in a layout that nobody knows has the same complaint in every row, and is told it once.
        reasons = _by_reason(self.bad)
        shown = "".join(
            f"  {self._in_words(places)}: {why}\n" for why, places in itertools.islice(reasons.items(), _SHOWN)
        )
        rest = sum(len(places) for places in itertools.islice(reasons.values(), _SHOWN, None))
        more = f"  … and {rest} more\n" if rest else ""
        rows = "1 row" if len(self.bad) == 1 else f"{len(self.bad)} rows"
        raise DataError(f"{self.title}: {rows} of {self.count} cannot be read:\n{shown}{more}{remedy}")

    def _lines(self, places: Iterable[_Place]) -> tuple[int | str, ...]:
        """Return the first lines, with their files where there are several."""
        alone = len(self.files) <= 1
        first = itertools.islice(places, _SHOWN)
        return tuple(place.line if alone else f"{Path(place.file).name}:{place.line}" for place in first)

    def _in_words(self, places: list[_Place]) -> str:
        lines = self._lines(places)
        if len(places) == 1:
            return f"line {lines[0]}"
        more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
        return f"lines {', '.join(map(str, lines))}{more}"


def _by_reason(rows: Iterable[tuple[_Place, str]]) -> dict[str, list[_Place]]:
    """Return the places of each reason, in the order in which the reasons came up."""
    reasons: dict[str, list[_Place]] = {}
    for place, reason in rows:
        reasons.setdefault(reason, []).append(place)
    return reasons
