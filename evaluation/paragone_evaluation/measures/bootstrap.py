"""Bootstrap intervals that resample clusters, not rows: rows of one question are not independent.

Everything is computed from one sum per cluster, so that a resample costs a row of a matrix product and not a pass over
the rows.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_evaluation.measures.checks import Floats, Ints

__all__ = ["Estimate", "Resampler", "estimate"]

_CHUNK = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A number and what resampling makes of it.

    Attributes:
        value: computed from all rows.
        low: lower end of the 95 % interval; NaN where there are fewer than two clusters.
        high: its upper end.
    """

    value: float
    low: float
    high: float


class Resampler:
    """Draws clusters with replacement, once, so that every measure and both models see the same resamples.

    Source: the cluster bootstrap, Field and Welsh (2007); percentile intervals, Efron (1979).

    Args:
        clusters: how many there are, C.
        resamples: how many to draw, B.
        seed: of the draw.

    Raises:
        ValueError: if there is no cluster or no resample.
    """

    def __init__(self, clusters: int, *, resamples: int = 1000, seed: int = 0) -> None:
        if clusters < 1 or resamples < 1:
            raise ValueError(f"{clusters} clusters and {resamples} resamples: there must be at least one of each")
        self.clusters = clusters
        self.resamples = resamples
        draw = np.random.default_rng(seed)
        rows = max(1, _CHUNK // clusters)
        parts = []
        for start in range(0, resamples, rows):
            size = min(rows, resamples - start)
            drawn = draw.integers(0, clusters, size=(size, clusters)) + np.arange(size)[:, None] * clusters
            counts = np.bincount(drawn.ravel(), minlength=size * clusters).reshape(size, clusters)
            parts.append(counts.astype(np.float32))
        self.counts: NDArray[np.float32] = np.concatenate(parts)

    def totals(self, values: ArrayLike, cluster: ArrayLike) -> tuple[Floats, Floats]:
        """Return the sums of columns over all rows, and over each resample.

        Args:
            values: one column per quantity. [n, m]
            cluster: number of each row's cluster. [n]

        Returns:
            The sums [m] and the resampled sums [B, m].

        Raises:
            ValueError: if the lengths differ or a cluster number is out of range.
        """
        table = np.asarray(values, dtype=np.float64)
        where: Ints = np.asarray(cluster, dtype=np.int64)
        if table.ndim != 2 or where.shape != table.shape[:1]:
            raise ValueError(f"values have shape {table.shape} and clusters {where.shape}; they must be [n, m] and [n]")
        if len(where) and not 0 <= where.min() <= where.max() < self.clusters:
            raise ValueError(f"cluster numbers must lie in [0, {self.clusters})")
        per_cluster = np.stack([np.bincount(where, column, self.clusters) for column in table.T], axis=1)
        resampled = self.counts @ per_cluster.astype(np.float32) if self.clusters > 512 else self.counts @ per_cluster
        return table.sum(axis=0), np.asarray(resampled, dtype=np.float64)

    def mean(self, values: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return the mean of a column with its interval.

        Args:
            values: one per row. [n]
            cluster: number of each row's cluster. [n]

        Raises:
            ValueError: if the lengths differ or a cluster number is out of range.
        """
        column = np.asarray(values, dtype=np.float64)
        return self.ratio(column, np.ones_like(column), cluster)

    def ratio(self, numerator: ArrayLike, denominator: ArrayLike, cluster: ArrayLike) -> Estimate:
        """Return a ratio of two sums with its interval.

        Args:
            numerator: one per row. [n]
            denominator: one per row. [n]
            cluster: number of each row's cluster. [n]

        Raises:
            ValueError: if the lengths differ or a cluster number is out of range.
        """
        total, resampled = self.totals(np.column_stack([numerator, denominator]), cluster)
        with np.errstate(invalid="ignore", divide="ignore"):
            return estimate(float(total[0] / total[1]), resampled[:, 0] / resampled[:, 1], clusters=self.clusters)


def estimate(value: float, resampled: ArrayLike, *, clusters: int) -> Estimate:
    """Return a number with the 95 % percentile interval of its resampled values.

    Args:
        value: computed from all rows.
        resampled: the same, from each resample; NaN where a resample has no such rows. [B]
        clusters: how many there were; one alone has no interval.
    """
    drawn = np.asarray(resampled, dtype=np.float64)
    drawn = drawn[np.isfinite(drawn)]
    if clusters < 2 or len(drawn) == 0 or not np.isfinite(value):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Estimate(value, float(low), float(high))
