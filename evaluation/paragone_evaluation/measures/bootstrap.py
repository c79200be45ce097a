"""Bootstrap intervals that resample clusters, not rows: rows of one question are not independent.

Everything is computed from one sum per cluster, so that a resample costs a row of a matrix product and not a pass over
the rows. A measure that is no mean is therefore written as a function of such sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.agreement import auc, determination, pearson, root_mean_squared_error
from paragone_evaluation.measures.calibration import confidence, confidence_bin, expected_calibration_error
from paragone_evaluation.measures.checks import Floats, Ints, columns

__all__ = ["FEW_CLUSTERS", "Estimate", "Resampler"]

FEW_CLUSTERS = 10
"""Intervals from fewer clusters are rough and mostly too narrow: a hint, and no verdict."""

# Numbers that one step of a computation holds in memory, at most: 32 MB in float64.
_CELLS = 4_000_000
# Up to so many clusters, a matrix between them is cheaper than all rows of every resample.
_FEW = 128
# Beyond so many clusters sums are resampled in float32: its rounding is far below the noise of resampling.
_MANY = 512


@dataclass(frozen=True)
class Estimate:
    """A number computed from all rows, and its 95 % interval: NaN where there are fewer than two clusters."""

    value: float
    low: float
    high: float


class Resampler:
    """Draws clusters with replacement, once, so that every measure and both models see the same resamples.

    Source: the cluster bootstrap, Field and Welsh (2007); percentile intervals, Efron (1979).

    Raises:
        ValueError: if there is no cluster or no resample.
    """

    def __init__(self, clusters: int, *, resamples: int = 1000, seed: int = 0) -> None:
        if clusters < 1 or resamples < 1:
            raise ValueError(f"{clusters} clusters and {resamples} resamples: there must be at least one of each")
        self.clusters = clusters
        self.resamples = resamples
        # How often each resample drew each cluster is all that a measure needs, and it is drawn once: two models, or
        # two measures, that see the same resamples can be compared.
        draw = np.random.default_rng(seed)
        rows = max(1, _CELLS // clusters)
        parts = []
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            # One bincount for many resamples: each counts in a range of its own.
            drawn = draw.integers(0, clusters, size=(size, clusters)) + np.arange(size)[:, None] * clusters
            counts = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
            parts.append(counts.astype(np.float32))
        self.counts: NDArray[np.float32] = np.concatenate(parts)

    def totals(self, values: ArrayLike, cluster: ArrayLike) -> tuple[Floats, Floats]:
        """Return the sums of columns [n, m] over all rows [m], and over each resample [B, m]."""
        table = np.asarray(values, dtype=np.float64)
        where: Ints = np.asarray(cluster, dtype=np.int64)
        if table.ndim != 2 or where.shape != table.shape[:1]:
            raise ValueError(f"values have shape {table.shape} and clusters {where.shape}; they must be [n, m] and [n]")
        if len(where) and not 0 <= where.min() <= where.max() < self.clusters:
            raise ValueError(f"cluster numbers must lie in [0, {self.clusters})")
        per_cluster = np.stack([np.bincount(where, column, self.clusters) for column in table.T], axis=1)
        # Counts are small whole numbers, which float32 holds exactly. The sums are rounded in it, so it is used only
        # where there are so many clusters that the product's time shows.
        resampled = self.counts @ (per_cluster.astype(np.float32) if self.clusters > _MANY else per_cluster)
        return table.sum(axis=0), np.asarray(resampled, dtype=np.float64)

    def estimate(self, value: float, resampled: ArrayLike) -> Estimate:
        """Return a number with the 95 % percentile interval of its resampled values.

        Args:
            resampled: the same number from each resample; NaN where a resample has no such rows. [B]
        """
        drawn = np.asarray(resampled, dtype=np.float64)
        drawn = drawn[np.isfinite(drawn)]
        # One cluster gives B times the same resample: an interval of width 0 that claims to know everything.
        if self.clusters < 2 or len(drawn) == 0 or not np.isfinite(value):
            return Estimate(value, float("nan"), float("nan"))
        low, high = np.percentile(drawn, (2.5, 97.5))
        return Estimate(value, float(low), float(high))

    def mean(self, values: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return the mean of a column [n] with its interval."""
        column = np.asarray(values, dtype=np.float64)
        return self.ratio(column, np.ones_like(column), cluster)

    def share(self, credits: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return the mean of a column of credits in [0, 1], [n], with its interval.

        Where all rows have 1, or all have 0, every resample has it too. The interval is then the exact binomial one, of
        as many cases as there are clusters with rows.

        Source: Clopper and Pearson (1934).
        """
        found = self.mean(credits, cluster)
        if not found.low == found.high == found.value or found.value not in (0.0, 1.0):
            return found
        least = 0.025 ** (1 / len(np.unique(np.asarray(cluster))))
        return Estimate(1.0, least, 1.0) if found.value else Estimate(0.0, 0.0, 1.0 - least)

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return the ratio of the sums of two columns [n] with its interval."""
        total, resampled = self.totals(np.column_stack([numerator, denominator]), cluster)
        # A resample may hold no row at all: 0/0 is NaN, and has no part in the interval.
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.estimate(float(total[0] / total[1]), resampled[:, 0] / resampled[:, 1])

    def calibration_error(
        self, logit: ArrayLike, outcome: ArrayLike, cluster: ArrayLike, *, bins: int = 10
    ) -> Estimate:
        """Return the expected calibration error with its interval.

        The error is never negative and grows with noise, so resamples have a somewhat larger one than the sample: the
        interval can lie above the value when the model is nearly calibrated.

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
        _, drawn = self.totals(table, cluster)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.estimate(value, np.abs(drawn[:, :bins]).sum(axis=1) / drawn[:, bins])

    def pearson(self, first: ArrayLike, second: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return Pearson's correlation with its interval; of ranks, it is Spearman's with the ranks held fixed."""
        first_values, second_values = columns(first=first, second=second)
        # Standardised first: sums of squares of large numbers would lose the digits that a correlation is made of.
        x, y = _standard(first_values), _standard(second_values)
        _, sums = self.totals(np.column_stack([np.ones_like(x), x, y, x * x, y * y, x * y]), cluster)
        # The means of a resample are its own, although x and y are centred over all rows: they are taken off again.
        with np.errstate(invalid="ignore", divide="ignore"):
            n, sx, sy, sxx, syy, sxy = sums.T
            drawn = (sxy - sx * sy / n) / np.sqrt((sxx - sx * sx / n) * (syy - sy * sy / n))
        return self.estimate(pearson(first_values, second_values), drawn)

    def auc(self, value: ArrayLike, positive: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return the AUC with its interval: both sides of a cluster are resampled together.

            AUC = Σ_v P_v (N_{<v} + ½ N_v) / (P N),  P_v and N_v the weights of positives and negatives with value v

        Args:
            value: should be larger for positives. [n]
            positive: 1 for positives, 0 for negatives. [n]
        """
        values, is_positive = columns(value=value, positive=positive)
        where = np.asarray(cluster, dtype=np.int64)
        observed = auc(values[is_positive == 1.0], values[is_positive == 0.0])
        if not len(values):
            return self.estimate(observed, [])
        # Rows of one value stand together and count as one step, which is how ties get their half.
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
        drawn = _auc_of_clusters if self.clusters <= _FEW else _auc_of_rows
        return self.estimate(observed, drawn(is_positive[order], where[order], starts, self))

    def rating_errors(self, predicted: ArrayLike, rated: ArrayLike, cluster: ArrayLike) -> tuple[Estimate, Estimate]:
        """Return the root mean squared error and R² with their intervals; each resample has its own constant."""
        ours, theirs = columns(predicted=predicted, rated=rated)
        # Each resample has a variance of its own, from its sums of squares; centred values keep their digits in them.
        centred = theirs - theirs.mean() if len(theirs) else theirs
        table = np.column_stack([np.ones_like(ours), (ours - theirs) ** 2, centred, centred**2])
        n, squared, total, total_squared = self.totals(table, cluster)[1].T
        with np.errstate(invalid="ignore", divide="ignore"):
            error = np.sqrt(squared / n)
            explained = 1.0 - squared / (total_squared - total**2 / n)
        return (
            self.estimate(root_mean_squared_error(ours, theirs), error),
            self.estimate(determination(ours, theirs), explained),
        )


def _auc_of_clusters(positive: Floats, cluster: Ints, starts: Ints, resampler: Resampler) -> Floats:
    """Return the AUC of every resample from one matrix between clusters.

        AUC = Σ_cd w_c w_d A_cd / (Σ_c w_c P_c · Σ_d w_d N_d)

    A_cd counts the positives of c that are above negatives of d, ties half; w are the weights of the clusters.
    """
    table = np.zeros((2, len(positive), resampler.clusters))
    rows = np.arange(len(positive))
    table[0, rows, cluster], table[1, rows, cluster] = positive, 1.0 - positive
    ours, theirs = np.add.reduceat(table, starts, axis=1)
    # What is below a step is the sum up to it without its own negatives; half of those are the ties.
    above = ours.T @ (np.cumsum(theirs, axis=0) - theirs / 2)
    weight = resampler.counts.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = (weight @ ours.sum(axis=0)) * (weight @ theirs.sum(axis=0))
        return np.asarray(((weight @ above) * weight).sum(axis=1) / pairs)


def _auc_of_rows(positive: Floats, cluster: Ints, starts: Ints, resampler: Resampler) -> Floats:
    """Return the AUC of every resample from the weights of all rows: no matrix between clusters, which may be many."""
    drawn = []
    # As many resamples at a time as fit: each needs a weight per row, and two sums per step.
    step = max(1, _CELLS // (2 * len(positive)))
    for start in range(0, len(resampler.counts), step):
        weight = resampler.counts[start : start + step, cluster].astype(np.float64)
        ours = np.add.reduceat(weight * positive, starts, axis=1)
        theirs = np.add.reduceat(weight * (1.0 - positive), starts, axis=1)
        below = np.cumsum(theirs, axis=1) - theirs
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn.append((ours * (below + theirs / 2)).sum(axis=1) / (ours.sum(axis=1) * theirs.sum(axis=1)))
    return np.concatenate(drawn)


def _standard(values: Floats) -> Floats:
    # A constant column stays 0, so that its correlation is 0/0, NaN, and not a ratio of rounding errors.
    spread = float(values.std()) if len(values) else 0.0
    return np.asarray((values - values.mean()) / spread if spread > 0 else values * 0.0)
