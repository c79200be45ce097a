"""A game: what a policy and a preference must look like, how fast play turns in circles, which steps still converge.

Near its equilibrium a method multiplies the error of log pi by a complex number; the game enters through omega alone,
the largest of the eigenvalues ±i omega of (P - 1/2)(diag pi - pi pi^T): 0 where P - 1/2 is a difference f_i - f_j, and
below 1/(2 sqrt 2) in every game. Omega is taken at the equilibrium that a method aims at; ``step`` is h, in nats of
log-ratio per unit of win rate, and ``tau`` the weight of the KL to the reference. All limits here are local: how far
the basin reaches, only runs tell.

A policy is [n], a preference [n, n], P(row beats column). K is the number of responses to a prompt; a table is [K, K],
P(row preferred to column), NaN where a comparison is missing. The tables of different prompts are different games:
numbers over many tables are means over prompts.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

__all__ = [
    "LARGEST_ROTATION",
    "Cycles",
    "Dynamics",
    "Float64s",
    "best_eta",
    "check_positive",
    "checked_policy",
    "checked_preference",
    "critical_eta",
    "largest_step",
    "measure_cycles",
    "rotation",
    "spectral_radius",
]

Float64s = NDArray[np.float64]
Dynamics = Literal["sppo", "inpo", "egpo", "omwu"]

# No preference game reaches this omega: 2 omega² <= sum_ij pi_i pi_j (P_ij - 1/2)² < 1/4.
LARGEST_ROTATION = 1.0 / (2.0 * math.sqrt(2.0))

# How far a sum of probabilities may be from 1: generous to tables that went through float32 or JSON.
_ROUNDING = 1e-6
# Points of the grid on which the first step that diverges is looked for, before it is bisected.
_STEPS_TRIED = 400


def checked_preference(preference: ArrayLike) -> Float64s:
    """Return the game as float64.

    Raises:
        ValueError: if it is not square, has an entry outside [0, 1] or NaN, or P + P^T is not 1.
    """
    table = np.asarray(preference, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or table.shape[0] == 0:
        raise ValueError(f"a preference must be a square matrix of at least one response, not of shape {table.shape}")
    if not (table.min() >= 0 and table.max() <= 1):  # NaN fails both
        raise ValueError("every preference must lie in [0, 1]: NaN or a value outside was given")
    if np.abs(table + table.T - 1).max() > _ROUNDING:
        raise ValueError("preference[i, j] + preference[j, i] must be 1, with 0.5 on the diagonal")
    return table


def checked_policy(policy: ArrayLike, size: int, *, name: str = "policy") -> Float64s:
    """Return the policy as float64.

    Raises:
        ValueError: if it is not [size], has a negative or non-finite entry, or does not sum to 1.
    """
    distribution = np.asarray(policy, dtype=np.float64)
    if distribution.shape != (size,):
        raise ValueError(f"{name} must be [{size}], one probability per response, not of shape {distribution.shape}")
    if not (distribution.min() >= 0 and abs(distribution.sum() - 1.0) <= _ROUNDING):  # NaN fails both
        raise ValueError(f"{name} must be a distribution: non-negative, with sum 1, not sum {distribution.sum()}")
    return distribution


def check_positive(**knobs: float) -> None:
    """Refuse knobs that are not positive and finite.

    Raises:
        ValueError: if one is not.
    """
    for name, value in knobs.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")


def rotation(preference: ArrayLike, policy: ArrayLike) -> float:
    """Return omega, below 1/(2 sqrt 2): the speed in radians per nat of step at which play near ``policy`` circles.

        ±i omega = the largest eigenvalues of (P - 1/2)(diag pi - pi pi^T)

    Source: linearisation of exponential weights in log pi, derived in docs/policy-mathematics.md.

    Args:
        policy: where to look: the (regularised) Nash equilibrium, or the policy that sampled the responses. [n]

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

    Raises:
        ValueError: if omega is negative or not finite, or tau is not positive and finite.
    """
    return best_eta(omega, tau) / 2.0


def best_eta(omega: float, tau: float) -> float:
    """Return the eta with which INPO converges fastest near the regularised Nash.

        eta = (tau² + omega²) / tau, with the error multiplied by omega / sqrt(tau² + omega²) an iteration

    Raises:
        ValueError: if omega is negative or not finite, or tau is not positive and finite.
    """
    check_positive(tau=tau)
    _check_omega(omega)
    return (tau**2 + omega**2) / tau


def spectral_radius(omega: float, *, method: Dynamics, step: float, tau: float) -> float:
    """Return by how much an iteration multiplies a small error of log pi in the plane that rotates with omega.

        with r = h tau and x = h omega:
        SPPO  |1 + i x|                              INPO  |1 - r + i x|                     (INPO's h is 1/eta)
        EGPO  |(1 - r)(1 + i x) - x²|                OMWU  largest root of z² - (1 - r + (2 - r) i x) z + (1 - r) i x

    Below 1 the method converges locally, above 1 it spirals outwards. Source: derived in docs/policy-mathematics.md.

    Raises:
        ValueError: if the method is unknown, omega is negative or not finite, the step is not positive and finite, or
            tau is negative or not finite.
    """
    check_positive(step=step)
    _check_omega(omega)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be finite and not negative, not {tau}")
    if method not in _RADII:
        raise ValueError(f"method must be one of {', '.join(_RADII)}, not {method!r}")
    return _RADII[method](step * tau, step * omega)


def _omwu_radius(pull: float, turn: float) -> float:
    # Two numbers are remembered, the policy and its base: a quadratic instead of one multiplier.
    roots = np.roots([1.0, -(1.0 - pull + (2.0 - pull) * 1j * turn), (1.0 - pull) * 1j * turn])
    return float(np.abs(roots).max())


_RADII: dict[str, Callable[[float, float], float]] = {
    "sppo": lambda _pull, turn: abs(1.0 + 1j * turn),
    "inpo": lambda pull, turn: abs(1.0 - pull + 1j * turn),
    "egpo": lambda pull, turn: abs((1.0 - pull) * (1.0 + 1j * turn) - turn**2),
    "omwu": _omwu_radius,
}


def largest_step(omega: float, *, method: Dynamics, tau: float) -> float:
    """Return the step up to which a method converges near its equilibrium, within step * tau <= 1.

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
    # Beyond 1/tau the reference would have a weight above 1; beyond 4/omega every method spirals.
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


def _first_inside(omega: float, tau: float, method: Dynamics) -> float:
    """Return a step small enough that the method converges, where the grid was too coarse to hold one."""
    # The best step of INPO; halving from there ends soon, since small steps converge where tau is positive.
    step = tau / (tau**2 + omega**2)
    while spectral_radius(omega, method=method, step=step, tau=tau) >= 1.0:
        step /= 2.0
    return step


def _check_omega(omega: float) -> None:
    if not 0 <= omega < math.inf:
        raise ValueError(f"omega must be finite and not negative, not {omega}")


@dataclass(frozen=True)
class Cycles:
    """How intransitive the oracle is on the responses that a policy gave.

    Attributes:
        triples: triples of responses of which all three comparisons exist.
        cyclic_share: share of the triples that beat each other in a circle; NaN without triples. A fair coin gives ¼.
        rotation: estimate of omega, in radians per nat of step: root mean square over prompts; NaN without triples.
        largest_rotation: the same of the most cyclic single table; noisy, and so too high, for small K.
    """

    triples: int
    cyclic_share: float
    rotation: float
    largest_rotation: float


def measure_cycles(tables: Iterable[ArrayLike]) -> Cycles:
    """Return how intransitive the oracle is on sampled tables.

        curl_ijk = (P_ij - ½) + (P_jk - ½) + (P_ki - ½),     omega² = mean over triples of curl² / 6

    E[curl²]/6 over three independent responses is the sum of all squared rotations of the game at the policy that
    sampled them. So this is unbiased in omega² whatever K, not below the largest rotation in expectation, and equal to
    it where the game has one rotation (any game of up to four responses). Labels that were sampled, or judges that
    vary, add their variance. Derived in docs/policy-mathematics.md; cyclic triples: Kendall, Babington Smith (1940).

    Args:
        tables: one per prompt, K may differ; with K < 3 a table has no triple.

    Raises:
        ValueError: if a table is not square or an entry lies outside [0, 1].
    """
    count, cyclic, energy, largest = 0, 0, 0.0, math.nan
    for table in tables:
        first, second, third = _triple_edges(table)
        # Zero where preferences are differences of rewards, whatever the rewards are.
        curl = first + second + third
        if not len(curl):
            continue
        count += len(curl)
        cyclic += int(
            ((first > 0) & (second > 0) & (third > 0)).sum() + ((first < 0) & (second < 0) & (third < 0)).sum()
        )
        # Summed over all triples, so that prompts with more responses count for more, as their estimates are better.
        energy += float((curl**2).sum())
        largest = float(np.fmax(largest, math.sqrt(float((curl**2).mean()) / 6.0)))
    if count == 0:
        return Cycles(0, math.nan, math.nan, math.nan)
    return Cycles(count, cyclic / count, math.sqrt(energy / count / 6.0), largest)


def _triple_edges(table: ArrayLike) -> tuple[Float64s, Float64s, Float64s]:
    """Return P - ½ along i -> j -> k -> i for every triple i < j < k that is complete; three times [triples]."""
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"a table must be square, [K, K], not of shape {values.shape}")
    if not bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all()):
        raise ValueError("every entry must be a probability in [0, 1], or NaN where the comparison is missing")
    # Of tables that are not exactly antisymmetric after rounding, the part that is.
    skew = (values - values.T) / 2.0
    triples = np.asarray(list(combinations(range(len(values)), 3)), dtype=np.int64).reshape(-1, 3)
    i, j, k = triples[:, 0], triples[:, 1], triples[:, 2]
    edges = skew[i, j], skew[j, k], skew[k, i]
    complete = ~np.isnan(edges[0] + edges[1] + edges[2])
    return edges[0][complete], edges[1][complete], edges[2][complete]
