"""transformers' Trainer for batches that are planned beforehand, and a loss that is a mean over an optimiser step.

Resume, mixed precision, accumulation and several processes come from the parent. What it would get wrong is here. It
takes a mean of the passes' means: a step may be cut into passes with very different numbers of pairs, so the pairs of
the *whole* step are counted first, and every pass divides by that number, and cutting a step into more passes changes
nothing. It replaces a loss that is NaN by the mean of earlier ones and goes on: here such a step ends the run, before
any weight is changed. And it writes checkpoints by steps or epochs alone, here also by time.
"""

import itertools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from paragone_training.errors import DivergedError, RecipeError, TrainingError
from paragone_training.progress_file import append_progress
from paragone_training.run_series import numbers_in_words, numbers_of

__all__ = ["Checkpoints", "StepTrainer", "last_checkpoint", "training_arguments", "warmup_steps"]

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_CHECKPOINTS = 300.0
_ROWS_SHOWN = 8
_REMEDIES = (
    "Try a lower training.learning_rate, a longer warm-up, a smaller training.max_gradient_norm, or bf16 = false"
)
_STATE = "trainer_state.json"  # the last file of a checkpoint that the parent writes


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
        "logging_nan_inf_filter": False,
        "seed": training.seed,
        "data_seed": training.seed,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "remove_unused_columns": False,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    return TrainingArguments(output_dir=str(work), **(arguments | more))


def warmup_steps(asked: float, *, steps: int, laid_out: int | None = None) -> int:
    """Return the steps over which the learning rate rises from 0: a share is rounded up, and leaves a step at least.

    Args:
        asked: steps, or below 1 the share of the schedule.
        steps: that are run.
        laid_out: steps that the schedule counts, where it is longer than the run.

    Raises:
        RecipeError: if the learning rate would be 0 throughout, or rise to the end of the schedule.
    """
    schedule = laid_out or steps
    # The rate of the first step is 0: where that is the only one, there is no warm-up.
    most = schedule - 1 if steps > 1 else 0
    if asked < 1:
        return min(math.ceil(asked * schedule), most)
    if asked > most:
        raise RecipeError(
            f"the warm-up takes {asked:g} steps, and the run has {steps}: the learning rate would never reach its "
            "peak. Set fewer, or a share below 1"
        )
    return int(asked)


def last_checkpoint(work: Path) -> Path | None:
    """Return the folder of the last checkpoint that was written to its end, or None."""
    whole = {}
    for folder in work.glob("checkpoint-*"):
        step = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        try:
            json.loads((folder / _STATE).read_bytes())
        except (OSError, ValueError):
            continue  # cut off by a kill
        if step:
            whole[int(step[1])] = folder
    return whole[max(whole)] if whole else None


class StepTrainer(Trainer):
    """Train a network on planned batches.

    Args:
        arguments: of the parent; one batch is one item of ``batches``.
        evaluation: returns metrics of the network as it is, or None to evaluate nothing.
        apart: parameters that have another learning rate, and that rate, or None.
        beside: writes into a checkpoint's folder what belongs to it beside the trained weights.

    Raises:
        DivergedError: from ``train``, if a loss, a gradient or a weight is NaN or infinite; no weight was changed by it
            and no checkpoint has it.
    """

    def __init__(
        self,
        network: nn.Module,
        arguments: TrainingArguments,
        batches: _PlannedBatches,
        loss: _StepLoss,
        *,
        evaluation: Callable[[], dict[str, float]] | None = None,
        beside: Callable[[Path], None] | None = None,
        apart: tuple[Sequence[nn.Parameter], float] | None = None,
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
        self._apart = apart
        self._loss = loss
        self._evaluation = evaluation
        self._beside = beside
        self._rows: list[str] = []  # of the passes since the last step
        self._largest_norm = 0.0

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the parent's optimiser, with parameters that have a learning rate of their own in groups apart."""
        optimizer = super().create_optimizer(model)
        if self._apart is None:
            return optimizer
        parameters, rate = self._apart
        names = {id(parameter) for parameter in parameters}
        for group in list(optimizer.param_groups):
            own = [parameter for parameter in group["params"] if id(parameter) in names]
            if own:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in names]
                optimizer.add_param_group({**group, "params": own, "lr": rate})
        self._apart = None  # asked again, the parent returns the same one
        return optimizer

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

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of one pass after its backward pass.

        Raises:
            DivergedError: if it is no finite number.
        """
        rows = inputs.pop("rows", ())
        self._rows += rows
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise self._diverged(f"the loss is {float(loss)}", rows)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Return the gradients' norm, which the optimiser may step on."""
        norm: Any = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        rows = self._rows
        self._rows = []
        self._largest_norm = max(self._largest_norm, 0.0 if norm is None else float(norm))
        if norm is not None and not math.isfinite(float(norm)):
            raise self._diverged(f"the gradients have the norm {float(norm)}", rows)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint, unless it would have weights that no run can go on from."""
        self._refuse_broken_weights()
        super()._save_checkpoint(model, trial)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train to the end, as the parent does.

        Raises:
            DivergedError: if the numbers are none any more.
        """
        result = super().train(*args, **kwargs)
        self._refuse_broken_weights()
        if self.state.global_step > self._initial_global_step and not self._largest_norm:
            logger.warning("the gradients of every step were 0: nothing was learned. Look at the labels and the loss")
        return result

    def _refuse_broken_weights(self) -> None:
        network: Any = self.model
        broken = [
            name
            for name, weight in network.named_parameters()
            if weight.requires_grad and not bool(torch.isfinite(_local(weight)).all())
        ]
        if broken:
            raise DivergedError(
                f"after step {self.state.global_step} of {self.state.max_steps} {len(broken)} weights are NaN or "
                f"infinite ({broken[0]}); they are not saved, and checkpoints before it stay. {_REMEDIES}"
            )

    def _diverged(self, what: str, rows: Sequence[str]) -> DivergedError:
        distinct = list(dict.fromkeys(rows))
        shown = ", ".join(distinct[:_ROWS_SHOWN]) + (", …" if len(distinct) > _ROWS_SHOWN else "")
        return DivergedError(
            f"step {self.state.global_step + 1} of {self.state.max_steps}: {what}"
            f"{f' over {len(distinct)} rows ({shown})' if distinct else ''}; no weight was changed by it, and "
            f"checkpoints before it stay. {'Look at these rows. ' if distinct else ''}{_REMEDIES}"
        )

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:  # noqa: ARG002 - the parent's signature
        """Return and log the metrics of the held-out rows."""
        self._refuse_broken_weights()
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
        if self._beside and output_dir:
            self._beside(Path(output_dir))

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


class Checkpoints(TrainerCallback):
    """Ask for a checkpoint every so many steps, or of the first step after some minutes.

    Args:
        steps: between two checkpoints, or None to go by time.
    """

    def __init__(self, steps: int | None) -> None:
        self._steps, self._last = steps, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Ask where one is due; elsewhere leave to the parent what it asks for itself."""
        if self._steps:
            due = state.global_step % self._steps == 0
        else:
            due = time.monotonic() - self._last >= _SECONDS_BETWEEN_CHECKPOINTS
            if args.world_size > 1:
                # Clocks differ, and a checkpoint is written by all processes or by none.
                due = bool(broadcast(torch.tensor([due], device=args.device)))
        control.should_save = control.should_save or due

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Count the minutes from here, whoever asked."""
        self._last = time.monotonic()


class _Lines(TrainerCallback):
    """Log every line of the history as words, in place of the parent's dictionaries on standard output.

    ``progress.jsonl`` beside the checkpoints has the same numbers, for whoever watches the run from outside.
    """

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        if not state.is_world_process_zero:
            return
        values = {name: value for name, value in numbers_of(logs or {}).items() if name != "epoch"}
        # Of the end transformers says only how fast it was, in batches that it takes for samples.
        if values:
            logger.info("step %d of %d: %s", state.global_step, state.max_steps, numbers_in_words(values))
        line = {"step": state.global_step, "steps": state.max_steps, **values}
        append_progress(Path(args.output_dir), line)


def _trained(network: Any) -> set[str]:
    return {name for name, weight in network.named_parameters() if weight.requires_grad}


def _local(weight: Any) -> Tensor:
    # A weight in shares is checked share by share, each by its own process.
    local: Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return local


def _only_item(items: list[Any]) -> dict[str, Any]:
    """Return the one item of a list: it is a batch already."""
    (batch,) = items
    return dict(batch)
