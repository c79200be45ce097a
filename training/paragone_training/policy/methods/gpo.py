"""GPO: SPPO's fit with a mean score in place of the win rate, and so another game."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from paragone_training import games
from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import (
    Float64s,
    Needs,
    PairTargets,
    check_vectors,
    divergence,
    knob,
    numbers,
    one_step,
    same_shape,
    working,
)
from paragone_training.policy.targets import mean_scores

__all__ = ["Gpo", "gpo_loss", "gpo_scale"]

# Probabilities are kept this far from 0 and 1 before a logit is taken of them: a certain oracle has a finite score.
_SMALLEST = 1e-9


def gpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    chosen_score: Tensor,
    rejected_score: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Return GPO's squared loss on two responses: SPPO's with a mean score in place of win rate minus ½.

        loss = 1/2 {[a - s_w/beta]^2 + [b - s_l/beta]^2},  a, b = log pi/pi_t of chosen, rejected

    It solves the game of the scores, another game than that of the probabilities. Source: Zhang et al., GPO
    (arXiv 2410.02197), §5, halved as SPPO's code; the authors' own loss line was never published.

    Args:
        reference_chosen_logprob: of pi_t, the policy that generated the responses. [B]
        chosen_score: mean antisymmetric score (logit) of chosen against the responses of pi_t. [B]
        beta: units of score per nat of log-ratio, the inverse of the step; 0.001 in the paper.

    Raises:
        ValueError: if shapes differ or are not [B], beta is not positive and finite, or a score is not finite.
    """
    check_positive(beta=beta)
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
        chosen_score=chosen_score,
        rejected_score=rejected_score,
    )
    # A score of a certain oracle is clipped before it comes here.
    if not bool((torch.isfinite(chosen_score) & torch.isfinite(rejected_score)).all()):
        raise ValueError("a score is NaN or infinite: leave missing comparisons out")
    chosen, rejected, reference_chosen, reference_rejected, won, lost = working(
        chosen_logprob,
        rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        chosen_score,
        rejected_score,
    )
    # Divided by beta and not multiplied by a step: the published settings are those of beta.
    chosen_error = chosen - reference_chosen - won / beta
    rejected_error = rejected - reference_rejected - lost / beta
    return (chosen_error.square() + rejected_error.square()) / 2


def gpo_scale(*, beta: float, largest_score: float = 0.5) -> float:
    """Return what GPO's raw loss is multiplied by for logs: beta²/(2 largest_score)²; then it starts at ≤ ¼.

    Args:
        largest_score: bound on the absolute mean score; ½, the bound of a win rate minus ½, gives plain beta².

    Raises:
        ValueError: if beta or largest_score is not positive and finite.
    """
    check_positive(beta=beta, largest_score=largest_score)
    return (beta / (2.0 * largest_score)) ** 2


def _gpo_start(chosen_score: ArrayLike, rejected_score: ArrayLike, *, beta: float) -> Float64s:
    """Return the raw GPO loss of the first batch: ½ [s_w² + s_l²] / beta². [B]."""
    check_positive(beta=beta)
    won, lost = same_shape(chosen_score, rejected_score)
    return (won**2 + lost**2) / (2.0 * beta**2)


@dataclass(frozen=True)
class _GpoFit:
    beta: float
    per_response: ClassVar[bool] = True

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        base = targets.base_chosen, targets.base_rejected
        return gpo_loss(chosen, rejected, *base, targets.chosen, targets.rejected, beta=self.beta)

    def scale(self, largest_target: float) -> float:
        # Scores have no bound of their own: those of the pairs at hand give one, unless all are ties.
        return gpo_scale(beta=self.beta, largest_score=max(largest_target, 1e-6))

    def start(self, targets: PairTargets) -> Float64s:
        return _gpo_start(numbers(targets.chosen), numbers(targets.rejected), beta=self.beta)

    def goal(self, targets: PairTargets) -> Float64s:
        return np.asarray(numbers(torch.cat([targets.chosen, targets.rejected])) / self.beta)

    def slope(self, start: float) -> float:
        return 2.0 * math.sqrt(start)


@dataclass(frozen=True)
class Gpo:
    """General preference optimisation; a ValueError refuses numbers out of range."""

    beta: float = knob("units of score per nat, the inverse of the step")

    name: ClassVar[str] = "gpo"
    needs: ClassVar[Needs] = Needs(pairs=False, references=("previous",))
    steps = one_step

    def __post_init__(self) -> None:
        check_positive(beta=self.beta)

    @property
    def fit(self) -> _GpoFit:
        """The squared loss of each response."""
        return _GpoFit(self.beta)

    def own_targets(self, table: Float64s, *, include_self: bool) -> Float64s:
        """Return the mean score of each response. [K]."""
        clipped = np.clip(table, _SMALLEST, 1.0 - _SMALLEST)
        # Zero on the diagonal whatever is stored there: a response has no score against itself.
        scores = (np.log(clipped) - np.log(clipped.T)) * (1.0 - np.eye(len(table)))
        return mean_scores(scores, include_self=include_self)

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:
        """Return a warning wherever preferences go in circles: without a KL nothing pulls inwards."""
        # Where one response beats all others the iterates arrive at it, whatever the rotation (Bradley-Terry has one).
        if not cyclic:
            return None
        growth = divergence(omega, self.name, dynamics="sppo", step=1.0 / self.beta, tau=0.0)
        remedy = "no beta does without a KL to a reference: use inpo, egpo or omwu, or average the iterates"
        return growth and growth + remedy

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Return the Hedge step in the game of the scores: pi' ∝ pi exp(s pi / beta)."""
        del memory, reference
        table = np.clip(np.asarray(preference, dtype=np.float64), _SMALLEST, 1.0 - _SMALLEST)
        scores = np.log(table) - np.log(table.T)
        # The scores as a preference, with a step that undoes the scaling; a constant does not change the policy.
        largest = max(float(np.abs(scores).max()), _SMALLEST)
        return games.sppo_update(policy, 0.5 + scores / (2 * largest), eta=2 * largest / self.beta), None
