"""What ``--model NAME=ensemble:FIRST+SECOND,…`` and ``[models.NAME]`` say of a model that is made of others."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from paragone_models.ensembles import PessimismForm, check_pessimism

__all__ = ["ENSEMBLE", "EnsembleSettings"]

ENSEMBLE = "ensemble:"
"""How the source of an ensemble begins."""


class EnsembleSettings(BaseModel):
    """Whom an ensemble asks, and what it makes of their answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    """``ensemble:`` and the names of hosted models that compare, with ``+`` between them."""
    kind: Literal["auto", "ensemble"] = "auto"
    """What it is: an ensemble."""
    weights: dict[str, float] = {}
    """How much each member counts, by name; 1 where nothing is said."""
    pessimism: float = 0.0
    """How far the mean log-odds are moved towards 0, and never beyond: by so many spreads, or as the form says.
    0, or from 1e-6 to 1e6."""
    pessimism_form: PessimismForm = "spread"
    """What is made of the pessimism, see ``paragone_models.ensembles.combined``."""
    abstain: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Log-odds, up or down, below which the answer says that it abstains; None: it never does."""
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Log-odds of the first member, up or down, from which nobody else is asked; None: everybody always is."""

    @property
    def members(self) -> list[str]:
        """The names of the members, in order."""
        return self.source.removeprefix(ENSEMBLE).split("+")

    @property
    def all_weights(self) -> list[float]:
        """How much each member counts, in their order."""
        return [self.weight(member) for member in self.members]

    def weight(self, member: str) -> float:
        """Return how much a member counts."""
        return self.weights.get(member, 1.0)

    @model_validator(mode="after")
    def _has_members_that_count(self) -> "EnsembleSettings":
        members = self.members
        if len(set(members)) < max(2, len(members)) or not all(members):
            raise ValueError(f"source {self.source!r}: write ensemble:FIRST+SECOND, at least two names, each once")
        if unknown := sorted(set(self.weights) - set(members)):
            raise ValueError(f"weights name {', '.join(unknown)}; the members are {', '.join(members)}")
        weights = self.all_weights
        if not all(0 <= weight < float("inf") for weight in weights) or sum(weights) == 0:
            raise ValueError("weights are finite numbers of at least 0, and not all of them 0")
        check_pessimism(self.pessimism)
        if self.pessimism_form != "spread" and self.pessimism == 0:
            raise ValueError(f"pessimism_form = {self.pessimism_form!r} needs a pessimism above 0: give it one")
        return self
