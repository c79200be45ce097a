"""The kinds of answers: what is asked about a row, what its answer becomes, and what it says about two responses.

A kind is one object, and nothing else asks which one it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from paragone import AsyncClient, ItemError
from paragone.wire import ErrorDetail, Group, Item, ModelInfo, Pair, Reward, Truncation, Usage, error_detail
from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.errors import EvaluationError
from paragone_evaluation.readers.rows import DataRow

__all__ = ["KINDS", "AnswerKind", "Answered", "Failure", "RowAnswer", "refused"]

Fields = dict[str, Any]
_STEEPEST = 36.0  # largest logit that a probability of float64 tells from 1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row, or one of its responses, has no answer."""

    code: str
    message: str
    response: int | None = None

    @classmethod
    def of(cls, error: ErrorDetail, response: int | None = None) -> "Failure":
        """Return what an error of the wire says, without the place in a request that nobody sees."""
        _, colon, rest = error.message.partition("]: ")
        return cls(str(error.code), rest if colon else error.message, response)


@dataclass(frozen=True, slots=True)
class RowAnswer:
    """What becomes of a row: fields of the output (None: it has none), and what failed."""

    fields: Fields | None
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """The answers to questions, in their order, and whose they are."""

    rows: Sequence[Any]
    fingerprint: str
    usage: Usage


class AnswerKind(Protocol):
    """One kind of answers.

    Attributes:
        name: as ``--answers`` takes it.
        columns: of the output, with their types for tables.
        wire: type of its questions.
        measure: what the values of its answers are, in words.
        ends: of a chart of these values, None where they have no ends.
        reading: what a reader should know of such a chart.
    """

    name: str
    wire: type[BaseModel]
    columns: Mapping[str, str]
    measure: str
    ends: tuple[float, float] | None
    reading: str

    def check(self, info: ModelInfo) -> None:
        """Refuse a model that has no such answers.

        Raises:
            EvaluationError: as described.
        """

    def ask_of(self, row: DataRow) -> str | list[Fields]:
        """Return the questions about a row, or why there are none."""

    async def ask(self, client: AsyncClient, questions: Sequence[Any], model: str, truncation: Truncation) -> Answered:
        """Return the answers to questions about any number of rows."""

    def answer(self, rows: Sequence[Any]) -> RowAnswer:
        """Return what the answers to the questions about one row become."""

    def values(self, fields: Fields) -> list[float | None]:
        """Return the numbers of a row's answer of which a chart shows the spread; None for what was not scored."""

    def lead(self, fields: Fields, first: int, second: int) -> float | None:
        """Return a number above 0 where one response is preferred to another; None without an answer about both."""

    def scores(self, fields: Fields) -> list[float | None]:
        """Return a score for each response, the best one highest; None for those without an answer."""

    def logit(self, fields: Fields, first: int, second: int, temperature: float) -> float:
        """Return the log-odds that one response is preferred to another; both have a score."""


_NOTHING = Reward(reward=None)
_SURE = "Near ½ the model does not choose. Near 0 and 1 it is sure, which does not mean that it is right."


class _Rewards:
    name = "rewards"
    wire: type[BaseModel] = Item
    columns: Mapping[str, str] = {"rewards": "[number]", "attributes": "[json]", "truncated_tokens": "[count]"}
    measure = "reward of a response"
    ends: tuple[float, float] | None = None
    reading = "Only differences between responses to one prompt mean something."

    def check(self, info: ModelInfo) -> None:
        if info.kind in ("general-preference", "hybrid"):
            raise EvaluationError(
                f"{info.id} is of kind {info.kind} and has no rewards: ask for --answers win-rates or tables"
            )

    def ask_of(self, row: DataRow) -> str | list[Fields]:
        shared = {"prompt": row.prompt, **_tools(row)}
        return [{**shared, "response": _plain(one)} for one in row.responses]

    async def ask(self, client: AsyncClient, questions: Sequence[Any], model: str, truncation: Truncation) -> Answered:
        answer = await client.rewards(questions, model=model, truncation=truncation, on_error="report")
        return Answered(answer.rewards, answer.fingerprint, answer.usage)

    def answer(self, rows: Sequence[Any]) -> RowAnswer:
        failures: list[Failure] = []
        rewards, attributes, cut = [], [], []
        for at, row in enumerate(rows):
            if isinstance(row, ItemError):
                failures.append(Failure.of(row.error, at))
                row = _NOTHING
            rewards.append(row.reward)
            attributes.append(row.attributes or None)
            cut.append(row.truncated_tokens)
        if len(failures) == len(rows):
            return RowAnswer(None, tuple(failures))
        fields: Fields = {"rewards": rewards}
        if any(attributes):
            fields["attributes"] = attributes
        if any(cut):
            fields["truncated_tokens"] = cut
        return RowAnswer(fields, tuple(failures))

    def values(self, fields: Fields) -> list[float | None]:
        return list(fields["rewards"])

    def lead(self, fields: Fields, first: int, second: int) -> float | None:
        return _apart(fields["rewards"], first, second)

    def scores(self, fields: Fields) -> list[float | None]:
        return list(fields["rewards"])

    def logit(self, fields: Fields, first: int, second: int, temperature: float) -> float:
        return float((fields["rewards"][first] - fields["rewards"][second]) / temperature)


class _Preferences:
    name = "preferences"
    wire: type[BaseModel] = Pair
    columns: Mapping[str, str] = {"probability": "number", "logit": "number", "interval": "[number]"}
    measure, reading = "probability of the first response", _SURE
    ends: tuple[float, float] | None = (0.0, 1.0)

    def check(self, info: ModelInfo) -> None:
        _check_compares(info)

    def ask_of(self, row: DataRow) -> str | list[Fields]:
        if len(row.responses) != 2:
            return (
                f"a preference is between two responses, and the row has {len(row.responses)}: "
                f"ask for --answers {'win-rates or tables' if row.responses[1:] else 'rewards'}"
            )
        first, second = map(_plain, row.responses)
        return [{"prompt": row.prompt, "first": first, "second": second, **_tools(row)}]

    async def ask(self, client: AsyncClient, questions: Sequence[Any], model: str, truncation: Truncation) -> Answered:
        answer = await client.preferences(questions, model=model, truncation=truncation, on_error="report")
        return Answered(answer.preferences, answer.fingerprint, answer.usage)

    def answer(self, rows: Sequence[Any]) -> RowAnswer:
        (row,) = rows
        if isinstance(row, ItemError):
            return RowAnswer(None, (Failure.of(row.error),))
        fields: Fields = {"probability": row.probability, "logit": row.logit}
        # Of a judge that votes: how sure the probability itself is.
        return RowAnswer(fields if row.interval is None else {**fields, "interval": list(row.interval)})

    def values(self, fields: Fields) -> list[float | None]:
        return [fields["probability"]]

    def lead(self, fields: Fields, first: int, second: int) -> float | None:
        return float(fields["logit"] * (second - first))

    def scores(self, fields: Fields) -> list[float | None]:
        return [fields["logit"], -fields["logit"]]

    def logit(self, fields: Fields, first: int, second: int, temperature: float) -> float:  # noqa: ARG002 (applied)
        return float(fields["logit"] if (first, second) == (0, 1) else -fields["logit"])


class _WinRates:
    name = "win-rates"
    wire: type[BaseModel] = Group
    columns: Mapping[str, str] = {"win_rates": "[number]", "ranking": "[count]"}
    measure = "win rate of a response"
    ends: tuple[float, float] | None = (0.0, 1.0)
    reading = "A win rate is the mean probability against the other responses to the prompt."
    asked: Sequence[Any] = ()

    def check(self, info: ModelInfo) -> None:
        _check_compares(info)

    def ask_of(self, row: DataRow) -> str | list[Fields]:
        if len(row.responses) < 2:
            return "a win rate is among two or more responses, and the row has one: ask for --answers rewards"
        return [{"prompt": row.prompt, "responses": [_plain(one) for one in row.responses], **_tools(row)}]

    async def ask(self, client: AsyncClient, questions: Sequence[Any], model: str, truncation: Truncation) -> Answered:
        answer = await client.tournaments(
            questions, model=model, truncation=truncation, on_error="report", return_=self.asked
        )
        return Answered(answer.tournaments, answer.fingerprint, answer.usage)

    def answer(self, rows: Sequence[Any]) -> RowAnswer:
        (row,) = rows
        if isinstance(row, ItemError):
            return RowAnswer(None, (Failure.of(row.error),))
        # Of a group, those that can be scored are; the others are named.
        failures = tuple(Failure.of(error, error.response) for error in row.errors or ())
        if all(rate is None for rate in row.win_rates):
            return RowAnswer(None, failures or (Failure("not_scored", "none of its responses has a win rate"),))
        return RowAnswer({name: getattr(row, name) for name in self.columns}, failures)

    def values(self, fields: Fields) -> list[float | None]:
        return list(fields["win_rates"])

    def lead(self, fields: Fields, first: int, second: int) -> float | None:
        return _apart(fields["win_rates"], first, second)

    def scores(self, fields: Fields) -> list[float | None]:
        return list(fields["win_rates"])

    def logit(self, fields: Fields, first: int, second: int, temperature: float) -> float:  # noqa: ARG002 (applied)
        probability = fields["matrix"][first][second]
        if not 0.0 < probability < 1.0:
            return math.copysign(_STEEPEST, probability - 0.5)
        return math.log(probability) - math.log1p(-probability)


class _Tables(_WinRates):
    name = "tables"
    columns: Mapping[str, str] = {
        **_WinRates.columns, "matrix": "[[number]]", "nash": "[number]", "copeland": "[count]",
        "condorcet_winner": "count", "cyclic_triples": "count",
    }  # fmt: skip
    measure, reading = "probability of the earlier of two responses", _SURE
    asked = ("matrix",)

    def values(self, fields: Fields) -> list[float | None]:
        return [row[second] for first, row in enumerate(fields["matrix"]) for second in range(first + 1, len(row))]

    def lead(self, fields: Fields, first: int, second: int) -> float | None:
        probability = fields["matrix"][first][second]
        return None if probability is None else float(probability) - 0.5


KINDS: Mapping[str, AnswerKind] = {kind.name: kind for kind in (_Rewards(), _Preferences(), _WinRates(), _Tables())}
"""The kinds of answers by name."""


def refused(kind: AnswerKind, questions: Sequence[Fields]) -> Failure | None:
    """Return why the wire cannot carry one of a row's questions, None where it can carry all."""
    try:
        for question in questions:
            kind.wire.model_validate(question)
    except ValidationError as error:
        return Failure.of(error_detail(error))
    return None


def _apart(values: Sequence[float | None], first: int, second: int) -> float | None:
    one, other = values[first], values[second]
    return None if one is None or other is None else one - other


def _check_compares(info: ModelInfo) -> None:
    if info.attributes and info.weights is None:
        raise EvaluationError(
            f"{info.id} rates {', '.join(info.attributes)} and has no weights to merge them into a preference: "
            "ask for --answers rewards"
        )


def _plain(value: ResponseText) -> Any:
    """Return a prompt or a response as the wire takes it: tuples as lists."""
    return list(value) if isinstance(value, tuple) else value


def _tools(row: DataRow) -> dict[str, Any]:
    return {"tools": list(row.tools)} if row.tools else {}
