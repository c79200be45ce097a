"""What a policy, a preference and a knob must look like before anything is computed with them."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Float64s", "check_positive", "check_unit", "checked_policy", "checked_preference"]

Float64s = NDArray[np.float64]

_ROUNDING = 1e-6
"""How far a sum of probabilities may be from 1: generous to tables that went through float32 or JSON."""


def checked_preference(preference: ArrayLike) -> Float64s:
    """Return the game as float64.

    Args:
        preference: P(row beats column). [n, n]

    Raises:
        ValueError: if it is not square, has an entry outside [0, 1] or NaN, or P + P^T is not 1.
    """
    table = np.asarray(preference, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.shape[0] == 0:
        raise ValueError(f"a preference must be a square matrix of at least one response, not of shape {table.shape}")
    if not (table.min() >= 0 and table.max() <= 1):  # NaN fails both
        raise ValueError("every preference must lie in [0, 1]: NaN or a value outside was given")
    if np.abs(table + table.T - 1).max() > _ROUNDING:
        raise ValueError("preference[i, j] + preference[j, i] must be 1, with 0.5 on the diagonal")
    return table


def checked_policy(policy: ArrayLike, size: int, *, name: str = "policy") -> Float64s:
    """Return the policy as float64.

    Args:
        policy: a probability per response. [n]
        size: how many responses the game has.
        name: what the policy is called in messages.

    Raises:
        ValueError: if it is not [size], has a negative or non-finite entry, or does not sum to 1.
    """
    distribution = np.asarray(policy, dtype=np.float64)
    if distribution.shape != (size,):
        raise ValueError(f"{name} must be [{size}], one probability per response, not of shape {distribution.shape}")
    if not (distribution.min() >= 0 and abs(distribution.sum() - 1.0) <= _ROUNDING):  # NaN fails both
        raise ValueError(f"{name} must be a distribution: non-negative, with sum 1, not sum {distribution.sum()}")
    return distribution


def check_positive(**knobs: float) -> None:
    """Refuse knobs that are not positive and finite.

    Raises:
        ValueError: if one is not.
    """
    for name, value in knobs.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")


def check_unit(name: str, value: float, remedy: str) -> None:
    """Refuse a weight outside [0, 1].

    Args:
        name: how the weight is computed.
        value: what came out.
        remedy: what to change.

    Raises:
        ValueError: if it lies outside or is NaN.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], not {value}: {remedy}")
