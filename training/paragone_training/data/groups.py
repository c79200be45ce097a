"""What may be trained on, by prompt: the distinct responses of each, the labels between them, and their ratings.

Shapes: n responses, A attributes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from paragone_evaluation.readers import Label, Pair, Rating, split_name
from paragone_training.errors import DataError

__all__ = ["PromptGroup", "group_pairs", "training_pairs", "training_ratings"]

_Row = TypeVar("_Row", Pair, Rating)


def training_pairs(pairs: Iterable[Pair], *, split: str, allow_test_rows: bool = False) -> list[Pair]:
    """Return the pairs that may be trained on: those of the split, and those without one.

    Args:
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or no preference is left.
    """
    chosen = _of_split(pairs, split, allow_test_rows=allow_test_rows)
    if not chosen:
        raise DataError(f"no row is marked {split!r}: data.train_split names a split that the files do not have")
    if all(pair.strength == 0 for pair in chosen):
        span = f"{chosen[0].where} to {chosen[-1].where}"
        raise DataError(f"all {len(chosen)} rows are ties ({span}): there is no preference to learn from")
    return chosen


def training_ratings(
    ratings: Iterable[Rating], attributes: Sequence[str], *, split: str, allow_test_rows: bool = False
) -> list[Rating]:
    """Return the ratings that may be trained on: of the split or without one, and of an attribute that is learned.

    Args:
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or nobody rated an attribute.
    """
    chosen = _of_split(ratings, split, allow_test_rows=allow_test_rows)
    if not chosen:
        raise DataError(
            f"no rating is marked {split!r}: data.train_split names a split that data.ratings does not have"
        )
    rated = {name for rating in chosen for name in rating.ratings}
    if missing := [name for name in attributes if name not in rated]:
        raise DataError(
            f"no row of data.ratings rates {', '.join(missing)}; rated are {', '.join(sorted(rated)) or 'none'}: "
            "set model.attributes"
        )
    # A response without a rating that is learned would be read in every epoch and give no gradient.
    return [rating for rating in chosen if any(name in rating.ratings for name in attributes)]


def _of_split(rows: Iterable[_Row], split: str, *, allow_test_rows: bool) -> list[_Row]:
    chosen = [row for row in rows if row.split in (None, split_name(split))]
    # A split asked for by name may still be a mistake: a model that saw test rows cannot be measured any more.
    forbidden = next((row for row in chosen if row.split == "test"), None)
    if forbidden and not allow_test_rows:
        raise DataError(
            f"{forbidden.where}: this row is marked 'test' and would be trained on; choose another data.train_split, "
            "or force it with data.allow_test_rows = true"
        )
    return chosen


@dataclass
class PromptGroup:
    """A prompt, its distinct responses, every judgement between them, and how they were rated.

    Attributes:
        pair: the first row of the group, for its prompt and names.
        responses: distinct texts, in order of appearance.
        labels: by index into ``responses``; there may be none where there are ratings.
        ratings: of each response, NaN where nobody rated an attribute. [n, A]
    """

    pair: Pair
    responses: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    ratings: list[tuple[float, ...]] = field(default_factory=list)

    @property
    def rated(self) -> int:
        """How many responses have at least one rating."""
        return sum(not all(map(math.isnan, row)) for row in self.ratings)


def group_pairs(
    pairs: Iterable[Pair], ratings: Iterable[Rating] = (), attributes: Sequence[str] = (), *, ties: bool = False
) -> list[PromptGroup]:
    """Return pairs and ratings by prompt, each distinct response once.

    Args:
        ratings: a response that was rated several times has the mean.
        ties: keep judgements of strength 0.

    Returns:
        Groups in order of appearance; none without a label or a rated response.
    """
    groups: dict[tuple[str, bool], PromptGroup] = {}
    indices: dict[tuple[str, bool], dict[str, int]] = {}
    rows: dict[tuple[str, bool, str], list[Rating]] = {}

    def index(key: tuple[str, bool], response: str) -> int:
        known = indices.setdefault(key, {})
        if response not in known:
            known[response] = len(known)
            groups[key].responses.append(response)
        return known[response]

    for pair in pairs:
        # Files are read without pairs of one text. Pairs that a policy run makes of its samples may hold some.
        if (not pair.strength and not ties) or pair.first == pair.second:
            continue
        # A text and messages whose JSON is that text are two prompts, hence the flag.
        key = (pair.prompt, pair.messages)
        group = groups.setdefault(key, PromptGroup(pair))
        group.labels.append(Label(index(key, pair.first), index(key, pair.second), pair.strength))
    for rating in ratings:
        key = (rating.prompt, rating.messages)
        # A group is named by a row. One that was only rated gets a pair of nothing, which never becomes a label.
        blank = Pair(rating.prompt, "", "", 0.0, messages=rating.messages, group=rating.group, where=rating.where)
        groups.setdefault(key, PromptGroup(blank))
        index(key, rating.response)
        rows.setdefault((*key, rating.response), []).append(rating)
    for key, group in groups.items():
        group.ratings += [_means(rows.get((*key, response), ()), attributes) for response in group.responses]
    return list(groups.values())


def _means(ratings: Sequence[Rating], attributes: Sequence[str]) -> tuple[float, ...]:
    # Several people may have rated one response: they count as one answer, not as so many examples.
    values = [[rating.ratings[name] for rating in ratings if name in rating.ratings] for name in attributes]
    return tuple(sum(column) / len(column) if column else math.nan for column in values)
