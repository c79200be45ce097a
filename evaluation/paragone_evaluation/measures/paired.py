"""Two logits for every pair: of two models, or of one model that was asked in both orders."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.bootstrap import Estimate, Resampler, estimate
from paragone_evaluation.measures.calibration import brier, negative_log_likelihood
from paragone_evaluation.measures.checks import columns

__all__ = ["PairedComparison", "PositionBias", "compare_models", "position_bias"]


@dataclass(frozen=True)
class PairedComparison:
    """Differences between two models, the first minus the second, on the same pairs and the same resamples.

    Attributes:
        accuracy: half-credit, over decided pairs; above 0 the first is better.
        nll: in nats; below 0 the first is better.
        brier: below 0 the first is better.
        better_share: share of resamples in which the first has the higher accuracy, ties worth ½.
        agreement: share of pairs on which both make the same choice.
        only_first_right: decided pairs that the first alone has right.
        only_second_right: decided pairs that the second alone has right.
    """

    accuracy: Estimate
    nll: Estimate
    brier: Estimate
    better_share: float
    agreement: float
    only_first_right: int
    only_second_right: int


def compare_models(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, cluster: ArrayLike, resampler: Resampler
) -> PairedComparison:
    """Return how two models differ on the same pairs.

    The difference is taken row by row and resampled by cluster, so what both models find hard cancels.

    Args:
        first: log-odds by the one model. [n]
        second: log-odds by the other. [n]

    Raises:
        ValueError: if the lengths differ, a value is not finite or out of range, or no pair is decided.
    """
    ours, theirs, judged = columns(first=first, second=second, outcome=outcome)
    where = np.asarray(cluster, dtype=np.int64)
    decided = judged != 0.5
    if not decided.any():
        raise ValueError("no pair is decided: two models cannot be compared on ties")
    right, right_theirs = credit(ours, judged)[decided], credit(theirs, judged)[decided]
    # One column of differences, resampled: what is hard for both models cancels, which two intervals could not do.
    total, drawn = resampler.totals(np.column_stack([right - right_theirs, np.ones(len(right))]), where[decided])
    with np.errstate(invalid="ignore", divide="ignore"):
        gains = drawn[:, 0] / drawn[:, 1]
    known = gains[np.isfinite(gains)]
    return PairedComparison(
        accuracy=estimate(float(total[0] / total[1]), gains, clusters=resampler.clusters),
        nll=resampler.mean(negative_log_likelihood(ours, judged) - negative_log_likelihood(theirs, judged), where),
        brier=resampler.mean(brier(ours, judged) - brier(theirs, judged), where),
        better_share=float((0.5 + 0.5 * np.sign(known)).mean()),
        agreement=float((np.sign(ours) == np.sign(theirs)).mean()),
        only_first_right=int(((right == 1.0) & (right_theirs < 1.0)).sum()),
        only_second_right=int(((right_theirs == 1.0) & (right < 1.0)).sum()),
    )


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

    Raises:
        ValueError: if there are no pairs, the lengths differ, a value is not finite, or a cluster number is out of
            range.
    """
    there, back = columns(logit=logit, swapped=swapped)
    if not len(there):
        raise ValueError("there are no pairs: position bias needs some")
    return PositionBias(
        swap_consistency=resampler.mean((np.sign(there) == -np.sign(back)).astype(np.float64), cluster),
        first_win_excess=resampler.mean((np.sign(there) + np.sign(back)) / 4.0, cluster),
        asymmetry=resampler.mean(np.abs(expit(there) + expit(back) - 1.0), cluster),
    )
