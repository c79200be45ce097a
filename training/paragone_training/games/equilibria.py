"""Solutions of a preference game, with and without reference, and how far a policy is from them.

A policy pi and a reference mu are [n]; a preference is [n, n], P(row beats column).
"""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from paragone_models.tournament import nash
from paragone_training.games.game import Float64s, check_positive, checked_policy, checked_preference

__all__ = ["duality_gap", "kl", "nash", "regularised_nash"]

# Largest error of log pi in the fixed-point equation that counts as solved.
_CONVERGED = 1e-12
_NEWTON_STEPS = 60
# From here on upwards Newton's method converges from the reference itself.
_EASIEST_TAU = 1.0
# Factors by which tau is lowered from one solved game to the next: tried first, and the smallest before giving up.
_LARGE_STEP, _SMALL_STEP = 0.5, 0.999
# Relative differences below which x - log(1 + x) is summed as a series: the plain difference would be rounding.
_SERIES_BELOW = 1e-4


def kl(first: ArrayLike, second: ArrayLike) -> float:
    """Return KL(p || q) of two policies [n], accurate also where the two differ by rounding alone.

        KL = sum_y p(y) [x - log(1 + x)],  x = (q(y) - p(y)) / p(y)

    Every summand is non-negative, so nothing cancels. Source: the Bregman form of the KL divergence.

    Returns:
        Nats; infinite where q is 0 and p is not.

    Raises:
        ValueError: if one is no distribution or the lengths differ.
    """
    size = np.asarray(first).size
    p, q = checked_policy(first, size, name="first"), checked_policy(second, size, name="second")
    played = p > 0
    if bool((q[played] == 0).any()):
        return float("inf")
    x = (q[played] - p[played]) / p[played]
    small = np.clip(x, -_SERIES_BELOW, _SERIES_BELOW)
    series = small**2 * (1 / 2 - small * (1 / 3 - small * (1 / 4 - small / 5)))
    log_ratio = np.log(q[played]) - np.log(p[played])
    summands = np.where(np.abs(x) < _SERIES_BELOW, series, x - log_ratio)
    return float((p[played] * summands).sum() + q[~played].sum())


def regularised_nash(preference: ArrayLike, reference: ArrayLike, *, tau: float) -> Float64s:
    """Return the only Nash equilibrium of the game in which both players pay tau KL(. || mu).

        pi(y) ∝ mu(y) exp(P(y > pi) / tau)

    Solved by Newton's method on log pi, through a falling sequence of tau from where that surely converges; the Newton
    matrix is the identity plus something skew, hence never singular. Source: INPO (arXiv 2407.00617), §3, for the game.

    Args:
        tau: weight of the KL; for tau = 0 ask ``nash``.

    Returns:
        The equilibrium, with the support of the reference; log pi is right to 1e-12 of the largest 1 / tau. [n]

    Raises:
        ValueError: if the preference or the reference is none, or tau is not positive and finite.
        ArithmeticError: if the iteration stops short of a solution, which needs a tau near rounding.
    """
    table = checked_preference(preference)
    mu = checked_policy(reference, len(table), name="reference")
    check_positive(tau=tau)
    # What mu never plays costs an infinite KL, so the equilibrium never plays it.
    support = mu > 0
    payoff = table[np.ix_(support, support)] - 0.5
    log_mu = np.log(mu[support] / mu[support].sum())
    # Near tau = 0 Newton needs a start near the solution: games with larger tau lead there.
    solved_at = max(tau, _EASIEST_TAU)
    solution = _newton(payoff, log_mu, log_mu, solved_at)
    factor = _LARGE_STEP
    while solution is not None and solved_at > tau:
        lower = max(tau, solved_at * factor)
        attempt = _newton(payoff, log_mu, solution, lower)
        if attempt is not None:
            solution, solved_at = attempt, lower
        # Too bold a step: try one half as long on the logarithmic scale.
        elif factor < _SMALL_STEP:
            factor = math.sqrt(factor)
        else:
            solution = None
    if solution is None:
        raise ArithmeticError(f"no solution found for tau = {tau}: it is too small for this game, ask nash instead")
    equilibrium = np.zeros(len(table))
    equilibrium[support] = np.exp(solution - logsumexp(solution))
    return equilibrium


def _newton(payoff: Float64s, log_mu: Float64s, start: Float64s, tau: float) -> Float64s | None:
    """Return log pi with log pi = log mu + payoff pi / tau - log Z, or None where the iteration does not get there.

    Unknowns are u = log pi and c = log Z; the equations are u - log mu - payoff e^u / tau + c = 0 and sum e^u = 1.
    """
    size = len(log_mu)
    u, c, solved = start, 0.0, False
    for _ in range(_NEWTON_STEPS):
        policy = np.exp(u)
        error = np.append(u - log_mu - payoff @ policy / tau + c, policy.sum() - 1.0)
        if solved:
            return np.asarray(u)
        solved = bool(np.abs(error).max() <= _CONVERGED * max(1.0, 1.0 / tau))  # and one more step, to rounding
        jacobian = np.zeros((size + 1, size + 1))
        jacobian[:size, :size] = np.eye(size) - payoff * policy / tau
        jacobian[:size, size] = 1.0
        jacobian[size, :size] = policy
        change = np.linalg.solve(jacobian, -error)
        # Shares may fall as fast as they like; e^u must not overshoot upwards.
        length = min(1.0, 2.0 / max(float(change[:size].max()), 1e-300))
        u, c = u + length * change[:size], c + length * change[size]
        if not bool(np.isfinite(u).all()) or float(u.max()) > 50.0:
            return None
    return None


def duality_gap(policy: ArrayLike, preference: ArrayLike, reference: ArrayLike, *, tau: float) -> float:
    """Return how much both players together could win by deviating from (policy, policy).

        gap = 2 tau log sum_y mu(y) exp(P(y > pi) / tau) + 2 tau KL(pi || mu) - 1
        gap = 2 max_y P(y > pi) - 1                                               for tau = 0

    It is never negative and 0 exactly at the (regularised) Nash equilibrium. Derived from the game J(p, q) = p^T P q -
    tau KL(p || mu) + tau KL(q || mu) of INPO (arXiv 2407.00617), §3.

    Args:
        tau: weight of the KL; 0 is the game without reference.

    Returns:
        The gap, in units of probability; infinite where pi plays what mu never does and tau > 0.

    Raises:
        ValueError: if the preference or a policy is none, or tau is negative or not finite.
    """
    table = checked_preference(preference)
    pi = checked_policy(policy, len(table))
    mu = checked_policy(reference, len(table), name="reference")
    win_rate = table @ pi
    if tau == 0:
        return max(0.0, 2.0 * float(win_rate.max()) - 1.0)
    check_positive(tau=tau)
    # log sum exp with weights mu: the value of the best response is known in closed form.
    best_response = tau * float(logsumexp((win_rate - 0.5) / tau, b=mu))
    return max(0.0, 2.0 * best_response + 2.0 * tau * kl(pi, mu))
