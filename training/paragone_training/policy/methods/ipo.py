"""IPO: each pair is fitted to its label, from the reference alone. It is INPO with eta = tau."""

from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike
from torch import Tensor

from paragone_training import games
from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import Float64s, Needs, divergence, knob, no_own_targets, one_step
from paragone_training.policy.methods.pairwise import PairwiseFit, PairwiseSetting, pairwise_loss

__all__ = ["Ipo", "ipo_loss", "ipo_setting"]


def ipo_setting(*, tau: float) -> PairwiseSetting:
    """Return the setting of IPO: the reference alone, gain 1/tau. It is INPO's with eta = tau.

    Source: Azar et al. (arXiv 2310.12036), equation 17.

    Raises:
        ValueError: if tau is not positive and finite.
    """
    check_positive(tau=tau)
    return PairwiseSetting(reference_weight=1.0, gain=1.0 / tau)


def ipo_loss(
    chosen_logprob: Tensor,
    rejected_logprob: Tensor,
    reference_chosen_logprob: Tensor,
    reference_rejected_logprob: Tensor,
    *,
    tau: float,
) -> Tensor:
    """Return IPO's squared loss, on sums of log-probabilities as in the paper (TRL divides by the lengths).

        loss = [D log pi - D log mu - 1/(2 tau)]^2

    Source: Azar et al. (arXiv 2310.12036), equation 17.

    Raises:
        ValueError: if shapes differ or are not [B], or tau is not positive and finite.
    """
    reference = (reference_chosen_logprob, reference_rejected_logprob)
    return pairwise_loss(chosen_logprob, rejected_logprob, *reference, *reference, setting=ipo_setting(tau=tau))


@dataclass(frozen=True)
class Ipo:
    """Identity preference optimisation; a ValueError refuses numbers out of range."""

    tau: float = knob("weight of the KL to the reference, the inverse of the step")

    name: ClassVar[str] = "ipo"
    needs: ClassVar[Needs] = Needs()
    steps = one_step
    own_targets = no_own_targets

    def __post_init__(self) -> None:
        ipo_setting(tau=self.tau)  # refuses what is out of range

    @property
    def fit(self) -> PairwiseFit:
        """The squared residual of each pair."""
        return PairwiseFit(ipo_setting(tau=self.tau))

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:  # noqa: ARG002
        """Return a warning where the step is so large that play circles: tau ≤ omega."""
        growth = divergence(omega, self.name, dynamics="inpo", step=1.0 / self.tau, tau=self.tau)
        return growth and growth + f"tau = {self.tau:.4g} must exceed omega, or use omwu"

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Return the answer to the policy that is tilted from the reference."""
        del memory
        return games.inpo_update(policy, preference, reference, eta=self.tau, tau=self.tau), None
