"""Our own schemas: pairs, ratings and groups."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from paragone_evaluation.dataset import Case, PromptText, ResponseText, SetBuilder
from paragone_evaluation.readers.files import Row
from paragone_evaluation.readers.rows import (
    BadRowError,
    identifier,
    number_of,
    optional_text,
    prompt_of,
    response_of,
    texts_of,
    value_of,
)

__all__ = [
    "GroupsReader",
    "PairsReader",
    "RatedResponse",
    "RatingsReader",
    "RowReader",
    "UnratedRowError",
    "question_of",
    "tools_of",
]

_OUTCOMES = {"first": 1.0, "second": 0.0, "tie": 0.5}


class UnratedRowError(BadRowError):
    """Say that a row lacks the one rating that people's scores are taken from."""


class RowReader(Protocol):
    """Reads the rows of one layout into a builder."""

    @property
    def rated(self) -> str | None:
        """The attribute that people's scores are taken from; None where people compared."""

    @property
    def left_out(self) -> Sequence[tuple[int, str]]:
        """Line and reason of what holds no judgement and is no error."""

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one row, or raise ``BadRowError`` and add nothing."""

    def finish(self, to: SetBuilder) -> None:
        """Add what can only be known after the last row."""


def question_of(row: Row) -> str | None:
    """Return the name of the row's question: the part of ``group`` before the first ``_``, or None without a group.

    Raises:
        BadRowError: if the group is no text.
    """
    group = optional_text(row, "group")
    return group.partition("_")[0] or group if group else None


def tools_of(row: Row) -> Sequence[Mapping[str, Any]] | None:
    """Return the row's tools.

    Raises:
        BadRowError: if they are no list of objects.
    """
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRowError("field 'tools' must be a list of objects")
    return tools or None


class PairsReader:
    """Pairs: ``id, prompt, first, second, strength`` (−3 … 3, positive for the first), or ``chosen, rejected``."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def __init__(self) -> None:
        self._schema: str | None = None

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one pair.

        Raises:
            BadRowError: if the row is none.
        """
        name, prompt = identifier(row), prompt_of(row)
        chosen = "chosen" in row or "rejected" in row
        if chosen and ("first" in row or "second" in row):
            raise BadRowError("the row mixes two schemas: first and second, and chosen and rejected")
        schema = "chosen and rejected" if chosen else "first and second"
        self._schema = self._schema or schema
        if schema != self._schema:
            raise BadRowError(f"the row has {schema}, and the file began with {self._schema}")
        if chosen:
            first = response_of(value_of(row, "chosen"), "chosen")
            second = response_of(value_of(row, "rejected"), "rejected")
            outcome, strength = 1.0, float("nan")
        else:
            first = response_of(value_of(row, "first"), "first")
            second = response_of(value_of(row, "second"), "second")
            strength = number_of(value_of(row, "strength"), "strength", low=-3, high=3)
            outcome = 1.0 if strength > 0 else 0.0 if strength < 0 else 0.5
        subset = optional_text(row, "subset") or optional_text(row, "group")
        number = to.prompt(prompt, question=question_of(row), tools=tools_of(row))
        nodes = to.node(number, first), to.node(number, second)
        to.cases.append(Case(name, line, number, nodes, subset))
        to.judge(len(to.cases) - 1, *nodes, outcome, strength)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every pair is complete."""


@dataclass
class _RatedPrompt:
    line: int
    ratings: dict[int, list[Mapping[str, float]]]
    subset: str | None

    def mean(self, node: int, attribute: str) -> float:
        """Return the mean rating of a response, NaN where it has none."""
        given = [ratings[attribute] for ratings in self.ratings[node] if attribute in ratings]
        return sum(given) / len(given) if given else float("nan")


@dataclass(frozen=True, slots=True)
class RatedResponse:
    """One response to a prompt and its ratings.

    Attributes:
        prompt: a text or messages.
        response: a text, a message or messages.
        ratings: by attribute.
        question: name of what the prompt is about, or None.
        tools: that were on offer, or None.
        subset: part of the file that has a row of its own in the report, or None.
    """

    prompt: PromptText
    response: ResponseText
    ratings: Mapping[str, float]
    question: str | None
    tools: Sequence[Mapping[str, Any]] | None
    subset: str | None


class RatingsReader:
    """Ratings: ``id, prompt, response, ratings`` with one number per attribute; rows of one prompt form a group.

    A response that is rated several times under the same prompt counts once, with its mean ratings.

    Args:
        rated: the attribute that people's scores are taken from; the file's first one if None.
    """

    left_out: Sequence[tuple[int, str]] = ()

    def __init__(self, rated: str | None = None) -> None:
        self.rated = rated
        self._prompts: dict[int, _RatedPrompt] = {}

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Keep one rating.

        Raises:
            BadRowError: if the row is none, or does not rate the attribute.
        """
        self.keep(line, self.parsed(row), to)

    def parsed(self, row: Row) -> RatedResponse:
        """Return what a row says, and keep nothing.

        Raises:
            UnratedRowError: if the row does not rate the attribute.
            BadRowError: if the row is none.
        """
        identifier(row)
        prompt, response = prompt_of(row), response_of(value_of(row, "response"), "response")
        given = value_of(row, "ratings")
        if not isinstance(given, Mapping) or not given:
            raise BadRowError("field 'ratings' must be an object with a number per attribute")
        ratings = {
            str(name): number_of(value, f"ratings.{name}", low=-100, high=100)
            for name, value in given.items()
            if value is not None
        }
        if self.rated is None:
            self.rated = next(iter(ratings), None)
        if self.rated not in ratings:
            rates = ", ".join(ratings) or "nothing"
            raise UnratedRowError(f"there is no rating of {self.rated!r}; the row rates {rates}")
        return RatedResponse(
            prompt, response, ratings, question_of(row), tools_of(row), subset=optional_text(row, "group")
        )

    def keep(self, line: int, rated: RatedResponse, to: SetBuilder) -> None:
        """Keep what a row says.

        Args:
            line: of the row.
            rated: from ``parsed``.
            to: gets the prompt and the response.
        """
        number = to.prompt(rated.prompt, question=rated.question, tools=rated.tools)
        node = to.node(number, rated.response)
        kept = self._prompts.setdefault(number, _RatedPrompt(line, {}, rated.subset))
        kept.ratings.setdefault(node, []).append(rated.ratings)

    def finish(self, to: SetBuilder) -> None:
        """Add a case per prompt, and a judgement for every two of its responses."""
        for prompt, rated in self._prompts.items():
            nodes = tuple(rated.ratings)
            names = sorted({name for given in rated.ratings.values() for ratings in given for name in ratings})
            attributes = {name: tuple(rated.mean(node, name) for node in nodes) for name in names}
            human = attributes[self.rated or ""]
            name = rated.subset or f"prompt {prompt}"
            to.cases.append(Case(name, rated.line, prompt, nodes, rated.subset, human=human, attributes=attributes))
            for one, two in itertools.combinations(range(len(nodes)), 2):
                outcome = 1.0 if human[one] > human[two] else 0.0 if human[one] < human[two] else 0.5
                to.judge(len(to.cases) - 1, nodes[one], nodes[two], outcome)


class GroupsReader:
    """Groups: ``id, prompt, responses, comparisons``, each comparison ``{first, second, label}`` by index."""

    rated: str | None = None
    left_out: Sequence[tuple[int, str]] = ()

    def read(self, line: int, row: Row, to: SetBuilder) -> None:
        """Add one group.

        A response's human score is its share of wins over the comparisons that it is in, ties worth ½.

        Raises:
            BadRowError: if the row is none.
        """
        name, prompt = identifier(row), prompt_of(row)
        responses = texts_of(row, "responses", at_least=2)
        comparisons = value_of(row, "comparisons")
        if not isinstance(comparisons, list) or not comparisons:
            raise BadRowError("field 'comparisons' must be a list of at least one comparison")
        judged = [_comparison(comparison, index, len(responses)) for index, comparison in enumerate(comparisons)]
        if len({frozenset(pair[:2]) for pair in judged}) < len(judged):
            raise BadRowError("two comparisons are of the same two responses")
        earned, count = [0.0] * len(responses), [0] * len(responses)
        for first, second, outcome in judged:
            earned[first] += outcome
            earned[second] += 1.0 - outcome
            count[first] += 1
            count[second] += 1
        human = tuple(won / games for won, games in zip(earned, count, strict=True)) if all(count) else None
        number = to.prompt(prompt, question=question_of(row), tools=tools_of(row))
        nodes = tuple(to.node(number, response) for response in responses)
        to.cases.append(Case(name, line, number, nodes, optional_text(row, "subset"), human=human))
        for first, second, outcome in judged:
            to.judge(len(to.cases) - 1, nodes[first], nodes[second], outcome)

    def finish(self, to: SetBuilder) -> None:
        """Add nothing: every group is complete."""


def _comparison(value: Any, index: int, responses: int) -> tuple[int, int, float]:
    where = f"comparisons[{index}]"
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} must be an object with first, second and label")
    places = []
    for side in ("first", "second"):
        place = value.get(side)
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < responses:
            raise BadRowError(f"{where}.{side} is {place!r}; it must be the index of one of {responses} responses")
        places.append(place)
    if places[0] == places[1]:
        raise BadRowError(f"{where} compares response {places[0]} with itself")
    label = value.get("label")
    if label not in _OUTCOMES:
        raise BadRowError(f"{where}.label is {label!r}; it must be first, second or tie")
    return places[0], places[1], _OUTCOMES[label]
