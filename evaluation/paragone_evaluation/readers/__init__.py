"""Reading evaluation files: which layout, which rows, and what was left out and why."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from paragone_evaluation.dataset import EvaluationSet, LeftOut, SetBuilder
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.files import Row, file_hash, rows_of
from paragone_evaluation.readers.layouts import HELPSTEER_ATTRIBUTES
from paragone_evaluation.readers.own import GroupsReader, PairsReader, RatingsReader, RowReader
from paragone_evaluation.readers.published import (
    JudgeBenchReader,
    RewardBench2Reader,
    RewardBenchReader,
    RMBenchReader,
)
from paragone_evaluation.readers.rows import BadRowError, identifier
from paragone_evaluation.readers.translated import (
    HelpSteer2PreferencesReader,
    HelpSteer2Reader,
    UltraFeedbackReader,
)

__all__ = ["LAYOUTS", "detect_layout", "read_evaluation_set"]

_RATINGS_READERS: dict[str, Callable[[str | None], RowReader]] = {
    "ratings": RatingsReader,
    "helpsteer2": HelpSteer2Reader,
    "ultrafeedback": UltraFeedbackReader,
}
_JUDGED_READERS: dict[str, Callable[[], RowReader]] = {
    "pairs": PairsReader,
    "groups": GroupsReader,
    "helpsteer2-preferences": HelpSteer2PreferencesReader,
    "rewardbench": RewardBenchReader,
    "rewardbench2": RewardBench2Reader,
    "rm-bench": RMBenchReader,
    "judgebench": JudgeBenchReader,
}
LAYOUTS = (*_JUDGED_READERS, *_RATINGS_READERS)
"""Names of the layouts, as ``--layout`` takes them beside ``auto``."""

_WITHOUT_IDS = ("helpsteer2", "helpsteer2-preferences", "ultrafeedback")
_SIGNED = ("pairs", "helpsteer2-preferences", "judgebench")
"""Layouts in which either response may be the preferred one."""
_SHOWN = 5


def detect_layout(row: Row) -> str | None:
    """Return the layout that a row's fields belong to, or None.

    Args:
        row: of a file.
    """
    fields = set(row)
    if "response_A" in fields or "pair_id" in fields:
        return "judgebench"
    if isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list):
        if "domain" in fields:
            return "rm-bench"
        if "subset" in fields:
            return "rewardbench2"
    if {"chosen", "rejected", "subset"} <= fields:
        return "rewardbench"
    if "completions" in fields:
        return "ultrafeedback"
    if fields & {"preference_strength", "response_1", "response_2"}:
        return "helpsteer2-preferences"
    if "comparisons" in fields or "responses" in fields:
        return "groups"
    if "ratings" not in fields and fields & set(HELPSTEER_ATTRIBUTES):
        return "helpsteer2"
    if "ratings" in fields or "response" in fields:
        return "ratings"
    return "pairs" if fields & {"first", "second", "chosen", "rejected"} else None


def read_evaluation_set(
    path: str | Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    exclude_split: str | None = None,
    attribute: str | None = None,
    leave_out_bad_rows: bool = False,
) -> EvaluationSet:
    """Return a file as an evaluation set.

    Args:
        path: a .jsonl, .jsonl.gz, .json or .parquet file.
        layout: ``auto`` goes by the fields of the first row.
        split: rows with another ``split`` are left out.
        exclude_split: rows with this ``split`` are left out.
        attribute: of a ratings file, what people's scores are taken from; its first one if None.
        leave_out_bad_rows: go on without rows that cannot be read, and report them, instead of refusing the file.

    Raises:
        DataError: if the file cannot be read, has bad rows (missing fields, another schema, a label out of range, an
            id that was used before; lines are named) that are not to be left out, or nothing decided in it.
    """
    path = Path(path)
    if layout not in ("auto", *LAYOUTS):
        raise DataError(f"layout is {layout!r}; it must be auto or one of {', '.join(LAYOUTS)}")
    reading = _Reading(path, layout, split, exclude_split, attribute)
    for line, row in rows_of(path):
        reading.add(line, row)
    return reading.result(leave_out_bad_rows=leave_out_bad_rows)


class _Reading:
    """One pass over a file."""

    def __init__(
        self, path: Path, layout: str, split: str | None, exclude_split: str | None, attribute: str | None
    ) -> None:
        self._path, self._layout, self._split, self._exclude = path, layout, split, exclude_split
        self._attribute = attribute
        self._detected = layout == "auto"
        self._reader: RowReader | None = None
        self._builder = SetBuilder()
        self._seen: dict[str, int] = {}
        self._bad: list[tuple[int, str]] = []
        self._other_split: list[int] = []
        self._splits: set[str] = set()
        self._rows = 0

    def add(self, line: int, row: Row | str) -> None:
        """Read one row, or note why it cannot be read."""
        self._rows += 1
        try:
            if isinstance(row, str):
                raise BadRowError(row)
            if not self._wanted(line, row):
                return
            reader = self._reader_for(row)
            self._check_identifier(line, row)
            reader.read(line, row, self._builder)
        except BadRowError as error:
            self._bad.append((line, str(error)))

    def _wanted(self, line: int, row: Row) -> bool:
        found = row.get("split")
        if isinstance(found, str):
            self._splits.add(found)
        if self._split is not None:
            if found is None:
                raise BadRowError(f"field 'split' is missing, and --split {self._split} asks for it")
            wanted = bool(found == self._split)
        else:
            wanted = self._exclude is None or found != self._exclude
        if not wanted:
            self._other_split.append(line)
        return wanted

    def _reader_for(self, row: Row) -> RowReader:
        if self._layout == "auto":
            found = detect_layout(row)
            if found is None:
                known = ", ".join(LAYOUTS)
                raise BadRowError(f"the fields {', '.join(sorted(row)) or '(none)'} fit no layout; known are {known}")
            self._layout = found
        if self._reader is None:
            rates = _RATINGS_READERS.get(self._layout)
            self._reader = _JUDGED_READERS[self._layout]() if rates is None else rates(self._attribute)
        if self._detected and (found := detect_layout(row)) not in (None, self._layout):
            raise BadRowError(f"the row has the fields of {found}, and the file began with {self._layout}")
        return self._reader

    def _check_identifier(self, line: int, row: Row) -> None:
        if self._layout in _WITHOUT_IDS and row.get("id") is None:
            return
        name = identifier(row, "pair_id" if self._layout == "judgebench" else "id")
        scope = {"rewardbench": "subset", "rm-bench": "domain"}.get(self._layout)
        key = f"{row.get(scope)}/{name}" if scope else name
        before = self._seen.setdefault(key, line)
        if before != line:
            raise BadRowError(f"id {name[:60]!r} is on line {before} already")

    def result(self, *, leave_out_bad_rows: bool) -> EvaluationSet:
        """Return the evaluation set, or refuse the file."""
        if self._bad and not leave_out_bad_rows:
            raise DataError(self._complaint())
        if self._reader is None:
            raise DataError(self._nothing())
        self._reader.finish(self._builder)
        left_out = []
        if self._other_split:
            reason = f"split is not {self._split}" if self._split else f"split is {self._exclude}"
            left_out.append(LeftOut(reason, len(self._other_split)))
        for reason, lines in _by_reason([*self._bad, *self._reader.left_out]).items():
            left_out.append(LeftOut(reason, len(lines), tuple(lines[:_SHOWN])))
        made = self._builder.built(
            path=str(self._path),
            sha256=file_hash(self._path),
            layout=self._layout,
            split=self._split,
            left_out=left_out,
            notes=(),
            rated=self._reader.rated,
        )
        return self._checked(made)

    def _checked(self, made: EvaluationSet) -> EvaluationSet:
        if made.rated is not None and made.cases:
            return made  # ratings can be agreed with where no two responses are compared
        if not len(made.outcome):
            if self._bad:
                raise DataError(self._complaint())
            why = "".join(f"; {left.count} left out: {left.reason}" for left in made.left_out)
            raise DataError(f"{self._path}: no two responses are compared in it: {self._rows} rows were read{why}")
        lines = [made.cases[case].line for case in made.case]
        if (made.outcome == 0.5).all():
            raise DataError(
                f"{self._path}: all {len(lines)} judgements are ties (lines {lines[0]} to {lines[-1]}): nothing is "
                "decided, so there is nothing to be right about"
            )
        decided = made.outcome[made.outcome != 0.5]
        signed = made.layout in _SIGNED and bool((made.strength == made.strength).any())
        if (signed or made.layout == "judgebench") and len(set(decided)) == 1 and len(decided) > 1:
            side = "first" if decided[0] else "second"
            note = (
                f"One class only: all {len(decided)} decided judgements (lines {lines[0]} to {lines[-1]}) prefer the "
                f"{side} response. A model that always says {side} would be right always; correlations with the signed "
                "strength mean little."
            )
            return _with_note(made, note)
        return made

    def _complaint(self) -> str:
        found = _by_reason(self._bad)
        shown = "\n".join(
            f"  {_told_lines(lines)}: {message}" for message, lines in itertools.islice(found.items(), _SHOWN)
        )
        rest = sum(len(lines) for lines in itertools.islice(found.values(), _SHOWN, None))
        more = f"\n  … and {rest} more" if rest else ""
        rows = "1 row" if len(self._bad) == 1 else f"{len(self._bad)} rows"
        return (
            f"{self._path}: {rows} of {self._rows} cannot be read:\n{shown}{more}\n"
            "Mend the file, or leave these rows out with --bad-rows leave-out (the report counts them)."
        )

    def _nothing(self) -> str:
        if self._other_split and self._split:
            has = ", ".join(sorted(self._splits)) or "none"
            return f"{self._path}: no row has split {self._split!r}; the splits are: {has}"
        if self._other_split:
            return f"{self._path}: all {self._rows} rows have split {self._exclude!r}, which is left out"
        if self._bad:
            return self._complaint()
        return f"{self._path}: there are no rows in it"


def _by_reason(rows: Sequence[tuple[int, str]]) -> dict[str, list[int]]:
    """Return the lines of each complaint, in the order in which the complaints came up."""
    reasons: dict[str, list[int]] = {}
    for line, message in rows:
        reasons.setdefault(message, []).append(line)
    return reasons


def _told_lines(lines: Sequence[int]) -> str:
    if len(lines) == 1:
        return f"line {lines[0]}"
    more = f" and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return f"lines {', '.join(map(str, lines[:_SHOWN]))}{more}"


def _with_note(made: EvaluationSet, note: str) -> EvaluationSet:
    return replace(made, notes=(*made.notes, note))
