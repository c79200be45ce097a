"""Single exact steps: by hand, against published one-step values, and against the other names they go by."""

import math
import subprocess
import sys

import numpy as np
import pytest

from paragone_training import games
from tests.training.games.matrices import PENTAGON, PENTAGON_START, ROCK_PAPER_SCISSORS, START, random_game

GAMES = [pytest.param(ROCK_PAPER_SCISSORS, START, id="three"), pytest.param(PENTAGON, PENTAGON_START, id="five")]


def normalised(log_weight: np.ndarray) -> np.ndarray:
    weight = np.exp(log_weight - log_weight.max())
    return weight / weight.sum()


def test_the_games_need_no_torch():
    code = "import sys, paragone_training.games; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_hedge_step_by_hand():
    policy = games.sppo_update([0.5, 0.5], [[0.5, 0.8], [0.2, 0.5]], eta=2.0)

    assert policy[0] / policy[1] == pytest.approx(math.exp(2.0 * (0.65 - 0.35)))


def test_an_inpo_step_by_hand():
    policy = games.inpo_update([0.5, 0.5], [[0.5, 0.8], [0.2, 0.5]], [0.75, 0.25], eta=0.5, tau=0.2)

    assert policy[0] / policy[1] == pytest.approx(math.exp((0.65 - 0.35) / 0.5) * 3.0 ** (0.2 / 0.5))


def test_an_egpo_step_by_hand_moves_only_the_opponent_to_the_half_step():
    game, policy, reference = np.array([[0.5, 0.8], [0.2, 0.5]]), np.array([0.4, 0.6]), np.array([0.75, 0.25])
    drawn = (policy[0] / policy[1]) ** 0.8 * 3.0**0.2
    half_odds = drawn * math.exp(2.0 * ((game[0] - game[1]) @ policy))
    half = np.array([half_odds, 1.0]) / (half_odds + 1.0)

    step = games.egpo_update(policy, game, reference, step=2.0, tau=0.1)
    assert step[0] / step[1] == pytest.approx(drawn * math.exp(2.0 * ((game[0] - game[1]) @ half)))


def test_the_published_one_step_values():
    first = games.inpo_update(START, ROCK_PAPER_SCISSORS, START, eta=0.3, tau=0.1)
    second = games.inpo_update(first, ROCK_PAPER_SCISSORS, START, eta=0.3, tau=0.1)

    np.testing.assert_allclose(first, [0.623076637505, 0.179560207187, 0.197363155307], atol=1e-12)
    np.testing.assert_allclose(second, [0.639192024495, 0.112083769870, 0.248724205636], atol=1e-12)
    np.testing.assert_allclose(
        games.sppo_update(START, ROCK_PAPER_SCISSORS, eta=1.0),
        [0.539237972818, 0.259649165857, 0.201112861326],
        atol=1e-12,
    )


@pytest.mark.parametrize(("game", "start"), GAMES)
def test_nash_mirror_prox_is_egpo_with_a_shrunk_step(game, start):
    step, tau = 2.0, 0.1
    shrink = 1.0 / (1.0 + step * tau)
    policy = mine = start
    for _ in range(30):
        half = normalised(shrink * (np.log(policy) + step * tau * np.log(start) + step * game @ policy))
        policy = normalised(shrink * (np.log(policy) + step * tau * np.log(start) + step * game @ half))
        mine = games.egpo_update(mine, game, start, step=games.nash_mp_step(step, tau), tau=tau)
        np.testing.assert_allclose(mine, policy, atol=1e-14)


@pytest.mark.parametrize(("game", "start"), GAMES)
def test_magnetic_mirror_descent_is_inpo_with_eta_of_tau_plus_one_over_step(game, start):
    step, tau = 1.0, 0.1
    policy = mine = start
    for _ in range(30):
        log_policy = (np.log(policy) + step * tau * np.log(start) + step * game @ policy) / (1.0 + step * tau)
        policy = normalised(log_policy)
        mine = games.inpo_update(mine, game, start, eta=games.mpo_eta(step, tau), tau=tau)
        np.testing.assert_allclose(mine, policy, atol=1e-14)


@pytest.mark.parametrize(("game", "start"), GAMES)
def test_the_sequence_that_onpo_plays_is_omwu_without_kl(game, start):
    """ONPO keeps two sequences: play predicts with the last payoff, the hidden one is updated with the true payoff."""
    step = 1.0
    hidden, prediction = np.log(start), None
    policy, base = start, None
    for _ in range(30):
        played = hidden if prediction is None else hidden + step * prediction
        np.testing.assert_allclose(policy, normalised(played), atol=1e-13)
        # At the first round nothing has been seen: play is the start, and the hidden sequence stays where it is.
        payoff = game @ normalised(played)
        hidden = hidden if prediction is None else hidden + step * payoff
        prediction = payoff
        policy, base = games.omwu_step(policy, base, game, start, step=step, tau=0.0)


@pytest.mark.parametrize(("game", "start"), GAMES)
def test_omwu_without_kl_adds_twice_the_payoff_less_the_last_one(game, start):
    step = 0.7
    log_policy, last = np.log(start), game @ start
    policy, base = start, None
    for _ in range(30):
        payoff = game @ normalised(log_policy)
        log_policy, last = log_policy + step * (2.0 * payoff - last), payoff
        policy, base = games.omwu_step(policy, base, game, start, step=step, tau=0.0)
        np.testing.assert_allclose(policy, normalised(log_policy), atol=1e-13)


@pytest.mark.parametrize(("game", "start"), GAMES)
def test_one_regression_on_the_geometric_mean_of_the_past_plays_omwu_too(game, start):
    """The form with one column b and one step (2 - r) h, b following as a weighted geometric mean."""
    step, tau = 1.0, 0.1
    pull = step * tau
    policy, base = games.omwu_step(start, None, game, start, step=step, tau=tau)
    mine, log_base = policy, np.log(base)
    for _ in range(20):
        policy, base = games.omwu_step(policy, base, game, start, step=step, tau=tau)
        log_mine = pull * (2 - pull) * np.log(start) + (1 - pull) ** 2 * log_base + (2 - pull) * step * game @ mine
        log_base = (log_mine + (1 - pull) * log_base) / (2 - pull)
        mine = normalised(log_mine)
        np.testing.assert_allclose(mine, policy, atol=1e-13)


def test_hedge_is_inpo_without_reference_and_with_the_inverse_step():
    game, policy = random_game(6, seed=1)

    np.testing.assert_allclose(
        games.sppo_update(policy, game, eta=4.0),
        games.inpo_update(policy, game, np.full(6, 1 / 6), eta=0.25, tau=0.0),
        atol=1e-15,
    )


@pytest.mark.parametrize("tau", [0.1, 0.3, 1 / 3, 0.7, 1.1])
def test_inpo_with_tau_equal_to_eta_forgets_the_current_policy(tau):
    game, policy = random_game(4, seed=2)
    reference = np.full(4, 0.25)
    expected = normalised(np.log(reference) + game @ policy / tau)

    np.testing.assert_allclose(games.inpo_update(policy, game, reference, eta=tau, tau=tau), expected, atol=1e-14)


def test_every_knob_changes_the_step():
    game, policy = random_game(4, seed=3)
    reference = np.array([0.1, 0.2, 0.3, 0.4])
    base = np.array([0.4, 0.3, 0.2, 0.1])
    for update in (games.egpo_update, lambda *a, **k: games.omwu_step(a[0], base, *a[1:], **k)[0]):
        default = update(policy, game, reference, step=1.0, tau=0.1)
        assert not np.allclose(default, update(policy, game, reference, step=1.5, tau=0.1))
        assert not np.allclose(default, update(policy, game, reference, step=1.0, tau=0.2))
        assert not np.allclose(default, update(policy, game, policy, step=1.0, tau=0.1))
    default = games.inpo_update(policy, game, reference, eta=1.0, tau=0.1)
    assert not np.allclose(default, games.inpo_update(policy, game, reference, eta=2.0, tau=0.1))
    assert not np.allclose(default, games.inpo_update(policy, game, reference, eta=1.0, tau=0.2))
    assert not np.allclose(games.sppo_update(policy, game, eta=1.0), games.sppo_update(policy, game, eta=2.0))


def test_a_response_that_is_never_played_stays_so_and_extreme_steps_stay_finite():
    game, _ = random_game(3, seed=4)
    policy = games.sppo_update([0.5, 0.5, 0.0], game, eta=1e4)

    assert policy[2] == 0.0
    assert policy.sum() == pytest.approx(1.0)
    assert games.inpo_update([0.5, 0.5, 0.0], game, START, eta=0.1, tau=0.1)[2] > 0  # tau = eta forgets the policy
    assert games.inpo_update([0.5, 0.5, 0.0], game, START, eta=0.2, tau=0.1)[2] == 0.0


def test_relabelling_the_responses_relabels_the_step():
    game, policy = random_game(5, seed=5)
    order = np.array([3, 0, 4, 1, 2])

    np.testing.assert_allclose(
        games.egpo_update(policy[order], game[np.ix_(order, order)], PENTAGON_START[order], step=2.0, tau=0.1),
        games.egpo_update(policy, game, PENTAGON_START, step=2.0, tau=0.1)[order],
        atol=1e-15,
    )


BAD_GAMES = [
    (np.full((2, 3), 0.5), "square matrix"),
    (np.zeros((0, 0)), "square matrix"),
    (np.array([[0.5, np.nan], [0.5, 0.5]]), r"every preference must lie in \[0, 1\]"),
    (np.array([[0.5, 1.2], [-0.2, 0.5]]), r"every preference must lie in \[0, 1\]"),
    (np.array([[0.5, 0.9], [0.9, 0.5]]), "must be 1, with 0.5 on the diagonal"),
    (np.array([[0.4, 0.9], [0.1, 0.6]]), "must be 1, with 0.5 on the diagonal"),
]


@pytest.mark.parametrize(("game", "message"), BAD_GAMES)
def test_what_is_no_game_is_refused(game, message):
    for call in (
        lambda: games.sppo_update([0.5, 0.5], game, eta=1.0),
        lambda: games.inpo_update([0.5, 0.5], game, [0.5, 0.5], eta=1.0, tau=0.1),
        lambda: games.egpo_update([0.5, 0.5], game, [0.5, 0.5], step=1.0, tau=0.1),
        lambda: games.omwu_step([0.5, 0.5], None, game, [0.5, 0.5], step=1.0, tau=0.1),
        lambda: games.regularised_nash(game, [0.5, 0.5], tau=0.1),
        lambda: games.duality_gap([0.5, 0.5], game, [0.5, 0.5], tau=0.1),
        lambda: games.rotation(game, [0.5, 0.5]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


BAD_POLICIES = [
    ([0.5, 0.5], r"must be \[3\], one probability per response"),
    ([0.7, 0.7, -0.4], "must be a distribution"),
    ([0.5, 0.2, 0.2], "must be a distribution"),
    ([0.5, np.nan, 0.5], "must be a distribution"),
]


@pytest.mark.parametrize(("policy", "message"), BAD_POLICIES)
def test_what_is_no_policy_is_refused_and_named(policy, message):
    game = ROCK_PAPER_SCISSORS
    for call in (
        lambda: games.sppo_update(policy, game, eta=1.0),
        lambda: games.egpo_update(policy, game, START, step=1.0, tau=0.1),
        lambda: games.omwu_step(policy, None, game, START, step=1.0, tau=0.1),
        lambda: games.duality_gap(policy, game, START, tau=0.1),
        lambda: games.rotation(game, policy),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call in (
        lambda: games.inpo_update(START, game, policy, eta=1.0, tau=0.1),
        lambda: games.egpo_update(START, game, policy, step=1.0, tau=0.1),
        lambda: games.omwu_step(START, None, game, policy, step=1.0, tau=0.1),
        lambda: games.regularised_nash(game, policy, tau=0.1),
        lambda: games.duality_gap(START, game, policy, tau=0.1),
    ):
        with pytest.raises(ValueError, match="reference " + message):
            call()
    with pytest.raises(ValueError, match="base " + message):
        games.omwu_step(START, policy, game, START, step=1.0, tau=0.1)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_step_that_is_not_positive_is_refused(value):
    game = ROCK_PAPER_SCISSORS
    for call in (
        lambda: games.sppo_update(START, game, eta=value),
        lambda: games.inpo_update(START, game, START, eta=value, tau=0.0),
        lambda: games.egpo_update(START, game, START, step=value, tau=0.1),
        lambda: games.omwu_step(START, None, game, START, step=value, tau=0.1),
        lambda: games.nash_mp_step(value, 0.1),
        lambda: games.mpo_eta(value, 0.1),
    ):
        with pytest.raises(ValueError, match="must be positive and finite"):
            call()


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_a_tau_out_of_range_is_refused(tau):
    game = ROCK_PAPER_SCISSORS
    with pytest.raises(ValueError, match=r"tau must lie in \[0, eta\]"):
        games.inpo_update(START, game, START, eta=1.0, tau=tau)
    with pytest.raises(ValueError, match=r"step \* tau must lie in \[0, 1\]"):
        games.egpo_update(START, game, START, step=1.0, tau=tau)
    with pytest.raises(ValueError, match=r"step \* tau must lie in \[0, 1\]"):
        games.omwu_step(START, None, game, START, step=1.0, tau=tau)


def test_a_negative_tau_has_no_nash_mp_step_and_no_mpo_eta():
    for tau in (-0.1, math.nan):
        with pytest.raises(ValueError, match="tau must not be negative"):
            games.nash_mp_step(1.0, tau)
        with pytest.raises(ValueError, match="tau must not be negative"):
            games.mpo_eta(1.0, tau)


def test_a_base_and_a_reference_without_a_common_response_are_refused():
    with pytest.raises(ValueError, match="no response in common"):
        games.egpo_update([1.0, 0.0, 0.0], ROCK_PAPER_SCISSORS, [0.0, 1.0, 0.0], step=1.0, tau=0.1)
