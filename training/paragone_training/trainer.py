"""transformers' Trainer for batches that are planned beforehand, and a loss that is a mean over an optimiser step.

Resume, mixed precision, accumulation and several processes come from the parent. What it would get wrong is here: it
takes a mean of the passes' means. A step may be cut into passes with very different numbers of pairs, so the pairs of
the *whole* step are counted first, and every pass divides by that number: cutting a step into more passes changes
nothing.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from paragone_training.errors import TrainingError

__all__ = ["StepTrainer", "training_arguments"]

logger = logging.getLogger(__name__)


class _StepLoss(Protocol):
    """A loss that is a mean, or a sum of means, over all batches of an optimiser step."""

    def counts(self, batch: Mapping[str, Any]) -> Sequence[int]:
        """Return how many terms a batch adds to each mean."""

    def share(self, network: nn.Module, batch: Mapping[str, Any], totals: Sequence[int]) -> Tensor:
        """Return a batch's part of the loss, given the terms of the whole step; no total is 0."""


class _PlannedBatches(Protocol):
    """Batches of an epoch, each one item; ``set_epoch`` draws them anew."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...


def training_arguments(work: Path, training: Any, **more: Any) -> TrainingArguments:
    """Return transformers' arguments for the ``[training]`` section of a recipe.

    Args:
        training: the section; what preference models and policies have in common is read here.
        more: what only one of them has, by transformers' names.
    """
    arguments: dict[str, Any] = {
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.betas[0],
        "adam_beta2": training.betas[1],
        "max_grad_norm": training.max_gradient_norm,
        "per_device_train_batch_size": 1,  # one item is a whole batch
        "bf16": training.bf16,
        "logging_steps": training.log_steps,
        "seed": training.seed,
        "data_seed": training.seed,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=str(work), **(arguments | more))


class StepTrainer(Trainer):
    """Train a network on planned batches.

    Args:
        arguments: of the parent; one batch is one item of ``batches``.
        evaluation: returns metrics of the network as it is, or None to evaluate nothing.
    """

    def __init__(
        self,
        network: nn.Module,
        arguments: TrainingArguments,
        batches: _PlannedBatches,
        loss: _StepLoss,
        *,
        evaluation: Callable[[], dict[str, float]] | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        dataset: Any = batches
        super().__init__(
            model=network,
            args=arguments,
            train_dataset=dataset,
            eval_dataset=dataset if evaluation else None,  # never read: ``evaluate`` is ours
            data_collator=_only_item,
            callbacks=[_Epochs(batches), _Lines(), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        # The parent divides a loss by the number of accumulated passes unless it knows that this is done already.
        self.model_accepts_loss_kwargs = True
        self._batches = dataset
        self._loss = loss
        self._evaluation = evaluation

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        """Return the order of an epoch's batches: as planned, the plan itself is random."""
        return SequentialSampler(self._batches if train_dataset is None else train_dataset)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """Return the batches of one optimiser step, and the terms of each mean in them over all processes."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        totals = torch.tensor([sum(terms) for terms in zip(*map(self._loss.counts, batches), strict=True)])
        totals = totals.to(device)
        if self.args.world_size > 1:
            totals = self.accelerator.gather(totals[None]).sum(dim=0)
        return batches, totals

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return this pass's share of the step's loss."""
        totals, processes = self._loss.counts(inputs), 1
        if isinstance(num_items_in_batch, Tensor):
            # Several processes average their gradients; the sum over all of them is what is wanted.
            totals, processes = num_items_in_batch.tolist(), self.args.world_size
        loss = self._loss.share(model, inputs, [max(total, 1) for total in totals]) * processes
        return (loss, {}) if return_outputs else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002 - the parent's signature
        """Return and log the metrics of the held-out rows."""
        metrics = self._evaluation() if self._evaluation else {}
        self.log(metrics)
        # What the parent's evaluation would have told the callbacks.
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint of what is trained: with adapters, not the frozen backbone; tied weights once."""
        if state_dict is None:
            network: Any = self.model
            trained = _trained(network)
            state_dict = {name: tensor for name, tensor in network.state_dict().items() if name in trained}
        super()._save(output_dir, state_dict)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuse a checkpoint that lacks a trained weight; frozen and tied ones were left out on purpose."""
        if missing := sorted(_trained(self.model) & set(load_result.missing_keys)):
            raise TrainingError(f"the checkpoint lacks {missing}: it was written by a run with another recipe")


class _Epochs(TrainerCallback):
    """Plan the batches of every epoch anew, also after a resumption in the middle of one."""

    def __init__(self, batches: _PlannedBatches) -> None:
        self._batches = batches

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._batches.set_epoch(int(state.epoch or 0))


class _Lines(TrainerCallback):
    """Log every line of the history as words, in place of the parent's dictionaries on standard output."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in (logs or {}).items() if name != "epoch")
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers)


def _trained(network: Any) -> set[str]:
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


def _only_item(items: list[Any]) -> dict[str, Any]:
    """Return the one item of a list: it is a batch already."""
    (batch,) = items
    return dict(batch)
