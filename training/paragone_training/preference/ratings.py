"""Predicted ratings: how far they are from people's, and how they merge into a preference.

Shapes: n responses, P pairs, A attributes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Merging", "RatingErrors", "fit_merging", "rating_errors"]

# Times P, on standardised differences: keeps weights finite where the attributes decide every pair.
_PENALTY = 1e-3
_STEPS = 100
_CLOSE = 1e-10


@dataclass(frozen=True)
class RatingErrors:
    """Root mean squared errors on one set of rated responses, by attribute.

    Attributes:
        error: of the model. [A]
        constant: of always saying the mean of these ratings, the best that no model can do. [A]
        rated: responses with a rating. [A]
    """

    attributes: tuple[str, ...]
    error: tuple[float, ...]
    constant: tuple[float, ...]
    rated: tuple[int, ...]

    @property
    def explained(self) -> tuple[float, ...]:
        """R2: one minus the model's squared error over the constant's; NaN where all ratings are equal, [A]."""
        return tuple(
            1 - (error / constant) ** 2 if constant else math.nan
            for error, constant in zip(self.error, self.constant, strict=True)
        )

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return the errors by name, for a log."""
        return {f"{prefix}_{name}_error": value for name, value in zip(self.attributes, self.error, strict=True)}


def rating_errors(
    predicted: NDArray[np.float64], ratings: NDArray[np.float64], attributes: Sequence[str]
) -> RatingErrors:
    """Return the errors of predicted ratings; NaN for an attribute that nobody rated.

    Args:
        predicted: [n, A]
        ratings: NaN where nobody rated. [n, A]

    Raises:
        ValueError: if the shapes differ.
    """
    if predicted.shape != ratings.shape or predicted.ndim != 2 or predicted.shape[1] != len(attributes):
        raise ValueError(f"predicted {predicted.shape} and ratings {ratings.shape} must both be [n, {len(attributes)}]")
    errors, constants, counts = list[float](), list[float](), list[int]()
    for column in range(len(attributes)):
        known = ~np.isnan(ratings[:, column])
        target = ratings[known, column]
        counts.append(len(target))
        errors.append(_root_mean_square(predicted[known, column] - target))
        constants.append(_root_mean_square(target - target.mean()) if len(target) else math.nan)
    return RatingErrors(tuple(attributes), tuple(errors), tuple(constants), tuple(counts))


def _root_mean_square(values: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.square(values).mean())) if len(values) else math.nan


@dataclass(frozen=True)
class Merging:
    """Weights of the attributes, and the temperature of their sum.

    Attributes:
        weights: absolute values sum to 1, so that the merged reward is on the scale of the ratings.
        temperature: positive; what a difference of merged rewards is divided by to give log-odds.
        pairs: how many it was fitted on.
    """

    weights: tuple[float, ...]
    temperature: float
    pairs: int


def fit_merging(differences: NDArray[np.float64]) -> Merging | None:
    """Return the weights under which people's choices are most probable.

        minimise  mean_p softplus(-w . d_p) + penalty / 2 * |w * rms(d)|^2
        weights = w / |w|_1,   temperature = 1 / |w|_1

    Args:
        differences: predicted ratings of the preferred response minus those of the other one. [P, A]

    Returns:
        The merging, or None where the ratings say nothing about the choices (no pair, or w = 0).

    Raises:
        ValueError: if ``differences`` is not [P, A] or not finite.
    """
    if differences.ndim != 2 or not np.isfinite(differences).all():
        raise ValueError(f"differences must be finite and [P, A], not of shape {differences.shape}")
    if not len(differences):
        return None
    # Attributes may be on scales of their own, so the penalty acts on weights of standardised differences. No intercept
    # and no centring: swapping the two responses of a pair must flip exactly the sign.
    scale = np.sqrt(np.square(differences).mean(axis=0))
    scale[scale == 0] = 1.0
    values = differences / scale
    weights = np.zeros(values.shape[1])
    for _ in range(_STEPS):  # Newton's method; the penalty makes the problem strongly convex
        chance = 1.0 / (1.0 + np.exp(np.minimum(values @ weights, 700.0)))
        gradient = -(chance[:, None] * values).mean(axis=0) + _PENALTY * weights
        curvature = (values.T * (chance * (1 - chance))) @ values / len(values) + _PENALTY * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        step *= min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))  # far from the solution, the logistic is flat
        weights = weights - step
        if np.abs(step).max() < _CLOSE:
            break
    # Dividing by |w|_1 puts the merged reward on the ratings' scale; what is divided out becomes the temperature.
    raw = weights / scale
    total = float(np.abs(raw).sum())
    if total < _CLOSE:
        return None
    return Merging(tuple(float(weight) / total for weight in raw), 1.0 / total, len(differences))
