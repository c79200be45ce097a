"""Which of a group's comparisons are made when not all are, and what a table with gaps says. No torch.

K is the number of responses. A table of comparisons is ``logits[i, j]``, the log-odds that i is preferred to j,
float64, antisymmetric, NaN where nobody asked or nobody answered.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_models.comparator import probability

__all__ = ["FilledTable", "Plan", "all_pairs", "fill", "most_comparisons", "plan_named"]

Float64s = NDArray[np.float64]
Pairs: TypeAlias = list[tuple[int, int]]
Plan = Callable[[Float64s, frozenset[tuple[int, int]]], Pairs]
"""Return the pairs (i < j) to ask about next, none once it is done, from the table and the pairs that were asked."""

_PRIOR_SD = 3.0
"""Of strengths, in nats: two responses of whom nothing is known have log-odds within ±8 in 95 of 100 cases."""
_STEPS = 100
_CONVERGED = 1e-10
_NORMAL_95 = 1.959963984540054


def plan_named(name: str, size: int) -> Plan:
    """Return a plan by its name.

        all         every pair: K(K−1)/2
        circular    each with the next one, the last with the first: K
        bracket     a knock-out, and one round among those beaten in the same round: at most 3K/2 − 1
        budget:n    n, chosen round by round: of all pairs that nobody asked about, those whose answer says most

    Each round of ``budget`` is a matching, as in a Swiss tournament. A pair is worth P(1 − P)·Var(θ_i − θ_j), the
    Fisher information of its answer times what is not known of the difference of its strengths, by the fit of ``fill``.

    Args:
        size: K.

    Raises:
        ValueError: if there is no such plan, or ``n`` is below K − 1, with which not every response is compared.
    """
    if name == "all":
        return _once(all_pairs(size))
    if name == "circular":
        ring = {(min(i, (i + 1) % size), max(i, (i + 1) % size)) for i in range(size)} if size > 1 else set()
        return _once(sorted(ring))
    if name == "bracket":
        return _bracket(size)
    if name.startswith("budget:") and re.fullmatch(r"[1-9]\d{0,8}", name[7:]):
        budget = int(name[7:])
        if budget < size - 1:
            raise ValueError(f"budget:{budget} for {size} responses: fewer than {size - 1} cannot connect them all")
        return _budgeted(size, budget)
    raise ValueError(f"there are no comparisons {name!r}: write all, bracket, circular or budget:N")


def most_comparisons(name: str, size: int) -> int:
    """Return how many pairs of K responses a plan that there is asks about at most."""
    every = size * (size - 1) // 2
    if name == "circular":
        return min(size, every)
    if name == "bracket":
        return min(3 * size // 2 - 1, every)
    return min(int(name[7:]), every) if name.startswith("budget:") else every


def all_pairs(size: int) -> Pairs:
    """Return every pair (i < j) of K responses."""
    return [(i, j) for i in range(size) for j in range(i + 1, size)]


@dataclass(frozen=True)
class FilledTable:
    """A table without gaps, and how sure it is.

    Attributes:
        matrix: probability that row is preferred to column; what was answered as it was, the rest inferred. [K, K]
        inferred: which entries are. [K, K]
        strengths: of the fit, mean 0. [K, nats]
        covariance: of the strengths. [K, K]
        win_rates: mean over each row of ``matrix``, itself counted as ½. [K]
        intervals: of the win rates, 95 %, within [0, 1]: low and high; both the win rate itself where nothing in the
            row was inferred. [K, 2]
    """

    matrix: Float64s
    inferred: NDArray[np.bool_]
    strengths: Float64s
    covariance: Float64s
    win_rates: Float64s
    intervals: Float64s


def fill(logits: ArrayLike) -> FilledTable:
    """Return the table whose gaps a Bradley-Terry model fills that was fitted to the rest.

        max_θ  Σ_{i<j answered} P_ij log σ(θ_i − θ_j) + P_ji log σ(θ_j − θ_i)  −  |θ|² / (2·3²)

    Each answer counts as one observation. The covariance is Laplace's: the inverse of the negative Hessian at the
    maximum. A win rate's interval is by the delta method, from the inferred entries of its row alone.

    Args:
        logits: a table of comparisons. [K, K]

    Raises:
        ValueError: if ``logits`` is no antisymmetric [K, K] with K ≥ 1, apart from NaN, which stands on both sides.
    """
    table = np.asarray(logits, dtype=np.float64)
    known = _checked(table)
    size = len(table)
    observed = np.where(known, probability(np.where(known, table, 0.0)), 0.0)
    strengths, covariance = _fitted(observed, known)
    inferred = ~known & ~np.eye(size, dtype=np.bool_)
    differences = strengths[:, None] - strengths[None, :]
    # One side from the other, so that P + Pᵀ is exactly 1.
    matrix = np.where(known, observed, probability(differences))
    np.fill_diagonal(matrix, 0.5)
    rates = matrix.mean(axis=1)
    slopes = np.where(inferred, matrix * (1.0 - matrix), 0.0)
    gradient = (np.diag(slopes.sum(axis=1)) - slopes) / size
    spread = _NORMAL_95 * np.sqrt(np.maximum((gradient @ covariance * gradient).sum(axis=1), 0.0))
    intervals = np.clip(np.stack([rates - spread, rates + spread], axis=1), 0.0, 1.0)
    return FilledTable(matrix, inferred, strengths, covariance, rates, intervals)


def _checked(table: Float64s) -> NDArray[np.bool_]:
    """Return which entries off the diagonal are answered; [K, K]."""
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) == 0:
        raise ValueError(f"comparisons are a square table of at least one response, not of shape {table.shape}")
    known = np.isfinite(table) & ~np.eye(len(table), dtype=np.bool_)
    if np.isinf(table).any() or not np.array_equal(known, known.T) or (table[known] != -table.T[known]).any():
        raise ValueError("logits[i, j] must be -logits[j, i], and both NaN where there is no answer")
    return known


def _fitted(observed: Float64s, known: NDArray[np.bool_]) -> tuple[Float64s, Float64s]:
    """Return the strengths at the posterior's maximum, [K], and their covariance, [K, K]."""
    size = len(observed)
    prior = np.eye(size) / _PRIOR_SD**2
    strengths = np.zeros(size)
    for _ in range(_STEPS):
        expected = np.where(known, probability(strengths[:, None] - strengths[None, :]), 0.0)
        gradient = (observed - expected).sum(axis=1) - strengths / _PRIOR_SD**2
        # Strictly concave with the prior, and the damped step never leaves the region where Newton's converges.
        step = np.linalg.solve(_information(expected, known) + prior, gradient)
        strengths = strengths + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if np.abs(step).max() < _CONVERGED:
            break
    expected = np.where(known, probability(strengths[:, None] - strengths[None, :]), 0.0)
    covariance = np.asarray(np.linalg.inv(_information(expected, known) + prior), dtype=np.float64)
    return strengths - strengths.mean(), covariance


def _information(expected: Float64s, known: NDArray[np.bool_]) -> Float64s:
    weights = np.where(known, expected * (1.0 - expected), 0.0)
    return np.asarray(np.diag(weights.sum(axis=1)) - weights)


def _once(pairs: Pairs) -> Plan:
    return lambda _, asked: [pair for pair in pairs if pair not in asked]


def _budgeted(size: int, budget: int) -> Plan:
    def next_round(table: Float64s, asked: frozenset[tuple[int, int]]) -> Pairs:
        left = budget - len(asked)
        candidates = [pair for pair in all_pairs(size) if pair not in asked]
        if left <= 0 or not candidates:
            return []
        filled = fill(table)
        variances = np.diag(filled.covariance)
        # Of the whole table at once: pair by pair, a round among 256 responses would take a quarter of a second.
        worth = filled.matrix * filled.matrix.T * (variances[:, None] + variances - 2.0 * filled.covariance)
        i, j = np.array(candidates).T
        order = np.argsort(-worth[i, j], kind="stable")
        return _matching([candidates[place] for place in order.tolist()], left)

    return next_round


def _matching(pairs: Pairs, most: int) -> Pairs:
    """Return the first pairs in which nobody is twice."""
    busy: set[int] = set()
    chosen: Pairs = []
    for pair in pairs:
        if len(chosen) < most and busy.isdisjoint(pair):
            chosen.append(pair)
            busy.update(pair)
    return chosen


@dataclass(frozen=True)
class _Round:
    """A round of a knock-out: those who are in it, and its matches; who has none has a bye."""

    matches: Pairs
    byes: list[int]

    @classmethod
    def of(cls, players: list[int]) -> "_Round":
        pairs = [(players[at], players[at + 1]) for at in range(0, len(players) - 1, 2)]
        return cls([(min(pair), max(pair)) for pair in pairs], players[2 * len(pairs) :])


def _bracket(size: int) -> Plan:
    def next_round(table: Float64s, asked: frozenset[tuple[int, int]]) -> Pairs:
        players, beaten = list(range(size)), []
        while len(players) > 1:
            this = _Round.of(players)
            unasked = [match for match in this.matches if match not in asked]
            if unasked:
                return unasked
            # No answer counts as a win of the earlier one, so that the others go on; the fit knows nothing of it.
            winners = [j if table[i, j] < 0 else i for i, j in this.matches]
            beaten.append([i if table[i, j] < 0 else j for i, j in this.matches])
            players = sorted([*winners, *this.byes])
        consolation = [pair for losers in beaten for pair in _Round.of(sorted(losers)).matches]
        return [pair for pair in consolation if pair not in asked]

    return next_round
