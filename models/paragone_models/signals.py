"""One number per response of a group, for a trainer: what a group's K×K table of preferences is turned into. No torch.

K is the number of responses, R of references; ``matrix[i, j]`` is P(i preferred to j), float64, as in
``paragone_models.tournament``. All signals rise with quality and treat equal responses alike.

    win_rate      mean probability within the group, itself counted as ½         in [1/(2K), 1 − 1/(2K)]
    rank          place by win rate, best 1, worst 0                             in [0, 1]
    anchor        mean probability against the references                        in [0, 1]
    nash          probability under the maximal lottery                          in [0, 1], sum 1
    elimination   place by the round of a knock-out in which it is lost          in [0, 1]
    acyclic       place in the order that contradicts the table least            in [0, 1]
    reward        the model's scalar                                             in logits
"""

from collections.abc import Callable
from functools import cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_models.tournament import nash, reference_win_rates, win_rates

__all__ = ["MAX_ACYCLIC", "SIGNALS", "WITHIN_GROUP", "SignalName", "acyclic", "elimination", "rank", "signal"]

Float64s = NDArray[np.float64]
SignalName = Literal["win_rate", "rank", "anchor", "nash", "elimination", "acyclic", "reward"]

SIGNALS: tuple[SignalName, ...] = get_args(SignalName)
MAX_ACYCLIC = 16
"""Responses up to which the order of ``acyclic`` is found exactly: 2^16 subsets take some ten milliseconds."""

# Two means, or two sums of margins, that differ by less are equal: sums in another order differ in their last digits.
_TIED = 1e-9


def signal(
    name: SignalName, matrix: ArrayLike, *, against: ArrayLike | None = None, rewards: ArrayLike | None = None
) -> Float64s:
    """Return one number per response, the better the higher.

    Args:
        name: which signal.
        matrix: P(row preferred to column). [K, K]
        against: probabilities against R references, which ``anchor`` needs. [K, R]
        rewards: the model's scalars, which ``reward`` needs. [K]

    Returns:
        The signal, float64. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix, ``against`` none of [K, R], or ``rewards`` not finite and of
            [K]; if one of them is missing that the signal needs; if a response is alone with a signal that compares it
            with its group (``WITHIN_GROUP``); if there are too many for ``acyclic``.

    >>> signal("rank", [[0.5, 0.8], [0.2, 0.5]]).tolist()
    [1.0, 0.0]
    """
    size = len(win_rates(matrix))  # which checks the table
    if name == "anchor":
        if against is None:
            raise ValueError("the signal anchor is a win rate against references: give against=")
        return reference_win_rates(against, size)
    if name == "reward":
        return _checked_rewards(rewards, size)
    if name not in WITHIN_GROUP:
        raise ValueError(f"there is no signal {name!r}: it is one of {', '.join(SIGNALS)}")
    # Its own table would say ½, and a ½ looks like a comparison.
    if size == 1:
        raise ValueError(f"a response that is alone in its group has no {name}: compare it with references (anchor)")
    return WITHIN_GROUP[name](matrix)


def rank(matrix: ArrayLike) -> Float64s:
    """Return each response's place by win rate, the best 1 and the worst 0.

        rank_i = (#{j: w_j < w_i} + ½ #{j ≠ i: w_j = w_i}) / (K − 1),  w the win rates

    The rewards of a ranking in group-relative training, as in ArenaRL (arXiv 2601.06487); that equal ones share the
    mean of their places is ours.

    Args:
        matrix: P(row preferred to column), of K ≥ 2 responses. [K, K]

    Returns:
        Places in [0, 1], of mean ½. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    return _places(win_rates(matrix))


def elimination(matrix: ArrayLike) -> Float64s:
    """Return each response's place in a knock-out: the later it is beaten, the better.

    The bracket is that of sports, of 2^⌈log₂ K⌉ places: responses are seeded by win rate (of equal ones the earlier is
    the better seed), the best seeds meet the weakest ones first and each other last, and where K is no power of 2 the
    best seeds have a bye in the first round. A match goes to the response with P > ½, at exactly ½ to the better seed.
    Those who are beaten in one round share the mean of their places, as do responses with identical rows:

        elimination_i = (#{j: t_j < t_i} + ½ #{j ≠ i: t_j = t_i}) / (K − 1),  t the rounds survived

    Source: knock-outs as rewards are Tournament-GRPO's (arXiv 2605.26958) and ArenaRL's (arXiv 2601.06487). Seeds, byes
    and shared places are this project's reading, not taken from their code.

    Args:
        matrix: P(row preferred to column), of K ≥ 2 responses. [K, K]

    Returns:
        Places in [0, 1], of mean ½. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix.
    """
    rates = win_rates(matrix)
    table = np.asarray(matrix, dtype=np.float64)
    size = len(table)
    seeds = np.argsort(-_levelled(rates), kind="stable")
    survived = np.zeros(size)
    # Seeds by number, best 0; a number of K or more is a free place.
    playing = _bracket(size)
    while len(playing) > 1:
        winners = []
        for left, right in zip(playing[0::2], playing[1::2], strict=True):
            better, worse = min(left, right), max(left, right)
            upset = worse < size and table[seeds[worse], seeds[better]] > 0.5
            winners.append(worse if upset else better)
        survived[seeds[winners]] += 1  # never a free place: each meets a seed, and loses
        playing = winners
    return _shared_by_identical(_places(survived), table)


def acyclic(matrix: ArrayLike) -> Float64s:
    """Return each response's place in the order that contradicts the table least, however many cycles it has.

        minimise over orders  Σ_{i behind j} max(P_ij − ½, 0)
        acyclic_i = 1 − p_i / (K − 1),  p_i the mean place of i (best 0) over all orders of the least sum

    The minimum feedback arc set of the table, found exactly: the strong components of "not beaten by" stand one behind
    the other in every such order, and inside each a dynamic program over its subsets also counts the orders. A circle
    of equal margins gives ½ to each.

    Source: removing the cycles of a judge's table is TCR (arXiv 2510.15514), which does so approximately; the exact
    program is Held and Karp's (1962) for this sum (Lawler 1964). The mean over all best orders is ours: a single one
    would prefer, among equal responses, whichever came first.

    Args:
        matrix: P(row preferred to column), of 2 to 16 responses. [K, K]

    Returns:
        Places in [0, 1], of mean ½. [K]

    Raises:
        ValueError: if ``matrix`` is no probability matrix, or has more than 16 rows.
    """
    size = len(win_rates(matrix))
    if size > MAX_ACYCLIC:
        raise ValueError(
            f"{size} responses are too many for the exact order of acyclic, which takes {MAX_ACYCLIC}: use rank"
        )
    margins = np.asarray(matrix, dtype=np.float64) - 0.5
    places = np.zeros(size)
    start = 0
    for members in _components(margins > -_TIED):
        inner = margins[np.ix_(members, members)]
        places[members] = start + (_mean_places(inner) if len(members) > 1 else 0.0)
        start += len(members)
    return np.asarray(1.0 - places / (size - 1))


WITHIN_GROUP: dict[str, Callable[[ArrayLike], Float64s]] = {
    "win_rate": win_rates,
    "rank": rank,
    "nash": nash,
    "elimination": elimination,
    "acyclic": acyclic,
}
"""The signals that compare a response with the others of its group, and so need two of them."""


def _places(scores: Float64s) -> Float64s:
    """Return the places by score, the best 1 and the worst 0, equal ones sharing the mean of theirs; [K]."""
    level = _levelled(scores)
    below = (level[None, :] < level[:, None]).sum(axis=1)
    equal = (level[None, :] == level[:, None]).sum(axis=1) - 1
    return np.asarray((below + 0.5 * equal) / (len(level) - 1))


def _levelled(scores: Float64s) -> Float64s:
    """Return the scores, each of those that follow another within rounding set to the first of them; [K]."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    steps = np.concatenate([[True], np.diff(ordered) > _TIED])
    level = np.empty_like(scores)
    level[order] = ordered[np.maximum.accumulate(np.where(steps, np.arange(len(scores)), 0))]
    return level


def _bracket(size: int) -> list[int]:
    """Return the numbers of the seeds in the order of the bracket: the first meets the second, and so on."""
    places = [0]
    while len(places) < size:
        last = 2 * len(places) - 1
        places = [seed for place in places for seed in (place, last - place)]
    return places


def _shared_by_identical(values: Float64s, table: Float64s) -> Float64s:
    """Return the values, each the mean over the responses with the same row of the table; [K]."""
    _, group, count = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    return np.asarray((np.bincount(group, weights=values) / count)[group])


def _components(not_beaten: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """Return the strong components of a relation that holds one way or both between any two, the best first."""
    reaches = not_beaten.copy()
    for _ in range(len(reaches).bit_length()):  # by squaring: paths of twice the length each time
        reaches = reaches @ reaches
    # Between any two the relation holds, so a component reaches itself and all that are behind it, and no other one.
    reached = reaches.sum(axis=1)
    return [np.flatnonzero(reached == count) for count in sorted(set(reached.tolist()), reverse=True)]


def _mean_places(margins: Float64s) -> Float64s:
    """Return the mean place (best 0) of each response over all orders of the largest sum of margins.

    The sum over pairs, each taken as the order has it, is largest where the sum of contradictions is least. Let a set
    be the responses that are placed already. The best sum of a set is that of the set without its last one, plus the
    margins over that one; the numbers of best ways to a set, and of best ways on from it, give the mean.

    Args:
        margins: P − ½. [K, K]

    Returns:
        Mean places in [0, K − 1]. [K]
    """
    size = len(margins)
    full = 1 << size
    # gained[set, i]: what placing i directly behind a set adds, the margins of all in the set over i.
    gained = np.zeros((1, size))
    for member in range(size):
        gained = np.concatenate([gained, gained + margins[member]])
    best, ways, onward = np.zeros(full), np.zeros(full), np.zeros(full)
    ways[0] = onward[-1] = 1.0
    best_ways = []
    for sets, last, before in _ways(size):
        sums = best[before] + gained[before, last]
        best[sets] = sums.max(axis=1)
        tight = sums >= best[sets][:, None] - _TIED
        ways[sets] = np.where(tight, ways[before], 0.0).sum(axis=1)
        best_ways.append(tight)
    places = np.zeros(size)
    for place in range(size - 1, -1, -1):
        sets, last, before = _ways(size)[place]
        through = np.where(best_ways[place], onward[sets][:, None], 0.0).reshape(-1)
        onward += np.bincount(before.reshape(-1), weights=through, minlength=full)
        places += place * np.bincount(last.reshape(-1), weights=through * ways[before].reshape(-1), minlength=size)
    return np.asarray(places / ways[-1])


@cache
def _ways(size: int) -> list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """Return every way to place one more, by the number n that are placed then: 13 MB for 16, 6 kB for 8.

    Returns:
        For n = 1 … K: the sets of n, as bits [S]; their members, each taken as the last one [S, n]; the sets without
        that one [S, n].
    """
    bits = np.arange(size, dtype=np.int32)
    sets = np.arange(1 << size, dtype=np.int32)
    sizes = (sets[:, None] >> bits & 1).sum(axis=1)
    ways = []
    for count in range(1, size + 1):
        layer = sets[sizes == count]
        last = np.nonzero(layer[:, None] >> bits & 1)[1].astype(np.int32).reshape(-1, count)
        ways.append((layer, last, layer[:, None] ^ (np.int32(1) << last)))
    return ways


def _checked_rewards(rewards: ArrayLike | None, size: int) -> Float64s:
    if rewards is None:
        raise ValueError("the signal reward is the model's scalar: give rewards=, of a kind of model that has them")
    values = np.asarray(rewards, dtype=np.float64)
    if values.shape != (size,) or not np.isfinite(values).all():
        raise ValueError(f"rewards must be {size} finite numbers, not of shape {values.shape} or with NaN or infinity")
    return values
