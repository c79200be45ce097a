"""DPO: cross-entropy of the label under the log-ratio to the reference."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn.functional import logsigmoid

from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import (
    Float64s,
    Needs,
    PairTargets,
    check_vectors,
    knob,
    no_own_targets,
    numbers,
    one_step,
    working,
)

__all__ = ["Dpo", "dpo_loss"]


def dpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return DPO's cross-entropy, with conservative smoothing of the label.

        loss = -(1 - eps) log sigmoid(z) - eps log sigmoid(-z),  z = beta (D log pi - D log mu)

    It starts at log 2 where policy and reference agree, whatever the knobs. Source: Rafailov et al.
    (arXiv 2305.18290), equation 7; smoothing as in the authors' note on conservative DPO.

    Args:
        label_smoothing: eps, the assumed share of wrong labels, in [0, ½].

    Raises:
        ValueError: if shapes differ or are not [B], beta is not positive and finite, or label_smoothing lies outside
            [0, ½].
    """
    _check(beta, label_smoothing)
    check_vectors(
        chosen_logprob=chosen_logprob,
        rejected_logprob=rejected_logprob,
        reference_chosen_logprob=reference_chosen_logprob,
        reference_rejected_logprob=reference_rejected_logprob,
    )
    chosen, rejected, reference_chosen, reference_rejected = working(
        chosen_logprob, rejected_logprob, reference_chosen_logprob, reference_rejected_logprob
    )
    # Differences of each response first: they are small where the two policies agree, and exact.
    logit = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return -(1 - label_smoothing) * logsigmoid(logit) - label_smoothing * logsigmoid(-logit)


def _dpo_start(drift: ArrayLike, *, beta: float, label_smoothing: float = 0.0) -> Float64s:
    """Return the DPO loss of the first batch: log 2 without drift, whatever the knobs. [B].

    (1 - eps) log(1 + e^-z) + eps log(1 + e^z),   z = beta drift
    """
    _check(beta, label_smoothing)
    # logaddexp and not log(1 + exp): a drift of thousands of nats must not overflow.
    logit = beta * np.asarray(drift, dtype=np.float64)
    return np.asarray((1 - label_smoothing) * np.logaddexp(0, -logit) + label_smoothing * np.logaddexp(0, logit))


def _check(beta: float, label_smoothing: float) -> None:
    check_positive(beta=beta)
    if not 0 <= label_smoothing <= 0.5:
        raise ValueError(f"label_smoothing must lie in [0, 0.5], not {label_smoothing}: above it, swap the pairs")


@dataclass(frozen=True)
class _DpoFit:
    beta: float
    label_smoothing: float
    per_response: ClassVar[bool] = False

    def loss(self, chosen: Tensor, rejected: Tensor, targets: PairTargets) -> Tensor:
        reference = targets.reference_chosen, targets.reference_rejected
        return dpo_loss(chosen, rejected, *reference, beta=self.beta, label_smoothing=self.label_smoothing)

    def scale(self, largest_target: float) -> float:  # noqa: ARG002 - it starts at log 2 already
        return 1.0

    def start(self, targets: PairTargets) -> Float64s:
        return _dpo_start(targets.drift(), beta=self.beta, label_smoothing=self.label_smoothing)

    def goal(self, targets: PairTargets) -> Float64s:
        # A cross-entropy asks for no number. A log-odds of one nat of beta is where its gradient has fallen by half.
        return np.asarray((numbers(targets.preference) - 0.5) / self.beta)

    def slope(self, start: float) -> float:  # noqa: ARG002 - it is bounded everywhere
        return self.beta


@dataclass(frozen=True)
class Dpo:
    """Direct preference optimisation; a ValueError refuses numbers out of range."""

    beta: float = knob("weight of the KL to the reference")
    label_smoothing: float = knob("assumed share of wrong labels, in [0, 0.5]", default=0.0)

    name: ClassVar[str] = "dpo"
    needs: ClassVar[Needs] = Needs(labels=("sampled", "hard"), ties=("drop",))
    steps = one_step
    own_targets = no_own_targets

    def __post_init__(self) -> None:
        _check(self.beta, self.label_smoothing)

    @property
    def fit(self) -> _DpoFit:
        """The cross-entropy of each pair."""
        return _DpoFit(self.beta, self.label_smoothing)

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:  # noqa: ARG002
        """Return None: nothing is known of its dynamics where preferences are no differences of rewards."""
        return None

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Refuse.

        Raises:
            ValueError: always; a cross-entropy of labels has no closed form in a game of preferences.
        """
        del policy, memory, preference, reference
        raise ValueError("dpo solves no game of preferences; its optimum is known where they come from rewards")
