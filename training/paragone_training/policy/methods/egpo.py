"""EGPO: look ahead with one step, then step from where it began against what was seen there."""

import math
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import ArrayLike

from paragone_training import games
from paragone_training.games.game import check_positive
from paragone_training.policy.methods.method import Float64s, Needs, Step, divergence, knob, no_own_targets
from paragone_training.policy.methods.pairwise import PairwiseFit, PairwiseSetting

__all__ = ["Egpo", "egpo_setting", "nash_mp_setting"]


def egpo_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of both steps of EGPO: reference weight step * tau, gain step.

    Two steps make an update, both with the iterate pi_t as base: the first on pairs from pi_t gives the half step
    v, the second on pairs from v gives pi_{t+1}. Source: Zhou et al. (arXiv 2503.08942), whose update this is; the
    form as two fits is derived in docs/policy-mathematics.md.

    Raises:
        ValueError: if step is not positive and finite, tau is negative, or step * tau exceeds 1.
    """
    check_positive(step=step)
    # Beyond 1 the base would have a negative weight: the step overshoots the reference.
    if not 0 <= step * tau <= 1:
        raise ValueError(f"step * tau must lie in [0, 1], not {step} * {tau}: lower the step")
    return PairwiseSetting(reference_weight=step * tau, gain=step)


def nash_mp_setting(*, step: float, tau: float) -> PairwiseSetting:
    """Return the setting of Nash-MP (mirror prox), which is EGPO with the step h/(1 + h tau).

    Source: arXiv 2505.19731 (version 1); the identity is derived in docs/policy-mathematics.md. No step overshoots.

    Args:
        step: nats of log-ratio per unit of win rate before the proximal shrinkage; the paper's choice is 2.

    Raises:
        ValueError: if step is not positive and finite, or tau is negative or not finite.
    """
    check_positive(step=step)
    if not 0 <= tau < math.inf:
        raise ValueError(f"tau must be finite and not negative, not {tau}")
    return egpo_setting(step=step / (1.0 + step * tau), tau=tau)


@dataclass(frozen=True)
class Egpo:
    """Extragradient preference optimisation; a ValueError refuses numbers out of range."""

    step: float = knob("nats per unit of win rate")
    tau: float = knob("weight of the KL to the reference; step * tau is at most 1")

    name: ClassVar[str] = "egpo"
    needs: ClassVar[Needs] = Needs()
    own_targets = no_own_targets

    def __post_init__(self) -> None:
        egpo_setting(step=self.step, tau=self.tau)  # refuses what is out of range

    @property
    def fit(self) -> PairwiseFit:
        """The squared residual of each pair."""
        return PairwiseFit(egpo_setting(step=self.step, tau=self.tau))

    def steps(self, iteration: int) -> tuple[Step, ...]:  # noqa: ARG002 - all iterations are alike
        """Return the look-ahead, and the step proper on a round that is drawn from where the look-ahead arrived."""
        return Step(1, "current", "current"), Step(2, "previous-step", "current")

    def convergence_warning(self, omega: float, *, cyclic: bool = True) -> str | None:  # noqa: ARG002
        """Return a warning where the step is beyond the largest that converges."""
        growth = divergence(omega, self.name, dynamics="egpo", step=self.step, tau=self.tau)
        if growth is None:
            return None
        limit = games.largest_step(omega, method="egpo", tau=self.tau)
        return growth + f"the step {self.step:.4g} must stay below {limit:.4g}"

    def exact_step(
        self, policy: ArrayLike, memory: ArrayLike | None, preference: ArrayLike, reference: ArrayLike
    ) -> tuple[Float64s, None]:
        """Return the extragradient step."""
        del memory
        return games.egpo_update(policy, preference, reference, step=self.step, tau=self.tau), None
