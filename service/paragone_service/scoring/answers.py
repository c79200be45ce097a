"""From representations to the rows of an answer: comparator arithmetic in float64, over the whole request at once.

Cold and cached responses take the same path here, so they give the same numbers. What is not finite becomes an error,
never a number. An error stands in its item's place among the rows.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Preference, Reward, RewardReturn, TokensItem, Tournament
from paragone_models.comparator import Comparator, probability
from paragone_models.errors import TextError
from paragone_models.text.reader import Reading
from paragone_models.tournament import summarise
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Call, Represented, placed

Row = TypeVar("Row")

__all__ = ["preferences", "rewards", "tokens", "tournaments"]


def preferences(represented: Represented, comparator: Comparator, call: Call) -> list[Preference | ServiceError]:
    """Return how probable it is that the first is preferred, for rows that alternate: first, second, first, ….

    Raises:
        ServiceError: ``non_finite_score`` for the first pair without a finite logit, unless the call reports errors.
    """
    vectors, problems = represented.vectors, represented.problems
    with np.errstate(all="ignore"):  # what is not finite is found below
        logits = comparator.logit(vectors[0::2], vectors[1::2])
        probabilities = probability(logits)
        scalars = comparator.rewards(vectors)
    _find_non_finite(np.isfinite(logits).tolist(), call, problems)
    if scalars is None:
        rows = [
            Preference(probability=p, logit=z, first_reward=None, second_reward=None)
            for p, z in _sound(problems, probabilities, logits)
        ]
    else:
        rows = [
            Preference(probability=p, logit=z, first_reward=one, second_reward=two)
            for p, z, one, two in _sound(problems, probabilities, logits, scalars[0::2], scalars[1::2])
        ]
    if represented.ids:
        sound = (item for item in range(len(logits)) if item not in problems)
        for row, item in zip(rows, sound, strict=True):
            row.first_id, row.second_id = represented.ids[2 * item : 2 * item + 2]
    return _with_problems(rows, problems)


def rewards(
    represented: Represented,
    references: Sequence[int],
    comparator: Comparator,
    call: Call,
    *,
    returned: Collection[RewardReturn] = (),
    scales: Mapping[int, NDArray[np.float32]] | None = None,
) -> list[Reward | ServiceError]:
    """Return what the model makes of each item; its rows are its response, then its references.

    Args:
        represented: the representations of all rows.
        references: how many each item has.
        comparator: the model's.
        call: how the request wants to be answered.
        returned: what to add to each answer.
        scales: the gate's weights by item, if asked for.

    Raises:
        ServiceError: ``non_finite_score`` for the first item without finite numbers, unless the call reports errors.
    """
    problems = represented.problems
    starts = np.cumsum([0, *(1 + count for count in references)])[:-1]
    own = represented.vectors[starts]
    with np.errstate(all="ignore"):
        scalars = comparator.rewards(own)
        attributes = comparator.attribute_values(own).tolist()
    if scalars is not None:
        _find_non_finite(np.isfinite(scalars).tolist(), call, problems)
    numbers: list[float | None] = [None] * len(references) if scalars is None else scalars.tolist()
    rows: list[Reward] = []
    for index, (count, start) in enumerate(zip(references, starts.tolist(), strict=True)):
        if count and index not in problems:
            against = _held_against(own[index], represented.vectors[start + 1 : start + 1 + count], comparator)
            _find_non_finite([against.finite], call, problems, offset=index)
        if index in problems:
            continue
        row = Reward(
            reward=numbers[index],
            attributes=dict(zip(comparator.attributes, attributes[index], strict=True)),
            truncated_tokens=int(represented.dropped[start]),
        )
        if count:
            row.reference_logit = against.logit
            if "blocks" in returned:
                row.blocks = against.blocks
        if scales is not None:
            row.gate_scales = scales[index].tolist()
        if "representation" in returned:
            row.representation = own[index].tolist()
        if represented.ids:
            row.id = represented.ids[start]
        rows.append(row)
    return _with_problems(rows, problems)


@dataclass(frozen=True)
class _Against:
    """What a response is worth against the mean of its references."""

    logit: float
    blocks: list[float]
    finite: bool


def _held_against(own: NDArray[np.float32], references: NDArray[np.float32], comparator: Comparator) -> _Against:
    with np.errstate(all="ignore"):
        logit = float(comparator.mean_logit(own[None], references)[0])
        blocks = comparator.mean_blocks(own[None], references)[0] if comparator.rules.has_vector else np.zeros(0)
    return _Against(logit, blocks.tolist(), bool(np.isfinite(logit) and np.isfinite(blocks).all()))


def tournaments(
    represented: Represented,
    sizes: Sequence[tuple[int, int]],
    comparator: Comparator,
    call: Call,
    *,
    with_matrix: bool,
) -> list[Tournament | ServiceError]:
    """Return the tournament of each group; its rows are its responses, then its references.

    Args:
        represented: the representations of all rows.
        sizes: how many responses and how many references each group has.
        comparator: the model's.
        call: how the request wants to be answered.
        with_matrix: whether each answer has its K×K probabilities.

    Raises:
        ServiceError: ``non_finite_score`` for the first group without finite probabilities, unless the call reports
            errors.
    """
    rows: list[Tournament] = []
    problems = represented.problems
    start = 0
    for item, (own_size, reference_size) in enumerate(sizes):
        middle = start + own_size
        stop = middle + reference_size
        own, references = represented.vectors[start:middle], represented.vectors[middle:stop]
        start = stop
        if item in problems:
            continue
        with np.errstate(all="ignore"):
            matrix = comparator.matrix(own)
            against = comparator.against(own, references) if reference_size else None
        finite = bool(np.isfinite(matrix).all()) and (against is None or bool(np.isfinite(against).all()))
        _find_non_finite([finite], call, problems, offset=item)
        if not finite:
            continue
        summary = summarise(matrix, against=against)
        row = Tournament(
            win_rates=summary.win_rates.tolist(),
            ranking=summary.ranking,
            condorcet_winner=summary.condorcet_winner,
            copeland=summary.copeland,
            cyclic_triples=summary.cyclic_triples,
            nash=summary.nash.tolist(),
        )
        if with_matrix:
            row.matrix = matrix.tolist()
        if represented.ids:
            row.ids = list(represented.ids[middle - own_size : middle])
        rows.append(row)
    return _with_problems(rows, problems)


def tokens(readings: Sequence[Reading | TextError], call: Call) -> list[TokensItem | ServiceError]:
    """Return what the model sees of each item.

    Raises:
        ServiceError: for the first item that the model cannot read, unless the call reports errors.
    """
    rows: list[TokensItem | ServiceError] = []
    for item, reading in enumerate(readings):
        if isinstance(reading, Reading):
            row = TokensItem(
                text=reading.text,
                token_ids=reading.token_ids,
                reads=list(reading.reads),
                prompt_length=reading.prompt_length,
                truncated_tokens=reading.dropped_tokens,
                truncated_messages=reading.dropped_messages,
            )
            rows.append(row)
            continue
        error = ServiceError(ErrorCode(reading.code), str(reading))
        if not call.report:
            raise placed(error, call, item)
        rows.append(error)
    return rows


def _find_non_finite(finite: Sequence[bool], call: Call, problems: dict[int, ServiceError], *, offset: int = 0) -> None:
    """Add a problem for each item without finite numbers that has none yet, or refuse the request."""
    for item, good in enumerate(finite, start=offset):
        if not good and item not in problems:
            error = ServiceError(ErrorCode.NON_FINITE_SCORE, "the model's numbers are too large to compare")
            if not call.report:
                raise placed(error, call, item)
            problems[item] = error


def _sound(problems: dict[int, ServiceError], *columns: NDArray[np.float64]) -> Iterator[tuple[float, ...]]:
    """Yield the numbers of each item without a problem."""
    for item, numbers in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        if item not in problems:
            yield numbers


def _with_problems(rows: list[Row], problems: dict[int, ServiceError]) -> list[Row | ServiceError]:
    """Return the rows of the items without a problem, and every problem in its place."""
    together: list[Row | ServiceError] = [*rows]
    for item in sorted(problems):
        together.insert(item, problems[item])
    return together
