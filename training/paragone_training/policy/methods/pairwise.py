"""The one fit behind the methods of labelled pairs; a ``PairwiseSetting`` says which method it is.

residual = D log pi - sum_c w_c D log pi_c - gain * label,   sum_c w_c = 1,   label = P(chosen > rejected) - 1/2

method      columns (weight)            gain            pairs come from
INPO        mu (tau/eta), pi_t (rest)   1/eta           pi_t
IPO         mu (1)                      1/tau           anything
EGPO        mu (h tau), pi_t (rest)     h               pi_t for the half step, then the half step's policy
Nash-MP     mu (1 - a), pi_t (a)        a h             as EGPO;  a = 1/(1 + h tau)
OMWU        mu (h tau), b (rest)        h               the policy that was played, for both steps
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import (
    Float64s,
    PairTargets,
    check_range,
    check_vectors,
    numbers,
    same_shape,
    working,
)

__all__ = [
    "FrozenColumn",
    "PairwiseFit",
    "PairwiseSetting",
    "pairwise_loss",
    "regression_residual",
]

# How far the weights of the frozen columns may sum from 1: rounding, not another method.
_WEIGHTS_SUM = 1e-6


class FrozenColumn(NamedTuple):
    """Log-probabilities under a policy that is not trained, and its weight in the fit.

    Attributes:
        weight: share of this policy in the point that the fit starts from; all shares sum to 1.
    """

    weight: float
    chosen_logprob: Tensor
    rejected_logprob: Tensor


@dataclass(frozen=True)
class PairwiseSetting:
    """Which method the one fit is.

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


def regression_residual(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    columns: Sequence[FrozenColumn],
    label: Tensor,
    *,
    gain: float,
) -> Tensor:
    """Return how far the policy's log-ratio of each pair is from where the fit wants it, in nats. [B].

        residual = D log pi - sum_c w_c D log pi_c - gain * label,   sum_c w_c = 1

    With every column equal to the policy the residual is exactly -gain * label. Source: the equivalence of INPO
    (arXiv 2407.00617), §4; the common form is derived in docs/policy-mathematics.md.

    Args:
        columns: the frozen policies and their weights; a weight may be 0.
        label: P(chosen preferred) - 1/2: ±1/2 for a hard label, anything between for a soft one. [B]
        gain: nats of log-ratio per unit of preference.

    Raises:
        ValueError: if shapes differ or are not [B], the weights do not sum to 1, the gain is not positive and finite,
            or a label lies outside [-1/2, 1/2] (a missing comparison must be left out, it is no label).
    """
    check_positive(gain=gain)
    total = sum(column.weight for column in columns)
    if not abs(total - 1.0) <= _WEIGHTS_SUM:
        raise ValueError(f"the weights of the frozen columns must sum to 1, not {total}")
    check_vectors(chosen_logprob=chosen_logprob, rejected_logprob=rejected_logprob, label=label)
    # A missing comparison that became a number would be the strongest label of all.
    check_range("label", label, -0.5, 0.5)
    chosen, rejected, goal = working(chosen_logprob, rejected_logprob, label)
    residual = -gain * goal
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
    """Return the squared residual of the one fit under a method's setting.

        loss = [D log pi - w D log mu - (1 - w) D log pi_base - gain * (P - 1/2)]^2

    This is the loss of EGPO and OMWU, and that of INPO and IPO under another name. Source: see the settings.

    Args:
        base_chosen_logprob: of the policy that the step starts from (pi_t; OMWU's b). [B]
        reference_chosen_logprob: of mu. [B]
        setting: weights and gain, from ``egpo_setting`` and its siblings.
        preference: probability that the chosen one is preferred, the soft target; None is the hard label 1. [B]

    Raises:
        ValueError: if shapes differ or are not [B], or a preference lies outside [0, 1].
    """
    check_vectors(chosen_logprob=chosen_logprob, rejected_logprob=rejected_logprob)
    if preference is None:
        # The chosen response won for certain.
        label = torch.full_like(chosen_logprob, 0.5)
    else:
        check_vectors(chosen_logprob=chosen_logprob, preference=preference)
        check_range("preference", preference, 0.0, 1.0)
        label = working(chosen_logprob, preference)[1] - 0.5
    # Both columns always, so that a weight of 0 is checked like any other.
    columns = (
        FrozenColumn(setting.reference_weight, reference_chosen_logprob, reference_rejected_logprob),
        FrozenColumn(setting.base_weight, base_chosen_logprob, base_rejected_logprob),
    )
    return regression_residual(chosen_logprob, rejected_logprob, columns, label, gain=setting.gain).square()


def _pairwise_start(
    preference: ArrayLike, drift: ArrayLike | None = None, *, gain: float, reference_weight: float = 0.0
) -> Float64s:
    """Return the raw loss of the first batch of INPO, IPO, EGPO and OMWU, where the policy still is the base. [B].

        [w drift - gain (P - ½)]²,   drift = D log pi_base - D log mu

    With no drift (the first iteration, or the reference just reset) and hard labels: gain²/4, which is 1/(4 eta²) for
    INPO and 1/(4 tau²) for IPO.

    Args:
        preference: target probabilities that chosen is preferred; 1 for hard labels. [B]
        drift: how much further the base prefers chosen to rejected than the reference does, in nats; None is 0. [B]

    Raises:
        ValueError: if the shapes differ, gain is not positive and finite, or the weight lies outside [0, 1].
    """
    setting = PairwiseSetting(reference_weight, gain)
    target, moved = same_shape(preference, np.zeros(np.shape(preference)) if drift is None else drift)
    return (setting.reference_weight * moved - setting.gain * (target - 0.5)) ** 2


@dataclass(frozen=True)
class PairwiseFit:
    """The squared residual of each pair under a setting: a ``Fit``."""

    setting: PairwiseSetting
    per_response: ClassVar[bool] = False

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        """Return the raw loss of each pair. [B]."""
        # The fields behind the two numbers of the responses, which pairs do not use: base, then reference.
        return pairwise_loss(chosen, rejected, *targets[3:], setting=self.setting, preference=targets.preference)

    def scale(self, largest_target: float) -> float:  # noqa: ARG002 - a label has a bound of its own
        """Return what the raw loss is multiplied by for logs."""
        return self.setting.scale

    def start(self, targets: PairTargets) -> Float64s:
        """Return the raw loss of each pair at the base. [B]."""
        weight, gain = self.setting.reference_weight, self.setting.gain
        return _pairwise_start(numbers(targets.preference), targets.drift(), gain=gain, reference_weight=weight)

    def goal(self, targets: PairTargets) -> Float64s:
        """Return the difference of log-ratios that each label asks for. [B]."""
        return self.setting.gain * (numbers(targets.preference) - 0.5)

    def slope(self, start: float) -> float:
        """Return the slope of a square."""
        return 2.0 * math.sqrt(start)
