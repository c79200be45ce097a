"""What can be known about a run from its numbers alone: cycles, steps that cannot converge, start values, noise. numpy.

K is the number of responses to a prompt; a table is [K, K], P(row preferred to column), NaN where a comparison is
missing. The tables of different prompts are different games: numbers over many tables are means over prompts.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paragone_training.games.inputs import check_positive
from paragone_training.games.rotation import Method, critical_eta, largest_step, spectral_radius

__all__ = [
    "Cycles",
    "NoiseFloor",
    "check_noise_floor",
    "convergence_warning",
    "dpo_start",
    "gpo_start",
    "measure_cycles",
    "noise_floor",
    "pairwise_start",
    "sppo_start",
]

Float64s = NDArray[np.float64]


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
        curl = first + second + third
        if not len(curl):
            continue
        count += len(curl)
        cyclic += int(
            ((first > 0) & (second > 0) & (third > 0)).sum() + ((first < 0) & (second < 0) & (third < 0)).sum()
        )
        energy += float((curl**2).sum())
        largest = float(np.fmax(largest, math.sqrt(float((curl**2).mean()) / 6.0)))
    if count == 0:
        return Cycles(0, math.nan, math.nan, math.nan)
    return Cycles(count, cyclic / count, math.sqrt(energy / count / 6.0), largest)


def convergence_warning(omega: float, *, method: Method, tau: float, eta: float) -> str | None:
    """Return what to tell the user where the chosen eta and tau cannot converge, else None.

        INPO circles where eta <= (tau² + omega²)/(2 tau); SPPO, with no KL, for every eta where omega > 0

    For ``sppo``, ``egpo`` and ``omwu`` eta is the step itself, for ``inpo`` (and IPO: eta = tau) its inverse.

    Args:
        omega: rotation, measured or known; NaN (nothing measured) gives None.
        method: whose update.
        tau: weight of the KL to the reference.
        eta: the method's own eta or step.

    Returns:
        One sentence with the value, the limit and the remedy, or None.

    Raises:
        ValueError: if the method is unknown, omega or tau is negative, or eta is not positive and finite.
    """
    check_positive(eta=eta)
    if math.isnan(omega):
        return None
    step = 1.0 / eta if method == "inpo" else eta
    radius = spectral_radius(omega, method=method, step=step, tau=tau)
    if omega == 0 or radius < 1.0:
        return None
    what = f"with rotation omega = {omega:.4g} the last iterate of {method} does not converge: an error grows by "
    what += f"{radius:.4g} an iteration; "
    if method == "sppo":
        return what + "no eta does without a KL to a reference: use inpo, egpo or omwu, or average the iterates"
    if method == "inpo" and tau == 0:
        return what + "no eta does with tau = 0: choose tau > 0, or omwu"
    if method == "inpo":
        return (
            what + f"eta = {eta:.4g} must exceed (tau² + omega²)/(2 tau) = {critical_eta(omega, tau):.4g}, or use omwu"
        )
    limit = largest_step(omega, method=method, tau=tau)
    return what + f"the step {eta:.4g} must stay below {limit:.4g}"


def sppo_start(chosen_win_rate: ArrayLike, rejected_win_rate: ArrayLike, *, eta: float) -> Float64s:
    """Return the raw SPPO loss of the first batch, where the policy still is the reference.

        ½ [(P_w - ½)² + (P_l - ½)²] eta²

    Args:
        chosen_win_rate: estimates of P(chosen > pi_t). [B]
        rejected_win_rate: estimates of P(rejected > pi_t). [B]
        eta: the loss's eta.

    Raises:
        ValueError: if the shapes differ or eta is not positive and finite.
    """
    check_positive(eta=eta)
    won, lost = _same_shape(chosen_win_rate, rejected_win_rate)
    return ((won - 0.5) ** 2 + (lost - 0.5) ** 2) * eta**2 / 2.0


def gpo_start(chosen_score: ArrayLike, rejected_score: ArrayLike, *, beta: float) -> Float64s:
    """Return the raw GPO loss of the first batch: ½ [s_w² + s_l²] / beta².

    Args:
        chosen_score: mean scores of the chosen responses. [B]
        rejected_score: mean scores of the rejected responses. [B]
        beta: the loss's beta.

    Raises:
        ValueError: if the shapes differ or beta is not positive and finite.
    """
    check_positive(beta=beta)
    won, lost = _same_shape(chosen_score, rejected_score)
    return (won**2 + lost**2) / (2.0 * beta**2)


def pairwise_start(
    preference: ArrayLike, drift: ArrayLike | None = None, *, gain: float, reference_weight: float = 0.0
) -> Float64s:
    """Return the raw loss of the first batch of INPO, IPO, EGPO and OMWU, where the policy still is the base.

        [w drift - gain (P - ½)]²,   drift = D log pi_base - D log mu

    With no drift (the first iteration, or the reference just reset) and hard labels: gain²/4, which is 1/(4 eta²) for
    INPO and 1/(4 tau²) for IPO.

    Args:
        preference: target probabilities that chosen is preferred; 1 for hard labels. [B]
        drift: how much further the base prefers chosen to rejected than the reference does, in nats; None is 0. [B]
        gain: of the method's ``PairwiseSetting``.
        reference_weight: of the method's ``PairwiseSetting``.

    Raises:
        ValueError: if the shapes differ, gain is not positive and finite, or the weight lies outside [0, 1].
    """
    check_positive(gain=gain)
    if not 0 <= reference_weight <= 1:
        raise ValueError(f"reference_weight must lie in [0, 1], not {reference_weight}")
    target, moved = _same_shape(preference, np.zeros(np.shape(preference)) if drift is None else drift)
    return (reference_weight * moved - gain * (target - 0.5)) ** 2


def dpo_start(drift: ArrayLike, *, beta: float, label_smoothing: float = 0.0) -> Float64s:
    """Return the DPO loss of the first batch: log 2 without drift, whatever the knobs.

        (1 - eps) log(1 + e^-z) + eps log(1 + e^z),   z = beta drift

    Args:
        drift: how much further the policy prefers chosen to rejected than the reference does, in nats. [B]
        beta: the loss's beta.
        label_smoothing: the loss's eps.

    Raises:
        ValueError: if beta is not positive and finite, or label_smoothing lies outside [0, ½].
    """
    check_positive(beta=beta)
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5], not {label_smoothing}")
    logit = beta * np.asarray(drift, dtype=np.float64)
    return np.asarray((1 - label_smoothing) * np.logaddexp(0, -logit) + label_smoothing * np.logaddexp(0, logit))


@dataclass(frozen=True)
class NoiseFloor:
    """How much two computations of the same log-probabilities differ, and whether that drowns the target.

    Attributes:
        spread: root mean square of the difference, in nats.
        scale: root mean square of the regression's target, in nats.
        largest: largest absolute difference, in nats.
    """

    spread: float
    scale: float
    largest: float

    @property
    def share(self) -> float:
        """Return the spread as a share of the target's scale; infinite for a target of 0."""
        return self.spread / self.scale if self.scale > 0 else (math.inf if self.spread > 0 else 0.0)


def noise_floor(logprob: ArrayLike, stored_logprob: ArrayLike, target: ArrayLike) -> NoiseFloor:
    """Return the noise of log pi - log pi_t at step 0, where the two are the same policy computed twice.

        share = rms(log pi - log pi_t) / rms(target)

    Root mean squares and not deviations: a common offset does not cancel in SPPO's loss. For the pairwise losses hand
    in differences of a pair's two log-probabilities.

    Args:
        logprob: as the trainer computes it. [B]
        stored_logprob: the frozen column. [B]
        target: what the loss asks log pi - log pi_t to become: eta (P - ½), s/beta, gain * label. [B]

    Raises:
        ValueError: if shapes differ, there is nothing, or something is not finite.
    """
    first, second = _same_shape(logprob, stored_logprob)
    _, wanted = _same_shape(logprob, target)
    if first.size == 0 or not np.isfinite([first, second, wanted]).all():
        raise ValueError("the noise floor needs finite log-probabilities and targets of at least one response")
    difference = first - second
    return NoiseFloor(
        spread=float(np.sqrt((difference**2).mean())),
        scale=float(np.sqrt((wanted**2).mean())),
        largest=float(np.abs(difference).max()),
    )


def check_noise_floor(floor: NoiseFloor, *, limit: float = 0.05) -> None:
    """Refuse a run whose targets drown in the noise of its log-probabilities.

    Args:
        floor: measured before the first step.
        limit: largest share of the target's scale that noise may have.

    Raises:
        ValueError: if the share exceeds the limit.
    """
    if floor.share > limit:
        raise ValueError(
            f"log-probabilities computed twice differ by {floor.spread:.3g} nats (rms), {floor.share:.1%} of the "
            f"targets' {floor.scale:.3g} nats, and the limit is {limit:.0%}: use a wider dtype, the same kernels for "
            "both computations, or a larger step"
        )


def _triple_edges(table: ArrayLike) -> tuple[Float64s, Float64s, Float64s]:
    """Return P - ½ along i -> j -> k -> i for every triple i < j < k that is complete; three times [triples]."""
    values = np.asarray(table, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1]:
        raise ValueError(f"a table must be square, [K, K], not of shape {values.shape}")
    if not bool((np.isnan(values) | ((values >= 0) & (values <= 1))).all()):
        raise ValueError("every entry must be a probability in [0, 1], or NaN where the comparison is missing")
    skew = (values - values.T) / 2.0
    triples = np.asarray(list(combinations(range(len(values)), 3)), dtype=np.int64).reshape(-1, 3)
    i, j, k = triples[:, 0], triples[:, 1], triples[:, 2]
    edges = skew[i, j], skew[j, k], skew[k, i]
    complete = ~np.isnan(edges[0] + edges[1] + edges[2])
    return edges[0][complete], edges[1][complete], edges[2][complete]


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[Float64s, Float64s]:
    left, right = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"shapes differ: {left.shape} and {right.shape}; they must be equal, nothing is broadcast")
    return left, right
