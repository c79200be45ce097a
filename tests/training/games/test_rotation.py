"""The rotation of a game, and the step limits that follow, against published values and measured decay."""

import math

import numpy as np
import pytest

from paragone_training import games
from tests.training.games.matrices import (
    PENTAGON,
    PENTAGON_START,
    ROCK_PAPER_SCISSORS,
    START,
    deterministic_rock_paper_scissors,
    random_game,
)

# tau: omega, critical eta, best eta
PUBLISHED = {
    1.0: (0.15221650, 0.5116, 1.0232),
    0.3: (0.14617281, 0.1856, 0.3712),
    0.1: (0.14659107, 0.15744, 0.31489),
    0.05: (0.15370653, 0.26126, 0.52251),
    0.02: (0.15960362, 0.64683, 1.29367),
}
METHODS = ("sppo", "inpo", "egpo", "omwu")


@pytest.mark.parametrize("tau", PUBLISHED)
def test_rotation_critical_and_best_eta_have_their_published_values(tau):
    omega = games.rotation(ROCK_PAPER_SCISSORS, games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=tau))

    assert omega == pytest.approx(PUBLISHED[tau][0], abs=5e-9)
    assert games.critical_eta(omega, tau) == pytest.approx(PUBLISHED[tau][1], abs=5e-5)
    assert games.best_eta(omega, tau) == pytest.approx(PUBLISHED[tau][2], abs=5e-5)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_rotation_is_the_largest_imaginary_eigenvalue_by_definition(size):
    game, policy = random_game(size, seed=size)
    values = np.linalg.eigvals((game - 0.5) @ (np.diag(policy) - np.outer(policy, policy)))

    assert games.rotation(game, policy) == pytest.approx(np.abs(values.imag).max(), abs=1e-7)


def test_a_game_of_rating_differences_does_not_rotate_and_deterministic_circles_do():
    ratings = np.array([0.1, 0.25, 0.4, 0.0])

    assert games.rotation(0.5 + ratings[:, None] - ratings[None, :], np.full(4, 0.25)) < 1e-16
    assert games.rotation(deterministic_rock_paper_scissors(), np.full(3, 1 / 3)) == pytest.approx(1 / math.sqrt(12))


def test_no_game_rotates_faster_than_the_bound():
    fastest = 0.0
    for seed in range(300):
        draw = np.random.default_rng(seed)
        size = int(draw.integers(3, 9))
        game = np.triu(draw.integers(0, 2, size=(size, size)).astype(float), 1)
        game = game + np.tril(1.0 - game.T, -1) + np.eye(size) / 2
        fastest = max(fastest, games.rotation(game, draw.dirichlet(np.ones(size))))

    assert 0.28 < fastest < games.LARGEST_ROTATION
    assert pytest.approx(0.35355339) == games.LARGEST_ROTATION


def test_the_critical_eta_is_where_the_radius_of_inpo_is_one_and_the_best_where_it_is_least():
    omega, tau = 0.15, 0.05
    critical, best = games.critical_eta(omega, tau), games.best_eta(omega, tau)

    def radius(eta: float) -> float:
        return games.spectral_radius(omega, method="inpo", step=1 / eta, tau=tau)

    assert radius(critical) == pytest.approx(1.0)
    assert radius(0.9 * critical) > 1.0 > radius(1.1 * critical)
    assert radius(best) == pytest.approx(omega / math.hypot(tau, omega))
    assert radius(best) < min(radius(0.99 * best), radius(1.01 * best))


def decay(method: str, step: float, tau: float, rounds: int = 60) -> float:
    """Return the factor an iteration by which a small error of log pi shrinks, measured."""
    game, reference = ROCK_PAPER_SCISSORS, START
    solution = games.regularised_nash(game, reference, tau=tau)
    start = solution * np.exp(1e-4 * np.array([1.0, -0.5, 0.3]))
    policy, base = start / start.sum(), None
    errors = []
    for _ in range(rounds):
        if method == "inpo":
            policy = games.inpo_update(policy, game, reference, eta=1 / step, tau=tau)
        elif method == "egpo":
            policy = games.egpo_update(policy, game, reference, step=step, tau=tau)
        else:
            policy, base = games.omwu_step(policy, base, game, reference, step=step, tau=tau)
        errors.append(games.kl(solution, policy))
    middle = rounds // 2
    return float((errors[-1] / errors[middle]) ** (0.5 / (rounds - 1 - middle)))


@pytest.mark.parametrize("method", ["inpo", "egpo", "omwu"])
@pytest.mark.parametrize("step", [0.5, 1.0])
def test_the_spectral_radius_is_the_decay_that_a_run_shows(method, step):
    tau = 0.1
    omega = games.rotation(ROCK_PAPER_SCISSORS, games.regularised_nash(ROCK_PAPER_SCISSORS, START, tau=tau))

    assert decay(method, step, tau) == pytest.approx(
        games.spectral_radius(omega, method=method, step=step, tau=tau), rel=0.01
    )


def test_the_step_limits_have_their_published_values():
    bound, circle = games.LARGEST_ROTATION, 1 / math.sqrt(12)

    assert games.largest_step(bound, method="egpo", tau=0.0) == pytest.approx(2 * math.sqrt(2), abs=1e-6)
    assert games.largest_step(bound, method="omwu", tau=0.0) == pytest.approx(1 / (math.sqrt(3) * bound), abs=1e-4)
    assert games.largest_step(circle, method="omwu", tau=0.0) == pytest.approx(2.0, abs=1e-4)
    assert games.largest_step(bound, method="inpo", tau=1e-4) == pytest.approx(16 * 1e-4, rel=1e-4)
    assert games.largest_step(0.1466, method="inpo", tau=0.1) == pytest.approx(
        1 / games.critical_eta(0.1466, 0.1), rel=1e-9
    )


def test_what_never_converges_has_no_step_and_what_always_does_has_the_largest():
    assert games.largest_step(0.2, method="sppo", tau=0.1) == 0.0
    assert games.largest_step(0.2, method="inpo", tau=0.0) == 0.0
    assert games.largest_step(0.01, method="inpo", tau=0.5) == pytest.approx(2.0)
    assert games.largest_step(0.0, method="egpo", tau=0.5) == pytest.approx(2.0)
    for method in METHODS:
        assert math.isinf(games.largest_step(0.0, method=method, tau=0.0))


def test_sppo_grows_errors_for_every_step_and_does_not_look_at_tau():
    for step in (0.01, 1.0, 1000.0):
        radius = games.spectral_radius(0.2, method="sppo", step=step, tau=0.1)
        assert radius == pytest.approx(math.hypot(1.0, 0.2 * step))
        assert radius == games.spectral_radius(0.2, method="sppo", step=step, tau=0.0)


def test_the_five_game_rotates_in_two_planes_and_the_fastest_is_returned():
    solution = games.regularised_nash(PENTAGON, PENTAGON_START, tau=0.1)
    values = np.sort(np.linalg.eigvals((PENTAGON - 0.5) @ (np.diag(solution) - np.outer(solution, solution))).imag)

    assert values[-1] > 2 * values[-2] > 0
    assert games.rotation(PENTAGON, solution) == pytest.approx(values[-1])


def test_unknown_methods_and_impossible_numbers_are_refused():
    with pytest.raises(ValueError, match="method must be one of sppo, inpo, egpo, omwu, not 'ppo'"):
        games.spectral_radius(0.1, method="ppo", step=1.0, tau=0.1)
    with pytest.raises(ValueError, match="method must be one of"):
        games.largest_step(0.1, method="ppo", tau=0.1)
    for value in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="omega must be finite and not negative"):
            games.critical_eta(value, 0.1)
        with pytest.raises(ValueError, match="omega must be finite and not negative"):
            games.spectral_radius(value, method="egpo", step=1.0, tau=0.1)
        with pytest.raises(ValueError, match="tau must be finite and not negative"):
            games.largest_step(0.1, method="omwu", tau=value)
    with pytest.raises(ValueError, match="step must be positive and finite"):
        games.spectral_radius(0.1, method="egpo", step=0.0, tau=0.1)
    with pytest.raises(ValueError, match="tau must be positive and finite"):
        games.best_eta(0.1, 0.0)
