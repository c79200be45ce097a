"""The loss in force: from representations and labelled pairs to one number per pair.

Shapes: n responses, P pairs, d length of a representation.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from paragone_evaluation.readers import STRONGEST
from paragone_models import losses, scores

__all__ = ["LossName", "Objective"]

LossName = Literal["regular", "margin", "scaled", "soft", "score", "regression"]

_REWARDS = ("bradley-terry", "helpsteer")
_SCORES = {"general-preference": "s(v1, v2)", "hybrid": "(r1 - r2 + s(v1, v2))"}


@dataclass(frozen=True)
class Objective:
    """Per-pair losses of one kind of model.

    Attributes:
        kind: of model.
        temperature: what logits are divided by.
        name: which loss, see ``LossSection``.
        margin: lead asked for by the regular loss.
        certainty: largest soft label.
        weights: how a ``regression`` model's attributes merge into a reward.
    """

    kind: str
    temperature: float
    name: LossName = "regular"
    margin: float = 0.0
    certainty: float = 0.95
    weights: tuple[float, ...] | None = None

    def describe(self) -> str:
        """Return the loss in words and as a formula, for the log and the card."""
        score = _SCORES.get(self.kind, "(r1 - r2)")
        lead = f"({score} - {self.margin:g})" if self.margin else score
        logit = f"{score} / {self.temperature:g}"
        soft = f"1/2 + strength/{2 * STRONGEST:g}, at most {self.certainty:g}"
        formulas = {
            "regular": f"-log sigmoid({lead} / {self.temperature:g})",
            "margin": f"-log sigmoid({logit} - strength)",
            "scaled": f"-strength * log sigmoid({logit})",
            "soft": f"cross-entropy of sigmoid({logit}) with {soft}",
            "score": f"({logit} - t)^2 / 2, t the log-odds of {soft}",
        }
        return f"{self.name} {self.kind} loss: {formulas[self.name]}"

    def logits(self, representations: Tensor, pairs: Tensor) -> Tensor:
        """Return the log-odds that each pair's first response is preferred.

        Args:
            representations: of the distinct responses. [n, d]
            pairs: row numbers, the first's win is measured. [P, 2]

        Returns:
            Log-odds, float32. [P]

        Raises:
            ValueError: if a regression model has no weights to compare with.
        """
        first, second = representations[pairs[:, 0]], representations[pairs[:, 1]]
        if self.kind in _REWARDS:
            return scores.bradley_terry_logit(first[:, 0], second[:, 0], temperature=self.temperature)
        if self.kind == "regression":
            if self.weights is None:
                raise ValueError("a regression model without weights rates and does not compare")
            weights = torch.tensor(self.weights, device=representations.device)
            return scores.bradley_terry_logit(first @ weights, second @ weights, temperature=self.temperature)
        if self.kind == "hybrid":
            return scores.hybrid_logit(first, second, temperature=self.temperature)
        return scores.general_preference_logit(first, second, temperature=self.temperature)

    def losses(self, representations: Tensor, pairs: Tensor, strength: Tensor) -> Tensor:
        """Return one loss per pair.

        Args:
            representations: of the distinct responses. [n, d]
            pairs: row numbers. [P, 2]
            strength: signed, positive where the first was preferred. [P]

        Returns:
            Losses, float32. [P]

        Raises:
            ValueError: if a tie meets a loss that has no label for it.
        """
        if self.name in ("soft", "score"):
            target = (0.5 + strength / (2 * STRONGEST)).clamp(1 - self.certainty, self.certainty)
            if self.name == "score":
                return losses.score_loss(self.logits(representations, pairs), torch.logit(target))
            return losses.preference_loss(self.logits(representations, pairs), target)
        if bool((strength == 0).any()):
            raise ValueError(f"a tie has no label under the {self.name} loss: drop ties, or use the soft loss")
        chosen_first = (strength > 0)[:, None]
        pairs = torch.where(chosen_first, pairs, pairs.flip(1))
        chosen, rejected = representations[pairs[:, 0]], representations[pairs[:, 1]]
        if self.kind in _REWARDS:
            return self._reward_losses(chosen[:, 0], rejected[:, 0], strength.abs())
        if self.kind == "hybrid":
            lead = scores.hybrid_logit(chosen, rejected, temperature=self.temperature)
            loss = losses.bradley_terry_loss(lead, torch.zeros_like(lead), margin=self.margin / self.temperature)
            return loss * strength.abs() if self.name == "scaled" else loss
        loss = losses.general_preference_loss(chosen, rejected, temperature=self.temperature, margin=self.margin)
        return loss * strength.abs() if self.name == "scaled" else loss

    def _reward_losses(self, chosen: Tensor, rejected: Tensor, strength: Tensor) -> Tensor:
        chosen, rejected = chosen / self.temperature, rejected / self.temperature
        if self.name == "margin":
            return losses.margin_bradley_terry_loss(chosen, rejected, strength)
        if self.name == "scaled":
            return losses.scaled_bradley_terry_loss(chosen, rejected, strength)
        return losses.bradley_terry_loss(chosen, rejected, margin=self.margin / self.temperature)
