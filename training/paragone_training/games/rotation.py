"""How fast play turns in circles, and which steps still converge.

Near its equilibrium a method multiplies the error of log pi by a complex number; the game enters through omega alone,
the largest of the eigenvalues ±i omega of (P - 1/2)(diag pi - pi pi^T): 0 where P - 1/2 is a difference f_i - f_j,
and below 1/(2 sqrt 2) in every game. All limits here are local: how far the basin reaches, only runs tell.
"""

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from paragone_training.games.inputs import check_positive, checked_policy, checked_preference

__all__ = [
    "LARGEST_ROTATION",
    "Method",
    "best_eta",
    "critical_eta",
    "largest_step",
    "rotation",
    "spectral_radius",
]

Method = Literal["sppo", "inpo", "egpo", "omwu"]

LARGEST_ROTATION = 1.0 / (2.0 * math.sqrt(2.0))
"""No preference game reaches this omega: 2 omega² <= sum_ij pi_i pi_j (P_ij - 1/2)² < 1/4."""

_STEPS_TRIED = 400
"""Points of the grid on which the first step that diverges is looked for, before it is bisected."""


def rotation(preference: ArrayLike, policy: ArrayLike) -> float:
    """Return omega, the speed in radians per nat of step at which play near ``policy`` circles.

        ±i omega = the largest eigenvalues of (P - 1/2)(diag pi - pi pi^T)

    Source: linearisation of exponential weights in log pi, derived in docs/policy-mathematics.md.

    Args:
        preference: P(row beats column). [n, n]
        policy: where to look: the (regularised) Nash equilibrium, or the policy that sampled the responses. [n]

    Returns:
        A number in [0, 1/(2 sqrt 2)).

    Raises:
        ValueError: if the preference or the policy is none.
    """
    table = checked_preference(preference)
    pi = checked_policy(policy, len(table))
    root = np.sqrt(pi)
    # Similar to the matrix above, and skew by construction, so that i times it is Hermitian: eigenvalues are exact.
    centred = np.diag(root) - np.outer(root, pi)
    skew = centred @ ((table - table.T) / 2.0) @ centred.T
    return float(max(0.0, np.linalg.eigvalsh(1j * skew).max()))


def critical_eta(omega: float, tau: float) -> float:
    """Return the eta above which INPO converges near the regularised Nash, and below which it circles.

        eta > (tau² + omega²) / (2 tau)

    From |1 - tau/eta + i omega/eta| < 1. Where it is below tau, INPO converges for every eta it allows.

    Args:
        omega: rotation at the regularised Nash.
        tau: weight of the KL to the reference.

    Raises:
        ValueError: if omega is negative or not finite, or tau is not positive and finite.
    """
    return best_eta(omega, tau) / 2.0


def best_eta(omega: float, tau: float) -> float:
    """Return the eta with which INPO converges fastest near the regularised Nash.

        eta = (tau² + omega²) / tau, with the error multiplied by omega / sqrt(tau² + omega²) an iteration

    Args:
        omega: rotation at the regularised Nash.
        tau: weight of the KL to the reference.

    Raises:
        ValueError: if omega is negative or not finite, or tau is not positive and finite.
    """
    check_positive(tau=tau)
    _check_omega(omega)
    return (tau**2 + omega**2) / tau


def spectral_radius(omega: float, *, method: Method, step: float, tau: float) -> float:
    """Return by how much an iteration multiplies a small error of log pi in the plane that rotates with omega.

        with r = h tau and x = h omega:
        SPPO  |1 + i x|                              INPO  |1 - r + i x|                     (INPO's h is 1/eta)
        EGPO  |(1 - r)(1 + i x) - x²|                OMWU  largest root of z² - (1 - r + (2 - r) i x) z + (1 - r) i x

    Below 1 the method converges locally, above 1 it spirals outwards. Source: derived in docs/policy-mathematics.md.

    Args:
        omega: rotation at the equilibrium that the method aims at.
        method: whose update.
        step: h, nats of log-ratio per unit of win rate.
        tau: weight of the KL to the reference; SPPO has none and does not look at it.

    Raises:
        ValueError: if the method is unknown, omega is negative or not finite, the step is not positive and finite, or
            tau is negative or not finite.
    """
    check_positive(step=step)
    _check_omega(omega)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be finite and not negative, not {tau}")
    pull, turn = step * tau, step * omega
    if method == "sppo":
        return abs(1.0 + 1j * turn)
    if method == "inpo":
        return abs(1.0 - pull + 1j * turn)
    if method == "egpo":
        return abs((1.0 - pull) * (1.0 + 1j * turn) - turn**2)
    if method == "omwu":
        roots = np.roots([1.0, -(1.0 - pull + (2.0 - pull) * 1j * turn), (1.0 - pull) * 1j * turn])
        return float(np.abs(roots).max())
    raise ValueError(f"method must be one of {', '.join(get_args(Method))}, not {method!r}")


def largest_step(omega: float, *, method: Method, tau: float) -> float:
    """Return the step up to which a method converges near its equilibrium, within step * tau <= 1.

    Args:
        omega: rotation at the equilibrium that the method aims at.
        method: whose update.
        tau: weight of the KL to the reference.

    Returns:
        The first step with spectral radius 1; 0 where no step converges (SPPO, INPO with tau 0), 1 / tau where every
        step that keeps the weights non-negative does, infinite where omega and tau are both 0.

    Raises:
        ValueError: if the method is unknown, omega is negative or not finite, or tau is negative or not finite.
    """
    spectral_radius(omega, method=method, step=1.0, tau=tau)
    if omega == 0 and (tau == 0 or method == "sppo"):
        return math.inf
    if method == "sppo" or (method == "inpo" and tau == 0):
        return 0.0
    end = min(1.0 / tau if tau > 0 else math.inf, 4.0 / omega if omega > 0 else math.inf)
    steps = np.linspace(0.0, end, _STEPS_TRIED + 1)[1:]

    def excess(step: float) -> float:
        return spectral_radius(omega, method=method, step=step, tau=tau) - 1.0

    outside = next((index for index, step in enumerate(steps) if excess(step) >= 0), None)
    if outside is None:
        return float(end)
    # The smallest steps of a game without reference miss 1 by their fourth power: the grid starts well above that.
    inside = steps[outside - 1] if outside else _first_inside(omega, tau, method)
    return float(brentq(excess, inside, steps[outside]))


def _first_inside(omega: float, tau: float, method: Method) -> float:
    """Return a step small enough that the method converges, where the grid was too coarse to hold one."""
    step = tau / (tau**2 + omega**2)
    while spectral_radius(omega, method=method, step=step, tau=tau) >= 1.0:
        step /= 2.0
    return step


def _check_omega(omega: float) -> None:
    if not 0 <= omega < math.inf:
        raise ValueError(f"omega must be finite and not negative, not {omega}")
