"""Position bias of models that read both responses at once; pointwise kinds have none by construction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from paragone_evaluation.measures.bootstrap import Estimate, Resampler
from paragone_evaluation.measures.checks import columns

__all__ = ["PositionBias", "position_bias"]


@dataclass(frozen=True)
class PositionBias:
    """What changes when the two responses change places.

    Attributes:
        swap_consistency: share of pairs whose choice stays with the same response; two ties are consistent.
        first_win_excess: share of wins of the first place, minus ½.
        asymmetry: mean |p(a, b) + p(b, a) − 1|.
    """

    swap_consistency: Estimate
    first_win_excess: Estimate
    asymmetry: Estimate


def position_bias(logit: ArrayLike, swapped: ArrayLike, cluster: ArrayLike, resampler: Resampler) -> PositionBias:
    """Return how much a model's answers depend on which response comes first.

        consistency = mean [sign(logit(a, b)) = −sign(logit(b, a))]
        first-win excess = mean of [logit > 0] + ½ [logit = 0] over both orders, minus ½
        asymmetry = mean |p(a, b) + p(b, a) − 1|

    Both orders of a pair are resampled together.

    Args:
        logit: log-odds of each pair in one order. [n]
        swapped: log-odds of its first place with the responses swapped. [n]
        cluster: number of each pair's cluster. [n]
        resampler: draws the clusters.

    Raises:
        ValueError: if there are no pairs, the lengths differ, a value is not finite, or a cluster number is out of
            range.
    """
    one, two = columns(logit=logit, swapped=swapped)
    if not len(one):
        raise ValueError("there are no pairs: position bias needs some")
    return PositionBias(
        swap_consistency=resampler.mean((np.sign(one) == -np.sign(two)).astype(np.float64), cluster),
        first_win_excess=resampler.mean((np.sign(one) + np.sign(two)) / 4.0, cluster),
        asymmetry=resampler.mean(np.abs(expit(one) + expit(two) - 1.0), cluster),
    )
