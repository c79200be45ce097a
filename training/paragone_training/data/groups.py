"""What may be trained on, and pairs by prompt: the distinct responses of each prompt, and the labels between them."""

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
        attributes: what is learned.
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
    return [rating for rating in chosen if any(name in rating.ratings for name in attributes)]


def _of_split(rows: Iterable[_Row], split: str, *, allow_test_rows: bool) -> list[_Row]:
    chosen = [row for row in rows if row.split in (None, split_name(split))]
    forbidden = next((row for row in chosen if row.split == "test"), None)
    if forbidden and not allow_test_rows:
        raise DataError(
            f"{forbidden.where}: this row is marked 'test' and would be trained on; choose another data.train_split, "
            "or force it with data.allow_test_rows = true"
        )
    return chosen


@dataclass
class PromptGroup:
    """A prompt, its distinct responses and every judgement between them.

    Attributes:
        pair: the first row of the group, for its prompt and names.
        responses: distinct texts, in order of appearance.
        labels: by index into ``responses``.
    """

    pair: Pair
    responses: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)


def group_pairs(pairs: Iterable[Pair], *, ties: bool = False) -> list[PromptGroup]:
    """Return the pairs by prompt, each distinct response once.

    Args:
        ties: keep judgements of strength 0.

    Returns:
        Groups in order of appearance; none without a label.
    """
    groups: dict[tuple[str, bool], PromptGroup] = {}
    indices: dict[tuple[str, bool], dict[str, int]] = {}
    for pair in pairs:
        # Files are read without pairs of one text. Pairs that a policy run makes of its samples may hold some.
        if (not pair.strength and not ties) or pair.first == pair.second:
            continue
        key = (pair.prompt, pair.messages)
        group = groups.setdefault(key, PromptGroup(pair))
        index = indices.setdefault(key, {})
        for text in (pair.first, pair.second):
            if text not in index:
                index[text] = len(group.responses)
                group.responses.append(text)
        group.labels.append(Label(index[pair.first], index[pair.second], pair.strength))
    return list(groups.values())
