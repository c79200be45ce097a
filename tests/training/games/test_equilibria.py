"""Equilibria and gaps: published values, fixed points, deviations searched by another method."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import softmax

from paragone_models import tournament
from paragone_training import games
from tests.training.games.matrices import (
    CONDORCET,
    NASH,
    PENTAGON,
    PENTAGON_START,
    ROCK_PAPER_SCISSORS,
    START,
    random_game,
)

PUBLISHED = {
    1.0: [0.534333611917, 0.258866956860, 0.206799431223],
    0.3: [0.562616458908, 0.188017773275, 0.249365767817],
    0.1: [0.479855675170, 0.148937145341, 0.371207179489],
    0.05: [0.406951211124, 0.169035421719, 0.424013367157],
    0.02: [0.360288900188, 0.197297097272, 0.442414002540],
}


@pytest.mark.parametrize("tau", PUBLISHED)
def test_the_regularised_nash_has_its_published_value(tau):
    np.testing.assert_allclose(games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=tau), PUBLISHED[tau], atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 5, 20])
@pytest.mark.parametrize("tau", [10.0, 0.3, 0.01, 1e-4])
def test_the_regularised_nash_answers_itself_with_itself(size, tau):
    game, reference = random_game(size, seed=size)
    policy = games.regularised_nash(game, reference, tau=tau)

    win_rate = game @ policy
    response = softmax(np.log(reference) + (win_rate - win_rate.max()) / tau)
    np.testing.assert_allclose(policy, response, atol=1e-9)
    assert games.duality_gap(policy, game, reference, tau=tau) < 1e-12


def test_the_regularised_nash_reaches_from_the_reference_to_the_nash():
    close = games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=1e-6)
    far = games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=1e6)

    np.testing.assert_allclose(close, NASH, atol=1e-5)
    np.testing.assert_allclose(far, START, atol=1e-5)


def test_a_response_that_the_reference_never_plays_is_not_played():
    policy = games.regularised_nash(PENTAGON, [0.4, 0.0, 0.3, 0.3, 0.0], tau=0.1)

    assert policy[1] == policy[4] == 0.0
    inner = games.regularised_nash(PENTAGON[np.ix_([0, 2, 3], [0, 2, 3])], [0.4, 0.3, 0.3], tau=0.1)
    np.testing.assert_allclose(policy[[0, 2, 3]], inner, atol=1e-14)


def test_the_nash_is_the_maximal_lottery_of_the_tournaments_and_not_a_second_one():
    assert games.nash is tournament.nash
    np.testing.assert_allclose(games.nash(ROCK_PAPER_SCISSORS), NASH, atol=1e-12)


def test_the_gap_is_zero_at_the_solution_and_positive_elsewhere():
    solution = games.regularised_nash(PENTAGON, PENTAGON_START, tau=0.1)
    assert games.duality_gap(solution, PENTAGON, PENTAGON_START, tau=0.1) < 1e-15
    for seed in range(10):
        policy = np.random.default_rng(seed).dirichlet(np.ones(5))
        assert games.duality_gap(policy, PENTAGON, PENTAGON_START, tau=0.1) > 1e-4


@pytest.mark.parametrize("tau", [0.05, 0.4])
def test_the_gap_is_what_both_players_win_by_deviating_found_by_search(tau):
    policy = np.array([0.2, 0.5, 0.3])

    def value(first: np.ndarray, second: np.ndarray) -> float:
        paid = tau * float((second * np.log(second / START)).sum() - (first * np.log(first / START)).sum())
        return float(first @ ROCK_PAPER_SCISSORS @ second) + paid

    best = -minimize(lambda z: -value(softmax(z), policy), np.zeros(3), tol=1e-12).fun
    worst = minimize(lambda z: value(policy, softmax(z)), np.zeros(3), tol=1e-12).fun
    gap = games.duality_gap(policy, ROCK_PAPER_SCISSORS, START, tau=tau)
    assert gap == pytest.approx(best - worst, abs=1e-9)


def test_without_kl_the_gap_is_twice_the_best_win_rate_less_one():
    assert games.duality_gap([1.0, 0.0, 0.0], ROCK_PAPER_SCISSORS, START, tau=0.0) == pytest.approx(2 * 0.7 - 1)
    assert games.duality_gap(NASH, ROCK_PAPER_SCISSORS, START, tau=0.0) == pytest.approx(0.0, abs=1e-15)
    assert games.duality_gap([1.0, 0.0, 0.0], CONDORCET, START, tau=0.0) == 0.0


def test_the_gap_tends_to_the_one_without_kl_and_needs_the_reference():
    policy = [0.2, 0.5, 0.3]
    almost = games.duality_gap(policy, ROCK_PAPER_SCISSORS, START, tau=1e-9)

    assert almost == pytest.approx(games.duality_gap(policy, ROCK_PAPER_SCISSORS, START, tau=0.0), abs=1e-7)
    uniform = games.duality_gap(policy, ROCK_PAPER_SCISSORS, np.full(3, 1 / 3), tau=0.1)
    assert abs(uniform - games.duality_gap(policy, ROCK_PAPER_SCISSORS, START, tau=0.1)) > 1e-3
    assert math.isinf(games.duality_gap(policy, ROCK_PAPER_SCISSORS, [0.5, 0.5, 0.0], tau=0.1))


def test_the_kl_divergence_by_hand_at_its_edges_and_far_below_rounding():
    assert games.kl([0.5, 0.5], [0.9, 0.1]) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert games.kl([1.0, 0.0], [0.25, 0.75]) == pytest.approx(math.log(4))
    assert math.isinf(games.kl([0.5, 0.5], [1.0, 0.0]))
    assert games.kl(START, START) == 0.0
    nudge = 1e-9 * np.array([1.0, -1.0, 0.0])
    assert games.kl(START, START + nudge) == pytest.approx(1e-18 / 2 * (1 / 0.5 + 1 / 0.3), rel=1e-6)
    below, above = 0.99e-4 * np.array([0.5, -0.5, 0.0]), 1.01e-4 * np.array([0.5, -0.5, 0.0])
    for nudge in (below, above):
        exact = float((START * np.log(START / (START + nudge))).sum())
        assert games.kl(START, START + nudge) == pytest.approx(exact, rel=1e-6)


def test_policies_of_different_length_have_no_kl():
    with pytest.raises(ValueError, match=r"second must be \[2\]"):
        games.kl([0.5, 0.5], START)
    with pytest.raises(ValueError, match="first must be a distribution"):
        games.kl([0.5, 0.6], [0.5, 0.5])


@pytest.mark.parametrize("tau", [-0.1, math.inf, math.nan])
def test_a_tau_that_is_no_weight_is_refused(tau):
    with pytest.raises(ValueError, match="tau must be positive and finite"):
        games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=tau)
    with pytest.raises(ValueError, match="tau must be positive and finite"):
        games.duality_gap(START, ROCK_PAPER_SCISSORS, START, tau=tau)


def test_without_kl_there_is_no_regularised_nash_to_ask_for():
    with pytest.raises(ValueError, match="tau must be positive and finite, not 0"):
        games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=0.0)
