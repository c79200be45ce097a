"""Two logits for every pair: of two models, or of one model that was asked in both orders."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.bootstrap import Estimate, Resampler
from paragone_evaluation.measures.calibration import brier, negative_log_likelihood
from paragone_evaluation.measures.checks import columns

__all__ = ["compare_models", "position_bias"]


def compare_models(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, cluster: ArrayLike, resampler: Resampler
) -> dict[str, Any]:
    """Return how two models differ on the same pairs and the same resamples, the first minus the second.

    The difference is taken row by row and resampled by cluster, so what both models find hard cancels.

    Args:
        first: log-odds by the one model. [n]
        second: log-odds by the other. [n]

    Returns:
        ``accuracy_difference``: an ``Estimate``, half-credit, over decided pairs; above 0 the first is better.
        ``nll_difference`` (in nats) and ``brier_difference``: below 0 the first is better.
        ``better_share``: share of resamples in which the first has the higher accuracy, ties worth ½.
        ``agreement``: share of pairs on which both make the same choice.
        ``only_first_right``, ``only_second_right``: decided pairs that one of them alone has right.

    Raises:
        ValueError: if no pair is decided.
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
    known = gains[np.isfinite(gains)]  # a resample of few clusters may have no decided pair
    losses = negative_log_likelihood(ours, judged) - negative_log_likelihood(theirs, judged)
    return {
        "accuracy_difference": resampler.estimate(float(total[0] / total[1]), gains),
        "nll_difference": resampler.mean(losses, where),
        "brier_difference": resampler.mean(brier(ours, judged) - brier(theirs, judged), where),
        "better_share": float((0.5 + 0.5 * np.sign(known)).mean()),
        "agreement": float((np.sign(ours) == np.sign(theirs)).mean()),
        "only_first_right": int(((right == 1.0) & (right_theirs < 1.0)).sum()),
        "only_second_right": int(((right_theirs == 1.0) & (right < 1.0)).sum()),
    }


def position_bias(
    logit: ArrayLike, swapped: ArrayLike, cluster: ArrayLike, resampler: Resampler
) -> dict[str, Estimate]:
    """Return how much a model's answers depend on which response comes first.

        swap_consistency = mean [sign(logit(a, b)) = −sign(logit(b, a))]
        first_win_excess = mean of [logit > 0] + ½ [logit = 0] over both orders, minus ½
        asymmetry = mean |p(a, b) + p(b, a) − 1|

    Two ties are consistent. Both orders of a pair are resampled together.

    Args:
        swapped: log-odds of each pair's first place with the responses swapped. [n]

    Raises:
        ValueError: if there are no pairs.
    """
    there, back = columns(logit=logit, swapped=swapped)
    if not len(there):
        raise ValueError("there are no pairs: position bias needs some")
    return {
        "swap_consistency": resampler.mean((np.sign(there) == -np.sign(back)).astype(np.float64), cluster),
        # ([l > 0] + ½ [l = 0]) − ½ is ½ sign(l), and the mean is over two orders.
        "first_win_excess": resampler.mean((np.sign(there) + np.sign(back)) / 4.0, cluster),
        "asymmetry": resampler.mean(np.abs(expit(there) + expit(back) - 1.0), cluster),
    }
