"""Cycles: do preferences among three responses run in a circle? Scalar models never do; people sometimes do."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from paragone_evaluation.measures.checks import Floats, Ints, columns

__all__ = ["Triads", "kendall_zeta", "triads"]


@dataclass(frozen=True)
class Triads:
    """Triples of responses whose three comparisons are all decided.

    Attributes:
        closed: how many there are.
        cyclic: how many of them run in a circle.
        rate: cyclic / closed; NaN where there is none.
    """

    closed: int
    cyclic: int

    @property
    def rate(self) -> float:
        """Share of the closed triads that are cyclic."""
        return self.cyclic / self.closed if self.closed else float("nan")


def triads(preference: ArrayLike, first: ArrayLike, second: ArrayLike, group: ArrayLike) -> Triads:
    """Return how many triads are closed, and how many are cyclic.

        closed = tr(U³)/6,  cyclic = tr(A³)/3

    A is the directed graph of one group's decided comparisons, U the same without directions. A comparison that occurs
    several times counts once, with the sign of its sum.

    Args:
        preference: positive where the first is preferred, negative where the second is; 0 is no decision. [n]
        first: number of the first response. [n]
        second: number of the second response. [n]
        group: number of the prompt. [n]

    Raises:
        ValueError: if the lengths of the arrays differ or a value is not finite.
    """
    signs, one, two, groups = columns(preference=preference, first=first, second=second, group=group)
    order: Ints = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-np.inf))
    closed = cyclic = 0
    for rows in np.split(order, starts[1:]):
        if len(rows) < 3:
            continue
        nodes, where = np.unique(np.concatenate([one[rows], two[rows]]), return_inverse=True)
        net = np.zeros((len(nodes), len(nodes)))
        np.add.at(net, (where[: len(rows)], where[len(rows) :]), signs[rows])
        beats = ((net - net.T) > 0).astype(np.float64)
        either = beats + beats.T
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
    signs: Floats = np.sign(np.asarray(matrix, dtype=np.float64))
    if signs.ndim != 2 or signs.shape[0] != signs.shape[1]:
        raise ValueError(f"the matrix has shape {signs.shape}; it must be [K, K]")
    size = len(signs)
    if size < 3 or not np.isfinite(signs).all() or np.count_nonzero(signs) != size * (size - 1):
        return float("nan")
    wins = (signs > 0).sum(axis=1)
    cycles = size * (size - 1) * (size - 2) / 6 - float((wins * (wins - 1) / 2).sum())
    most = (size**3 - 4 * size) / 24 if size % 2 == 0 else (size**3 - size) / 24
    return 1.0 - cycles / most
