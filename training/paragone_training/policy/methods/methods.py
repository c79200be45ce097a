"""The methods: what each one's loss is, how it is scaled, where it starts, and how many regressions an iteration has.

B pairs. ``Columns`` are the frozen log-probabilities of a step: its base (what the step starts from) and the reference.

    method      sampling rounds     steps (base, pairs from round)
    sppo gpo    1                   (pi_t, 1)
    inpo        1                   (pi_t, 1)
    ipo dpo     1                   (pi_t, 1): starts at pi_t, regressed from the reference
    egpo        2                   (pi_t, 1) gives v; (pi_t, 2), round 2 sampled from v
    omwu        1                   (b_{t-1}, 1) gives b_t; (b_t, 1).  The first iteration has the second step alone
"""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paragone_training.errors import RecipeError
from paragone_training.policy.methods import losses
from paragone_training.policy.sections import MethodName
from paragone_training.policy.targets import diagnostics

__all__ = ["PAIRWISE", "Method", "PairTargets", "Step", "method_of", "steps_of"]

PAIRWISE = ("inpo", "egpo", "omwu", "dpo", "ipo")
"""Methods trained on labelled pairs; the others regress each response on its own number."""

_KNOBS: dict[str, tuple[str, ...]] = {
    "sppo": ("eta",),
    "gpo": ("beta",),
    "inpo": ("eta", "tau"),
    "egpo": ("step", "tau"),
    "omwu": ("step", "tau"),
    "dpo": ("beta",),
    "ipo": ("tau",),
}


class PairTargets(NamedTuple):
    """What a loss is told about B pairs.

    Attributes:
        preference: target probability that chosen is preferred. [B]
        chosen: mean win rate or score of chosen; 0 for pairwise methods. [B]
        rejected: the same of rejected. [B]
        base_chosen: log-probability of chosen under the step's base. [B]
        base_rejected: the same of rejected. [B]
        reference_chosen: log-probability of chosen under the reference. [B]
        reference_rejected: the same of rejected. [B]
    """

    preference: Tensor
    chosen: Tensor
    rejected: Tensor
    base_chosen: Tensor
    base_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor


class Step(NamedTuple):
    """One regression of an iteration.

    Attributes:
        round: number of the sampling round whose pairs it is trained on, from 1.
        sampler: who the round is drawn from: ``current`` (pi_t) or ``previous-step``.
        base: what it starts from: ``current``, ``previous-step``, or ``memory`` (omwu's b_{t-1}).
    """

    round: int
    sampler: str
    base: str


def steps_of(method: MethodName, iteration: int) -> tuple[Step, ...]:
    """Return the regressions of an iteration.

    Args:
        method: which algorithm.
        iteration: from 1.
    """
    if method == "egpo":
        return (Step(1, "current", "current"), Step(2, "previous-step", "current"))
    if method == "omwu" and iteration > 1:
        return (Step(1, "current", "memory"), Step(1, "current", "previous-step"))
    return (Step(1, "current", "current"),)


@dataclass(frozen=True)
class Method:
    """A method with its numbers.

    Attributes:
        name: which algorithm.
        setting: of the one regression; None for sppo, gpo and dpo.
        number: eta of sppo, beta of gpo and dpo; 0 otherwise.
        smoothing: of dpo's labels.
        tau: weight of the KL to the reference; 0 without one.
    """

    name: MethodName
    setting: losses.PairwiseSetting | None
    number: float
    smoothing: float
    tau: float

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        """Return the raw loss of each pair. [B].

        Args:
            chosen: log-probabilities under the policy in training. [B]
            rejected: the same of rejected. [B]
            targets: labels and frozen columns.
        """
        base, reference = (targets.base_chosen, targets.base_rejected), targets[5:]
        if self.name == "sppo":
            return losses.sppo_loss(chosen, rejected, *base, targets.chosen, targets.rejected, eta=self.number)
        if self.name == "gpo":
            return losses.gpo_loss(chosen, rejected, *base, targets.chosen, targets.rejected, beta=self.number)
        if self.name == "dpo":
            return losses.dpo_loss(chosen, rejected, *reference, beta=self.number, label_smoothing=self.smoothing)
        assert self.setting is not None
        return losses.pairwise_loss(
            chosen, rejected, *base, *reference, setting=self.setting, preference=targets.preference
        )

    def scale(self, largest_score: float = 0.5) -> float:
        """Return what the raw loss is multiplied by for logs.

        Args:
            largest_score: of gpo's mean scores.
        """
        if self.name == "sppo":
            return losses.sppo_scale(eta=self.number)
        if self.name == "gpo":
            return losses.gpo_scale(beta=self.number, largest_score=max(largest_score, 1e-6))
        return 1.0 if self.setting is None else self.setting.scale

    def start(self, targets: PairTargets) -> NDArray[np.float64]:
        """Return the raw loss of each pair where the policy still is the step's base. [B].

        Args:
            targets: labels and frozen columns.
        """
        values = PairTargets(*(column.double().cpu() for column in targets))
        drift = (values.base_chosen - values.reference_chosen) - (values.base_rejected - values.reference_rejected)
        if self.name == "sppo":
            return diagnostics.sppo_start(values.chosen, values.rejected, eta=self.number)
        if self.name == "gpo":
            return diagnostics.gpo_start(values.chosen, values.rejected, beta=self.number)
        if self.name == "dpo":
            return diagnostics.dpo_start(drift, beta=self.number, label_smoothing=self.smoothing)
        assert self.setting is not None
        return diagnostics.pairwise_start(
            values.preference, drift, gain=self.setting.gain, reference_weight=self.setting.reference_weight
        )

    def wanted(self, targets: PairTargets) -> NDArray[np.float64]:
        """Return the log-ratios that the loss asks for, per response for sppo and gpo, else per pair; in nats.

        Args:
            targets: labels and frozen columns.
        """
        if self.name == "sppo":
            return self.number * (torch.cat([targets.chosen, targets.rejected]).double().cpu().numpy() - 0.5)
        if self.name == "gpo":
            return np.asarray(torch.cat([targets.chosen, targets.rejected]).double().cpu().numpy() / self.number)
        preference = targets.preference.double().cpu().numpy() - 0.5
        # dpo has no target; a log-odds of one nat of beta is where its gradient has fallen by half
        return np.asarray((1.0 / self.number if self.setting is None else self.setting.gain) * preference)

    def describe(self) -> str:
        """Return the loss in words."""
        if self.setting is not None:
            weight = self.setting.reference_weight
            return f"{self.name}: gain {self.setting.gain:g}, reference weight {weight:g}, tau {self.tau:g}"
        return f"{self.name}: {_KNOBS[self.name][0]} {self.number:g}"


def method_of(
    name: MethodName,
    *,
    eta: float | None = None,
    tau: float | None = None,
    step: float | None = None,
    beta: float | None = None,
    smoothing: float = 0.0,
) -> Method:
    """Return a method with its numbers.

    Args:
        name: which algorithm.
        eta: of sppo and inpo.
        tau: of inpo, egpo, omwu and ipo.
        step: of egpo and omwu.
        beta: of gpo and dpo.
        smoothing: of dpo.

    Raises:
        RecipeError: if a number is missing, not this method's, or out of its range.
    """
    if name not in get_args(MethodName):
        raise RecipeError(f"method is {name!r}; it must be one of {', '.join(get_args(MethodName))}")
    given = {"eta": eta, "tau": tau, "step": step, "beta": beta}
    for knob, value in given.items():
        if (value is None) == (knob in _KNOBS[name]):
            problem = "needs" if value is None else "has no"
            raise RecipeError(f"{name} {problem} loss.{knob}; its numbers are {', '.join(_KNOBS[name])}")
    if smoothing and name != "dpo":
        raise RecipeError(f"loss.label_smoothing is for dpo; remove it for {name}")
    try:
        setting, number = _checked(name, {knob: value for knob, value in given.items() if value is not None}, smoothing)
    except ValueError as error:
        raise RecipeError(f"[loss] of {name}: {error}") from error
    return Method(name, setting, number, smoothing, tau or 0.0)


def _checked(
    name: MethodName, numbers: dict[str, float], smoothing: float
) -> tuple[losses.PairwiseSetting | None, float]:
    if name == "inpo":
        return losses.inpo_setting(**numbers), 0.0
    if name == "ipo":
        return losses.ipo_setting(**numbers), 0.0
    if name == "egpo":
        return losses.egpo_setting(**numbers), 0.0
    if name == "omwu":
        return losses.omwu_setting(**numbers), 0.0
    (number,) = numbers.values()
    losses.sppo_scale(eta=number)
    if not 0 <= smoothing <= 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5], not {smoothing}")
    return None, number
