"""Groups of responses: does the model order them as people do, and what does best-of-n with it bring?"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from paragone_evaluation.measures.checks import Floats, columns

__all__ = ["GroupScore", "best_of_n", "best_of_n_kl", "group_score", "kendall_tau"]


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's τ-b; NaN where one side is constant.

        τ_b = Σ_{i<j} sign(x_i − x_j) sign(y_i − y_j) / √(#untied pairs of x · #untied pairs of y)

    Source: Kendall (1945).

    Args:
        first: x. [K]
        second: y. [K]

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    one, two = columns(first=first, second=second)
    x, y = np.sign(one[:, None] - one[None, :]), np.sign(two[:, None] - two[None, :])
    untied = float(np.abs(x).sum()) * float(np.abs(y).sum())
    return float((x * y).sum() / np.sqrt(untied)) if untied else float("nan")


@lru_cache(maxsize=256)
def _picked(responses: int) -> Floats:
    """Return P(the j-th best of K is the best of a random subset of n), as [n − 1, j]."""
    sizes, places = np.arange(1, responses + 1)[:, None], np.arange(responses)[None, :]
    table = comb(responses - 1 - places, sizes - 1) / comb(responses, sizes)
    table.setflags(write=False)
    return np.asarray(table)


def best_of_n(score: ArrayLike, human: ArrayLike) -> Floats:
    """Return the expected human score of the model's favourite among n of the K responses, for n = 1 … K.

        E[human of best of n] = Σ_j C(K − j, n − 1)/C(K, n) · human_(j)

    (j) is the j-th best by the model. Ties of the model share: each place of a tied block has the block's mean.

    Args:
        score: by the model. [K]
        human: by people. [K]

    Returns:
        One expectation per n. [K]

    Raises:
        ValueError: if the lengths differ or a value is not finite.
    """
    scores, judged = columns(score=score, human=human)
    _, block = np.unique(-scores, return_inverse=True)
    means = np.bincount(block, judged) / np.bincount(block)
    return np.asarray(_picked(len(scores)) @ means[np.sort(block)])


def best_of_n_kl(n: ArrayLike) -> Floats:
    """Return how far best-of-n moves a policy, in nats: an upper bound that is near exact for diverse samples.

        KL(best-of-n ‖ policy) ≈ ln n − (n − 1)/n

    Source: Stiennon et al. (arXiv 2009.01325); Beirami et al. (arXiv 2401.01879) show that it is a bound.

    Args:
        n: numbers of samples. [N]
    """
    samples = np.asarray(n, dtype=np.float64)
    return np.asarray(np.log(samples) - (samples - 1.0) / samples)


@dataclass(frozen=True)
class GroupScore:
    """What the model makes of one group.

    Attributes:
        tau: Kendall's τ-b with the human scores; NaN where either is constant.
        top_one: probability that the model's favourite is one of the people's; its ties share.
        chance: the same for a random pick.
        regret: best human score minus that of the model's favourite.
        random_regret: the same for a random pick.
    """

    tau: float
    top_one: float
    chance: float
    regret: float
    random_regret: float


def group_score(score: ArrayLike, human: ArrayLike) -> GroupScore:
    """Return the agreement on one group of responses.

    Args:
        score: by the model. [K]
        human: by people. [K]

    Raises:
        ValueError: if the group is empty, the lengths differ or a value is not finite.
    """
    scores, judged = columns(score=score, human=human)
    if not len(scores):
        raise ValueError("the group is empty")
    best, favourite = judged == judged.max(), scores == scores.max()
    return GroupScore(
        tau=kendall_tau(scores, judged),
        top_one=float(best[favourite].mean()),
        chance=float(best.mean()),
        regret=float(judged.max() - judged[favourite].mean()),
        random_regret=float(judged.max() - judged.mean()),
    )
