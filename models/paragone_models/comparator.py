"""From representations to answers: one function, numpy float64, for cold and cached responses alike. No torch.

Shapes: ``...`` any leading dimensions, K responses and R references of one prompt, d the length of a representation.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_models.errors import PreferencesUnavailableError

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
    """Compare representations of one prompt's responses.

    Attributes:
        kind: which arithmetic (see the table of kinds in docs/models.md).
        dimension: length d of a representation.
        temperature: what logits are divided by.
        attributes: names of the rated attributes.
        weights: one number per attribute for ``regression``, or None.
    """

    kind: str
    dimension: int
    temperature: float
    attributes: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None

    @property
    def has_blocks(self) -> bool:
        """True where a representation holds a general preference vector."""
        return self.kind in ("general-preference", "hybrid")

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
        one, two = self._checked(first), self._checked(second)
        if one.shape != two.shape:
            raise ValueError(f"first has shape {one.shape} and second {two.shape}: nothing is broadcast")
        return self._logit(one, two)

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
        one, two = self._checked(representations), self._checked(references)
        return probability(self._logit(one[:, None, :], two[None, :, :]))

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
        return self._logit(*self._with_mean(representations, references))

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
        if not self.has_blocks:
            raise ValueError(f"a {self.kind} model has no 2-blocks")
        values, mean = self._with_mean(representations, references)
        even, odd = slice(self.dimension % 2, None, 2), slice(self.dimension % 2 + 1, None, 2)
        return (values[:, even] * mean[:, odd] - values[:, odd] * mean[:, even]) / self.temperature

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
        if self.kind == "general-preference" or (self.kind == "regression" and self.weights is None):
            return None
        return self._reward(values)

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
        values = np.asarray(representations, dtype=np.float64)
        if values.ndim == 0 or values.shape[-1] != self.dimension:
            raise ValueError(f"representations of shape {values.shape} do not end in dimension {self.dimension}")
        return values

    def _with_mean(self, representations: ArrayLike, references: ArrayLike) -> tuple[Float64s, Float64s]:
        """Return the responses, and the mean of the references once for each of them."""
        values, others = self._checked(representations), self._checked(references)
        if values.ndim != 2 or others.ndim != 2 or not len(others):
            raise ValueError(f"give [K, d] and [R, d] with R at least 1, not shapes {values.shape} and {others.shape}")
        return values, np.broadcast_to(others.mean(axis=0), values.shape)

    def _reward(self, values: Float64s) -> Float64s:
        if self.kind != "regression":
            return values[..., 0]
        if self.weights is None:
            raise PreferencesUnavailableError(
                f"this regression model rates {', '.join(self.attributes)} and has no weights to merge them into a "
                "preference: give weights= (one number per attribute) when it is loaded, or ask for rewards"
            )
        # Attribute by attribute, no reduction over an axis: the same row gives the same bits in every batch.
        total = values[..., 0] * self.weights[0]
        for column, weight in enumerate(self.weights[1:], start=1):
            total = total + values[..., column] * weight
        return total

    def _logit(self, first: Float64s, second: Float64s) -> Float64s:
        if self.kind == "general-preference":
            difference = _skew(first, second)
        elif self.kind == "hybrid":
            difference = (first[..., 0] - second[..., 0]) + _skew(first[..., 1:], second[..., 1:])
        else:
            difference = self._reward(first) - self._reward(second)
        return difference / self.temperature


def _skew(first: Float64s, second: Float64s) -> Float64s:
    # Block by block, so that the order of summation does not depend on the shape and the sign flips exactly.
    total = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    for block in range(2, first.shape[-1], 2):
        total = total + (first[..., block] * second[..., block + 1] - first[..., block + 1] * second[..., block])
    return total
