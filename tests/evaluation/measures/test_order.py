"""Transitivity and position bias."""

import itertools
import math

import numpy as np
import pytest

from paragone_evaluation.measures.bootstrap import Estimate, Resampler
from paragone_evaluation.measures.paired import position_bias
from paragone_evaluation.measures.ranking import Triads, kendall_zeta, triads
from paragone_models.tournament import cyclic_triples


def slow_triads(sign):
    """Count triads by looking at every three nodes of one group."""
    nodes = sorted({node for pair in sign for node in pair})
    closed = cyclic = 0

    def beats(a, b):
        return sign.get((a, b), 0) > 0 or sign.get((b, a), 0) < 0

    for three in itertools.combinations(nodes, 3):
        edges = [(a, b) for a, b in itertools.permutations(three, 2) if beats(a, b)]
        if len(edges) == 3:
            closed += 1
            cyclic += sorted(a for a, _ in edges) == sorted(three)
    return Triads(closed, cyclic)


def test_triads_are_those_of_a_slow_count_over_several_groups():
    draw = np.random.default_rng(7)
    rows, expected = [], np.zeros(2, dtype=int)
    for group in range(6):
        pairs = [pair for pair in itertools.combinations(range(9), 2) if draw.random() < 0.7]
        sign = {pair: int(draw.integers(-1, 2)) for pair in pairs}
        found = slow_triads(sign)
        expected += (found.closed, found.cyclic)
        rows += [(value, one, two, group) for (one, two), value in sign.items()]
    draw.shuffle(rows)
    value, one, two, group = np.asarray(rows, dtype=float).T
    assert triads(value, one, two, group) == Triads(*expected)
    assert expected[1] > 0


def test_a_scalar_has_no_cycles_and_rock_paper_scissors_is_one():
    score = np.random.default_rng(0).normal(size=12)
    one, two = np.triu_indices(12, 1)
    assert triads(score[one] - score[two], one, two, np.zeros(66)) == Triads(220, 0)
    assert triads([1, 1, 1], [0, 1, 2], [1, 2, 0], [0, 0, 0]).rate == 1.0
    assert math.isnan(triads([1, 1], [0, 1], [1, 2], [0, 0]).rate)


@pytest.mark.parametrize("size", [3, 4, 5, 8])
def test_kendalls_zeta_is_one_without_cycles_and_zero_at_the_most(size):
    score = np.arange(size)
    assert kendall_zeta(score[:, None] - score[None, :]) == 1.0
    # Everyone beats the next half of a circle: as cyclic as can be.
    step = (np.arange(size)[None, :] - np.arange(size)[:, None]) % size
    regular = np.where(step == 0, 0, np.where(step <= (size - 1) // 2, 1, -1))
    if size % 2 == 0:
        opposite = step == size // 2
        regular[opposite] = np.where(np.arange(size)[:, None] < size // 2, 1, -1).repeat(size, axis=1)[opposite]
    assert kendall_zeta(regular) == pytest.approx(0.0)


def test_kendalls_zeta_counts_the_same_cycles_as_the_tournament():
    draw = np.random.default_rng(1)
    logit = np.triu(draw.normal(size=(7, 7)), 1)
    logit -= logit.T
    most = (7**3 - 7) / 24
    assert kendall_zeta(logit) == pytest.approx(1 - cyclic_triples(1 / (1 + np.exp(-logit))) / most)


def test_ties_and_pairs_have_no_zeta():
    assert math.isnan(kendall_zeta(np.zeros((3, 3))))
    assert math.isnan(kendall_zeta([[0, 1], [-1, 0]]))
    with pytest.raises(ValueError, match=r"\[K, K\]"):
        kendall_zeta([[1.0, 2.0]])


def test_a_scalar_has_no_position_bias():
    logit = np.random.default_rng(2).normal(size=50)
    found = position_bias(logit, -logit, np.arange(50) % 5, Resampler(5, resamples=20))
    assert found["swap_consistency"] == Estimate(1.0, 1.0, 1.0)
    assert found["first_win_excess"] == Estimate(0.0, 0.0, 0.0)
    assert found["asymmetry"].high < 1e-15


def test_a_model_that_always_takes_the_first_place_is_never_consistent():
    found = position_bias([1.0, 2.0], [1.0, 0.5], [0, 1], Resampler(2, resamples=20))
    assert (found["swap_consistency"].value, found["first_win_excess"].value) == (0.0, 0.5)
    p = [1 / (1 + math.exp(-value)) for value in (1.0, 2.0, 1.0, 0.5)]
    assert found["asymmetry"].value == pytest.approx((abs(p[0] + p[2] - 1) + abs(p[1] + p[3] - 1)) / 2, abs=1e-12)


def slow_position_bias(logit, swapped):
    """Count pair by pair, order by order."""
    same, wins, gaps = 0, [], []
    for one, two in zip(logit, swapped, strict=True):
        same += (one > 0 and two < 0) or (one < 0 and two > 0) or (one == 0 and two == 0)
        wins += [1.0 if value > 0 else 0.5 if value == 0 else 0.0 for value in (one, two)]
        gaps.append(abs(1 / (1 + math.exp(-one)) + 1 / (1 + math.exp(-two)) - 1))
    return same / len(logit), sum(wins) / len(wins) - 0.5, sum(gaps) / len(gaps)


def test_position_bias_and_its_intervals_are_those_of_a_slow_count_over_whole_resamples():
    draw = np.random.default_rng(3)
    cluster = draw.integers(0, 9, 120)
    logit = draw.normal(size=120).round(1) + 0.2
    swapped = (-logit + 0.4 + draw.normal(scale=0.4, size=120)).round(1)
    assert 0 in logit
    assert 0 in swapped
    resampler = Resampler(9, resamples=80, seed=4)
    found = position_bias(logit, swapped, cluster, resampler)
    slow = []
    for counts in resampler.counts.astype(int):
        rows = np.repeat(np.arange(120), counts[cluster])
        slow.append(slow_position_bias(logit[rows], swapped[rows]))
    low, high = np.percentile(slow, (2.5, 97.5), axis=0)
    measures = (found["swap_consistency"], found["first_win_excess"], found["asymmetry"])
    assert [one.value for one in measures] == pytest.approx(slow_position_bias(logit, swapped), abs=1e-9)
    assert [one.low for one in measures] == pytest.approx(low.tolist(), abs=1e-6)
    assert [one.high for one in measures] == pytest.approx(high.tolist(), abs=1e-6)
    assert all(one.low < one.value < one.high for one in measures)


def test_position_bias_of_no_pairs_is_refused():
    with pytest.raises(ValueError, match="no pairs"):
        position_bias([], [], [], Resampler(2))
