"""From the representations of groups to tournaments and signals: who votes, the table, and what follows from it.

A response that could not be scored does not vote: the group's table is that of the others, and its places in the answer
are null. K is the number of responses of a group, V of those that vote, R of its references that could be scored.
"""

import asyncio
import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Group, Shaping, Signal, Tournament
from paragone_models.comparator import Comparator
from paragone_models.shaping import Measures, measure, shaped
from paragone_models.signals import MAX_ACYCLIC, WITHIN_GROUP, signal
from paragone_models.tournament import summarise
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.answers import add_non_finite
from paragone_service.scoring.request import Problems, Represented, response_messages

__all__ = [
    "GroupSize",
    "Tables",
    "Voters",
    "Wanted",
    "check_kind",
    "check_signal",
    "check_signals",
    "group_signal",
    "size_of",
    "sizes_of",
    "tournament",
    "tournaments",
]

Value = TypeVar("Value")
Float64s = NDArray[np.float64]

_MAX_NASH = 256
"""Responses of a group up to which the lottery is found within a second or so; time grows with their cube and more."""


@dataclass(frozen=True)
class Wanted:
    """What every group's answer has besides what it always has.

    Attributes:
        matrix: the K×K probabilities.
        signal: which signal, or None.
        shaping: of the signal, or None.
    """

    matrix: bool = False
    signal: Signal | None = None
    shaping: Shaping | None = None


@dataclass(frozen=True, slots=True)
class GroupSize:
    """What has to be known of a group when its texts are gone.

    Attributes:
        responses: K.
        references: those that were sent, or stored before.
        measures: of each response, where a signal is shaped; else none. [K]
    """

    responses: int
    references: int
    measures: Sequence[Measures] = ()


def size_of(group: Group, stored: int, *, measured: bool = False) -> GroupSize:
    """Return the size of a group, with the measures of its responses if they are needed.

    Args:
        stored: references that a set has for it.
    """
    measures = [measure(response_messages(response)) for response in group.responses] if measured else ()
    return GroupSize(len(group.responses), len(group.listed) + stored, measures)


def check_kind(name: Signal | None, model: str, comparator: Comparator) -> None:
    """Refuse a signal that the kind of model does not have.

    Raises:
        ServiceError: ``return_unavailable``.
    """
    if name == "reward" and not comparator.gives_rewards:
        raise ServiceError(
            ErrorCode.RETURN_UNAVAILABLE,
            f"model {model} is of kind {comparator.kind} and has no scalar for the signal reward: ask for another "
            "signal, win_rate for example",
        )


def check_signal(name: Signal | None, responses: int, references: int) -> ServiceError | None:
    """Return what is wrong with a group for a signal, if anything."""
    if name == "anchor" and not references:
        problem = "the signal anchor is a win rate against references: give the group references"
    elif name == "acyclic" and responses > MAX_ACYCLIC:
        problem = (
            f"{responses} responses in one group; the limit of the signal acyclic is {MAX_ACYCLIC}, because its order "
            "is exact: send smaller groups, or ask for rank"
        )
    elif name == "nash" and responses > _MAX_NASH:
        problem = (
            f"{responses} responses in one group; the limit of the signal nash is {_MAX_NASH}, because a lottery of "
            "more takes too long: send smaller groups, or ask for win_rate"
        )
    else:
        return None
    return ServiceError(ErrorCode.INVALID_REQUEST, problem)


# Functions of their own: a name for a group in the caller would keep its texts while its request waits.
def check_signals(wanted: Wanted, asked: Sequence[Group], indices: Sequence[int], problems: Problems) -> None:
    """Add what is wrong with each group for the signal that is wanted."""
    for index, group in zip(indices, asked, strict=True):
        problem = check_signal(wanted.signal, len(group.responses), 0 if group.references is None else 1)
        if problem is not None:
            problems.add(index, problem)


async def sizes_of(
    asked: Sequence[Group], stored: Sequence[int], workers: Executor, *, measured: bool
) -> list[GroupSize]:
    """Return the size of each group, counting words beside the event loop where a signal is shaped.

    Args:
        stored: references that a set has for each.
    """
    sized = functools.partial(size_of, measured=measured)
    if not measured:
        return [*map(sized, asked, stored)]
    kept = list(asked)
    return await asyncio.get_running_loop().run_in_executor(workers, lambda: [*map(sized, kept, stored)])


def group_signal(
    name: Signal,
    matrix: Float64s,
    *,
    against: Float64s | None,
    rewards: Float64s | None,
    shaping: Shaping | None = None,
    measures: Sequence[Measures] = (),
) -> list[float] | None:
    """Return the signal of those who vote, None where there is only one and the signal compares it with its group.

    Args:
        matrix: their table. [V, V]
        against: their probabilities against the references, if there are any. [V, R]
        rewards: the model's scalars, if it has any. [V]
        measures: of their texts, with a shaping. [V]
    """
    if name in WITHIN_GROUP and len(matrix) == 1:
        return None
    values = signal(name, matrix, against=against, rewards=rewards)
    if shaping is not None:
        values = shaped(values, measures, **shaping.model_dump())
    return [float(value) for value in values]


def tournaments(
    represented: Represented,
    sizes: Sequence[GroupSize],
    comparator: Comparator,
    problems: Problems,
    wanted: Wanted,
) -> list[Tournament]:
    """Return the tournament of each group; its rows are its responses, then its references.

    Args:
        represented: the representations of all rows.
        sizes: of each group.
        problems: of the request; those of single rows are reported in their group's answer.

    Raises:
        ServiceError: ``non_finite_score`` for the first group without finite probabilities, unless errors are
            reported.
    """
    rows: list[Tournament] = []
    start = 0
    for item, size in zip(represented.items, sizes, strict=True):
        stop = start + size.responses + size.references
        own, whole = slice(start, start + size.responses), slice(start, stop)
        start = stop
        voters = Voters(size, problems.members.get(item, {}), represented.ids[own], represented.shown[own].tolist())
        if item in problems.errors:
            continue
        unscored = voters.unscored()
        if unscored is not None:
            problems.add(item, unscored.at(item))
            continue
        row = tournament(voters, _tables(represented.vectors[whole], voters, comparator, wanted), wanted)
        add_non_finite([item], [row is not None], problems)
        if row is not None:
            rows.append(row)
    return rows


class Voters:
    """Who of a group votes.

    Args:
        errors: of those that could not be scored, by their positions.
        ids: of its responses, or none. [K]
        shown: whether the model saw all words of each response; none: it did. [K]
    """

    def __init__(
        self,
        size: GroupSize,
        errors: Mapping[int, ServiceError],
        ids: Sequence[str | None] = (),
        shown: Sequence[bool] = (),
    ) -> None:
        self.size = size
        self.errors = errors
        self.ids = ids
        self.shown = shown
        middle = size.responses
        self.own = [place for place in range(middle) if place not in errors]
        self.references = [place for place in range(middle, middle + size.references) if place not in errors]

    @property
    def left_alone(self) -> bool:
        """Whether all others of the group could not be scored."""
        return len(self.own) == 1 < self.size.responses

    def unscored(self) -> ServiceError | None:
        """Return why the whole group has no answer: none of its responses, or none of its references, was scored."""
        if not self.own:
            return self.errors[0]
        if self.size.references and not self.references:
            return self.errors[self.size.responses]
        return None

    def spread(self, values: Sequence[Value | None]) -> list[Value | None]:
        """Return the values of those who vote in the places of all; [K]."""
        placed: list[Value | None] = [None] * self.size.responses
        for place, value in zip(self.own, values, strict=True):
            placed[place] = value
        return placed

    def measures(self) -> list[Measures]:
        """Return the measures of those who vote, where there are any; [V]."""
        return [self.size.measures[place] for place in self.own] if self.size.measures else []


@dataclass(frozen=True)
class Tables:
    """What is known of those who vote.

    Attributes:
        matrix: probability that row is preferred to column. [V, V]
        against: that a response is preferred to a reference, if there are any. [V, R]
        rewards: the model's scalars, if they are wanted. [V]
    """

    matrix: Float64s
    against: Float64s | None = None
    rewards: Float64s | None = None

    @property
    def finite(self) -> bool:
        """Whether all of it are numbers."""
        return all(
            values is None or bool(np.isfinite(values).all()) for values in (self.matrix, self.against, self.rewards)
        )


def _tables(vectors: NDArray[np.float32], voters: Voters, comparator: Comparator, wanted: Wanted) -> Tables:
    own, references = vectors[voters.own], vectors[voters.references]
    with np.errstate(all="ignore"):  # finite representations can overflow in a product; whoever reads them looks
        return Tables(
            comparator.matrix(own),
            comparator.against(own, references) if voters.references else None,
            comparator.rewards(own) if wanted.signal == "reward" else None,
        )


def tournament(voters: Voters, tables: Tables, wanted: Wanted) -> Tournament | None:
    """Return the tournament of a group, None where its numbers are not finite."""
    if not tables.finite:
        return None
    summary = summarise(tables.matrix, against=tables.against)
    winner = summary.condorcet_winner
    rates: list[float | None] = summary.win_rates.tolist()
    # Of a larger group it alone is left: it has met nobody, and ½ would look as if it had.
    if voters.left_alone and tables.against is None:
        rates = [None]
    row = Tournament(
        win_rates=voters.spread(rates),
        ranking=[voters.own[place] for place in summary.ranking],
        condorcet_winner=None if winner is None else voters.own[winner],
        copeland=voters.spread(summary.copeland),
        cyclic_triples=summary.cyclic_triples,
        nash=voters.spread(summary.nash.tolist()),
    )
    # Fields are set one by one, because only those that were set are sent.
    if wanted.matrix:
        empty: list[float | None] = [None] * voters.size.responses
        placed = voters.spread([voters.spread(line) for line in tables.matrix.tolist()])
        row.matrix = [empty if line is None else line for line in placed]
    if wanted.signal is not None:
        values = group_signal(
            wanted.signal,
            tables.matrix,
            against=tables.against,
            rewards=tables.rewards,
            shaping=wanted.shaping,
            measures=voters.measures(),
        )
        row.signal = voters.spread([None] * len(voters.own) if values is None else values)
    if voters.errors:
        row.errors = [voters.errors[place].detail() for place in sorted(voters.errors)]
    if voters.ids:
        row.ids = voters.spread([voters.ids[place] for place in voters.own])
    if not all(voters.shown):
        row.shown = list(voters.shown)
    return row
