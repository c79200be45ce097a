"""Which of a group's comparisons are made when not all are. No torch.

K is the number of responses. A table of comparisons is as in ``partial_tables``, which says what one with gaps tells.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from paragone_models.partial_tables import fill

__all__ = ["Plan", "all_pairs", "most_comparisons", "plan_named"]

Float64s = NDArray[np.float64]
Pairs: TypeAlias = list[tuple[int, int]]
Plan = Callable[[Float64s, frozenset[tuple[int, int]]], Pairs]
"""Return the pairs (i < j) to ask about next, none once it is done, from the table and the pairs that were asked."""


def plan_named(name: str, size: int) -> Plan:
    """Return a plan by its name.

        all         every pair: K(K−1)/2
        circular    each with the next one, the last with the first: K
        bracket     a knock-out, and one round among those beaten in the same round: at most 3K/2 − 1
        budget:n    n, chosen round by round: of all pairs that nobody asked about, those whose answer says most

    Each round of ``budget`` is a matching, as in a Swiss tournament. A pair is worth P(1 − P)·Var(θ_i − θ_j), the
    Fisher information of its answer times what is not known of the difference of its strengths, by the Bradley-Terry
    fit of ``fill``, whatever fills the gaps in the end.

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
