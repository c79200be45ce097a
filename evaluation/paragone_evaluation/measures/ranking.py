"""Several responses to one prompt: their order, the best of n, and preferences that run in circles."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import comb

from paragone_evaluation.measures.checks import Floats, Ints, columns

__all__ = ["GroupScore", "Triads", "best_of_n", "best_of_n_kl", "group_score", "kendall_tau", "kendall_zeta", "triads"]


def kendall_tau(first: ArrayLike, second: ArrayLike) -> float:
    """Return Kendall's τ-b; NaN where one side is constant.

        τ_b = Σ_{i<j} sign(x_i − x_j) sign(y_i − y_j) / √(#untied pairs of x · #untied pairs of y)

    Source: Kendall (1945).
    """
    # Every pair stands in the tables twice, in numerator and denominator alike.
    x, y = (np.sign(side[:, None] - side[None, :]) for side in columns(first=first, second=second))
    untied = float(np.abs(x).sum()) * float(np.abs(y).sum())
    return float((x * y).sum() / np.sqrt(untied)) if untied else float("nan")


@lru_cache(maxsize=256)
def _picked(responses: int) -> Floats:
    """Return P(the j-th best of K is the best of a random subset of n), as [n − 1, j]."""
    # The j-th best is the best of a subset if the other n − 1 come from the K − j that are worse.
    sizes, places = np.arange(1, responses + 1)[:, None], np.arange(responses)[None, :]
    table = comb(responses - 1 - places, sizes - 1) / comb(responses, sizes)
    table.setflags(write=False)
    return np.asarray(table)


def best_of_n(score: ArrayLike, human: ArrayLike) -> Floats:
    """Return the expected human score of the model's favourite among n of the K responses, for n = 1 … K.

        E[human of best of n] = Σ_j C(K − j, n − 1)/C(K, n) · human_(j)

    (j) is the j-th best by the model. Ties of the model share: each place of a tied block has the block's mean.

    Returns:
        One expectation per n. [K]
    """
    scores, judged = columns(score=score, human=human)
    # Blocks of tied responses, best first; each place of a block gets the block's mean, as if ties broke at random.
    _, block = np.unique(-scores, return_inverse=True)
    means = np.bincount(block, judged) / np.bincount(block)
    return np.asarray(_picked(len(scores)) @ means[np.sort(block)])


def best_of_n_kl(n: ArrayLike) -> Floats:
    """Return how far best-of-n moves a policy, in nats: an upper bound that is near exact for diverse samples.

        KL(best-of-n ‖ policy) ≈ ln n − (n − 1)/n

    Source: Stiennon et al. (arXiv 2009.01325); Beirami et al. (arXiv 2401.01879) show that it is a bound.
    """
    samples = np.asarray(n, dtype=np.float64)
    return np.asarray(np.log(samples) - (samples - 1.0) / samples)


@dataclass(frozen=True)
class GroupScore:
    """How far the model agrees with people on one group.

    Attributes:
        tau: Kendall's τ-b with the human scores; NaN where either is constant.
        top_one: probability that the model's favourite is one of the people's; its ties share.
        chance, random_regret: ``top_one`` and ``regret`` of a random pick.
        regret: best human score minus that of the model's favourite.
    """

    tau: float
    top_one: float
    chance: float
    regret: float
    random_regret: float


def group_score(score: ArrayLike, human: ArrayLike) -> GroupScore:
    """Return the agreement on one group of responses.

    Raises:
        ValueError: if the group is empty.
    """
    scores, judged = columns(score=score, human=human)
    if not len(scores):
        raise ValueError("the group is empty")
    # Of several favourites each is as likely to be picked, so their means are the expectations.
    best, favourite = judged == judged.max(), scores == scores.max()
    return GroupScore(
        tau=kendall_tau(scores, judged),
        top_one=float(best[favourite].mean()),
        chance=float(best.mean()),
        regret=float(judged.max() - judged[favourite].mean()),
        random_regret=float(judged.max() - judged.mean()),
    )


@dataclass(frozen=True)
class Triads:
    """Triples of responses whose three comparisons are all decided, and how many of them run in a circle."""

    closed: int
    cyclic: int

    @property
    def rate(self) -> float:
        """Share of the closed triads that are cyclic; NaN where none is closed."""
        return self.cyclic / self.closed if self.closed else float("nan")


def triads(preference: ArrayLike, first: ArrayLike, second: ArrayLike, group: ArrayLike) -> Triads:
    """Return how many triads are closed, and how many are cyclic.

        closed = tr(U³)/6,  cyclic = tr(A³)/3

    A is the directed graph of one group's decided comparisons, U the same without directions. A comparison that occurs
    several times counts once, with the sign of its sum.

    Args:
        preference: positive where the first is preferred, negative where the second is; 0 is no decision. [n]
    """
    signs, firsts, seconds, groups = columns(preference=preference, first=first, second=second, group=group)
    # Sorted, the rows of a group stand side by side: no mask over all rows for each of thousands of groups.
    order: Ints = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-np.inf))
    closed = cyclic = 0
    # One small matrix per prompt: responses to different prompts are never compared.
    for rows in np.split(order, starts[1:]):
        if len(rows) < 3:
            continue
        nodes, where = np.unique(np.concatenate([firsts[rows], seconds[rows]]), return_inverse=True)
        net = np.zeros((len(nodes), len(nodes)))
        # Not net[...] += signs, which would keep one of several comparisons of a pair and drop the others.
        np.add.at(net, (where[: len(rows)], where[len(rows) :]), signs[rows])
        beats = ((net - net.T) > 0).astype(np.float64)
        either = beats + beats.T
        # A product of matrices counts paths: of three steps back to the start, each triangle six times without
        # directions, and each cycle three times with them.
        closed += round(float(((either @ either) * either).sum()) / 6)
        cyclic += round(float(((beats @ beats) * beats.T).sum()) / 3)
    return Triads(closed, cyclic)


def kendall_zeta(matrix: ArrayLike) -> float:
    """Return Kendall's coefficient of consistence of a complete tournament; NaN where a pair is tied or K < 3.

        ζ = 1 − d/d_max,  d = C(K, 3) − Σ_i w_i (w_i − 1)/2,  d_max = (K³ − 4K)/24 for even K, (K³ − K)/24 for odd K

    w_i is the number of responses that i beats. 1 is free of cycles, 0 as cyclic as can be.
    Source: Kendall and Babington Smith (1940).

    Args:
        matrix: positive where the row is preferred to the column, antisymmetric. [K, K]

    Raises:
        ValueError: if the matrix is not square.
    """
    signs: Floats = np.sign(np.asarray(matrix, dtype=np.float64))  # NaN, a refused pair, stays NaN
    if signs.ndim != 2 or signs.shape[0] != signs.shape[1]:
        raise ValueError(f"the matrix has shape {signs.shape}; it must be [K, K]")
    size = len(signs)
    if size < 3 or not np.isfinite(signs).all() or np.count_nonzero(signs) != size * (size - 1):
        return float("nan")
    # A triple that is no cycle has one response that beats both others, and each is counted at that response.
    wins = (signs > 0).sum(axis=1)
    cycles = size * (size - 1) * (size - 2) / 6 - float((wins * (wins - 1) / 2).sum())
    most = (size**3 - 4 * size) / 24 if size % 2 == 0 else (size**3 - size) / 24
    return 1.0 - cycles / most
