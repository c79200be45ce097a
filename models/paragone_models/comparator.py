"""From representations to answers: one function, numpy float64, for cold and cached responses alike. No torch.

Shapes: ``...`` any leading dimensions, K responses and R references of one prompt, d the length of a representation.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_models.errors import PreferencesUnavailableError
from paragone_models.kinds import KINDS, Array, Kind, KindName
from paragone_models.steps import AGGREGATIONS, Aggregation

__all__ = ["Comparator", "probability"]

Float64s = NDArray[np.float64]


def probability(logit: ArrayLike) -> Float64s:
    """Return the probability that belongs to log-odds, with P(x) + P(-x) exactly 1.

    The larger of the two is sigmoid(|logit|) and the smaller 1 minus it; the plain sigmoid misses 1 by an ulp for about
    one logit in six.

    Args:
        logit: log-odds. [...]

    Returns:
        Probabilities in [0, 1], float64. [...]

    >>> float(probability(2.0) + probability(-2.0))
    1.0
    """
    logit = np.asarray(logit, dtype=np.float64)
    larger = 1.0 / (1.0 + np.exp(-np.abs(logit)))
    return np.asarray(np.where(logit >= 0, larger, 1.0 - larger))


@dataclass(frozen=True)
class Comparator:
    """Compare representations of one prompt's responses: a kind with one model's numbers.

    Attributes:
        dimension: length d of a representation.
        temperature: what logits are divided by.
        weights: one number per attribute, which merge them into the reward, or None.
        skew_weight: how much the skew form counts beside a reward; 0 compares rewards alone.
        aggregation: what made one reward of the steps, where the kind has steps; None if nothing did.
    """

    kind: KindName
    dimension: int
    temperature: float
    attributes: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None
    skew_weight: float = 1.0
    aggregation: Aggregation | None = None

    @cached_property
    def rules(self) -> Kind:
        """What its kind holds and computes."""
        return KINDS[self.kind]

    @property
    def compares(self) -> bool:
        """Whether it can compare: neither attributes without weights nor steps without an aggregation can."""
        return self.rules.compares(self.weights) and not self._lacks_aggregation

    @property
    def gives_rewards(self) -> bool:
        """Whether there is one scalar per response."""
        return self.rules.gives_rewards(self.weights) and not self._lacks_aggregation

    @property
    def _lacks_aggregation(self) -> bool:
        return self.rules.has_steps and self.aggregation is None

    def logit(self, first: ArrayLike, second: ArrayLike) -> Float64s:
        """Return the log-odds that ``first`` is preferred; swapping the arguments flips exactly the sign.

        Args:
            first: representations whose win is measured. [..., d]
            second: representations of the opponents. [..., d]

        Returns:
            Log-odds, float64. [...]

        Raises:
            ValueError: if a last dimension is not d, or the shapes differ.
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        ours, theirs = self._checked(first), self._checked(second)
        if ours.shape != theirs.shape:
            raise ValueError(f"first has shape {ours.shape} and second {theirs.shape}: nothing is broadcast")
        return self.log_odds(ours, theirs)

    def matrix(self, representations: ArrayLike) -> Float64s:
        """Return the probability that each row's response is preferred to each column's.

        Args:
            representations: of K responses to one prompt. [K, d]

        Returns:
            P[i, j] = P(i preferred to j), float64, with P + P^T exactly 1 and 0.5 on the diagonal. [K, K]

        Raises:
            ValueError: if the last dimension is not d.
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        return self.against(representations, representations)

    def against(self, representations: ArrayLike, references: ArrayLike) -> Float64s:
        """Return the probability that each response is preferred to each reference response of the same prompt.

        Args:
            representations: of K responses. [K, d]
            references: of R other responses. [R, d]

        Returns:
            Probabilities, float64. [K, R]

        Raises:
            ValueError: if a last dimension is not d.
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        rows, columns = self._checked(representations), self._checked(references)
        return probability(self.log_odds(rows[:, None, :], columns[None, :, :]))

    def mean_logit(self, representations: ArrayLike, references: ArrayLike) -> Float64s:
        """Return each response's mean log-odds against the references, from one comparison with their mean.

            mean_r logit(v, r) = logit(v, mean_r r)

        Exact, because every kind's logit is affine in the second representation: a scalar for a general preference
        model, in O(K + R). (A mean *probability* has no such shortcut: see ``against``.)

        Source: Zhang et al. (arXiv 2410.02197), §5 (the score against a policy's samples), by bilinearity.

        Args:
            representations: of K responses to one prompt. [K, d]
            references: of R responses to the same prompt. [R, d]

        Returns:
            Mean log-odds, float64. [K]

        Raises:
            ValueError: if a last dimension is not d, or there are no references.
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        return self.log_odds(*self._with_mean(representations, references))

    def mean_blocks(self, representations: ArrayLike, references: ArrayLike) -> Float64s:
        """Return what each 2-block adds to ``mean_logit``; a hybrid model's reward adds the rest.

            block_l = (v[2l] * m[2l+1] - v[2l+1] * m[2l]) / temperature,  m the mean of the references

        Source: as ``mean_logit``; a reward per dimension for group-relative training, as in arXiv 2605.18721.

        Args:
            representations: of K responses to one prompt. [K, d]
            references: of R responses to the same prompt. [R, d]

        Returns:
            Mean log-odds per 2-block, gate and temperature applied, float64. [K, d // 2]

        Raises:
            ValueError: if the kind has no 2-blocks, a last dimension is not d, or there are no references.
        """
        values, mean = self._with_mean(representations, references)
        return self.rules.block_logits(values, mean, temperature=self.temperature, skew_weight=self.skew_weight)

    def rewards(self, representations: ArrayLike) -> Float64s | None:
        """Return one scalar per response, comparable within a prompt, or None where the kind has none.

        Args:
            representations: of n responses. [n, d]

        Returns:
            Rewards before division by the temperature, float64, or None for a general preference model and for a
            regression model without weights. [n]

        Raises:
            ValueError: if the last dimension is not d.
        """
        values = self._checked(representations)
        # None and not NaN: a kind without rewards is no failure.
        return self.rules.reward(values, self.weights) if self.gives_rewards else None

    def attribute_values(self, representations: ArrayLike) -> Float64s:
        """Return the rated attributes, in the order of ``attributes``; no columns where the kind rates none.

        Args:
            representations: of n responses. [n, d]

        Returns:
            Ratings, float64. [n, A]

        Raises:
            ValueError: if the last dimension is not d.
        """
        values = self._checked(representations)
        return values[..., values.shape[-1] - len(self.attributes) :]

    def _checked(self, representations: ArrayLike) -> Float64s:
        # Exact: cached representations are float32. So an answer from the cache has the same bits as a fresh one.
        values = np.asarray(representations, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != self.dimension:
            raise ValueError(f"representations of shape {values.shape} do not end in dimension {self.dimension}")
        return values

    def _with_mean(self, representations: ArrayLike, references: ArrayLike) -> tuple[Float64s, Float64s]:
        """Return the responses, and the mean of the references once for each of them."""
        rows, columns = self._checked(representations), self._checked(references)
        if rows.ndim != 2 or columns.ndim != 2 or not len(columns):
            raise ValueError(f"give [K, d] and [R, d] with R at least 1, not shapes {rows.shape} and {columns.shape}")
        return rows, np.broadcast_to(columns.mean(axis=0), rows.shape)

    def log_odds(self, first: Array, second: Array) -> Array:
        """Return the log-odds of ``logit`` for arrays that were checked already, of numpy or torch; they are broadcast.

        Raises:
            PreferencesUnavailableError: if the model rates attributes and has no weights to merge them.
        """
        # Asked here, because the kind does not know the names of the attributes.
        if not self.rules.compares(self.weights):
            raise PreferencesUnavailableError(
                f"this {self.kind} model rates {', '.join(self.attributes)} and has no weights to merge them into a "
                "preference: give weights= (one number per attribute) when it is loaded, or ask for rewards"
            )
        if self._lacks_aggregation:
            raise PreferencesUnavailableError(
                f"this {self.kind} model scores single steps, of which nothing makes one reward: name an aggregation "
                f"({', '.join(AGGREGATIONS)}), in the request or when it is loaded, or ask for rewards"
            )
        return self.rules.logit(
            first, second, temperature=self.temperature, weights=self.weights, skew_weight=self.skew_weight
        )
