"""OMWU: optimistic multiplicative weights; the policy that is played and the base that it stands on both move."""

from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike

from paragone_training import games
from paragone_training.policy.methods.egpo import egpo_setting
from paragone_training.policy.methods.method import Float64s, Needs, Step, divergence, knob, no_own_targets, one_step
from paragone_training.policy.methods.pairwise import PairwiseFit, PairwiseSetting

__all__ = ["Omwu", "omwu_setting"]


def omwu_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of both steps of OMWU (optimistic): reference weight step * tau, gain step.

    Two steps on the SAME pairs, drawn from the policy that was played: the first with base b_{t-1} gives b_t, the
    second with base b_t gives the next policy to play (at the very start b_0 is the policy itself, and only the second
    runs). Source: Cen et al. (arXiv 2105.15186) with a KL; arXiv 2512.24818 and ONPO (arXiv 2502.16852) for tau = 0.

    Raises:
        ValueError: if step is not positive and finite, tau is negative, or step * tau exceeds 1.
    """
    return egpo_setting(step=step, tau=tau)


@dataclass(frozen=True)
class Omwu:
    """Optimistic multiplicative weights; a ValueError refuses numbers out of range."""

    step: float = knob("nats per unit of win rate")
    tau: float = knob("weight of the KL to the reference; step * tau is at most 1")

    name: ClassVar[str] = "omwu"
    needs: ClassVar[Needs] = Needs()
    own_targets = no_own_targets

    def __post_init__(self) -> None:
        omwu_setting(step=self.step, tau=self.tau)  # refuses what is out of range

    @property
    def fit(self) -> PairwiseFit:
        """The squared residual of each pair."""
        return PairwiseFit(omwu_setting(step=self.step, tau=self.tau))

    def steps(self, iteration: int) -> tuple[Step, ...]:
        """Return the step that moves the base b and the step from b to the next policy, on the same round.

        b_0 is the policy itself, so that the first iteration has the second of the two alone.
        """
        if iteration == 1:
            return one_step(self, iteration)
        # One round for both: what it saves beside a look-ahead that samples for itself.
        return Step(1, "current", "memory"), Step(1, "current", "previous-step")

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:  # noqa: ARG002
        """Return a warning where the step is beyond the largest that converges."""
        growth = divergence(omega, self.name, dynamics="omwu", step=self.step, tau=self.tau)
        if growth is None:
            return None
        limit = games.largest_step(omega, method="omwu", tau=self.tau)
        return growth + f"the step {self.step:.4g} must stay below {limit:.4g}"

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, Float64s]:
        """Return the next policy, and the base b that the next call needs."""
        return games.omwu_step(policy, memory, preference, reference, step=self.step, tau=self.tau)
