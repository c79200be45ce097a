"""A small neural policy trained with the real losses on a task that can be enumerated: where does it land?

Two prompts, each with its own game of four responses; a tiny network maps a prompt to logits over its responses. The
batch is every ordered pair of responses, weighted with the probability of drawing it: the exact expectation, so that
what is tested is the loss and not sampling noise. Stated tolerance: 1e-5 in probability after L-BFGS in float64, and
1e-3 after Adam in float32.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement, product
from math import factorial, prod

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from paragone_training import games, losses
from paragone_training.policy.targets import pairs
from tests.training.games.matrices import ROCK_PAPER_SCISSORS, START, random_game

GAMES = [random_game(4, seed)[0] for seed in (21, 22)]
STARTS = [random_game(4, seed)[1] for seed in (21, 22)]
PAIRS = torch.tensor(list(product(range(2), range(4), range(4))))
PROMPT, FIRST, SECOND = PAIRS.unbind(dim=1)
TOLERANCE = 1e-5


class TinyPolicy(nn.Module):
    """A prompt's one-hot through one hidden layer to logits over four responses."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(2, 12, dtype=dtype)
        self.out = nn.Linear(12, 4, dtype=dtype)
        self.dtype = dtype

    def forward(self) -> Tensor:
        return self.out(torch.tanh(self.hidden(torch.eye(2, dtype=self.dtype)))).log_softmax(dim=-1)


def table(per_prompt: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(per_prompt))


def log(policies: list[np.ndarray]) -> Tensor:
    return table(policies).log()


def columns(logprob: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of both responses of every pair."""
    return logprob[PROMPT, FIRST], logprob[PROMPT, SECOND]


def drawn_from(policies: list[np.ndarray]) -> Tensor:
    """Return the probability of every pair under independent draws."""
    shares = table(policies)
    return shares[PROMPT, FIRST] * shares[PROMPT, SECOND] / len(policies)


def trained(loss_of: Callable[[Tensor, Tensor], Tensor], weight: Tensor) -> list[np.ndarray]:
    """Return the policies after minimising the weighted mean of a per-pair loss with L-BFGS."""
    policy = TinyPolicy()
    optimiser = torch.optim.LBFGS(
        policy.parameters(),
        max_iter=300,
        tolerance_grad=1e-11,
        tolerance_change=1e-14,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = (weight * loss_of(*columns(policy()))).sum()
        total.backward()
        return total

    optimiser.step(closure)
    with torch.no_grad():
        return list(policy().exp().numpy())


def assert_close(policies: list[np.ndarray], expected: list[np.ndarray], tolerance: float = TOLERANCE) -> None:
    for policy, wanted in zip(policies, expected, strict=True):
        np.testing.assert_allclose(policy, wanted, atol=tolerance)


def own_minimiser(start: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the distribution that minimises E_{y ~ start} (log pi/start - target)², by finding roots.

    Stationarity: r + (lam/2) e^r = target, with the multiplier lam from sum start e^r = 1.
    """

    def ratios(multiplier: float) -> np.ndarray:
        def solve(value: float) -> float:
            return float(
                brentq(lambda r: r + multiplier / 2 * np.exp(r) - value, min(value, 0.0) - 60, value, xtol=1e-15)
            )

        return np.array([solve(value) for value in target])

    multiplier = brentq(lambda lam: float(start @ np.exp(ratios(lam))) - 1.0, 0.0, 1e5, xtol=1e-14)
    return start * np.exp(ratios(multiplier))


@pytest.mark.parametrize("eta", [1.0, 4.0, 20.0])
def test_sppo_lands_on_the_minimiser_of_its_own_squared_loss_and_not_on_hedge(eta):
    rates = table([game @ start for game, start in zip(GAMES, STARTS, strict=True)])
    frozen, targets = columns(log(STARTS)), columns(rates)
    policies = trained(lambda a, b: losses.sppo_loss(a, b, *frozen, *targets, eta=eta), drawn_from(STARTS))

    expected = [own_minimiser(start, eta * (game @ start - 0.5)) for game, start in zip(GAMES, STARTS, strict=True)]
    assert_close(policies, expected)
    hedge = games.sppo_update(STARTS[0], GAMES[0], eta=eta)
    assert np.abs(policies[0] - hedge).max() > 10 * TOLERANCE


def test_for_small_eta_sppo_is_hedge_up_to_a_difference_of_third_order():
    distances = []
    for eta in (0.2, 0.1):
        own = own_minimiser(STARTS[0], eta * (GAMES[0] @ STARTS[0] - 0.5))
        distances.append(np.abs(own - games.sppo_update(STARTS[0], GAMES[0], eta=eta)).max())

    # Half the step, an eighth of the difference.
    assert distances[0] / distances[1] == pytest.approx(8.0, rel=0.1)


def test_the_multiplier_of_the_squared_loss_is_twice_the_kl_it_moves():
    """From the mean of the stationarity condition, whose target has mean 0: another way to the same minimiser."""
    target = 4.0 * (GAMES[0] @ STARTS[0] - 0.5)
    own = own_minimiser(STARTS[0], target)
    moved = games.kl(STARTS[0], own)

    np.testing.assert_allclose(np.log(own / STARTS[0]) + moved * own / STARTS[0], target, atol=1e-9)


def test_for_the_published_eta_the_minimiser_of_sppo_reweighs_what_is_above_average_in_proportion():
    advantage = GAMES[0] @ STARTS[0] - 0.5
    own = own_minimiser(STARTS[0], 1000.0 * advantage)
    linear = STARTS[0] * np.maximum(advantage, 0.0)

    np.testing.assert_allclose(own, linear / linear.sum(), atol=0.03)


def test_gpo_lands_on_the_minimiser_of_its_own_squared_loss():
    beta = 0.5
    scores = [np.log(game / game.T) for game in GAMES]
    means = [score @ start for score, start in zip(scores, STARTS, strict=True)]
    frozen, targets = columns(log(STARTS)), columns(table(means))
    policies = trained(lambda a, b: losses.gpo_loss(a, b, *frozen, *targets, beta=beta), drawn_from(STARTS))

    assert_close(policies, [own_minimiser(start, mean / beta) for start, mean in zip(STARTS, means, strict=True)])


def test_gpo_and_sppo_solve_different_games():
    """The Nash of the scores and the Nash of the probabilities, published to three digits."""
    scores = np.log(ROCK_PAPER_SCISSORS / ROCK_PAPER_SCISSORS.T)
    of_scores = games.nash(0.5 + scores / (2 * np.abs(scores).max()))

    np.testing.assert_allclose(of_scores, [0.313, 0.191, 0.496], atol=5e-4)
    np.testing.assert_allclose(games.nash(ROCK_PAPER_SCISSORS), [0.333, 0.222, 0.444], atol=5e-4)


ETA, TAU = 0.4, 0.1
REFERENCES = [np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.1, 0.1, 0.4])]


def regression(base: list[np.ndarray], pair_source: list[np.ndarray], **knobs: float) -> list[np.ndarray]:
    """Return the policies after one regression with soft labels, pairs drawn from ``pair_source``."""
    preference = table(GAMES)[PROMPT, FIRST, SECOND]
    frozen = (*columns(log(base)), *columns(log(REFERENCES)))
    setting = losses.egpo_setting(**knobs)
    return trained(
        lambda a, b: losses.pairwise_loss(a, b, *frozen, setting=setting, preference=preference),
        drawn_from(pair_source),
    )


def exactly(update: Callable[..., np.ndarray], policies: list[np.ndarray], **knobs: float) -> list[np.ndarray]:
    return [
        update(policy, game, reference, **knobs)
        for policy, game, reference in zip(policies, GAMES, REFERENCES, strict=True)
    ]


def test_inpo_with_soft_labels_lands_on_the_closed_form():
    preference = table(GAMES)[PROMPT, FIRST, SECOND]
    frozen = (*columns(log(STARTS)), *columns(log(REFERENCES)))
    policies = trained(
        lambda a, b: losses.inpo_loss(a, b, *frozen, eta=ETA, tau=TAU, preference=preference), drawn_from(STARTS)
    )

    assert_close(policies, exactly(games.inpo_update, STARTS, eta=ETA, tau=TAU))


def test_inpo_with_labels_drawn_from_the_oracle_lands_on_the_same_closed_form():
    """Every ordered pair, chosen first: weighted with the probability that it is drawn and labelled so."""
    weight = drawn_from(STARTS) * table(GAMES)[PROMPT, FIRST, SECOND]
    frozen = (*columns(log(STARTS)), *columns(log(REFERENCES)))
    policies = trained(lambda a, b: losses.inpo_loss(a, b, *frozen, eta=ETA, tau=TAU), weight)

    assert_close(policies, exactly(games.inpo_update, STARTS, eta=ETA, tau=TAU))


def test_ipo_on_its_own_pairs_lands_on_the_answer_to_the_reference():
    weight = drawn_from(REFERENCES) * table(GAMES)[PROMPT, FIRST, SECOND]
    frozen = columns(log(REFERENCES))
    policies = trained(lambda a, b: losses.ipo_loss(a, b, *frozen, tau=TAU), weight)

    assert_close(policies, exactly(games.inpo_update, REFERENCES, eta=TAU, tau=TAU))


def test_egpo_as_two_regressions_lands_on_the_extragradient_step():
    half = regression(STARTS, STARTS, step=2.0, tau=TAU)
    full = regression(STARTS, half, step=2.0, tau=TAU)

    assert_close(full, exactly(games.egpo_update, STARTS, step=2.0, tau=TAU))
    assert np.abs(full[0] - half[0]).max() > 1e-2


def test_omwu_as_two_regressions_on_the_same_pairs_follows_the_exact_steps():
    policies, bases = STARTS, None
    exact = [(start, None) for start in STARTS]
    for _ in range(3):
        bases = STARTS if bases is None else regression(bases, policies, step=1.0, tau=TAU)
        policies = regression(bases, policies, step=1.0, tau=TAU)
        exact = [
            games.omwu_step(policy, base, game, reference, step=1.0, tau=TAU)
            for (policy, base), game, reference in zip(exact, GAMES, REFERENCES, strict=True)
        ]
        assert_close(policies, [policy for policy, _ in exact])
        assert_close(bases, [base for _, base in exact])


def test_fifteen_iterations_of_inpo_land_on_the_regularised_nash():
    targets = [games.regularised_nash(game, mu, tau=0.3) for game, mu in zip(GAMES, REFERENCES, strict=True)]
    speed = max(games.rotation(game, target) for game, target in zip(GAMES, targets, strict=True))
    policies = REFERENCES
    for _ in range(15):
        policies = regression(policies, policies, step=1 / games.best_eta(speed, 0.3), tau=0.3)

    assert_close(policies, targets, tolerance=1e-4)


def test_dpo_on_labels_of_a_rating_model_lands_on_the_tilted_reference():
    """Where P is Bradley-Terry with rewards r, DPO's optimum is mu exp(r/beta) (a known closed form)."""
    rewards = np.array([[0.5, -0.2, 0.1, 0.0], [1.0, 0.3, -0.4, 0.2]])
    wins = torch.from_numpy(1 / (1 + np.exp(rewards[:, None, :] - rewards[:, :, None])))
    weight = drawn_from(REFERENCES) * wins[PROMPT, FIRST, SECOND]
    frozen = columns(log(REFERENCES))
    policies = trained(lambda a, b: losses.dpo_loss(a, b, *frozen, beta=0.5), weight)

    tilted = np.stack(REFERENCES) * np.exp(rewards / 0.5)
    assert_close(policies, list(tilted / tilted.sum(axis=1, keepdims=True)))


def test_adam_in_float32_on_the_scaled_loss_lands_there_too():
    policy = TinyPolicy(torch.float32)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1.0 - step / 400)
    weight = drawn_from(STARTS).float()
    preference = table(GAMES)[PROMPT, FIRST, SECOND].float()
    frozen = [column.float() for column in (*columns(log(STARTS)), *columns(log(REFERENCES)))]
    scale = losses.inpo_setting(eta=ETA, tau=TAU).scale
    for _ in range(400):
        optimiser.zero_grad()
        raw = losses.inpo_loss(*columns(policy()), *frozen, eta=ETA, tau=TAU, preference=preference)
        (scale * (weight * raw).sum()).backward()
        optimiser.step()
        schedule.step()

    with torch.no_grad():
        policies = list(policy().exp().double().numpy())
    assert_close(policies, exactly(games.inpo_update, STARTS, eta=ETA, tau=TAU), tolerance=1e-3)


def least_squares(rows: list[tuple[int, int, float, float]], base: np.ndarray, eta: float, tau: float) -> np.ndarray:
    """Return the minimiser of the INPO loss over (chosen, rejected, label, weight) by weighted least squares."""
    design, target, weights = [], [], []
    for chosen, rejected, label, weight in rows:
        contrast = np.zeros(3)
        contrast[chosen] += 1.0
        contrast[rejected] -= 1.0
        design.append(contrast)
        drift = tau / eta * contrast @ np.log(START) + (1 - tau / eta) * contrast @ np.log(base)
        target.append(label / eta + drift)
        weights.append(np.sqrt(weight))
    scale = np.array(weights)
    solution = np.linalg.lstsq(np.array(design) * scale[:, None], np.array(target) * scale, rcond=None)[0]
    share = np.exp(solution - solution.max())
    return share / share.sum()


def test_independent_pairs_with_sampled_labels_reproduce_the_closed_form_to_rounding():
    base, game = np.array([0.25, 0.35, 0.4]), ROCK_PAPER_SCISSORS
    rows = [
        (first, second, 0.5, base[first] * base[second] * game[first, second])
        for first, second in product(range(3), repeat=2)
    ]
    soft = [
        (first, second, game[first, second] - 0.5, base[first] * base[second])
        for first, second in product(range(3), repeat=2)
    ]
    majority = [
        (first, second, 0.5, base[first] * base[second] * float(game[first, second] > 0.5))
        for first, second in product(range(3), repeat=2)
    ]
    exact = games.inpo_update(base, game, START, eta=0.3, tau=0.1)

    np.testing.assert_allclose(least_squares(rows, base, 0.3, 0.1), exact, atol=1e-14)
    np.testing.assert_allclose(least_squares(soft, base, 0.3, 0.1), exact, atol=1e-14)
    # The majority label solves the game of 1[P > 1/2] instead.
    decided = (game > 0.5) + 0.5 * np.eye(3)
    np.testing.assert_allclose(
        least_squares(majority, base, 0.3, 0.1),
        games.inpo_update(base, decided, START, eta=0.3, tau=0.1),
        atol=1e-14,
    )


def test_best_versus_worst_of_eight_does_not_reproduce_it_and_has_its_published_bias():
    from paragone_training.policy import targets as estimators

    rows = []
    for drawn in combinations_with_replacement(range(3), 8):
        counts = np.bincount(drawn, minlength=3)
        chance = factorial(8) / prod(factorial(count) for count in counts) * float(np.prod(START**counts))
        sample = np.array(drawn)
        best_worst = estimators.pairs(
            ROCK_PAPER_SCISSORS[np.ix_(sample, sample)], selection="best-versus-worst", labels="soft"
        )
        for chosen, rejected in zip(best_worst.chosen, best_worst.rejected, strict=True):
            # The published numbers label the best as the winner even where the worst beats it.
            rates = ROCK_PAPER_SCISSORS @ counts / 8
            best, worst = sample[chosen], sample[rejected]
            best, worst = (best, worst) if rates[best] > rates[worst] else (worst, best)
            rows.append((int(best), int(worst), 0.5, chance))

    biased = least_squares(rows, START, 0.3, 0.1)
    exact = games.inpo_update(START, ROCK_PAPER_SCISSORS, START, eta=0.3, tau=0.1)
    np.testing.assert_allclose(biased, [0.721, 0.085, 0.194], atol=5e-4)
    np.testing.assert_allclose(exact, [0.623, 0.180, 0.197], atol=5e-4)


def test_the_one_sampled_pair_loss_is_unbiased_in_its_gradient():
    """Averaged over many draws through the estimators, the gradient is that of the full expectation."""
    from paragone_training.policy import targets as estimators

    generator = np.random.default_rng(3)
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    frozen = torch.from_numpy(np.log(START))

    def gradient(chosen: Tensor, rejected: Tensor, weight: Tensor) -> Tensor:
        logprob = logits.log_softmax(dim=0)
        loss = losses.inpo_loss(
            logprob[chosen], logprob[rejected], *(frozen[chosen], frozen[rejected]) * 2, eta=1.0, tau=0.1
        )
        return torch.autograd.grad((weight * loss).sum(), logits)[0]

    first, second = (index.flatten() for index in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    game, shares = torch.from_numpy(ROCK_PAPER_SCISSORS), torch.from_numpy(START)
    # Of a pair drawn in either order the first is the chosen one: twice.
    exact = gradient(first, second, 2 * shares[first] * shares[second] * game[first, second])

    chosen, rejected, prompts, size = [], [], 3000, 4
    for draw in generator.choice(3, size=(prompts, size), p=START):
        pairs = estimators.pairs(
            ROCK_PAPER_SCISSORS[np.ix_(draw, draw)],
            selection="all",
            labels="sampled",
            ties="keep",
            generator=generator,
        )
        chosen.append(draw[pairs.chosen])
        rejected.append(draw[pairs.rejected])
    # Equal responses are ties, and the loss of two equal responses is constant in the policy.
    sampled = gradient(
        torch.from_numpy(np.concatenate(chosen)),
        torch.from_numpy(np.concatenate(rejected)),
        torch.full((prompts * 6,), 1.0 / (prompts * 6), dtype=torch.float64),
    )
    torch.testing.assert_close(sampled, exact, atol=0.02, rtol=0.0)


def test_ties_belong_to_the_fit_of_soft_labels():
    # Three responses: the first beats the third by .8, the others tie; drawn uniformly, which is the reference too.
    preference = np.array([[0.5, 0.5, 0.2], [0.5, 0.5, 0.9], [0.8, 0.1, 0.5]])
    uniform = np.full(3, 1 / 3)
    eta, tau = 0.2, 0.05

    def fitted(ties: str) -> np.ndarray:
        made = pairs(preference, selection="all", labels="soft", ties=ties)
        # Least squares of the pairs' log-ratios: gain * (P - 1/2) each, over what the step is divided by.
        design = np.zeros((len(made), 3))
        design[np.arange(len(made)), made.chosen], design[np.arange(len(made)), made.rejected] = 1.0, -1.0
        logits = np.linalg.lstsq(design, (made.preference - 0.5) / eta, rcond=None)[0]
        return np.exp(logits) / np.exp(logits).sum()

    exact = games.inpo_update(uniform, preference, uniform, eta=eta, tau=tau)
    np.testing.assert_allclose(fitted("keep"), exact, atol=1e-9)
    assert np.abs(fitted("drop") - exact).max() > 0.02
