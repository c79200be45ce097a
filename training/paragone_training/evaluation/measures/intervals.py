"""Intervals of measures that are no means: calibration error, correlation, and the weighted score of a section."""

import numpy as np
from numpy.typing import ArrayLike

from paragone_training.evaluation.measures.accuracy import credit
from paragone_training.evaluation.measures.bootstrap import Estimate, Resampler, estimate
from paragone_training.evaluation.measures.calibration import confidence, confidence_bin, expected_calibration_error
from paragone_training.evaluation.measures.checks import Floats, columns
from paragone_training.evaluation.measures.strength import pearson

__all__ = ["calibration_error_estimate", "pearson_estimate"]


def calibration_error_estimate(
    logit: ArrayLike, outcome: ArrayLike, cluster: ArrayLike, resampler: Resampler, *, bins: int = 10
) -> Estimate:
    """Return the expected calibration error with its interval.

    The error is never negative and grows with noise, so resamples have a somewhat larger one than the sample: the
    interval can lie above the value when the model is nearly calibrated.

    Args:
        logit: log-odds that the first is preferred. [n]
        outcome: 1, ½ or 0. [n]
        cluster: number of each pair's cluster. [n]
        resampler: draws the clusters.
        bins: of equal width over [½, 1].

    Raises:
        ValueError: as ``expected_calibration_error``.
    """
    value = expected_calibration_error(logit, outcome, bins=bins)
    gap = confidence(logit) - credit(logit, outcome)
    where = confidence_bin(confidence(logit), bins=bins)
    # Σ_b n_b |acc_b − conf_b| = Σ_b |Σ gap|, so one column per bin is all that is needed.
    table = np.zeros((len(gap), bins + 1))
    table[np.arange(len(gap)), where] = gap
    table[:, bins] = 1.0
    _, drawn = resampler.totals(table, cluster)
    with np.errstate(invalid="ignore", divide="ignore"):
        return estimate(value, np.abs(drawn[:, :bins]).sum(axis=1) / drawn[:, bins], clusters=resampler.clusters)


def pearson_estimate(first: ArrayLike, second: ArrayLike, cluster: ArrayLike, resampler: Resampler) -> Estimate:
    """Return Pearson's correlation with its interval; of ranks, it is Spearman's with the ranks held fixed.

    Args:
        first: x. [n]
        second: y. [n]
        cluster: number of each row's cluster. [n]
        resampler: draws the clusters.

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    one, two = columns(first=first, second=second)
    x, y = _standard(one), _standard(two)
    _, sums = resampler.totals(np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y]), cluster)
    with np.errstate(invalid="ignore", divide="ignore"):
        n, sx, sy, sxx, syy, sxy = sums.T
        drawn = (sxy - sx * sy / n) / np.sqrt((sxx - sx * sx / n) * (syy - sy * sy / n))
    return estimate(pearson(one, two), drawn, clusters=resampler.clusters)


def _standard(values: Floats) -> Floats:
    spread = float(values.std()) if len(values) else 0.0
    return np.asarray((values - values.mean()) / spread if spread > 0 else values * 0.0)
