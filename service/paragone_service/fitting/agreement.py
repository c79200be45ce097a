"""How often two models agree with people on the same pairs, with intervals that hold for a handful of them.

Pairs are taken as independent. n = decided pairs.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from paragone.wire import HeadAgreement, HeadDifference, HeadShare

__all__ = ["agreement", "difference", "share"]


def agreement(new: NDArray[np.bool_], old: NDArray[np.bool_] | None, *, prompts: int) -> HeadAgreement:
    """Return the comparison of two models.

    Args:
        new: whether each decided pair is ordered as people order it, by the fitted head. [n]
        old: the same of the model before it; None where that cannot compare. [n]
        prompts: that the pairs are of.
    """
    return HeadAgreement(
        pairs=len(new),
        prompts=prompts,
        new=share(int(new.sum()), len(new)),
        old=None if old is None else share(int(old.sum()), len(old)),
        difference=None if old is None else difference(new, old),
        only_new=None if old is None else int((new & ~old).sum()),
        only_old=None if old is None else int((old & ~new).sum()),
    )


def share(right: int, pairs: int) -> HeadShare:
    """Return a share of pairs with Wilson's 95 % interval; there is at least one pair."""
    low, high = binomtest(right, pairs).proportion_ci(method="wilson")
    return HeadShare(share=right / pairs, low=float(low), high=float(high))


def difference(new: NDArray[np.bool_], old: NDArray[np.bool_]) -> HeadDifference:
    """Return the difference of two shares of the same pairs, with Newcombe's 95 % interval for paired proportions.

    Source: Newcombe, Statistics in Medicine 17 (1998), 2635–2650, method 10.

    Args:
        new, old: whether each pair is ordered as people order it. [n]
    """
    count = len(new)
    both, only_new = int((new & old).sum()), int((new & ~old).sum())
    only_old, neither = int((old & ~new).sum()), int((~new & ~old).sum())
    first, second = share(both + only_new, count), share(both + only_old, count)
    correlation = _correlation(both, only_new, only_old, neither)

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * correlation * one * other + other**2))

    value = (only_new - only_old) / count
    return HeadDifference(
        value=value,
        low=value - reach(first.share - first.low, second.high - second.share),
        high=value + reach(first.high - first.share, second.share - second.low),
    )


def _correlation(both: int, only_new: int, only_old: int, neither: int) -> float:
    """Return the correlation of the two models' answers, with a correction for continuity where it is positive."""
    sides = (both + only_new) * (only_old + neither) * (both + only_old) * (only_new + neither)
    if not sides:
        return 0.0
    product = float(both * neither - only_new * only_old)
    if product > 0:
        product = max(0.0, product - (both + only_new + only_old + neither) / 2)
    return product / math.sqrt(sides)
