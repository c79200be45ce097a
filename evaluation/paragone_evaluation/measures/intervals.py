"""Intervals of measures that are no means: calibration error, correlation, and AUC."""

import numpy as np
from numpy.typing import ArrayLike

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.bootstrap import Estimate, Resampler, estimate
from paragone_evaluation.measures.calibration import confidence, confidence_bin, expected_calibration_error
from paragone_evaluation.measures.checks import Floats, Ints, columns
from paragone_evaluation.measures.strength import auc, pearson

__all__ = ["auc_estimate", "calibration_error_estimate", "pearson_estimate"]

_CELLS = 2_000_000
_FEW = 128
"""Up to so many clusters, a matrix between them is cheaper than all rows of every resample."""


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


def auc_estimate(value: ArrayLike, positive: ArrayLike, cluster: ArrayLike, resampler: Resampler) -> Estimate:
    """Return the AUC with its interval: both sides of a cluster are resampled together.

        AUC = Σ_v P_v (N_{<v} + ½ N_v) / (P N),  P_v and N_v the weights of positives and negatives with value v

    Args:
        value: should be larger for positives. [n]
        positive: 1 for positives, 0 for negatives. [n]
        cluster: number of each row's cluster. [n]
        resampler: draws the clusters.

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    values, is_positive = columns(value=value, positive=positive)
    where = np.asarray(cluster, dtype=np.int64)
    found = auc(values[is_positive == 1.0], values[is_positive == 0.0])
    if not len(values):
        return estimate(found, [], clusters=resampler.clusters)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
    drawn = _auc_of_clusters if resampler.clusters <= _FEW else _auc_of_rows
    return estimate(found, drawn(is_positive[order], where[order], starts, resampler), clusters=resampler.clusters)


def _auc_of_clusters(positive: Floats, cluster: Ints, starts: Ints, resampler: Resampler) -> Floats:
    """Return the AUC of every resample from one matrix between clusters.

        AUC = Σ_cd w_c w_d A_cd / (Σ_c w_c P_c · Σ_d w_d N_d)

    A_cd counts the positives of c that are above negatives of d, ties half; w are the weights of the clusters.
    """
    table = np.zeros((2, len(positive), resampler.clusters))
    rows = np.arange(len(positive))
    table[0, rows, cluster], table[1, rows, cluster] = positive, 1.0 - positive
    ours, theirs = np.add.reduceat(table, starts, axis=1)
    above = ours.T @ (np.cumsum(theirs, axis=0) - theirs / 2)
    weight = resampler.counts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = (weight @ ours.sum(axis=0)) * (weight @ theirs.sum(axis=0))
        return np.asarray(((weight @ above) * weight).sum(axis=1) / pairs)


def _auc_of_rows(positive: Floats, cluster: Ints, starts: Ints, resampler: Resampler) -> Floats:
    """Return the AUC of every resample from the weights of all rows: no matrix between clusters, which may be many."""
    drawn = []
    step = max(1, _CELLS // len(positive))
    for start in range(0, len(resampler.counts), step):
        weight = resampler.counts[start : start + step, cluster].astype(np.float64)
        ours = np.add.reduceat(weight * positive, starts, axis=1)
        theirs = np.add.reduceat(weight * (1.0 - positive), starts, axis=1)
        below = np.cumsum(theirs, axis=1) - theirs
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((ours * (below + theirs / 2)).sum(axis=1) / (ours.sum(axis=1) * theirs.sum(axis=1)))
    return np.concatenate(drawn)


def _standard(values: Floats) -> Floats:
    spread = float(values.std()) if len(values) else 0.0
    return np.asarray((values - values.mean()) / spread if spread > 0 else values * 0.0)
