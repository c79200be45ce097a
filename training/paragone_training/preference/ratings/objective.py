"""The losses in force for kinds that rate: of ratings, and for ``helpsteer`` of pairs too.

Shapes: n responses, A attributes, d length of a representation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from paragone_models import losses
from paragone_training.preference.objective import Objective

__all__ = ["RatedObjective"]


@dataclass(frozen=True)
class RatedObjective(Objective):
    """Losses of a kind that rates attributes.

    Attributes:
        attributes: names, in the order of the head's last rows.
        share: weight of the regression loss beside that of the pairs.
    """

    attributes: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def learns_pairs(self) -> bool:
        """True where labelled pairs are part of the loss."""
        return self.kind == "helpsteer"

    def describe(self) -> str:
        """Return the losses in words and as formulas, for the log and the card."""
        regression = f"squared error of {', '.join(self.attributes)}, a mean over each response's ratings"
        if not self.learns_pairs:
            return f"regression loss: {regression}"
        return f"{super().describe()}, plus {self.share:g} x regression loss ({regression})"

    def rated_losses(self, representations: Tensor, ratings: Tensor) -> Tensor:
        """Return one loss per response, 0 for a response without ratings.

        Args:
            representations: [n, d]
            ratings: NaN where nobody rated. [n, A]

        Returns:
            Losses, float32. [n]

        Raises:
            ValueError: if the number of attributes is not the model's.
        """
        if ratings.shape[-1] != len(self.attributes):
            raise ValueError(f"{ratings.shape[-1]} ratings a response; the attributes are {', '.join(self.attributes)}")
        predicted = representations[:, representations.shape[-1] - len(self.attributes) :]
        return losses.regression_loss(predicted, ratings, mask=~torch.isnan(ratings))
