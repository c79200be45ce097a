"""Position bias of models that read both responses at once; pointwise kinds have none by construction."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from paragone_training.evaluation.measures.checks import columns

__all__ = ["PositionBias", "position_bias"]


@dataclass(frozen=True)
class PositionBias:
    """What changes when the two responses change places.

    Attributes:
        swap_consistency: share of pairs whose choice stays with the same response; two ties are consistent.
        first_win_excess: share of wins of the first place, minus ½.
        asymmetry: mean |p(a, b) + p(b, a) − 1|.
    """

    swap_consistency: float
    first_win_excess: float
    asymmetry: float


def position_bias(logit: ArrayLike, swapped: ArrayLike) -> PositionBias:
    """Return how much a model's answers depend on which response comes first.

        consistency = mean [sign(logit(a, b)) = −sign(logit(b, a))]
        first-win excess = mean of [logit > 0] + ½ [logit = 0] over both orders, minus ½
        asymmetry = mean |p(a, b) + p(b, a) − 1|

    Args:
        logit: log-odds of each pair in one order. [n]
        swapped: log-odds of its first place with the responses swapped. [n]

    Raises:
        ValueError: if there are no pairs, the lengths differ or a value is not finite.
    """
    one, two = columns(logit=logit, swapped=swapped)
    if not len(one):
        raise ValueError("there are no pairs: position bias needs some")
    wins = 0.5 + 0.5 * np.sign(np.concatenate([one, two]))
    return PositionBias(
        swap_consistency=float((np.sign(one) == -np.sign(two)).mean()),
        first_win_excess=float(wins.mean() - 0.5),
        asymmetry=float(np.abs(expit(one) + expit(two) - 1.0).mean()),
    )
