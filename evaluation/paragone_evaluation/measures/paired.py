"""Two models on the same pairs: is one better, or is the difference inside the noise?"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from paragone_evaluation.measures.accuracy import credit
from paragone_evaluation.measures.bootstrap import Estimate, Resampler, estimate
from paragone_evaluation.measures.calibration import brier, negative_log_likelihood
from paragone_evaluation.measures.checks import columns

__all__ = ["PairedComparison", "compare_models"]


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
        outcome: 1, ½ or 0. [n]
        cluster: number of each pair's cluster. [n]
        resampler: draws the clusters.

    Raises:
        ValueError: if the lengths differ, a value is not finite or out of range, or no pair is decided.
    """
    one, two, judged = columns(first=first, second=second, outcome=outcome)
    where = np.asarray(cluster, dtype=np.int64)
    decided = judged != 0.5
    if not decided.any():
        raise ValueError("no pair is decided: two models cannot be compared on ties")
    right, other = credit(one, judged)[decided], credit(two, judged)[decided]
    total, drawn = resampler.totals(np.column_stack([right - other, np.ones(len(right))]), where[decided])
    with np.errstate(invalid="ignore", divide="ignore"):
        gains = drawn[:, 0] / drawn[:, 1]
    found = gains[np.isfinite(gains)]
    return PairedComparison(
        accuracy=estimate(float(total[0] / total[1]), gains, clusters=resampler.clusters),
        nll=resampler.mean(negative_log_likelihood(one, judged) - negative_log_likelihood(two, judged), where),
        brier=resampler.mean(brier(one, judged) - brier(two, judged), where),
        better_share=float((0.5 + 0.5 * np.sign(found)).mean()),
        agreement=float((np.sign(one) == np.sign(two)).mean()),
        only_first_right=int(((right == 1.0) & (other < 1.0)).sum()),
        only_second_right=int(((other == 1.0) & (right < 1.0)).sum()),
    )
