"""From the rows of a file to an evaluation set: its cases, what people said of them, and what the file cannot show."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from paragone_evaluation.dataset import Case, EvaluationSet, LeftOut, PromptText, SetBuilder
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.files import FilePass, file_hash
from paragone_evaluation.readers.rows import DataRow, question_of, rated_alone

__all__ = ["read_evaluation_set"]

_NAN = float("nan")
_REMEDY = "Mend the file, or leave these rows out with --bad-rows leave-out (the report counts them)."


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
        layout: ``auto`` goes by the fields of the first row.
        split: rows with another ``split`` are left out.
        exclude_split: rows with this ``split`` are left out.
        attribute: of a ratings file, what people's scores are taken from; its first one if None.
        leave_out_bad_rows: go on without rows that cannot be read, and report them, instead of refusing the file.

    Raises:
        DataError: if the file cannot be read, has bad rows (missing fields, another schema, a label out of range, an
            id that was used before; lines are named) that are not to be left out, or nothing decided in it.
    """
    reading = FilePass(path, layout=layout, split=split, exclude_split=exclude_split)
    split, exclude_split = reading.split, reading.exclude_split
    cases = _Cases(reading, attribute)
    for row in reading:
        cases.add(row)
    if not leave_out_bad_rows:
        reading.account.check(remedy=_REMEDY)
    if reading.layout is None:
        raise DataError(_nothing(reading, split, exclude_split))
    cases.finish()
    passed_over = f"split is not {split}" if split is not None else f"split is {exclude_split}"
    made = cases.builder.built(
        path=str(path),
        sha256=file_hash(Path(path)),
        layout=reading.layout.name,
        split=split,
        left_out=[
            *([LeftOut(passed_over, reading.passed_over)] if reading.passed_over else []),
            *reading.account.left_out(),
        ],
        notes=(),
        rated=cases.rated,
    )
    return _checked(made, reading, signed=reading.layout.signed)


@dataclass
class _RatedPrompt:
    """All ratings of one prompt's responses, by node."""

    line: int
    subset: str | None
    ratings: dict[int, list[Mapping[str, float]]]

    def mean(self, node: int, attribute: str) -> float:
        """Return the mean rating of a response, NaN where it has none."""
        values = [ratings[attribute] for ratings in self.ratings[node] if attribute in ratings]
        return sum(values) / len(values) if values else _NAN


class _Cases:
    """Makes cases of rows; those of rated prompts wait for the end, since a prompt's rows may stand anywhere.

    Attributes:
        rated: the attribute that people's scores are taken from; None where people compared.
    """

    def __init__(self, reading: FilePass, attribute: str | None) -> None:
        self.builder, self._reading, self._attribute = SetBuilder(), reading, attribute
        self.rated: str | None = None
        self._prompts: dict[int, _RatedPrompt] = {}

    def add(self, row: DataRow) -> None:
        if row.ratings:
            self._rate(row)
            return
        prompt = self._prompt(row)
        nodes = tuple(self.builder.node(prompt, response) for response in row.responses)
        cases = self.builder.cases
        cases.append(Case(row.name, row.line, prompt, nodes, row.subset, right=row.right, human=_shares(row)))
        for label in row.labels:
            # A strength that only says who won would be correlated with the model's margins as if people had graded.
            strength = label.strength if row.graded else _NAN
            first, second = nodes[label.first], nodes[label.second]
            self.builder.judge(len(cases) - 1, first, second, _outcome(label.strength), strength)

    def _prompt(self, row: DataRow) -> int:
        prompt: PromptText = row.prompt if isinstance(row.prompt, str) else tuple(row.prompt)
        question = question_of(row.group) if row.group else None
        return self.builder.prompt(prompt, question=question, tools=row.tools)

    def _rate(self, row: DataRow) -> None:
        if self.rated is None:
            # The first name of the first row, though its own rating may be missing.
            self.rated = self._attribute or next(iter(row.ratings[0]), None)
        for response, ratings in zip(row.responses, map(rated_alone, row.ratings), strict=True):
            if self.rated not in ratings:
                rates = ", ".join(ratings) or "nothing"
                reason = f"there is no rating of {self.rated!r}; the row rates {rates}"
                self._reading.account.unused.append((row.line, reason))
                continue
            prompt = self._prompt(row)
            kept = self._prompts.setdefault(prompt, _RatedPrompt(row.line, row.subset, {}))
            kept.ratings.setdefault(self.builder.node(prompt, response), []).append(ratings)

    def finish(self) -> None:
        """Add a case per rated prompt, and a judgement for every two of its responses."""
        for prompt, rated in self._prompts.items():
            nodes = tuple(rated.ratings)
            names = sorted({name for each in rated.ratings.values() for ratings in each for name in ratings})
            attributes = {name: tuple(rated.mean(node, name) for node in nodes) for name in names}
            human = attributes[self.rated or ""]
            cases = self.builder.cases
            name = rated.subset or f"prompt {prompt}"
            cases.append(Case(name, rated.line, prompt, nodes, rated.subset, human=human, attributes=attributes))
            for first, second in itertools.combinations(range(len(nodes)), 2):
                outcome = _outcome(human[first] - human[second])
                self.builder.judge(len(cases) - 1, nodes[first], nodes[second], outcome)


def _outcome(lead: float) -> float:
    """Return 1 where the first leads, 0 where the second does, ½ for a tie."""
    return 0.5 if lead == 0 else float(lead > 0)


def _shares(row: DataRow) -> tuple[float, ...] | None:
    """Return each response's share of wins, ties worth ½; None without a comparison of each, or for a pair."""
    if row.right is not None or len(row.responses) == 2:
        return None
    won, count = [0.0] * len(row.responses), [0] * len(row.responses)
    for label in row.labels:
        share = _outcome(label.strength)
        won[label.first] += share
        won[label.second] += 1.0 - share
        count[label.first] += 1
        count[label.second] += 1
    return tuple(wins / times for wins, times in zip(won, count, strict=True)) if all(count) else None


def _checked(made: EvaluationSet, reading: FilePass, *, signed: bool) -> EvaluationSet:
    """Return the set with a note on what it cannot show.

    Raises:
        DataError: if nothing is decided in it.
    """
    if made.rated is not None and made.cases:
        return made  # ratings can be agreed with where no two responses are compared
    account = reading.account
    if not len(made.outcome):
        account.check(remedy=_REMEDY)
        why = "".join(f"; {left.count} left out: {left.reason}" for left in made.left_out)
        raise DataError(f"{made.path}: no two responses are compared in it: {account.count} rows were read{why}")
    lines = [made.cases[case].line for case in made.case]
    if (made.outcome == 0.5).all():
        raise DataError(
            f"{made.path}: all {len(lines)} judgements are ties (lines {lines[0]} to {lines[-1]}): nothing is "
            "decided, so there is nothing to be right about"
        )
    decided = made.outcome[made.outcome != 0.5]
    # Where the preferred response always stands first, one class is how the layout is, and no news.
    if not signed or len(decided) == 1 or len(set(decided)) > 1:
        return made
    side = "first" if decided[0] else "second"
    note = (
        f"One class only: all {len(decided)} decided judgements (lines {lines[0]} to {lines[-1]}) prefer the "
        f"{side} response. A model that always says {side} would be right always; correlations with the signed "
        "strength mean little."
    )
    return replace(made, notes=(*made.notes, note))


def _nothing(reading: FilePass, split: str | None, exclude_split: str | None) -> str:
    """Return why no row was read; bad rows refuse the file in any case then.

    Raises:
        DataError: if there were none but bad rows.
    """
    path, count = reading.account.path, reading.account.count
    if reading.passed_over and split is not None:
        return f"{path}: no row has split {split!r}; the splits are: {', '.join(sorted(reading.splits)) or 'none'}"
    if reading.passed_over:
        return f"{path}: all {count} rows have split {exclude_split!r}, which is left out"
    reading.account.check(remedy=_REMEDY)
    return f"{path}: there are no rows in it"
