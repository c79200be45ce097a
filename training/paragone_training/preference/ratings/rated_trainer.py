"""The trainer of kinds that rate: a mean per pair and a mean per rated response, both over the whole optimiser step."""

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from paragone_training.data.batches import Batch
from paragone_training.preference.pair_trainer import PreferenceTrainer
from paragone_training.preference.ratings.batches import RatedBatch, RatedBatches
from paragone_training.preference.ratings.objective import RatedObjective

__all__ = ["RatedTrainer"]


class RatedTrainer(PreferenceTrainer):
    """Train a network on ``RatedBatches``.

    Args:
        network: what is trained.
        arguments: of the parent; one batch is one item of ``batches``.
        batches: of every epoch.
        objective: the losses in force.
        evaluation: returns metrics of the network as it is, or None to evaluate nothing.
        callbacks: beside the parent's.
    """

    def __init__(
        self,
        network: nn.Module,
        arguments: TrainingArguments,
        batches: RatedBatches,
        objective: RatedObjective,
        *,
        evaluation: Callable[[], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(network, arguments, batches, objective, evaluation=evaluation, callbacks=callbacks)
        self._losses = objective
        self._rated_in_step: Tensor | None = None

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return the batches of one optimiser step and the number of labelled pairs; count rated responses too."""
        batches, pairs = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [int(_rated(cast("RatedBatch", batch)["ratings"])) for batch in batches]
        rated = torch.tensor(sum(counts), device=device)
        if self.args.world_size > 1:
            rated = self.accelerator.gather(rated).sum()
        self._rated_in_step = rated
        return batches, pairs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this pass's share of the step's mean losses per pair and per rated response."""
        representations = model(
            input_ids=inputs["input_ids"], reads=inputs["reads"], attention_mask=inputs["attention_mask"]
        )
        alone = num_items_in_batch is None or self._rated_in_step is None
        rated = _rated(inputs["ratings"]) if alone or self._rated_in_step is None else self._rated_in_step
        total = self._losses.rated_losses(representations, inputs["ratings"]).sum() / max(int(rated), 1)
        if self._losses.learns_pairs:
            total = self._losses.share * total
            if len(inputs["pairs"]):
                pairs = len(inputs["pairs"]) if num_items_in_batch is None else int(num_items_in_batch)
                judged = self._losses.losses(representations, inputs["pairs"], inputs["strength"])
                total = total + judged.sum() / max(pairs, 1)
        # Several processes average their gradients; the sum over all of them is what is wanted.
        loss = total * (1 if alone else self.args.world_size)
        return (loss, representations) if return_outputs else loss


def _rated(ratings: Tensor) -> Tensor:
    """Return how many responses have a rating."""
    return (~torch.isnan(ratings)).any(dim=-1).sum()
