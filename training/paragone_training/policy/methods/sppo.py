"""SPPO: each response is fitted to a multiple of its win rate, starting from the policy that gave it."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paragone_training import games
from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import (
    Float64s,
    Needs,
    PairTargets,
    check_range,
    check_vectors,
    divergence,
    knob,
    numbers,
    one_step,
    same_shape,
    working,
)
from paragone_training.policy.targets import mean_win_rates

__all__ = ["Sppo", "sppo_loss", "sppo_scale"]


def sppo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    chosen_win_rate: Tensor,
    rejected_win_rate: Tensor,
    *,
    eta: float,
) -> Tensor:
    """Return SPPO's squared loss on two responses, as the authors' code has it.

        loss = 1/2 {[a - eta (P_w - 1/2)]^2 + [b - eta (P_l - 1/2)]^2},  a, b = log pi/pi_t of chosen, rejected

    Each response is fitted on its own, so which of the two is called chosen does not matter. It starts at
    1/2 [(P_w - 1/2)^2 + (P_l - 1/2)^2] eta² where policy and reference agree. Source: Wu et al., SPPO
    (arXiv 2405.00675), equation 4.7; the factor 1/2 from the authors' code, with eta = 1/beta.

    Args:
        reference_chosen_logprob: of pi_t, the policy that generated the responses (the previous iterate). [B]
        chosen_win_rate: estimate of P(chosen > pi_t). [B]
        eta: nats of log-ratio per unit of win rate, the step; 1000 in the paper.

    Raises:
        ValueError: if shapes differ or are not [B], eta is not positive and finite, or a win rate lies outside [0, 1].
    """
    check_positive(eta=eta)
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
        chosen_win_rate=chosen_win_rate,
        rejected_win_rate=rejected_win_rate,
    )
    # NaN, a response without a comparison, must not become a target.
    check_range("chosen_win_rate", chosen_win_rate, 0.0, 1.0)
    check_range("rejected_win_rate", rejected_win_rate, 0.0, 1.0)
    chosen, rejected, reference_chosen, reference_rejected, won, lost = working(
        chosen_logprob,
        rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        chosen_win_rate,
        rejected_win_rate,
    )
    # The constant eta/2 stands for log Z, which the paper estimates in this way.
    chosen_error = chosen - reference_chosen - eta * (won - 0.5)
    rejected_error = rejected - reference_rejected - eta * (lost - 0.5)
    return (chosen_error.square() + rejected_error.square()) / 2


def sppo_scale(*, eta: float) -> float:
    """Return what SPPO's raw loss is multiplied by for logs: 1/eta²; then it starts at ≤ ¼.

    Raises:
        ValueError: if eta is not positive and finite.
    """
    check_positive(eta=eta)
    return 1.0 / eta**2


def _sppo_start(chosen_win_rate: ArrayLike, rejected_win_rate: ArrayLike, *, eta: float) -> Float64s:
    """Return the raw SPPO loss of the first batch, where the policy still is the reference. [B].

    ½ [(P_w - ½)² + (P_l - ½)²] eta²
    """
    check_positive(eta=eta)
    won, lost = same_shape(chosen_win_rate, rejected_win_rate)
    return ((won - 0.5) ** 2 + (lost - 0.5) ** 2) * eta**2 / 2.0


@dataclass(frozen=True)
class _SppoFit:
    eta: float
    per_response: ClassVar[bool] = True

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        base = targets.base_chosen, targets.base_rejected
        return sppo_loss(chosen, rejected, *base, targets.chosen, targets.rejected, eta=self.eta)

    def scale(self, largest_target: float) -> float:  # noqa: ARG002 - a win rate has a bound of its own
        return sppo_scale(eta=self.eta)

    def start(self, targets: PairTargets) -> Float64s:
        return _sppo_start(numbers(targets.chosen), numbers(targets.rejected), eta=self.eta)

    def goal(self, targets: PairTargets) -> Float64s:
        return self.eta * (numbers(torch.cat([targets.chosen, targets.rejected])) - 0.5)

    def slope(self, start: float) -> float:
        return 2.0 * math.sqrt(start)


@dataclass(frozen=True)
class Sppo:
    """Self-play preference optimisation; a ValueError refuses numbers out of range."""

    eta: float = knob("the step, in nats per unit of win rate")

    name: ClassVar[str] = "sppo"
    needs: ClassVar[Needs] = Needs(pairs=False, references=("previous",))
    steps = one_step

    def __post_init__(self) -> None:
        check_positive(eta=self.eta)

    @property
    def fit(self) -> _SppoFit:
        """The squared loss of each response."""
        return _SppoFit(self.eta)

    def own_targets(self, table: Float64s, *, include_self: bool) -> Float64s:
        """Return the win rate of each response. [K]."""
        return mean_win_rates(table, include_self=include_self)

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:
        """Return a warning wherever preferences go in circles: without a KL nothing pulls inwards."""
        # Where one response beats all others the iterates arrive at it, whatever the rotation (Bradley-Terry has one).
        if not cyclic:
            return None
        growth = divergence(omega, self.name, dynamics="sppo", step=self.eta, tau=0.0)
        remedy = "no eta does without a KL to a reference: use inpo, egpo or omwu, or average the iterates"
        return growth and growth + remedy

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Return the Hedge step of SPPO's theory; the trained loss differs from it by the third order of eta."""
        del memory, reference
        return games.sppo_update(policy, preference, eta=self.eta), None
