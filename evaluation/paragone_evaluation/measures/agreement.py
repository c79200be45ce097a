"""Agreement with graded judgements: how strongly people preferred, and how they rated."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.checks import Floats, columns

__all__ = ["auc", "by_strength", "determination", "pearson", "root_mean_squared_error", "spearman"]


def pearson(first: ArrayLike, second: ArrayLike) -> float:
    """Return Pearson's correlation; NaN where one side is constant.

    r = Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² Σ (y − ȳ)²)
    """
    x, y = columns(first=first, second=second)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # Centred before the products, not after: large means would eat the digits.
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's correlation: Pearson's of the mean ranks; NaN where one side is constant."""
    x, y = columns(first=first, second=second)
    return pearson(rankdata(x), rankdata(y))


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return the probability that a positive value exceeds a negative one, ties worth ½; NaN where a side is empty.

        AUC = (Σ ranks of the positives − n₊(n₊ + 1)/2) / (n₊ n₋)

    Source: Mann and Whitney (1947).

    ``positive`` [n₊] should be larger than ``negative`` [n₋].
    """
    (above,), (below,) = columns(positive=positive), columns(negative=negative)
    if not len(above) or not len(below):
        return float("nan")
    # Mean ranks: a positive and a negative of one value share theirs, which gives their pair its half.
    ranks = rankdata(np.concatenate([above, below]))[: len(above)]
    return float((ranks.sum() - len(above) * (len(above) + 1) / 2) / (len(above) * len(below)))


def by_strength(logit: ArrayLike, strength: ArrayLike) -> list[dict[str, Any]]:
    """Return accuracy and mean logit by |strength|, weakest first; both should rise.

    Returns:
        ``strength``, ``count``, ``accuracy`` (half-credit; NaN for strength 0) and ``mean_logit``: of the response that
        people preferred, or of the first one for strength 0.
    """
    logits, strengths = columns(logit=logit, strength=strength)
    earned: Floats = credit(logits, 0.5 + 0.5 * np.sign(strengths))
    levels = []
    for level in np.unique(np.abs(strengths)):
        here = np.abs(strengths) == level
        # Where people left a tie there is no preferred response to count the logit from.
        sign = np.sign(strengths[here]) if level else np.ones(int(here.sum()))
        levels.append(
            {
                "strength": float(level),
                "count": int(here.sum()),
                "accuracy": float(earned[here].mean()) if level else float("nan"),
                "mean_logit": float((sign * logits[here]).mean()),
            }
        )
    return levels


def root_mean_squared_error(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Return the root of the mean squared error; NaN where there is no rating.

    RMSE = √(Σ (p − t)² / n)
    """
    ours, theirs = columns(predicted=predicted, rated=rated)
    return float(np.sqrt(((ours - theirs) ** 2).mean())) if len(ours) else float("nan")


def determination(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Return R² against the constant; NaN where people's ratings are all the same.

        R² = 1 − Σ (p − t)² / Σ (t − t̄)²

    1 is perfect, 0 no better than always saying the mean of these ratings, and below 0 worse than that.
    """
    ours, theirs = columns(predicted=predicted, rated=rated)
    spread = float(((theirs - theirs.mean()) ** 2).sum()) if len(theirs) and np.ptp(theirs) else 0.0
    return 1.0 - float(((ours - theirs) ** 2).sum()) / spread if spread else float("nan")
