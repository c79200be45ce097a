"""Groups and batches that carry ratings beside the labels of pairs.

Shapes: n responses, A attributes.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paragone_evaluation.readers import Pair, Rating
from paragone_models.text.reader import Reading
from paragone_training.data.batches import Batch, PairBatches, TokenNoise
from paragone_training.data.groups import PromptGroup, group_pairs

__all__ = ["RatedBatch", "RatedBatches", "RatedGroup", "rated_groups"]


class RatedBatch(Batch):
    """What the trainer gets: a batch of pairs, and ``ratings`` [n, A] with NaN where nobody rated."""

    ratings: Tensor


@dataclass(frozen=True)
class RatedGroup:
    """A prompt, its distinct responses, judgements between them, and how they were rated.

    Attributes:
        group: prompt, responses and labels; there may be no label.
        ratings: of each response, NaN where there is none.
    """

    group: PromptGroup
    ratings: Sequence[Sequence[float]]

    @property
    def rated(self) -> int:
        """How many responses have at least one rating."""
        return sum(any(not math.isnan(value) for value in row) for row in self.ratings)


def rated_groups(
    pairs: Iterable[Pair], ratings: Iterable[Rating], attributes: Sequence[str], *, ties: bool = False
) -> list[RatedGroup]:
    """Return pairs and ratings by prompt, each distinct response once.

    Args:
        pairs: labelled rows.
        ratings: rated rows; a response that was rated several times has the mean.
        attributes: whose ratings are wanted, in order.
        ties: keep judgements of strength 0.

    Returns:
        Groups in order of appearance; every group has a label or a rating.
    """
    groups = {(group.pair.prompt, group.pair.messages): group for group in group_pairs(pairs, ties=ties)}
    given: dict[tuple[str, bool, str], list[Rating]] = {}
    for rating in ratings:
        key = (rating.prompt, rating.messages)
        if key not in groups:
            blank = Pair(*key[:1], "", "", 0.0, messages=rating.messages, group=rating.group, where=rating.where)
            groups[key] = PromptGroup(blank)
        named = (*key, rating.response)
        if named not in given and rating.response not in groups[key].responses:
            groups[key].responses.append(rating.response)
        given.setdefault(named, []).append(rating)
    return [
        RatedGroup(group, [_means(given.get((*key, text), ()), attributes) for text in group.responses])
        for key, group in groups.items()
    ]


def _means(ratings: Sequence[Rating], attributes: Sequence[str]) -> tuple[float, ...]:
    values = [[rating.ratings[name] for rating in ratings if name in rating.ratings] for name in attributes]
    return tuple(sum(column) / len(column) if column else math.nan for column in values)


class RatedBatches(PairBatches):
    """The batches of an epoch, with ratings.

    Args:
        groups: prompts with responses, labels and ratings.
        readings: what the model sees of the responses.
        budget: responses a batch holds at most.
        pad_id: of the tokenizer.
        seed: of the run.
        noise: or None to leave the tokens alone.
    """

    def __init__(
        self,
        groups: Sequence[RatedGroup],
        readings: Sequence[Sequence[Reading]],
        *,
        budget: int,
        pad_id: int,
        seed: int = 0,
        noise: TokenNoise | None = None,
    ) -> None:
        plain = [group.group for group in groups]
        super().__init__(plain, readings, budget=budget, pad_id=pad_id, seed=seed, noise=noise)
        self._ratings = [group.ratings for group in groups]

    def __getitem__(self, index: int) -> RatedBatch:
        rows = [self._ratings[chunk.group][response] for chunk in self._plan[index] for response in chunk.responses]
        return RatedBatch(**super().__getitem__(index), ratings=torch.tensor(rows, dtype=torch.float32))
