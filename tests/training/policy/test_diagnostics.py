"""Diagnostics: cycles on sampled tables against the exact game, warnings against exact runs, start values, noise."""

import math

import numpy as np
import pytest
import torch

from paragone_training import games, losses
from paragone_training.policy import gradient
from paragone_training.policy.methods.dpo import Dpo, _dpo_start
from paragone_training.policy.methods.gpo import _gpo_start
from paragone_training.policy.methods.pairwise import _pairwise_start
from paragone_training.policy.methods.registry import METHODS
from paragone_training.policy.methods.sppo import _sppo_start
from tests.training.games.matrices import (
    NASH,
    PENTAGON,
    PENTAGON_START,
    ROCK_PAPER_SCISSORS,
    START,
    deterministic_rock_paper_scissors,
    random_game,
)


def warning_of(method: str, omega: float, *, tau: float, eta: float) -> str | None:
    numbers = {"sppo": {"eta": eta}, "inpo": {"eta": eta, "tau": tau}}.get(method, {"step": eta, "tau": tau})
    return METHODS[method](**numbers).convergence_warning(omega)


def sampled_tables(game: np.ndarray, policy: np.ndarray, count: int, size: int) -> list[np.ndarray]:
    draws = np.random.default_rng(0).choice(len(policy), size=(count, size), p=policy)
    return [game[np.ix_(draw, draw)] for draw in draws]


def test_a_circle_of_three_is_one_cyclic_triple_and_an_order_of_three_is_none():
    assert games.measure_cycles([ROCK_PAPER_SCISSORS]).cyclic_share == 1.0
    assert games.measure_cycles([ROCK_PAPER_SCISSORS.T]).cyclic_share == 1.0
    order = np.array([[0.5, 0.7, 0.9], [0.3, 0.5, 0.8], [0.1, 0.2, 0.5]])
    assert games.measure_cycles([order]).cyclic_share == 0.0


def test_the_cyclic_share_counts_as_the_tournaments_do():
    from paragone_models.tournament import cyclic_triples

    for seed in range(5):
        table, _ = random_game(7, seed)
        cycles = games.measure_cycles([table])
        assert cycles.triples == 35
        assert cycles.cyclic_share == pytest.approx(cyclic_triples(table) / 35)


@pytest.mark.parametrize("size", [3, 5, 8])
def test_the_rotation_on_sampled_tables_is_that_of_the_game_at_the_policy_that_sampled_whatever_k(size):
    tables = sampled_tables(ROCK_PAPER_SCISSORS, NASH, 12000 // size, size)

    measured = games.measure_cycles(tables).rotation
    assert measured == pytest.approx(games.rotation(ROCK_PAPER_SCISSORS, NASH), rel=0.05)


def test_with_two_rotations_their_squares_add_and_the_largest_is_not_underrated():
    centred = np.diag(PENTAGON_START) - np.outer(PENTAGON_START, PENTAGON_START)
    speeds = np.linalg.eigvals((PENTAGON - 0.5) @ centred).imag
    measured = games.measure_cycles(sampled_tables(PENTAGON, PENTAGON_START, 3000, 5)).rotation

    assert measured == pytest.approx(math.sqrt((speeds**2).sum() / 2), rel=0.03)
    assert measured > games.rotation(PENTAGON, PENTAGON_START)


def test_the_mean_over_all_triples_of_the_game_is_exactly_the_sum_of_squared_rotations():
    """The identity behind the estimate, by enumeration of all ordered triples, repeated indices included."""
    game, policy = random_game(5, seed=9)
    skew = game - 0.5
    curl = skew[:, :, None] + skew[None, :, :] + skew.T[:, None, :]
    weight = policy[:, None, None] * policy[None, :, None] * policy[None, None, :]
    speeds = np.linalg.eigvals(skew @ (np.diag(policy) - np.outer(policy, policy))).imag

    assert (weight * curl**2).sum() / 6 == pytest.approx((speeds**2).sum() / 2)


def test_rating_differences_show_no_rotation():
    ratings = np.array([0.3, 0.1, 0.0, 0.2])
    cycles = games.measure_cycles([0.5 + ratings[:, None] - ratings[None, :]])

    assert cycles.rotation < 1e-15
    assert cycles.cyclic_share == 0.0


def test_triples_with_a_missing_comparison_are_left_out():
    holed = PENTAGON.copy()
    holed[0, 1] = holed[1, 0] = math.nan
    cycles = games.measure_cycles([holed])

    assert cycles.triples == 10 - 3
    assert math.isfinite(cycles.rotation)


def test_tables_of_two_responses_show_nothing_and_say_so():
    for tables in ([], [np.full((2, 2), 0.5)], [np.full((3, 3), math.nan)]):
        cycles = games.measure_cycles(tables)
        assert cycles.triples == 0
        assert all(math.isnan(value) for value in (cycles.cyclic_share, cycles.rotation, cycles.largest_rotation))


def test_the_largest_rotation_is_that_of_the_most_cyclic_prompt():
    mild = 0.5 + 0.1 * (ROCK_PAPER_SCISSORS - 0.5)
    cycles = games.measure_cycles([mild, ROCK_PAPER_SCISSORS, np.full((2, 2), 0.5)])

    assert cycles.largest_rotation == pytest.approx(games.measure_cycles([ROCK_PAPER_SCISSORS]).rotation)
    assert games.measure_cycles([mild]).rotation == pytest.approx(cycles.largest_rotation / 10)
    assert cycles.rotation < cycles.largest_rotation


def test_what_is_no_table_is_refused():
    with pytest.raises(ValueError, match="a table must be square"):
        games.measure_cycles([np.full((2, 3), 0.5)])
    with pytest.raises(ValueError, match=r"must be a probability in \[0, 1\]"):
        games.measure_cycles([[[0.5, 1.5], [-0.5, 0.5]]])


@pytest.mark.parametrize("tau", [0.1, 0.05])
@pytest.mark.parametrize(("factor", "converges"), [(0.9, False), (1.1, True)])
def test_inpo_is_warned_about_exactly_where_an_exact_run_circles(tau, factor, converges):
    target = games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=tau)
    omega = games.rotation(ROCK_PAPER_SCISSORS, target)
    eta = factor * games.critical_eta(omega, tau)
    policy = START
    for _ in range(1000):
        policy = games.inpo_update(policy, ROCK_PAPER_SCISSORS, START, eta=eta, tau=tau)

    warning = warning_of("inpo", omega, tau=tau, eta=eta)
    assert (games.kl(target, policy) < 1e-9) is converges
    assert (warning is None) is converges
    if warning is not None:
        assert f"must exceed (tau² + omega²)/(2 tau) = {games.critical_eta(omega, tau):.4g}" in warning


def test_the_published_setting_of_inpo_is_warned_about_where_the_oracle_rotates_at_all():
    assert warning_of("inpo", 0.15, tau=0.005 / 3, eta=0.005) is not None
    assert warning_of("inpo", 0.003, tau=0.005 / 3, eta=0.005) is None  # eta > 1.342 omega


def test_sppo_is_warned_about_wherever_there_is_a_rotation():
    warning = warning_of("sppo", 0.1, tau=0.0, eta=0.01)

    assert warning is not None
    assert "no eta does without a KL" in warning
    assert warning_of("sppo", 0.0, tau=0.0, eta=1000.0) is None
    assert "tau > 0" in str(warning_of("inpo", 0.1, tau=0.0, eta=1.0))


@pytest.mark.parametrize("method", ["egpo", "omwu"])
def test_a_step_beyond_the_limit_is_warned_about_with_the_limit(method):
    limit = games.largest_step(0.25, method=method, tau=0.01)

    assert warning_of(method, 0.25, tau=0.01, eta=0.99 * limit) is None
    warning = warning_of(method, 0.25, tau=0.01, eta=1.01 * limit)
    assert warning is not None
    assert f"must stay below {limit:.4g}" in warning


def test_where_nothing_was_measured_nothing_is_warned_about():
    assert warning_of("inpo", math.nan, tau=0.1, eta=0.2) is None


def test_impossible_settings_are_refused_by_the_warning():
    with pytest.raises(ValueError, match="eta must be positive and finite"):
        warning_of("inpo", 0.1, tau=0.1, eta=0.0)
    with pytest.raises(ValueError, match="omega must be finite and not negative"):
        warning_of("inpo", -0.1, tau=0.1, eta=1.0)
    with pytest.raises(ValueError, match=r"tau must lie in \[0, eta\] = \[0, 1.0\], not -0.1"):
        warning_of("inpo", 0.1, tau=-0.1, eta=1.0)
    with pytest.raises(ValueError, match="method must be one of"):
        games.spectral_radius(0.1, method="dpo", step=0.1, tau=0.1)
    assert Dpo(beta=0.1).convergence_warning(0.1) is None


CHOSEN, REJECTED = (-40 * torch.rand(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).unbind()
RATES = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)


def test_the_start_values_are_what_the_losses_give_on_the_first_batch():
    four = (CHOSEN, REJECTED, CHOSEN, REJECTED)
    six = (*four, CHOSEN - 0.3, REJECTED + 0.2)
    drift = np.full(6, 0.5)
    setting = losses.inpo_setting(eta=0.3, tau=0.1)

    def close(start: np.ndarray, loss: torch.Tensor) -> None:
        np.testing.assert_allclose(start, loss.numpy(), rtol=1e-9)

    close(
        _sppo_start(RATES.numpy(), 1 - RATES.numpy(), eta=1000.0),
        losses.sppo_loss(*four, RATES, 1 - RATES, eta=1000.0),
    )
    close(
        _gpo_start(RATES.numpy(), -RATES.numpy(), beta=0.01),
        losses.gpo_loss(*four, RATES, -RATES, beta=0.01),
    )
    close(
        _pairwise_start(RATES.numpy(), drift, gain=setting.gain, reference_weight=setting.reference_weight),
        losses.inpo_loss(*six, eta=0.3, tau=0.1, preference=RATES),
    )
    close(
        _dpo_start(drift, beta=0.1, label_smoothing=0.2),
        losses.dpo_loss(CHOSEN, REJECTED, *six[4:], beta=0.1, label_smoothing=0.2),
    )


def test_the_start_values_of_the_published_settings():
    np.testing.assert_allclose(_pairwise_start([1.0], gain=1 / 0.005, reference_weight=1 / 3), [1e4])
    np.testing.assert_allclose(_pairwise_start([1.0], gain=1 / 0.1, reference_weight=1.0), [25.0])
    np.testing.assert_allclose(_sppo_start([0.9], [0.1], eta=1000.0), [0.16e6])
    np.testing.assert_allclose(_dpo_start([0.0], beta=0.1, label_smoothing=0.1), [math.log(2)])
    assert np.isfinite(_dpo_start([1e4, -1e4], beta=1.0)).all()


def test_start_values_refuse_what_the_losses_refuse():
    with pytest.raises(ValueError, match="shapes differ"):
        _sppo_start([0.5], [0.5, 0.5], eta=1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        _gpo_start([0.5], [0.5, 0.5], beta=1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        _pairwise_start([0.5], [0.5, 0.5], gain=1.0)
    with pytest.raises(ValueError, match="eta must be positive"):
        _sppo_start([0.5], [0.5], eta=0.0)
    with pytest.raises(ValueError, match="beta must be positive"):
        _gpo_start([0.5], [0.5], beta=0.0)
    with pytest.raises(ValueError, match="gain must be positive"):
        _pairwise_start([0.5], gain=-1.0)
    with pytest.raises(ValueError, match=r"reference_weight must lie in \[0, 1\]"):
        _pairwise_start([0.5], gain=1.0, reference_weight=1.5)
    with pytest.raises(ValueError, match="beta must be positive"):
        _dpo_start([0.5], beta=math.nan)
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0\.5\]"):
        _dpo_start([0.5], beta=1.0, label_smoothing=0.7)


def test_the_noise_floor_compares_the_difference_of_two_computations_with_the_target():
    floor = gradient._noise_floor([-10.0, -20.0], [-10.3, -19.6], [3.0, -4.0])

    assert floor.spread == pytest.approx(math.sqrt((0.3**2 + 0.4**2) / 2))
    assert floor.scale == pytest.approx(math.sqrt((9 + 16) / 2))
    assert floor.largest == pytest.approx(0.4)
    assert floor.share == pytest.approx(0.1)


def test_a_common_offset_counts_as_noise():
    assert gradient._noise_floor([-9.0, -19.0], [-10.0, -20.0], [1.0, 1.0]).share == pytest.approx(1.0)


def test_noise_above_the_limit_is_refused_with_numbers_and_remedy_and_noise_below_is_not():
    floor = gradient._noise_floor([-10.0, -20.0], [-10.3, -19.6], [3.0, -4.0])

    with pytest.raises(ValueError, match=r"10\.0% of the targets' 3\.54 nats, and the limit is 5%: use a wider dtype"):
        gradient._check_noise_floor(floor)
    gradient._check_noise_floor(floor, limit=0.11)
    gradient._check_noise_floor(gradient._noise_floor([-10.0], [-10.0], [1.0]))


def test_targets_of_zero_drown_in_any_noise_and_in_none_where_there_is_none():
    assert math.isinf(gradient._noise_floor([-10.0], [-10.1], [0.0]).share)
    assert gradient._noise_floor([-10.0], [-10.0], [0.0]).share == 0.0


def test_a_noise_floor_of_nothing_or_of_nan_is_refused():
    with pytest.raises(ValueError, match="needs finite log-probabilities"):
        gradient._noise_floor([], [], [])
    with pytest.raises(ValueError, match="needs finite log-probabilities"):
        gradient._noise_floor([math.nan], [0.0], [1.0])
    with pytest.raises(ValueError, match="shapes differ"):
        gradient._noise_floor([0.0], [0.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="shapes differ"):
        gradient._noise_floor([0.0], [0.0], [1.0, 2.0])


def test_the_fastest_game_of_three_is_measured_at_its_exact_rotation():
    tables = sampled_tables(deterministic_rock_paper_scissors(), np.full(3, 1 / 3), 2000, 5)

    assert games.measure_cycles(tables).rotation == pytest.approx(1 / math.sqrt(12), rel=0.02)
