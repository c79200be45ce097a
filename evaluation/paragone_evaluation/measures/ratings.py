"""Agreement of predicted ratings with people's, on the scale of the ratings."""

import numpy as np
from numpy.typing import ArrayLike

from paragone_evaluation.measures.bootstrap import Estimate, Resampler, estimate
from paragone_evaluation.measures.checks import columns

__all__ = ["determination", "rating_estimates", "root_mean_squared_error"]


def root_mean_squared_error(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Return the root of the mean squared error; NaN where there is no rating.

        RMSE = √(Σ (p − t)² / n)

    Args:
        predicted: p, by the model. [n]
        rated: t, by people. [n]

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    ours, theirs = columns(predicted=predicted, rated=rated)
    return float(np.sqrt(((ours - theirs) ** 2).mean())) if len(ours) else float("nan")


def determination(predicted: ArrayLike, rated: ArrayLike) -> float:
    """Return R² against the constant; NaN where people's ratings are all the same.

        R² = 1 − Σ (p − t)² / Σ (t − t̄)²

    1 is perfect, 0 no better than always saying the mean of these ratings, and below 0 worse than that.

    Args:
        predicted: p, by the model. [n]
        rated: t, by people. [n]

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    ours, theirs = columns(predicted=predicted, rated=rated)
    spread = float(((theirs - theirs.mean()) ** 2).sum()) if len(theirs) and np.ptp(theirs) else 0.0
    return 1.0 - float(((ours - theirs) ** 2).sum()) / spread if spread else float("nan")


def rating_estimates(
    predicted: ArrayLike, rated: ArrayLike, cluster: ArrayLike, resampler: Resampler
) -> tuple[Estimate, Estimate]:
    """Return the root mean squared error and R² with their intervals; each resample has its own constant.

    Args:
        predicted: by the model. [n]
        rated: by people. [n]
        cluster: number of each row's cluster. [n]
        resampler: draws the clusters.

    Raises:
        ValueError: if the lengths differ, a value is not finite, or a cluster number is out of range.
    """
    ours, theirs = columns(predicted=predicted, rated=rated)
    centred = theirs - theirs.mean() if len(theirs) else theirs
    table = np.column_stack([np.ones_like(ours), (ours - theirs) ** 2, centred, centred**2])
    _, sums = resampler.totals(table, cluster)
    n, squared, total, total_squared = sums.T
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(squared / n)
        explained = 1.0 - squared / (total_squared - total**2 / n)
    return (
        estimate(root_mean_squared_error(ours, theirs), error, clusters=resampler.clusters),
        estimate(determination(ours, theirs), explained, clusters=resampler.clusters),
    )
