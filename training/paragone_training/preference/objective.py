"""The loss in force: from representations, labelled pairs and ratings to one number per pair and per rated response.

Shapes: n responses, P pairs, A attributes, d length of a representation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paragone_evaluation.readers import STRONGEST
from paragone_models import losses
from paragone_models.kinds import KINDS, KindName, LossName
from paragone_models.symmetrise import Symmetrise, symmetrised

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """The losses of one kind of model.

    Attributes:
        margin: lead asked for by the regular loss, in the unit of the model's scores.
        certainty: largest soft label.
        weights: how a ``regression`` model's attributes merge into a reward.
        attributes: names of the ratings, in the order of the last entries of a representation.
        ratings: weight of the regression loss beside the loss of the pairs.
        label_smoothing: share of the pairs whose label the regular loss takes for wrong, in [0, ½).
        centre: weight of the squared sum of a pair's rewards, where there are rewards.
        symmetrise: what makes one answer of the two orders in which a pair is read; None where responses are.
    """

    kind: KindName
    temperature: float
    name: LossName = "regular"
    margin: float = 0.0
    certainty: float = 0.95
    weights: tuple[float, ...] | None = None
    attributes: tuple[str, ...] = ()
    ratings: float = 1.0
    label_smoothing: float = 0.0
    centre: float = 0.0
    symmetrise: Symmetrise | None = None

    @property
    def distils(self) -> bool:
        """True where the labels are another model's probabilities."""
        return self.name == "distil"

    @property
    def whom(self) -> str:
        """Whose judgement is learned, in words."""
        return "the teacher" if self.distils else "people"

    @property
    def learns_pairs(self) -> bool:
        """True where labelled pairs are part of the loss."""
        return KINDS[self.kind].learns_pairs

    @property
    def compares(self) -> bool:
        """True where the model can tell which of two responses is preferred."""
        return self.symmetrise is not None or KINDS[self.kind].compares(self.weights)

    def describe(self) -> str:
        """Return the losses in words and as formulas, for the log and the card."""
        rated = f"squared error of {', '.join(self.attributes)}, a mean over each response's ratings"
        if not self.learns_pairs:
            return f"regression loss: {rated}"
        score = KINDS[self.kind].formula
        lead = f"({score} - {self.margin:g})" if self.margin else score
        divided = "" if self.temperature == 1 else f" / {self.temperature:g}"
        logit = f"{score}{divided}"
        soft = f"1/2 + strength/{2 * STRONGEST:g}, at most {self.certainty:g}"
        right = f"log sigmoid({lead}{divided})"
        if wrong := self.label_smoothing:
            right = f"({1 - wrong:g} {right} + {wrong:g} log sigmoid(-{lead}{divided}))"
        formulas = {
            "regular": f"-{right}",
            "margin": f"-log sigmoid({logit} - strength)",
            "scaled": f"-strength * log sigmoid({logit})",
            "soft": f"cross-entropy of sigmoid({logit}) with {soft}",
            "score": f"({logit} - t)^2 / 2, t the log-odds of {soft}",
            "distil": f"cross-entropy of sigmoid({logit}) with the teacher's probability, 1/2 + strength/6",
        }
        words = f"{self.name} {self.kind} loss: {formulas[self.name]}"
        if self.symmetrise is not None:
            words += ", L the log-odds of the letters, a mean over both orders"
        if self.centre:
            words += f", plus {self.centre:g} x (r1 + r2)^2"
        return f"{words}, plus {self.ratings:g} x regression loss ({rated})" if self.attributes else words

    def logits(self, representations: Tensor, pairs: Tensor) -> Tensor:
        """Return the log-odds that each pair's first response is preferred, float32. [P].

        Args:
            representations: of the distinct responses; of a model that reads pairs, the log-odds of the response that
                is read first. [n, d]
            pairs: row numbers, the first's win is measured. [P, 2]

        Raises:
            PreferencesUnavailableError: if a regression model has no weights to compare with.
        """
        if self.symmetrise is not None:
            both = self.orders(representations.detach(), pairs).double().numpy(force=True)
            return torch.from_numpy(symmetrised(both[0], -both[1], self.symmetrise) / self.temperature).float()
        # float32 also under mixed precision: a logit is a small difference of large rewards.
        first, second = representations[pairs[:, 0]].float(), representations[pairs[:, 1]].float()
        return KINDS[self.kind].logit(first, second, temperature=self.temperature, weights=self.weights)

    def orders(self, representations: Tensor, pairs: Tensor) -> Tensor:
        """Return what is read of each pair: the first's lead when it is read first and read second, float32. [2, P].

        Args:
            representations: log-odds of the response that is read first. [n, 1]
            pairs: row numbers, the first's win is measured. [P, 2]
        """
        first, second = representations[pairs[:, 0], 0].float(), representations[pairs[:, 1], 0].float()
        return torch.stack([first, -second])

    def losses(self, representations: Tensor, pairs: Tensor, strength: Tensor) -> Tensor:
        """Return one loss per pair, float32. [P].

        Args:
            representations: of the distinct responses. [n, d]
            pairs: row numbers. [P, 2]
            strength: signed, positive where the first was preferred. [P]

        Raises:
            ValueError: if a tie meets a loss that has no label for it.
        """
        if self.symmetrise is not None:
            # Each order is an answer of its own, and is to be right by itself: their mean would leave a bias alone.
            forwards, backwards = self.orders(representations, pairs) / self.temperature
            return (self._of_labels(forwards, strength) + self._of_labels(backwards, strength)) / 2
        logits = self.logits(representations, pairs)
        losses_of_labels = self._of_labels(logits, strength)
        if not self.centre:
            return losses_of_labels
        # A reward comes first in a representation, where there is one.
        first, second = (representations[pairs[:, side], 0] for side in (0, 1))
        return losses_of_labels + self.centre * losses.centring_loss(first, second)

    def _of_labels(self, logits: Tensor, strength: Tensor) -> Tensor:
        if self.name == "distil":
            # As sure as the teacher was. The clamp is for rounding alone: strengths are float32 here.
            return losses.preference_loss(logits, (0.5 + strength / (2 * STRONGEST)).clamp(0, 1))
        if self.name in ("soft", "score"):
            # A tie has the label 1/2 and costs least at equal scores; certainty keeps a target's log-odds finite.
            target = (0.5 + strength / (2 * STRONGEST)).clamp(1 - self.certainty, self.certainty)
            if self.name == "score":
                return losses.score_loss(logits, torch.logit(target))
            return losses.preference_loss(logits, target)
        if bool((strength == 0).any()):
            raise ValueError(f"a tie has no label under the {self.name} loss: drop ties, or use the soft loss")
        # Swapping two responses flips exactly the sign of a logit, for every kind: so the preferred one leads by this.
        lead, level = logits * strength.sign(), torch.zeros_like(logits)
        if self.name == "margin":
            return losses.margin_bradley_terry_loss(lead, level, strength.abs())
        if self.name == "scaled":
            return losses.scaled_bradley_terry_loss(lead, level, strength.abs())
        # A margin is asked for in the unit of scores, and divided as they are.
        if self.label_smoothing:
            target = torch.full_like(lead, 1 - self.label_smoothing)
            return losses.preference_loss(lead - self.margin / self.temperature, target)
        return losses.bradley_terry_loss(lead, level, margin=self.margin / self.temperature)

    def rating_losses(self, representations: Tensor, ratings: Tensor) -> Tensor:
        """Return one loss per response, 0 for a response without ratings, float32. [n].

        Args:
            representations: [n, d]
            ratings: NaN where nobody rated. [n, A]

        Raises:
            ValueError: if the number of attributes is not the model's.
        """
        if ratings.shape[-1] != len(self.attributes):
            raise ValueError(f"{ratings.shape[-1]} ratings a response; the attributes are {', '.join(self.attributes)}")
        # Attributes end a representation; a reward of its own, where there is one, comes first.
        predicted = representations[:, representations.shape[-1] - len(self.attributes) :]
        return losses.regression_loss(predicted, ratings, mask=~torch.isnan(ratings))

    def counts(self, batch: Mapping[str, Any]) -> tuple[int, int]:
        """Return how many labelled pairs and how many rated responses a batch has."""
        return len(batch["pairs"]), int((~torch.isnan(batch["ratings"])).any(dim=-1).sum())

    def share(self, network: nn.Module, batch: Mapping[str, Any], totals: Sequence[int]) -> Tensor:
        """Return a batch's part of a step's loss: a mean per pair, plus ``ratings`` times a mean per rated response.

        Args:
            totals: the ``counts`` of the whole step.
        """
        representations = network(
            input_ids=batch["input_ids"], reads=batch["reads"], attention_mask=batch["attention_mask"]
        )
        pairs, rated = totals
        # A batch may have neither pairs nor ratings; its loss still has to have a gradient, of 0.
        total: Tensor = representations.sum() * 0.0
        if self.learns_pairs and len(batch["pairs"]):
            each = self.losses(representations, batch["pairs"], batch["strength"])
            total = total + (each * batch["weight"]).sum() / pairs
        # Pairs and ratings are two means of their own: a step with few ratings weighs them no less.
        if self.attributes:
            weight = self.ratings if self.learns_pairs else 1.0
            total = total + weight * self.rating_losses(representations, batch["ratings"]).sum() / rated
        return total
