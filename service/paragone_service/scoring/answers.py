"""From representations to the rows of an answer: comparator arithmetic in float64, over the whole request at once.

Cold and cached responses take the same path here, so they give the same numbers. What is not finite becomes an error,
never a number. Rows are of the items without a problem, in the order of the request; ``Problems.place`` puts the errors
in between.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone.wire import Preference, Reward, RewardReturn, TokensItem
from paragone_models.comparator import Comparator, probability
from paragone_models.errors import TextError
from paragone_models.text.reader import Reading
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Problems, Represented

__all__ = ["add_non_finite", "add_pieces", "preferences", "rewards", "tokens"]


def preferences(represented: Represented, comparator: Comparator, problems: Problems) -> list[Preference]:
    """Return how probable it is that the first is preferred, for rows that alternate: first, second, first, ….

    Raises:
        ServiceError: ``non_finite_score`` for the first pair without a finite logit, unless errors are reported.
    """
    vectors = represented.vectors
    with np.errstate(all="ignore"):  # what is not finite is found below
        logits = comparator.logit(vectors[0::2], vectors[1::2])
        probabilities = probability(logits)
        scalars = comparator.rewards(vectors)
    items = represented.items
    finite = np.isfinite(logits)
    if not finite.all():
        add_non_finite(items, finite.tolist(), problems)
    # Rows in error are NaN, and went through the arithmetic with the others: to skip them would cost more.
    sound = [number for number, item in enumerate(items) if item not in problems.errors]
    if scalars is None:
        rows = [
            Preference(probability=p, logit=z, first_reward=None, second_reward=None)
            for p, z in _columns(sound, probabilities, logits)
        ]
    else:
        rows = [
            Preference(probability=p, logit=z, first_reward=first, second_reward=second)
            for p, z, first, second in _columns(sound, probabilities, logits, scalars[0::2], scalars[1::2])
        ]
    if represented.ids:
        for row, number in zip(rows, sound, strict=True):
            row.first_id, row.second_id = represented.ids[2 * number : 2 * number + 2]
    if not represented.shown.all():
        _add_shown(rows, represented.shown[0::2][sound], represented.shown[1::2][sound])
    return rows


def _add_shown(rows: Sequence[Preference], first: NDArray[np.bool_], second: NDArray[np.bool_]) -> None:
    # Only fields that were set are sent: an answer that lacks them says that all was shown.
    for number in np.flatnonzero(~first).tolist():
        rows[number].first_shown = False
    for number in np.flatnonzero(~second).tolist():
        rows[number].second_shown = False


def rewards(
    represented: Represented,
    references: Sequence[int],
    comparator: Comparator,
    problems: Problems,
    *,
    returned: Collection[RewardReturn] = (),
    scales: Mapping[int, NDArray[np.float32]] | None = None,
) -> list[Reward]:
    """Return what the model makes of each item; its rows are its response, then its references.

    Args:
        represented: the representations of all rows.
        references: how many each item has.
        returned: what to add to each answer.
        scales: the gate's weights by the items' indices, if asked for.

    Raises:
        ServiceError: ``non_finite_score`` for the first item without finite numbers, unless errors are reported.
    """
    # Where each item's rows start: its own response first, its references after it.
    starts = np.cumsum([0, *(1 + count for count in references)])[:-1]
    own = represented.vectors[starts]
    with np.errstate(all="ignore"):  # what is not finite is found below
        scalars = comparator.rewards(own)
        attributes = comparator.attribute_values(own).tolist()
    # Kinds without a scalar have None for every item, which is an answer and no problem.
    if scalars is not None:
        add_non_finite(represented.items, np.isfinite(scalars).tolist(), problems)
    numbers: list[float | None] = [None] * len(references) if scalars is None else scalars.tolist()
    rows: list[Reward] = []
    for number, (item, count, start) in enumerate(zip(represented.items, references, starts.tolist(), strict=True)):
        if count and item not in problems.errors:
            against = _held_against(own[number], represented.vectors[start + 1 : start + 1 + count], comparator)
            add_non_finite([item], [against.finite], problems)
        if item in problems.errors:
            continue
        row = Reward(
            reward=numbers[number],
            attributes=dict(zip(comparator.attributes, attributes[number], strict=True)),
            truncated_tokens=int(represented.dropped[start]),
        )
        # Fields are set one by one, because only those that were set are sent.
        if not represented.shown[start]:
            row.shown = False
        if count:
            row.reference_logit = against.logit
            if "blocks" in returned:
                row.blocks = against.blocks
        if scales is not None:
            row.gate_scales = scales[item].tolist()
        if represented.steps is not None:
            logits = represented.steps[start]
            logits = logits[~np.isnan(logits)]
            row.steps = probability(logits).tolist()
            if "representation" in returned:
                row.representation = logits.tolist()
        elif "representation" in returned:
            row.representation = own[number].tolist()
        if represented.ids:
            row.id = represented.ids[start]
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Against:
    """What a response is worth against the mean of its references."""

    logit: float
    blocks: list[float]
    finite: bool


def _held_against(own: NDArray[np.float32], references: NDArray[np.float32], comparator: Comparator) -> _Against:
    with np.errstate(all="ignore"):
        # One comparison with the mean, which is exact: every kind's logit is linear in the opponent.
        logit = float(comparator.mean_logit(own[None], references)[0])
        blocks = comparator.mean_blocks(own[None], references)[0] if comparator.rules.has_vector else np.zeros(0)
    return _Against(logit, blocks.tolist(), bool(np.isfinite(logit) and np.isfinite(blocks).all()))


def tokens(items: Sequence[int], readings: Sequence[Reading | TextError], problems: Problems) -> list[TokensItem]:
    """Return what the model sees of each item, by its index.

    Raises:
        ServiceError: for the first item that the model cannot read, unless errors are reported.
    """
    rows = []
    for item, reading in zip(items, readings, strict=True):
        if isinstance(reading, TextError):
            problems.add(item, ServiceError(ErrorCode(reading.code), str(reading)))
            continue
        row = TokensItem(
            text=reading.text,
            token_ids=reading.token_ids,
            reads=list(reading.reads),
            prompt_length=reading.prompt_length,
            truncated_tokens=reading.dropped_tokens,
            truncated_messages=reading.dropped_messages,
        )
        if not reading.shown:  # only fields that were set are sent
            row.shown = False
        rows.append(row)
    return rows


def add_pieces(rows: Sequence[TokensItem], tokenizer: Any) -> None:
    """Add to each row the text of each of its tokens."""
    pieces: dict[int, str] = {}
    for row in rows:
        for token in row.token_ids:
            if token not in pieces:
                pieces[token] = _piece(tokenizer, token)
        row.pieces = [pieces[token] for token in row.token_ids]


def _piece(tokenizer: Any, token: int) -> str:
    text: str = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # SentencePiece drops the space at the start of a text, and here each token is one.
    spaced = tokenizer.convert_ids_to_tokens(token).startswith("\u2581") and not text.startswith(" ")
    return f" {text}" if spaced else text


def add_non_finite(items: Sequence[int], finite: Sequence[bool], problems: Problems) -> None:
    """Add a problem for each item without finite numbers. One with a problem has none: its row is NaN."""
    for item, good in zip(items, finite, strict=True):
        if not good and item not in problems.errors:
            problems.add(item, ServiceError(ErrorCode.NON_FINITE_SCORE, "the model's numbers are too large to compare"))


def _columns(numbers: Sequence[int], *columns: NDArray[np.float64]) -> Iterator[tuple[float, ...]]:
    """Yield the numbers of some items, as floats of Python, which serialise as what they are."""
    yield from zip(*(column[numbers].tolist() for column in columns), strict=True)
