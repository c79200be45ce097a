"""Predicted ratings: how far they are from people's.

Shapes: n responses, A attributes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RatingErrors", "rating_errors"]


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
