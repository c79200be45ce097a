"""What each kind of model is: what its representations hold, how two of them compare, and what trains it.

A kind is one record in ``KINDS``; other modules ask the record and never test a kind's name. A representation is a row
of numbers in this order: a reward, the rated attributes, a general preference vector. Every kind has one or two of
these parts, and the parts decide everything else.

The arithmetic is written once, with what numpy and torch have in common: the service computes in numpy float64,
training in torch float32, with gradients. No torch is imported here.

Shapes: ``...`` any leading dimensions, d length of a representation, k 2-blocks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from paragone_models.errors import PreferencesUnavailableError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["KINDS", "Array", "Kind", "KindName", "LossName", "skew", "skew_blocks"]

KindName = Literal["bradley-terry", "regression", "helpsteer", "general-preference", "hybrid", "process", "pairwise"]
LossName = Literal["regular", "margin", "scaled", "soft", "score", "distil", "regression"]

Array = TypeVar("Array", NDArray[np.float64], "Tensor")


@dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
        has_reward: a representation begins with a reward.
        has_attributes: ratings of named attributes follow. Weights merge them into a reward, in place of the one that
            the representation may begin with.
        has_vector: a general preference vector of 2-blocks ends it. It may be normalised and gated.
        losses: names of the losses that fit, as in recipes; the first is the default.
        dimension_rule: which dimensions it can have, as an error says it.
        has_steps: a representation has one number for each step of its response, of which an aggregation makes the
            reward; see ``paragone_models.steps``.
        starts_from: the kind that its training starts from, or None if it needs none.
        reads_pairs: it reads both responses at once: its one number is of a pair, and of no response.
    """

    name: KindName
    has_reward: bool
    has_attributes: bool
    has_vector: bool
    losses: tuple[LossName, ...]
    dimension_rule: str
    has_steps: bool = False
    starts_from: KindName | None = None
    reads_pairs: bool = False

    @property
    def default_temperature(self) -> float:
        """What logits are divided by unless a model says otherwise: 0.1 as published for general preference vectors."""
        return 0.1 if self.has_vector else 1.0

    @property
    def learns_pairs(self) -> bool:
        """True if labelled pairs train it."""
        return bool(self.losses) and (self.has_reward or self.has_vector or self.reads_pairs)

    @property
    def merges_attributes(self) -> bool:
        """True if the reward is a weighted sum of the attributes."""
        return self.has_attributes and not self.has_reward

    @property
    def weighs_skew(self) -> bool:
        """True if a skew form stands beside a reward: alone, its weight would be another temperature."""
        return self.has_reward and self.has_vector

    @property
    def formula(self) -> str:
        """The log-odds before division by the temperature, of rewards r and vectors v, or L of a pair as it is read."""
        if self.reads_pairs:
            return "L(1, 2)"
        if not self.has_vector:
            return "(r1 - r2)"
        return "(r1 - r2 + s(v1, v2))" if self.has_reward else "s(v1, v2)"

    def compares(self, weights: Sequence[float] | None) -> bool:
        """Return whether representations can be compared: attributes without weights cannot, nor what is of a pair."""
        return not self.reads_pairs and (not self.merges_attributes or weights is not None)

    def gives_rewards(self, weights: Sequence[float] | None) -> bool:
        """Return whether a model with these weights has one scalar per response."""
        return self.has_reward or (self.merges_attributes and weights is not None)

    def blocks(self, dimension: int) -> int:
        """Return how many 2-blocks a representation has, and a gate weighs."""
        return (dimension - self.has_reward) // 2 if self.has_vector else 0

    def nearest_dimension(self, dimension: int, attributes: int) -> int:
        """Return the smallest possible dimension that is not below ``dimension``, or the only one there is."""
        if self.has_vector:
            dimension = max(dimension, 2 + self.has_reward)
            # The numbers behind the reward come in pairs.
            return dimension + (dimension - self.has_reward) % 2
        return self.has_reward + self.reads_pairs + (attributes if self.has_attributes else 0)

    def dimension_fits(self, dimension: int, attributes: int) -> bool:
        """Return whether a representation of this many numbers, with this many attributes, can be of this kind."""
        rates_something = attributes > 0 or not self.has_attributes
        return rates_something and dimension == self.nearest_dimension(dimension, attributes)

    def reward(self, values: Array, weights: Sequence[float] | None = None) -> Array:
        """Return the rewards of representations, in their unit before division by the temperature.

        Args:
            values: representations. [..., d]
            weights: one number per attribute, which merge them into the reward; None for the representation's own.

        Returns:
            Rewards. [...]

        Raises:
            PreferencesUnavailableError: if the attributes have no weights, or the kind has no reward at all.
        """
        if self.has_reward and (weights is None or not self.has_attributes):
            return values[..., 0]
        if self.reads_pairs:
            raise PreferencesUnavailableError("a pairwise model has numbers of pairs, and none of one response")
        if not self.has_attributes:
            raise PreferencesUnavailableError(f"a {self.name} model has no rewards: compare instead")
        if weights is None:
            raise PreferencesUnavailableError(
                f"a {self.name} model without weights rates and does not compare: give weights=, one per attribute"
            )
        # Attribute by attribute, not by a reduction over an axis: a row then has the same bits in every batch.
        start = int(self.has_reward)
        total = values[..., start] * weights[0]
        for column, weight in enumerate(weights[1:], start=start + 1):
            total = total + values[..., column] * weight
        return total

    def logit(
        self,
        first: Array,
        second: Array,
        *,
        temperature: float,
        weights: Sequence[float] | None = None,
        skew_weight: float = 1.0,
    ) -> Array:
        """Return the log-odds that ``first`` is preferred; swapping the arguments flips exactly the sign.

        Args:
            first: representations whose win is measured. [..., d]
            second: representations of the opponents; they are broadcast, so the caller checks shapes. [..., d]
            weights: as for ``reward``.
            skew_weight: how much the skew form counts beside a reward.

        Returns:
            Log-odds. [...]

        Raises:
            PreferencesUnavailableError: if the attributes have no weights.
        """
        if not self.has_vector:
            return (self.reward(first, weights) - self.reward(second, weights)) / temperature
        start = int(self.has_reward)
        # The reward is not part of the skew form: it is a difference, and the form is a product.
        difference = skew(first[..., start:], second[..., start:])
        if self.has_reward:
            difference = (first[..., 0] - second[..., 0]) + skew_weight * difference
        return difference / temperature

    def block_logits(self, first: Array, second: Array, *, temperature: float, skew_weight: float = 1.0) -> Array:
        """Return what each 2-block adds to ``logit``; a reward adds the rest.

        Args:
            first: representations whose win is measured. [..., d]
            second: representations of the opponents; they are broadcast, so the caller checks shapes. [..., d]

        Returns:
            Log-odds per block. [..., k]

        Raises:
            ValueError: if the kind has no 2-blocks.
        """
        if not self.has_vector:
            raise ValueError(f"a {self.name} model has no 2-blocks")
        start = int(self.has_reward)
        blocks = skew_blocks(first[..., start:], second[..., start:])
        return (skew_weight * blocks if self.has_reward else blocks) / temperature


def skew_blocks(first: Array, second: Array) -> Array:
    """Return the skew form of each 2-block; nothing is checked.

        block_l = first[2l] * second[2l+1] - first[2l+1] * second[2l]

    Args:
        first: vectors whose win is measured. [..., 2k]
        second: vectors of the opponents. [..., 2k]

    Returns:
        One number per block. [..., k]
    """
    return first[..., 0::2] * second[..., 1::2] - first[..., 1::2] * second[..., 0::2]


def skew(first: Array, second: Array) -> Array:
    """Return the sum of ``skew_blocks``, [...]."""
    blocks = skew_blocks(first, second)
    # Added in order: a library's sum may choose another order for another shape, and the sign would not flip exactly.
    total = blocks[..., 0]
    for block in range(1, blocks.shape[-1]):
        total = total + blocks[..., block]
    return total


_REWARD_LOSSES: tuple[LossName, ...] = ("regular", "margin", "scaled", "soft", "score", "distil")
# "margin" asks a reward for a lead in logits; a general preference score has no such unit.
_VECTOR_LOSSES: tuple[LossName, ...] = ("regular", "scaled", "soft", "score", "distil")

KINDS: Mapping[KindName, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "bradley-terry",
            has_reward=True,
            has_attributes=False,
            has_vector=False,
            losses=_REWARD_LOSSES,
            dimension_rule="a reward has dimension 1",
        ),
        Kind(
            "regression",
            has_reward=False,
            has_attributes=True,
            has_vector=False,
            losses=("regression",),
            dimension_rule="it has one per attribute, and at least one attribute",
        ),
        Kind(
            "helpsteer",
            has_reward=True,
            has_attributes=True,
            has_vector=False,
            losses=("scaled", "regular", "margin", "soft", "score", "distil"),
            dimension_rule="it has a reward and one per attribute, and at least one attribute",
            starts_from="regression",
        ),
        Kind(
            "general-preference",
            has_reward=False,
            has_attributes=False,
            has_vector=True,
            losses=_VECTOR_LOSSES,
            dimension_rule="a general preference vector is made of 2-blocks, so its dimension is even",
        ),
        Kind(
            "hybrid",
            has_reward=True,
            has_attributes=False,
            has_vector=True,
            losses=_VECTOR_LOSSES,
            dimension_rule="a reward and 2-blocks make an odd dimension of at least 3",
        ),
        Kind(
            "process",
            has_reward=True,
            has_attributes=False,
            has_vector=False,
            losses=(),
            dimension_rule="a step has dimension 1",
            has_steps=True,
        ),
        Kind(
            "pairwise",
            has_reward=False,
            has_attributes=False,
            has_vector=False,
            losses=_VECTOR_LOSSES,
            dimension_rule="it has the one number of a pair in one order",
            reads_pairs=True,
        ),
    )
}
"""Every kind by its name, in the order in which errors list them."""

assert tuple(KINDS) == get_args(KindName)
