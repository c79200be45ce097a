"""Groups: Kendall's τ, favourites, regret, best-of-n."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import kendalltau

from paragone_evaluation.measures.ranking import best_of_n, best_of_n_kl, group_score, kendall_tau


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys_with_ties_on_both_sides(seed):
    draw = np.random.default_rng(seed)
    one, two = draw.integers(0, 5, 12).astype(float), draw.integers(0, 4, 12).astype(float)
    assert kendall_tau(one, two) == pytest.approx(kendalltau(one, two).statistic, abs=1e-6)


def test_a_constant_side_has_no_tau():
    assert math.isnan(kendall_tau([1.0, 1.0], [1.0, 2.0]))


@pytest.mark.parametrize("seed", range(4))
def test_best_of_n_is_the_mean_over_all_subsets_and_all_ways_to_break_ties(seed):
    draw = np.random.default_rng(seed)
    score, human = draw.integers(0, 3, 6).astype(float), draw.random(6)
    expected = []
    for n in range(1, 7):
        picks = []
        for chosen in itertools.combinations(range(6), n):
            best = max(score[list(chosen)])
            picks.append(np.mean([human[place] for place in chosen if score[place] == best]))
        expected.append(np.mean(picks))
    assert best_of_n(score, human) == pytest.approx(expected, abs=1e-6)


def test_best_of_one_is_the_mean_and_best_of_all_the_favourite():
    curve = best_of_n([0.1, 0.9, 0.5], [1.0, 3.0, 2.0])
    assert curve[[0, -1]].tolist() == pytest.approx([2.0, 3.0])


def test_the_kl_of_best_of_n_is_log_n_minus_n_minus_one_over_n():
    assert best_of_n_kl([1, 2, 16]) == pytest.approx([0.0, math.log(2) - 0.5, math.log(16) - 15 / 16])


def test_tied_favourites_share():
    found = group_score([2.0, 2.0, 1.0], [1.0, 0.0, 0.5])
    assert (found.top_one, found.regret) == (0.5, 0.5)
    assert (found.chance, found.random_regret) == (pytest.approx(1 / 3), 0.5)


def test_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="empty"):
        group_score([], [])
