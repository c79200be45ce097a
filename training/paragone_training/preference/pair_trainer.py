"""transformers' Trainer for preferences: each distinct response passes once, the loss is a mean over a step's pairs.

Resume, mixed precision, accumulation, and several processes come from the parent. What it would get wrong is here: the
number of *pairs* of a whole optimiser step is counted and every forward pass divides by it, so that cutting a step into
more passes changes nothing.
"""

import itertools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from paragone_training.data.batches import Batch, PairBatches
from paragone_training.errors import TrainingError
from paragone_training.preference.objective import Objective

__all__ = ["PreferenceTrainer"]

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


class _Epochs(TrainerCallback):
    """Draw the batches of every epoch anew, also after a resumption in the middle of one."""

    def __init__(self, batches: PairBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        epoch = int(state.epoch or 0)
        if epoch != self._batches.epoch:
            self._batches.set_epoch(epoch)


class _Lines(TrainerCallback):
    """Log every line of the history as words, in place of the parent's dictionaries on standard output."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if name != "epoch")
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers)


class PreferenceTrainer(Trainer):
    """Train a ``PreferenceNetwork`` on ``PairBatches``.

    Args:
        network: what is trained.
        arguments: of the parent; one batch is one item of ``batches``.
        batches: of every epoch.
        objective: the loss in force.
        evaluation: returns metrics of the network as it is, or None to evaluate nothing.
        callbacks: beside the parent's.
    """

    def __init__(
        self,
        network: nn.Module,
        arguments: TrainingArguments,
        batches: PairBatches,
        objective: Objective,
        *,
        evaluation: Callable[[], Metrics] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(
            model=network,
            args=arguments,
            train_dataset=batches,
            eval_dataset=batches if evaluation else None,  # never read: ``evaluate`` is ours
            data_collator=_only,
            callbacks=[_Epochs(batches), _Lines(), *(callbacks or [])],
        )
        self.remove_callback(PrinterCallback)
        # The parent divides a loss by the number of accumulated passes unless it knows that this is done already.
        self.model_accepts_loss_kwargs = True
        self._batches = batches
        self._objective = objective
        self._evaluation = evaluation
        logger.info("loss in force: %s, averaged per pair over the optimiser step", objective.describe())

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Return the order of an epoch's batches: as planned, the plan itself is random."""
        return SequentialSampler(self._batches if train_dataset is None else train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return the batches of one optimiser step, and the number of labelled pairs in them over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        pairs = torch.tensor(sum(len(batch["pairs"]) for batch in batches), device=device)
        if self.args.world_size > 1:
            pairs = self.accelerator.gather(pairs).sum()
        return batches, pairs

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this pass's share of the step's mean loss per pair."""
        representations = model(
            input_ids=inputs["input_ids"], reads=inputs["reads"], attention_mask=inputs["attention_mask"]
        )
        if len(inputs["pairs"]):
            total = self._objective.losses(representations, inputs["pairs"], inputs["strength"]).sum()
        else:
            total = representations.sum() * 0.0
        pairs = len(inputs["pairs"]) if num_items_in_batch is None else num_items_in_batch
        # Several processes average their gradients; the sum over all of them is what is wanted.
        scale = 1 if num_items_in_batch is None else self.args.world_size
        loss = total * scale / max(int(pairs), 1)
        return (loss, representations) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Metrics:  # noqa: ARG002 - the parent's signature
        """Return and log the metrics of the held-out rows."""
        metrics = self._evaluation() if self._evaluation else {}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint of what is trained: with adapters, not the frozen backbone."""
        if state_dict is None:
            network: Any = self.model
            frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
            state_dict = {name: tensor for name, tensor in network.state_dict().items() if name not in frozen}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint without a weight that is trained; frozen ones were left out on purpose.

        Raises:
            TrainingError: if one is missing.
        """
        network: Any = self.model
        trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
        if missing := sorted(trained & set(load_result.missing_keys)):
            raise TrainingError(f"the checkpoint lacks {missing}: it was written by a run with another recipe")


def _only(items: list[Any]) -> dict[str, Any]:
    """Return the one item of a list: it is a batch already."""
    (batch,) = items
    return dict(batch)
