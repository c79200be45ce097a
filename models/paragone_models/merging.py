"""Ratings merge into a preference: the weights under which people's choices are most probable.

Shapes: P pairs, A attributes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Merging", "fit_merging"]

# Times P, on standardised differences: keeps weights finite where the attributes decide every pair.
_PENALTY = 1e-3
_STEPS = 100
_CLOSE = 1e-10


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
