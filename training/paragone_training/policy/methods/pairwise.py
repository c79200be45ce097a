"""The one regression behind the pairwise methods; a ``PairwiseSetting`` says which method it is. torch only.

Conventions (sums of log-probabilities, frozen columns, dtype) are those of ``policy.methods.losses``; D f stands for
f(chosen) - f(rejected), h for the step.

    residual = D log pi - sum_c w_c D log pi_c - gain * label,   sum_c w_c = 1,   label = P(chosen > rejected) - 1/2

    method      columns (weight)            gain            pairs come from
    INPO        mu (tau/eta), pi_t (rest)   1/eta           pi_t
    IPO         mu (1)                      1/tau           anything
    EGPO        mu (h tau), pi_t (rest)     h               pi_t for the half step, then the half step's policy
    Nash-MP     mu (1 - a), pi_t (a)        a h             as EGPO;  a = 1/(1 + h tau)
    OMWU        mu (h tau), b (rest)        h               the policy that was played, for both regressions
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "FrozenColumn",
    "PairwiseSetting",
    "check_positive",
    "check_range",
    "check_vectors",
    "egpo_setting",
    "inpo_setting",
    "ipo_setting",
    "nash_mp_setting",
    "omwu_setting",
    "pairwise_loss",
    "regression_residual",
    "working",
]

_WEIGHTS_SUM = 1e-6
"""How far the weights of the frozen columns may sum from 1: rounding, not another method."""


class FrozenColumn(NamedTuple):
    """Log-probabilities under a policy that is not trained, and its weight in the regression.

    Attributes:
        weight: share of this policy in the point that the regression starts from; all shares sum to 1.
        chosen_logprob: its log-probabilities of the chosen responses. [B]
        rejected_logprob: its log-probabilities of the rejected responses. [B]
    """

    weight: float
    chosen_logprob: Tensor
    rejected_logprob: Tensor


@dataclass(frozen=True)
class PairwiseSetting:
    """Say which method the one regression is.

    Attributes:
        reference_weight: weight of the reference mu, in [0, 1]; the base policy has the rest.
        gain: nats of log-ratio per unit of preference: the step.

    Raises:
        ValueError: if the weight lies outside [0, 1] or the gain is not positive and finite.
    """

    reference_weight: float
    gain: float

    def __post_init__(self) -> None:
        check_positive(gain=self.gain)
        if not 0 <= self.reference_weight <= 1:
            raise ValueError(f"reference_weight must lie in [0, 1], not {self.reference_weight}")

    @property
    def base_weight(self) -> float:
        """Return the weight of the base policy, the one that the step starts from."""
        return 1.0 - self.reference_weight

    @property
    def scale(self) -> float:
        """Return what the raw loss is multiplied by for logs: then it starts at label² ≤ ¼ where all columns agree."""
        return 1.0 / self.gain**2


def inpo_setting(*, eta: float, tau: float) -> PairwiseSetting:
    """Return the setting of INPO: reference weight tau/eta, gain 1/eta.

    Source: Zhang et al., INPO (arXiv 2407.00617), the loss of §4 (here with sums of log-probabilities).

    Args:
        eta: weight of the KL to the current policy, the inverse of the step.
        tau: weight of the KL to the reference, in [0, eta]; 0 drops the reference, eta drops the current policy.

    Raises:
        ValueError: if eta is not positive and finite, or tau lies outside [0, eta].
    """
    check_positive(eta=eta)
    if not 0 <= tau <= eta:
        raise ValueError(f"tau must lie in [0, eta] = [0, {eta}], not {tau}: raise eta (a smaller step) or lower tau")
    return PairwiseSetting(reference_weight=tau / eta, gain=1.0 / eta)


def ipo_setting(*, tau: float) -> PairwiseSetting:
    """Return the setting of IPO: the reference alone, gain 1/tau. It is INPO's with eta = tau.

    Source: Azar et al. (arXiv 2310.12036), equation 17.

    Args:
        tau: weight of the KL to the reference.

    Raises:
        ValueError: if tau is not positive and finite.
    """
    check_positive(tau=tau)
    return PairwiseSetting(reference_weight=1.0, gain=1.0 / tau)


def egpo_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of both regressions of EGPO: reference weight step * tau, gain step.

    Two regressions make an update, both with the iterate pi_t as base: the first on pairs from pi_t gives the half step
    v, the second on pairs from v gives pi_{t+1}. Source: Zhou et al. (arXiv 2503.08942), whose update this is; the
    form as two regressions is derived in docs/policy-mathematics.md.

    Args:
        step: nats of log-ratio per unit of win rate.
        tau: weight of the KL to the reference; 0 drops it.

    Raises:
        ValueError: if step is not positive and finite, tau is negative, or step * tau exceeds 1.
    """
    check_positive(step=step)
    if not 0 <= step * tau <= 1:
        raise ValueError(f"step * tau must lie in [0, 1], not {step} * {tau}: lower the step")
    return PairwiseSetting(reference_weight=step * tau, gain=step)


def nash_mp_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of Nash-MP (mirror prox), which is EGPO with the step h/(1 + h tau).

    Source: arXiv 2505.19731 (version 1); the identity is derived in docs/policy-mathematics.md. No step overshoots.

    Args:
        step: nats of log-ratio per unit of win rate before the proximal shrinkage; the paper's choice is 2.
        tau: weight of the KL to the reference.

    Raises:
        ValueError: if step is not positive and finite, or tau is negative or not finite.
    """
    check_positive(step=step)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be finite and not negative, not {tau}")
    return egpo_setting(step=step / (1.0 + step * tau), tau=tau)


def omwu_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of both regressions of OMWU (optimistic): reference weight step * tau, gain step.

    Two regressions on the SAME pairs, drawn from the policy that was played: the first with base b_{t-1} gives b_t, the
    second with base b_t gives the next policy to play (at the very start b_0 is the policy itself, and only the second
    runs). Source: Cen et al. (arXiv 2105.15186) with a KL; arXiv 2512.24818 and ONPO (arXiv 2502.16852) for tau = 0.

    Args:
        step: nats of log-ratio per unit of win rate.
        tau: weight of the KL to the reference; 0 is OMWU without KL.

    Raises:
        ValueError: if step is not positive and finite, tau is negative, or step * tau exceeds 1.
    """
    return egpo_setting(step=step, tau=tau)


def regression_residual(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    columns: Sequence[FrozenColumn],
    label: Tensor,
    *,
    gain: float,
) -> Tensor:
    """Return how far the policy's log-ratio of each pair is from where the regression wants it.

        residual = D log pi - sum_c w_c D log pi_c - gain * label,   sum_c w_c = 1

    With every column equal to the policy the residual is exactly -gain * label. Source: the equivalence of INPO
    (arXiv 2407.00617), §4; the common form is derived in docs/policy-mathematics.md.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        columns: the frozen policies and their weights; a weight may be 0.
        label: P(chosen preferred) - 1/2: ±1/2 for a hard label, anything between for a soft one. [B]
        gain: nats of log-ratio per unit of preference.

    Returns:
        One residual per pair, in nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], the weights do not sum to 1, the gain is not positive and finite,
            or a label lies outside [-1/2, 1/2] (a missing comparison must be left out, it is no label).
    """
    check_positive(gain=gain)
    total = sum(column.weight for column in columns)
    if not abs(total - 1.0) <= _WEIGHTS_SUM:
        raise ValueError(f"the weights of the frozen columns must sum to 1, not {total}")
    check_vectors(chosen_logprob=chosen_logprob, rejected_logprob=rejected_logprob, label=label)
    check_range("label", label, -0.5, 0.5)
    chosen, rejected, wanted = working(chosen_logprob, rejected_logprob, label)
    residual = -gain * wanted
    for column in columns:
        check_vectors(
            chosen_logprob=chosen_logprob,
            column_chosen_logprob=column.chosen_logprob,
            column_rejected_logprob=column.rejected_logprob,
        )
        frozen_chosen, frozen_rejected = column.chosen_logprob.to(chosen), column.rejected_logprob.to(chosen)
        # Ratios first: close numbers subtract exactly, and the weights' rounding multiplies nats, not hundreds.
        residual = residual + column.weight * ((chosen - frozen_chosen) - (rejected - frozen_rejected))
    return residual


def pairwise_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    base_chosen_logprob: Tensor,
    base_rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    setting: PairwiseSetting,
    preference: Tensor | None = None,
) -> Tensor:
    """Return the squared residual of the one regression under a method's setting.

        loss = [D log pi - w D log mu - (1 - w) D log pi_base - gain * (P - 1/2)]^2

    This is the loss of EGPO and OMWU, and that of INPO and IPO under another name. Source: see the settings.

    Args:
        chosen_logprob: of the policy in training. [B]
        rejected_logprob: of the policy in training. [B]
        base_chosen_logprob: of the policy that the step starts from (pi_t; OMWU's b). [B]
        base_rejected_logprob: of that policy. [B]
        reference_chosen_logprob: of the reference mu. [B]
        reference_rejected_logprob: of the reference mu. [B]
        setting: weights and gain, from ``egpo_setting`` and its siblings.
        preference: probability that the chosen one is preferred, the soft target; None is the hard label 1. [B]

    Returns:
        One loss per pair, in squared nats. [B]

    Raises:
        ValueError: if shapes differ or are not [B], or a preference lies outside [0, 1].
    """
    check_vectors(chosen_logprob=chosen_logprob, rejected_logprob=rejected_logprob)
    if preference is None:
        label = torch.full_like(chosen_logprob, 0.5)
    else:
        check_vectors(chosen_logprob=chosen_logprob, preference=preference)
        check_range("preference", preference, 0.0, 1.0)
        label = working(chosen_logprob, preference)[1] - 0.5
    columns = (
        FrozenColumn(setting.reference_weight, reference_chosen_logprob, reference_rejected_logprob),
        FrozenColumn(setting.base_weight, base_chosen_logprob, base_rejected_logprob),
    )
    return regression_residual(chosen_logprob, rejected_logprob, columns, label, gain=setting.gain).square()


def working(chosen_logprob: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the dtype that losses compute in, on the device of the first.

    float64 where ``chosen_logprob`` is, else float32: a frozen column that was stored wider decides nothing.

    Args:
        chosen_logprob: of the policy in training. [B]
        others: whatever it is computed with. [B]
    """
    dtype = torch.float64 if chosen_logprob.dtype == torch.float64 else torch.float32
    first = chosen_logprob.to(dtype)
    return (first, *(other.to(first) for other in others))


def check_vectors(**tensors: Tensor) -> None:
    """Refuse tensors that are not all [B] with one B: nothing is ever broadcast.

    Raises:
        ValueError: if shapes differ or are not [B].
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    if len(set(shapes.values())) > 1:
        raise ValueError(f"shapes differ: {listed}; they must be equal, nothing is broadcast")
    if any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"one number per response is needed, of shape [B], the sum over its tokens: {listed}")


def check_range(name: str, values: Tensor, lowest: float, highest: float) -> None:
    """Refuse values outside [lowest, highest], and NaN.

    Args:
        name: what the values are, for the message.
        values: numbers to look at. [B]
        lowest: smallest value allowed.
        highest: largest value allowed.

    Raises:
        ValueError: if a value lies outside or is NaN.
    """
    if not bool(((values >= lowest) & (values <= highest)).all()):
        raise ValueError(
            f"{name} must lie in [{lowest:g}, {highest:g}], and a value outside or NaN was given: "
            "leave missing comparisons out"
        )


def check_positive(**knobs: float) -> None:
    """Refuse knobs that are not positive and finite.

    Raises:
        ValueError: if one is not.
    """
    for name, value in knobs.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, not {value}")
