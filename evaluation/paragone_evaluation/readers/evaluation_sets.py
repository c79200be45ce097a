"""Read a file as an evaluation set, and note what it cannot show."""

import itertools
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from paragone_evaluation.columns import CaseColumns, TextColumn, View
from paragone_evaluation.dataset import Case, EvaluationSet, LeftOut, Message, PromptText, ResponseText
from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.files import FilePass
from paragone_evaluation.readers.holdout import FEWEST_PROMPTS, HELD_OUT
from paragone_evaluation.readers.options import ReadOptions
from paragone_evaluation.readers.rated import main_attribute, rated_lead
from paragone_evaluation.readers.rows import DataRow, prompt_key, prompt_name, text_key, text_length

__all__ = ["read_evaluation_set"]

_NAN = float("nan")
_NONE = -1
_FEW = 8  # responses to a prompt that are searched one by one
_AS_READ = ReadOptions()
_REMEDY = "Mend the file, or leave these rows out with --bad-rows leave-out (the report counts them)."


def read_evaluation_set(
    *sources: str | Path,
    options: ReadOptions = _AS_READ,
    split: str | None = None,
    exclude_split: str | None = None,
) -> EvaluationSet:
    """Return files as an evaluation set.

    Args:
        sources: files, globs, folders or data sets of the Hub, all in one layout.
        options: with a ``holdout``, the held-out rows alone are read.
        split: rows with another ``split`` are left out, as are those with ``exclude_split``.

    Raises:
        DataError: if the file cannot be read, has bad rows (missing fields, another schema, a label out of range, an
            id that was used before; lines are named) that are not to be left out, or nothing decided in it; if a share
            is held out and has too few prompts, or the file marks what is held out.
    """
    share = options.holdout
    if share:
        split = HELD_OUT
    reading = FilePass(*sources, options=options, split=split, exclude_split=exclude_split)
    cases = _Cases(reading)
    for row in reading:
        cases.add(row)
        if len(reading.layouts) > 1:
            first, other = reading.layouts
            name = reading.part.name
            raise DataError(f"{name} has the layout {other} and the files before it {first}: evaluate them apart")
    reading.check(remedy=_REMEDY)
    if not reading.layouts:
        raise DataError(_nothing(reading))
    (layout,) = reading.layouts.values()
    cases.finish()
    split, exclude_split = reading.split, reading.exclude_split
    passed_over = f"split is not {split}" if split is not None else f"split is {exclude_split}"
    if share:
        passed_over = f"not of the held-out share, {share:g} of the prompts"
    others = [LeftOut(passed_over, reading.passed_over)] if reading.passed_over else []
    made = EvaluationSet(
        path=", ".join(map(str, sources)),
        sha256=reading.sha256(),
        layout=layout.name,
        split=None if share else split,
        holdout=share,
        left_out=(*others, *reading.account.left_out()),
        notes=tuple(f"Data: {line}." for line in reading.account.describe_hub()),
        rated=cases.rated,
        **cases.columns(),
    )
    if share and len(made.prompts) < FEWEST_PROMPTS:
        raise DataError(
            f"{made.path}: holdout = {share:g} holds out too few prompts: {len(made.prompts)}, and an evaluation needs "
            f"at least {FEWEST_PROMPTS}: train and evaluate with a larger share, or on a file of other rows"
        )
    return _checked(made, reading, signed=layout.signed)


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
    """Collects cases, prompts, nodes and judgements row by row.

    Attributes:
        rated: the attribute that people's scores are taken from; None where people compared.
    """

    def __init__(self, reading: FilePass) -> None:
        self._reading = reading
        self.rated: str | None = None
        self._cases = CaseColumns()
        # Numbers by content, in the order in which the contents came up.
        self._prompts: dict[str, int] = {}
        self._prompt_texts: list[PromptText] = []
        self._tools: dict[int, tuple[Message, ...]] = {}
        self._questions: dict[int, str] = {}
        # The nodes of a prompt, the newest first, each with the one before it: most prompts have two, and a dictionary
        # for two would take as much memory as their texts.
        self._newest, self._before = array("q"), array("q")
        self._many: dict[int, dict[str, int]] = {}
        self._node_prompt, self._node_length = array("q"), array("d")
        self._responses = TextColumn()
        self._case, self._first, self._second = array("q"), array("q"), array("q")
        self._outcome, self._strength = array("d"), array("d")
        self._rated_prompts: dict[int, _RatedPrompt] = {}

    def add(self, row: DataRow) -> None:
        if row.ratings:
            self._rate(row)
            return
        prompt = self._prompt(row)
        nodes = tuple(self._node(prompt, response) for response in row.responses)
        self._cases.append(Case(row.name, row.line, prompt, nodes, row.subset, right=row.right, human=_shares(row)))
        for label in row.labels:
            # A strength that only says who won would be correlated with the model's margins as if people had graded.
            strength = label.strength if row.graded else _NAN
            self._judge(nodes[label.first], nodes[label.second], _outcome(label.strength), strength)

    def _prompt(self, row: DataRow) -> int:
        """Return the number of the row's prompt, a new one where it was not seen before."""
        number = self._prompts.setdefault(prompt_key(row.prompt, row.tools), len(self._prompt_texts))
        if number == len(self._prompt_texts):
            self._prompt_texts.append(row.prompt if isinstance(row.prompt, str) else tuple(row.prompt))
            if row.tools:
                self._tools[number] = tuple(row.tools)
            if row.question:
                self._questions[number] = row.question
            self._newest.append(_NONE)
        return number

    def _node(self, prompt: int, response: ResponseText) -> int:
        """Return the number of a response to a prompt, a new one where it was not seen before."""
        key = text_key(response)
        number = self._known(prompt, key)
        if number is None:
            number = len(self._responses)
            self._responses.append(response)
            self._node_prompt.append(prompt)
            self._node_length.append(text_length(response))
            self._before.append(self._newest[prompt])
            self._newest[prompt] = number
            if prompt in self._many:
                self._many[prompt][key] = number
        return number

    def _known(self, prompt: int, key: str) -> int | None:
        many = self._many.get(prompt)
        if many is not None:
            return many.get(key)
        keys: dict[str, int] = {}
        number = self._newest[prompt]
        while number != _NONE:
            here = text_key(self._responses.response(number))
            if here == key:
                return number
            keys[here] = number
            number = self._before[number]
        if len(keys) == _FEW:
            self._many[prompt] = keys
        return None

    def _judge(self, first: int, second: int, outcome: float, strength: float = _NAN) -> None:
        self._case.append(len(self._cases) - 1)
        self._first.append(first)
        self._second.append(second)
        self._outcome.append(outcome)
        self._strength.append(strength)

    def _rate(self, row: DataRow) -> None:
        if self.rated is None:
            # A name of the first row, though its own rating may be missing.
            self.rated = self._reading.options.attribute or main_attribute(row.ratings[0])
        for response, ratings in zip(row.responses, row.given_ratings, strict=True):
            if self.rated not in ratings:
                rates = ", ".join(ratings) or "nothing"
                self._reading.account.leave_out(
                    self._reading.part.name, row.line, f"there is no rating of {self.rated!r}; the row rates {rates}"
                )
                continue
            prompt = self._prompt(row)
            kept = self._rated_prompts.setdefault(prompt, _RatedPrompt(row.line, row.subset, {}))
            kept.ratings.setdefault(self._node(prompt, response), []).append(ratings)

    def finish(self) -> None:
        """Add a case per rated prompt, and a judgement for every two of its responses."""
        # Not before the end of the file: the rows of a prompt may stand anywhere in it.
        for prompt, rated in self._rated_prompts.items():
            nodes = tuple(rated.ratings)
            names = sorted({name for each in rated.ratings.values() for ratings in each for name in ratings})
            attributes = {name: tuple(rated.mean(node, name) for node in nodes) for name in names}
            human = attributes[self.rated or ""]
            name = rated.subset or f"prompt {prompt}"
            self._cases.append(Case(name, rated.line, prompt, nodes, rated.subset, human=human, attributes=attributes))
            for first, second in itertools.combinations(range(len(nodes)), 2):
                self._judge(
                    nodes[first],
                    nodes[second],
                    _outcome(rated_lead(human[first], human[second], self._reading.options.gap)),
                )

    def columns(self) -> dict[str, Any]:
        """Return what was collected, by the names of ``EvaluationSet``; nothing can be added any more."""
        # Every content has its number by now; beside what is made of the columns these would be the peak of memory.
        self._prompts, self._many = {}, {}
        self._newest, self._before = array("q"), array("q")
        texts, tools, questions = self._prompt_texts, self._tools, self._questions
        return {
            "prompts": View(len(texts), lambda at: (texts[at], tools.get(at))),
            "questions": View(len(texts), lambda at: questions.get(at) or prompt_name(texts[at], tools.get(at))),
            "responses": View(len(self._responses), self._responses.response),
            "node_prompt": np.frombuffer(self._node_prompt, dtype=np.int64),
            "node_length": np.frombuffer(self._node_length, dtype=np.float64),
            "cases": View(len(self._cases), self._cases.case),
            "case": np.frombuffer(self._case, dtype=np.int64),
            "first": np.frombuffer(self._first, dtype=np.int64),
            "second": np.frombuffer(self._second, dtype=np.int64),
            "outcome": np.frombuffer(self._outcome, dtype=np.float64),
            "strength": np.frombuffer(self._strength, dtype=np.float64),
        }


def _outcome(lead: float) -> float:
    """Return 1 where the first leads, 0 where the second does, ½ for a tie."""
    return 0.5 if lead == 0 else float(lead > 0)


def _shares(row: DataRow) -> tuple[float, ...] | None:
    """Return each response's share of wins, ties worth ½; None without a comparison of each, or for a pair."""
    # Not a fitted strength: a share needs no model of how people choose, and is what readers can count themselves.
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
    """Return the set with a note on what it cannot show; refuse one in which nothing is decided."""
    if made.rated is not None and made.cases:
        return made  # ratings can be agreed with where no two responses are compared
    account = reading.account
    if not len(made.outcome):
        account.check(remedy=_REMEDY)
        why = "".join(f"; {left.count} left out: {left.reason}" for left in made.left_out)
        raise DataError(f"{made.path}: no two responses are compared in it: {account.count} rows were read{why}")
    first, last = (made.cases[made.case[at]].line for at in (0, -1))
    if (made.outcome == 0.5).all():
        raise DataError(
            f"{made.path}: all {len(made.case)} judgements are ties (lines {first} to {last}): nothing is "
            "decided, so there is nothing to be right about"
        )
    decided = made.outcome[made.outcome != 0.5]
    # Where the preferred response always stands first, one class is how the layout is, and no news.
    if not signed or len(decided) == 1 or len(set(decided)) > 1:
        return made
    side = "first" if decided[0] else "second"
    note = (
        f"One class only: all {len(decided)} decided judgements (lines {first} to {last}) prefer the "
        f"{side} response. A model that always says {side} would be right always; correlations with the signed "
        "strength mean little."
    )
    return replace(made, notes=(*made.notes, note))


def _nothing(reading: FilePass) -> str:
    """Return why no row was read; bad rows refuse the file in any case then."""
    path, count = reading.account.title, reading.account.count
    if reading.passed_over and reading.options.holdout:
        return f"{path}: none of its {count} rows is in the held-out share, {reading.options.holdout:g} of the prompts"
    if reading.passed_over and reading.split is not None:
        return f"{path}: no row has split {reading.split!r}; the splits are: {reading.splits_in_words()}"
    if reading.passed_over:
        return f"{path}: all {count} rows have split {reading.exclude_split!r}, which is left out"
    reading.account.check(remedy=_REMEDY)
    return f"{path}: there are no rows in it"
