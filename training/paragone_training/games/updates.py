"""One exact step of every method, as exponential weights in log space, and schedules over iterations.

All of them are ``mirror_update``, the exact counterpart of the one fit in ``policy.methods.pairwise``:

    log pi' = (1 - h tau) log base + h tau log mu + h P opponent - log Z

A policy pi and a reference mu are [n], and so is the policy that an update returns; a preference is [n, n], P(row beats
column). ``step`` is h, in nats of log-ratio per unit of win rate; ``tau`` is the weight of the KL to the reference, and
0 aims at the game without one. A response with probability 0 under the base (or under the reference, where it has
weight) keeps probability 0.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlogy

from paragone_training.games.game import (
    Float64s,
    check_positive,
    checked_policy,
    checked_preference,
)

__all__ = [
    "decreasing_eta",
    "egpo_update",
    "inpo_update",
    "mirror_update",
    "mpo_eta",
    "nash_mp_step",
    "omwu_step",
    "reference_iterate",
    "sppo_update",
]


def mirror_update(
    base: ArrayLike,
    opponent: ArrayLike,
    preference: ArrayLike,
    reference: ArrayLike,
    *,
    step: float,
    tau: float,
) -> Float64s:
    """Return the step from ``base`` towards what beats ``opponent``, drawn to ``reference``.

        pi'(y) ∝ base(y)^(1 - h tau) mu(y)^(h tau) exp(h P(y > opponent))

    Source: INPO (arXiv 2407.00617), the mirror-descent step of §3, with base and opponent told apart.

    Args:
        base: the policy that the step starts from. [n]
        opponent: the policy that win rates are measured against. [n]

    Raises:
        ValueError: if the preference or a policy is none, the step is not positive and finite, step * tau lies outside
            [0, 1], or base and reference share no response.
    """
    table = checked_preference(preference)
    start = checked_policy(base, len(table), name="base")
    other = checked_policy(opponent, len(table), name="opponent")
    mu = checked_policy(reference, len(table), name="reference")
    check_positive(step=step)
    pull = step * tau
    if not 0 <= pull <= 1:
        raise ValueError(f"step * tau must lie in [0, 1], not {pull}: lower the step")
    # xlogy is 0 at 0 log 0: a policy without weight in the mixture may have responses of probability 0.
    return _normalised(xlogy(1.0 - pull, start) + xlogy(pull, mu) + step * (table @ other))


def sppo_update(policy: ArrayLike, preference: ArrayLike, *, eta: float) -> Float64s:
    """Return the exponential-weights (Hedge) step of SPPO's theory.

        pi'(y) ∝ pi(y) exp(eta P(y > pi))

    Source: Wu et al., SPPO (arXiv 2405.00675), §4; Freund and Schapire (1999). The trained loss has another minimiser
    (its constant eta/2 in place of log Z), which differs by the third order of eta.

    Raises:
        ValueError: if the preference or the policy is none, or eta is not positive and finite.
    """
    check_positive(eta=eta)
    table = checked_preference(preference)
    pi = checked_policy(policy, len(table))
    return _normalised(xlogy(1.0, pi) + eta * (table @ pi))


def inpo_update(policy: ArrayLike, preference: ArrayLike, reference: ArrayLike, *, eta: float, tau: float) -> Float64s:
    """Return the step of INPO. Its eta is the INVERSE of the step, unlike SPPO's.

        pi'(y) ∝ exp(P(y > pi)/eta) mu(y)^(tau/eta) pi(y)^(1 - tau/eta)

    Source: Zhang et al., INPO (arXiv 2407.00617), the closed form of §3. It is MPO's step with eta = ``mpo_eta``.

    Args:
        eta: weight of the KL to pi.
        tau: weight of the KL to mu, in [0, eta].

    Raises:
        ValueError: if the preference or a policy is none, eta is not positive and finite, or tau lies outside [0, eta].
    """
    check_positive(eta=eta)
    if not 0 <= tau <= eta:
        raise ValueError(f"tau must lie in [0, eta] = [0, {eta}], not {tau}: raise eta (a smaller step) or lower tau")
    # tau/eta may exceed 1 by rounding where both are equal; the step is then exactly 1/tau.
    step = 1.0 / eta
    return mirror_update(policy, policy, preference, reference, step=step, tau=min(tau, 1.0 / step))


def egpo_update(policy: ArrayLike, preference: ArrayLike, reference: ArrayLike, *, step: float, tau: float) -> Float64s:
    """Return the extragradient step: look ahead to v, then step from pi against v.

        v(y)   ∝ pi(y)^(1 - h tau) mu(y)^(h tau) exp(h P(y > pi))
        pi'(y) ∝ pi(y)^(1 - h tau) mu(y)^(h tau) exp(h P(y > v))

    Source: Zhou et al., EGPO (arXiv 2503.08942), and the authors' simulation code. Nash-MP with step s is this with
    ``nash_mp_step(s, tau)``.

    Raises:
        ValueError: if the preference or a policy is none, the step is not positive and finite, or step * tau lies
            outside [0, 1].
    """
    # Both steps begin at pi; the look-ahead is only an opponent.
    half = mirror_update(policy, policy, preference, reference, step=step, tau=tau)
    return mirror_update(policy, half, preference, reference, step=step, tau=tau)


def omwu_step(
    policy: ArrayLike,
    base: ArrayLike | None,
    preference: ArrayLike,
    reference: ArrayLike,
    *,
    step: float,
    tau: float,
) -> tuple[Float64s, Float64s]:
    """Return the next policy and the next base of optimistic multiplicative weights.

        b_t(y)     ∝ b_{t-1}(y)^(1 - h tau) mu(y)^(h tau) exp(h P(y > v_t))
        v_{t+1}(y) ∝ b_t(y)^(1 - h tau)     mu(y)^(h tau) exp(h P(y > v_t))

    At the start, base None, the previous win rates are taken to be the present ones, which makes b_0 the policy itself.
    One round of the oracle a step. With tau = 0, log v_{t+1} = log v_t + h (2 W_t - W_{t-1}), the sequence that ONPO
    plays. Source: Cen et al. (arXiv 2105.15186); arXiv 2512.24818 for tau = 0; ONPO (arXiv 2502.16852).

    Args:
        policy: v_t, the policy that is played. [n]
        base: b_{t-1}, the second of the last call's answers; None at the start. [n]

    Returns:
        v_{t+1}, to be played next, and b_t, to be handed back. [n], [n]

    Raises:
        ValueError: if the preference or a policy is none, the step is not positive and finite, or step * tau lies
            outside [0, 1].
    """
    if base is None:
        # With the present win rates in place of the previous ones, the base comes out as the policy itself.
        now = checked_policy(policy, len(checked_preference(preference)))
    else:
        now = mirror_update(base, policy, preference, reference, step=step, tau=tau)
    return mirror_update(now, policy, preference, reference, step=step, tau=tau), now


def nash_mp_step(step: float, tau: float) -> float:
    """Return the step with which EGPO is Nash-MP (mirror prox) of the given step.

        h' = h / (1 + h tau)

    Source: arXiv 2505.19731 (version 1) for Nash-MP; the identity is derived in docs/policy-mathematics.md.

    Args:
        step: h of Nash-MP, in nats per unit of win rate; 2 in the paper.

    Raises:
        ValueError: if step is not positive and finite, or tau is negative.
    """
    check_positive(step=step)
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, not {tau}")
    return step / (1.0 + step * tau)


def mpo_eta(step: float, tau: float) -> float:
    """Return the eta with which INPO is MPO (magnetic mirror descent) of the given step.

        eta = tau + 1/h

    Source: arXiv 2410.16714 for MPO; the identity is derived in docs/policy-mathematics.md.

    Args:
        step: h of MPO, in nats per unit of win rate.
        tau: weight of the KL to the magnet.

    Raises:
        ValueError: if step is not positive and finite, or tau is negative.
    """
    check_positive(step=step)
    if not tau >= 0:
        raise ValueError(f"tau must not be negative, not {tau}")
    return tau + 1.0 / step


def reference_iterate(iteration: int, *, every: int | None = None) -> int:
    """Return which iterate is the reference mu in this iteration, by its index.

        every None: 0, the initial policy;  every n: n * floor(t / n)

    ``every=1`` is the previous iterate (the policy that generates the data). Resetting the reference every n iterations
    turns a method that solves the regularised game into one whose last iterate solves the game without reference.
    Source: COMAL (arXiv 2410.23223), algorithm 1, which is also MPO's magnet (arXiv 2410.16714).

    Args:
        iteration: t, from 0; in iteration t the policy in training starts from iterate t.
        every: iterations between resets; None never resets.

    Raises:
        ValueError: if iteration is negative, or every is given and below 1.
    """
    if iteration < 0:
        raise ValueError(f"iteration must not be negative, not {iteration}")
    if every is None:
        return 0
    if every < 1:
        raise ValueError(f"every must be at least 1 iteration, not {every}")
    return iteration - iteration % every


def decreasing_eta(iteration: int, *, tau: float) -> float:
    """Return INPO's eta for last-iterate convergence: the step shrinks as 1/t.

        eta_t = tau (t + 2) / 2,   t from 0

    It starts at eta = tau, where the current policy has weight 0. Source: Zhang et al., INPO (arXiv 2407.00617), the
    theorem on the last iterate in §3.

    Raises:
        ValueError: if iteration is negative or tau is not positive and finite.
    """
    check_positive(tau=tau)
    if iteration < 0:
        raise ValueError(f"iteration must not be negative, not {iteration}")
    return tau * (iteration + 2) / 2


def _normalised(log_weight: Float64s) -> Float64s:
    """Return the distribution with these log-weights, up to a constant; [n]."""
    largest = log_weight.max()
    if largest == -np.inf:
        raise ValueError("base and reference have no response in common: nothing is left to play")
    # Shifted by the largest, so that nothing overflows whatever the step is.
    weight = np.exp(log_weight - largest)
    return np.asarray(weight / weight.sum())
