"""Scores of single steps: how a process reward model's become one reward. No torch.

A representation has one number per step, the log-odds that it is right; rows with fewer steps than others end in NaN.

Shapes: n responses, S the most steps of one.
"""

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["AGGREGATIONS", "Aggregation", "aggregated", "rewards_of_steps"]

Aggregation = Literal["min", "prod", "last"]
"""The worst step, the product of all (every step is right, were they independent), or the last step."""


def _least(values: NDArray[np.float64]) -> NDArray[np.float64]:
    least: NDArray[np.float64] = np.where(np.isnan(values), np.inf, values).min(axis=1)
    return least


def _last(values: NDArray[np.float64]) -> NDArray[np.float64]:
    counts = np.maximum(np.count_nonzero(~np.isnan(values), axis=1), 1)
    ends: NDArray[np.float64] = values[np.arange(len(values)), counts - 1]
    return ends


def _product(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the log-odds of the product of probabilities."""
    present = ~np.isnan(values)
    log = -np.where(present, np.logaddexp(0.0, -np.where(present, values, 0.0)), 0.0).sum(axis=1)
    with np.errstate(divide="ignore"):
        exact = log - np.log(-np.expm1(log))
    # So near to 1 that nothing is left of the difference: there it is the sum of the steps' own.
    doubt = -np.logaddexp.reduce(np.where(present, -values, -np.inf), axis=1)
    product: NDArray[np.float64] = np.where(log > -1e-12, doubt, exact)
    return product


_RULES: Mapping[Aggregation, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "min": _least,
    "prod": _product,
    "last": _last,
}
AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)

assert tuple(_RULES) == AGGREGATIONS


def aggregated(steps: ArrayLike, how: Aggregation) -> NDArray[np.float64]:
    """Return the log-odds of the aggregated probability that a response is right.

        min:  min_i z_i        prod:  logit(prod_i sigmoid(z_i))        last:  z_S

    Two responses of which exactly one is right then compare by the difference of these numbers.

    Args:
        steps: log-odds of each step, NaN behind the last one. [n, S]

    Returns:
        One number per response, NaN for one without any. [n]

    >>> float(aggregated([[2.0, -1.0, 3.0]], "min")[0])
    -1.0
    """
    values = np.asarray(steps, dtype=np.float64)
    empty = np.isnan(values).all(axis=1)
    return np.where(empty, np.nan, _RULES[how](values))


def rewards_of_steps(steps: ArrayLike, how: Aggregation | None) -> NDArray[np.float32]:
    """Return what stands for a representation where rewards are compared, [n, 1]: NaN where nothing aggregates."""
    values = aggregated(steps, how) if how is not None else np.full(len(np.asarray(steps)), np.nan)
    return values.astype(np.float32)[:, None]
