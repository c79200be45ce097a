"""From the comparisons of a request to the rows of its answer, of a model that reads both responses at once."""

from collections.abc import Sequence

import numpy as np

from paragone.wire import Preference, Reward
from paragone_models.comparator import probability
from paragone_service.pairs.source import Compared, Detail
from paragone_service.scoring.request import Problems

__all__ = ["preferences", "rewards"]


def preferences(items: Sequence[int], compared: Compared, problems: Problems) -> list[Preference]:
    """Return how probable it is that the first is preferred, one duel an item.

    Raises:
        ServiceError: of the first duel without an answer, unless errors are reported.
    """
    for number, error in sorted(compared.errors.items()):
        problems.add(items[number], error)
    sound = [number for number, item in enumerate(items) if item not in problems.errors]
    logits = compared.logits[sound]
    rows = [
        Preference(probability=p, logit=z, first_reward=None, second_reward=None)
        for p, z in zip(probability(logits).tolist(), logits.tolist(), strict=True)
    ]
    for row, number in zip(rows, sound, strict=True):
        detail = compared.details.get(number)
        if detail is not None:
            _add_detail(row, detail)
    return rows


def _add_detail(row: Preference, detail: Detail) -> None:
    # Fields are set one by one, because only those that were set are sent.
    if detail.interval is not None:
        row.interval = detail.interval
    if detail.spread is not None:
        row.spread = detail.spread
    if detail.abstained:
        row.abstained = True
    if detail.criteria:
        row.criteria = {name: float(probability(logit)) for name, logit in detail.criteria.items()}
    if detail.rationales:
        row.rationales = list(detail.rationales)


def rewards(items: Sequence[int], references: Sequence[int], compared: Compared, problems: Problems) -> list[Reward]:
    """Return what each response is worth against the references of its item, whose duels follow each other.

    Args:
        references: how many duels each item has.

    Raises:
        ServiceError: of the first duel without an answer, unless errors are reported.
    """
    rows = []
    start = 0
    for item, count in zip(items, references, strict=True):
        duels = range(start, start + count)
        start += count
        for number in duels:
            if number in compared.errors:
                problems.add(item, compared.errors[number])
        if item not in problems.errors:
            logit = float(np.mean(compared.logits[duels.start : duels.stop]))
            row = Reward(reward=None, reference_logit=logit)
            abstained = sum(number in compared.details and compared.details[number].abstained for number in duels)
            if abstained:
                row.abstained = abstained
            rows.append(row)
    return rows
