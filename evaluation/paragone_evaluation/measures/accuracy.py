"""Accuracy under three rules for the model's ties."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from paragone_evaluation.measures.checks import Floats, columns, outcomes

__all__ = ["Accuracy", "accuracy", "credit"]


def credit(logit: ArrayLike, outcome: ArrayLike) -> Floats:
    """Return what each pair earns: 1 where the model agrees, 0 where it disagrees, ½ where model or people are tied.

        credit = ½ + ½ sign(logit) sign(outcome − ½)

    Returns:
        Credits, float64. [n]
    """
    logits, judged = columns(logit=logit, outcome=outcome)
    # Symmetric in both: swapping the responses of a pair changes no credit, not even by rounding.
    return np.asarray(0.5 + 0.5 * np.sign(logits) * np.sign(outcomes(judged) - 0.5))


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers among the pairs that people decided.

    Attributes:
        strict: a tie of the model (logit 0) is wrong, as RewardBench counts.
        half_credit: a tie of the model is worth ½.
        dropped: ties of the model are left out; NaN where all are ties.
        decided: pairs that people decided; the three rules are about these.
        human_ties: pairs that people left tied: in no accuracy.
        model_ties: ties of the model among the decided pairs.
    """

    strict: float
    half_credit: float
    dropped: float
    decided: int
    human_ties: int
    model_ties: int


def accuracy(logit: ArrayLike, outcome: ArrayLike) -> Accuracy:
    """Return the accuracy under three tie rules.

        strict = #right / n,  half-credit = (#right + ½ #tied) / n,  dropped = #right / (n − #tied)

    n counts the pairs that people decided.

    Raises:
        ValueError: if no pair is decided.

    >>> accuracy([2.0, 0.0, -1.0, 1.0], [1.0, 1.0, 1.0, 0.5])
    Accuracy(strict=0.3333333333333333, half_credit=0.5, dropped=0.5, decided=3, human_ties=1, model_ties=1)
    """
    earned = credit(logit, outcome)
    decided = np.asarray(outcome, dtype=np.float64) != 0.5
    total = int(decided.sum())
    if total == 0:
        raise ValueError(f"none of {len(earned)} pairs is decided: accuracy needs a preferred response")
    earned = earned[decided]
    right, ties = int((earned == 1.0).sum()), int((earned == 0.5).sum())
    return Accuracy(
        strict=right / total,
        half_credit=(right + ties / 2) / total,
        # Flattering for a model that ties where it is unsure, so it never stands alone.
        dropped=right / (total - ties) if total > ties else float("nan"),
        decided=total,
        human_ties=len(decided) - total,
        model_ties=ties,
    )
