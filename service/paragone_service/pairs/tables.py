"""The tables of groups whose model compares: round by round what a plan asks for, for all groups at a time.

K is the number of responses of a group, R of its references. References meet every response in the first round.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Group, PairRationales, Rationale, Tournament, Usage
from paragone_models.comparator import probability
from paragone_models.comparisons import Plan, most_comparisons
from paragone_models.partial_tables import FilledTable, Fit, fill
from paragone_service.http.errors import ServiceError
from paragone_service.pairs.source import Detail, Duel, PairSource
from paragone_service.scoring.groups import GroupSize, Tables, Voters, Wanted, tournament
from paragone_service.scoring.request import Call, Problems

__all__ = ["GroupTable", "compare_groups", "comparisons_of", "filled_tables", "tournaments", "voters_of"]

Pair = tuple[int, int]


@dataclass
class GroupTable:
    """What was compared of one group; its references have the places K to K+R−1.

    Attributes:
        item: index of the group, as it was sent.
        logits: of place i over place j, NaN where there is none. [K, K+R]
        asked: the pairs of responses.
        errors: of the comparisons that failed.
        by_criterion: likewise, by each criterion of the group. [K, K+R]
        fit: what infers that which was not compared.
        abstained: comparisons of which an ensemble says that they decide nothing.
        rationales: what a judge said of a comparison, if the call wants it.
    """

    item: int
    group: Group
    plan: Plan
    fit: Fit = "bradley-terry"
    logits: NDArray[np.float64] = field(init=False)
    asked: set[Pair] = field(default_factory=set)
    errors: dict[Pair, ServiceError] = field(default_factory=dict)
    by_criterion: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    abstained: set[Pair] = field(default_factory=set)
    rationales: dict[Pair, Sequence[Rationale]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.group.responses)
        # References are compared with responses alone: ten thousand of them have rows for nothing.
        self.logits = np.full((size, size + len(self.group.listed)), np.nan)
        for criterion in self.group.criteria or ():
            self.by_criterion[criterion.name] = self.logits.copy()

    def next_round(self, *, first: bool) -> list[Pair]:
        """Return what to compare next, and note it as asked."""
        size = len(self.group.responses)
        pairs = self.plan(self.logits[:size, :size], frozenset(self.asked))
        self.asked.update(pairs)
        if first:
            pairs = [*pairs, *((i, j) for i in range(size) for j in range(size, self.logits.shape[1]))]
        return pairs

    def duel(self, pair: Pair) -> Duel:
        """Return the comparison of two places."""
        group = self.group
        first, second = pair
        size = len(group.responses)
        other = group.responses[second] if second < size else group.listed[second - size]
        by = (group.principle, group.criteria or ())
        return Duel(self.item, group.prompt, group.tools, group.responses[first], other, *by)

    def put(self, pair: Pair, logit: float, error: ServiceError | None, detail: Detail | None = None) -> None:
        """Note the answer of a comparison."""
        if error is not None:
            self.errors[pair] = error
            return
        _note(self.logits, pair, logit)
        if detail is None:
            return
        if detail.abstained:
            self.abstained.add(pair)
        if detail.rationales:
            self.rationales[pair] = detail.rationales
        for name, one in detail.criteria.items():
            _note(self.by_criterion[name], pair, one)

    @property
    def compared(self) -> list[Pair]:
        """The pairs of responses that have an answer, in order."""
        return sorted(pair for pair in self.asked if np.isfinite(self.logits[pair]))

    def to_bytes(self) -> bytes:
        """Return what was answered, without the group."""
        pairs = [*self.asked, *((i, j) for i in range(len(self.logits)) for j in range(len(self.logits), self._width))]
        answered = [pair for pair in sorted(pairs) if np.isfinite(self.logits[pair])]
        tables = [self.logits, *self.by_criterion.values()]
        return json.dumps(
            {
                "answers": [
                    [*pair, pair in self.abstained, *(float(table[pair]) for table in tables)] for pair in answered
                ],
                "errors": [[*pair, error.code, error.message] for pair, error in sorted(self.errors.items())],
            }
        ).encode()

    def fill_from(self, stored: bytes) -> None:
        """Note the answers that ``to_bytes`` made the bytes of, for the same group."""
        answers = json.loads(stored)
        for first, second, abstained, logit, *by_criterion in answers["answers"]:
            criteria = dict(zip(self.by_criterion, by_criterion, strict=True))
            self._note_asked((first, second))
            self.put((first, second), logit, None, Detail(criteria=criteria, abstained=abstained))
        for first, second, code, message in answers["errors"]:
            self._note_asked((first, second))
            self.put((first, second), np.nan, ServiceError(ErrorCode(code), message))

    def _note_asked(self, pair: Pair) -> None:
        if pair[1] < len(self.logits):
            self.asked.add(pair)

    @property
    def _width(self) -> int:
        return int(self.logits.shape[1])


def _note(logits: NDArray[np.float64], pair: Pair, logit: float) -> None:
    first, second = pair
    logits[first, second] = logit
    if second < len(logits):
        logits[second, first] = -logit


async def compare_groups(
    source: PairSource, tables: Sequence[GroupTable], call: Call, workers: Executor | None = None
) -> Usage:
    """Compare what the plans ask for, until they are done, and return what it cost.

    Args:
        workers: threads for the plans, some of which fit a model to the table before each round.

    Raises:
        ServiceError: as ``PairSource.compare``.
        ClientGoneError: if the client left meanwhile.
    """
    usage = Usage(forward_responses=0, forward_tokens=0, cached_responses=0, truncated=0)
    first = True

    def planned(first: bool) -> list[tuple[GroupTable, Pair]]:
        return [(table, pair) for table in tables for pair in table.next_round(first=first)]

    in_thread = asyncio.get_running_loop().run_in_executor
    # One call a round for all groups: a bracket of a hundred groups then waits for four answers and not for hundreds.
    while rounds := await in_thread(workers, planned, first):
        first = False
        compared = await source.compare([table.duel(pair) for table, pair in rounds], call)
        usage = usage.plus(compared.usage)
        for number, (table, pair) in enumerate(rounds):
            table.put(pair, float(compared.logits[number]), compared.errors.get(number), compared.details.get(number))
        if compared.errors and not call.problems.report:
            break  # the request is refused: further rounds would cost something, and tell nobody
    return usage


def tournaments(
    tables: Sequence[GroupTable], sizes: Sequence[GroupSize], problems: Problems, wanted: Wanted
) -> list[Tournament]:
    """Return the tournament of each group.

    Where a comparison failed and errors are reported, the others are answered for: a response of whom every comparison
    failed does not vote, and other gaps are inferred. A reference counts only if every response was compared with it.

    Raises:
        ServiceError: of the first comparison that failed, unless errors are reported.
    """
    rows = []
    for table, size in zip(tables, sizes, strict=True):
        if table.errors and not problems.report:
            pair = min(table.errors)
            problems.add(table.item, _named(table.errors[pair], table.item, pair, size.responses))
        voters = voters_of(table, size)
        unscored = voters.unscored()
        if unscored is not None:
            problems.add(table.item, unscored.at(table.item))
            continue
        rows.append(_tournament(table, size, voters, wanted))
    return rows


def _tournament(table: GroupTable, size: GroupSize, voters: Voters, wanted: Wanted) -> Tournament:
    filled, tables = filled_tables(table.logits, voters, table.fit)
    row = tournament(voters, tables, wanted)
    assert row is not None  # a comparison without a finite answer is an error, and none of the table
    if table.by_criterion:
        row.criteria = {name: _rates(logits, voters, table.fit) for name, logits in table.by_criterion.items()}
    row.compared = table.compared
    if filled.inferred.any():
        row.fit = table.fit
    if table.abstained:
        row.abstained = sorted(table.abstained)
    if table.rationales:
        row.rationales = [
            PairRationales(first=pair[0], second=pair[1], rationales=list(said))
            for pair, said in sorted(table.rationales.items())
        ]
    # They are of win rates within the group, and with references the answer's are others.
    if filled.inferred.any() and tables.against is None:
        row.intervals = voters.spread(_intervals(filled))
    failed = [_named(error, table.item, pair, size.responses) for pair, error in sorted(table.errors.items())]
    if failed:
        alone = [voters.errors[place] for place in sorted(voters.errors)]
        row.errors = [error.detail() for error in (*alone, *failed)]
    return row


def voters_of(table: GroupTable, size: GroupSize) -> Voters:
    """Return who of a group votes: not a response of whom every comparison failed, nor a reference of whom one did."""
    return Voters(size, _silent(table, size))


def filled_tables(
    logits: NDArray[np.float64], voters: Voters, fit: Fit = "bradley-terry"
) -> tuple[FilledTable, Tables]:
    """Return the table of those who vote, its gaps inferred, and what is known of them; logits are of all places."""
    filled = fill(logits[np.ix_(voters.own, voters.own)], fit=fit)
    against = probability(logits[np.ix_(voters.own, voters.references)]) if voters.references else None
    return filled, Tables(filled.matrix, against)


def _rates(logits: NDArray[np.float64], voters: Voters, fit: Fit) -> list[float | None]:
    row = tournament(voters, filled_tables(logits, voters, fit)[1], Wanted())
    assert row is not None
    return row.win_rates


def _intervals(filled: FilledTable) -> list[tuple[float, float] | None]:
    return [(float(low), float(high)) for low, high in filled.intervals]


def _silent(table: GroupTable, size: GroupSize) -> Mapping[int, ServiceError]:
    """Return why a response has no comparison at all, or a reference not all of them, by their places."""
    errors: dict[int, ServiceError] = {}
    for place in range(size.responses):
        failed = [error for pair, error in sorted(table.errors.items()) if place in pair]
        if failed and not np.isfinite(table.logits[place]).any():
            errors[place] = failed[0].at(table.item, response=place)
    sound = [place for place in range(size.responses) if place not in errors]
    for place in range(size.responses, table.logits.shape[1]):
        failed = [table.errors[other, place] for other in sound if (other, place) in table.errors]
        if failed:
            errors[place] = failed[0].at(table.item, reference=place - size.responses)
    return errors


def _named(error: ServiceError, item: int, pair: Pair, responses: int) -> ServiceError:
    first, second = pair
    if second >= responses:
        return error.at(item, response=first, reference=second - responses)
    return error.at(item, response=first, opponent=second)


def comparisons_of(group: Group, plan: str) -> int:
    """Return how many comparisons a group has at most, by a plan of this name."""
    return most_comparisons(plan, len(group.responses)) + len(group.responses) * len(group.listed)
