"""INPO: each pair is fitted to its label, from a mixture of the current policy and the reference."""

from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike
from torch import Tensor

from paragone_training import games
from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import Float64s, Needs, divergence, knob, no_own_targets, one_step
from paragone_training.policy.methods.pairwise import PairwiseFit, PairwiseSetting, pairwise_loss

__all__ = ["Inpo", "inpo_loss", "inpo_setting"]


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
    # Beyond eta the current policy would have a negative weight, and the fit would push away from it.
    if not 0 <= tau <= eta:
        raise ValueError(f"tau must lie in [0, eta] = [0, {eta}], not {tau}: raise eta (a smaller step) or lower tau")
    return PairwiseSetting(reference_weight=tau / eta, gain=1.0 / eta)


def inpo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    current_chosen_logprob: Tensor,
    current_rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    eta: float,
    tau: float,
    preference: Tensor | None = None,
) -> Tensor:
    """Return INPO's squared loss for a hard label, or for the soft one of the same minimiser and less variance.

        loss = [D log pi - (tau/eta) D log mu - (1 - tau/eta) D log pi_t - target]^2
        target = 1/(2 eta) for a hard label, (2 P - 1)/(2 eta) for a soft one

    It starts at 1/(4 eta²) where all policies agree; times eta² (``inpo_setting(...).scale``) at ≤ ¼. Source: Zhang et
    al., INPO (arXiv 2407.00617), §4, with sampled labels; the soft target by taking the expectation over the label.

    Args:
        current_chosen_logprob: of pi_t, the policy that generated the pairs. [B]
        reference_chosen_logprob: of the reference mu, which stays the same in every iteration. [B]
        eta: weight of the KL to pi_t, the inverse of the step.
        tau: weight of the KL to mu, in [0, eta].
        preference: probability that the chosen one is preferred; None where the label is hard. [B]

    Raises:
        ValueError: if shapes differ or are not [B], eta is not positive and finite, tau lies outside [0, eta], or a
            preference outside [0, 1].
    """
    return pairwise_loss(
        chosen_logprob,
        rejected_logprob,
        current_chosen_logprob,
        current_rejected_logprob,
        reference_chosen_logprob,
        reference_rejected_logprob,
        setting=inpo_setting(eta=eta, tau=tau),
        preference=preference,
    )


@dataclass(frozen=True)
class Inpo:
    """Iterative Nash policy optimisation; a ValueError refuses numbers out of range."""

    eta: float = knob("the inverse of the step, in win rate per nat")
    tau: float = knob("weight of the KL to the reference, at most eta")

    name: ClassVar[str] = "inpo"
    needs: ClassVar[Needs] = Needs()
    steps = one_step
    own_targets = no_own_targets

    def __post_init__(self) -> None:
        inpo_setting(eta=self.eta, tau=self.tau)  # refuses what is out of range

    @property
    def fit(self) -> PairwiseFit:
        """The squared residual of each pair."""
        return PairwiseFit(inpo_setting(eta=self.eta, tau=self.tau))

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:  # noqa: ARG002
        """Return a warning where the step is so large that play circles: eta ≤ (tau² + omega²)/(2 tau)."""
        growth = divergence(omega, self.name, dynamics="inpo", step=1.0 / self.eta, tau=self.tau)
        if growth is None:
            return None
        if self.tau == 0:
            return growth + "no eta does with tau = 0: choose tau > 0, or omwu"
        limit = games.critical_eta(omega, self.tau)
        return growth + f"eta = {self.eta:.4g} must exceed (tau² + omega²)/(2 tau) = {limit:.4g}, or use omwu"

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Return the closed form, on which a fit with soft or sampled labels lands."""
        del memory
        return games.inpo_update(policy, preference, reference, eta=self.eta, tau=self.tau), None
