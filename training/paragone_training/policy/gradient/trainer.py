"""transformers' Trainer for pairs of responses, and the passes that it takes them in.

The mean over an optimiser step comes from ``paragone_training.trainer``. Here: both sequences of a pair in one pass,
the order by epoch, a method's loss per pair, a schedule that may be laid out for more epochs than are run, and the
numbers that people look at (scaled loss, log-ratios).

B pairs of a pass; its 2B sequences are all chosen ones, then all rejected ones. An epoch is cut into steps and passes
of nearly equal size, so that the pairs of a step do not depend on the number of processes. Inside a step pairs of like
length share a pass: a step's mean does not depend on their order, and there is less padding. Where passes are packed
there is none; then pairs of one prompt share a pass, and those of like length come next.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from paragone_training.adapters import recompute_activations
from paragone_training.policy.errors import RunError
from paragone_training.policy.methods.method import Method, PairTargets
from paragone_training.policy.model.logprobs import (
    PackedRow,
    ResponseLogprobs,
    Sequences,
    collated,
    longest_of_prompts,
    response_logprobs,
)
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows.rows import TrainingPair
from paragone_training.trainer import StepTrainer, training_arguments

__all__ = ["Observer", "PolicyTrainer", "of_batch", "optimiser_steps", "policy_trainer"]


class _PairPasses(Dataset[dict[str, Any]]):
    """The passes of an epoch.

    Args:
        pairs: what is trained on.
        size: most pairs of a pass.
        step: pairs of an optimiser step, over all processes.
        pad_id: fills up.
        seed: of the order.
        packed: as one row without padding.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """

    def __init__(
        self, pairs: Sequence[TrainingPair], *, size: int, step: int, pad_id: int, seed: int, packed: bool = False
    ) -> None:
        self._pairs = list(pairs)
        # Fixed for all epochs and processes: accelerate deals passes out, and steps stay the same.
        self._slices = _slices(len(self._pairs), size, step)
        self._passes_of_step = step // size
        self._pad_id = pad_id
        self._seed = seed
        self._packed = packed
        self._order: list[int] = []
        self.epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the order of an epoch, from 0."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._order = list(range(len(self._pairs)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)  # noqa: S311 - shuffling, not secrets
            # Only inside a step: which pairs a step has is left to chance, or its gradient would be of like lengths.
            for first in range(0, len(self._slices), self._passes_of_step):
                last = first + self._passes_of_step - 1
                step = slice(self._slices[first].start, self._slices[last].stop)
                self._order[step] = self._grouped(self._order[step])

    def _grouped(self, places: list[int]) -> list[int]:
        """Return the pairs of a step, the longest first; packed, prompt by prompt."""
        if not self._packed:
            return sorted(places, key=lambda place: -self._pairs[place].length)
        pairs = [self._pairs[place] for place in places]
        # Pairs of one prompt side by side: then the prompt is computed once in a pass.
        longest = longest_of_prompts([pair.prompt_ids for pair in pairs], [pair.length for pair in pairs])

        def rank(place: int) -> tuple[int, tuple[int, ...], int]:
            pair = self._pairs[place]
            return -longest[pair.prompt_ids], pair.prompt_ids, -pair.length

        return sorted(places, key=rank)

    def __len__(self) -> int:
        return len(self._slices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.collated([self._pairs[place] for place in self._order[self._slices[index]]])

    def collated(self, pairs: Sequence[TrainingPair]) -> dict[str, Any]:
        """Return B pairs by name: what a pass has, of 2B sequences, and what ``PairTargets`` has, each [B]."""
        items = [(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
        items += [(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
        # float64 until they are on the device, where the loss takes what it computes in.
        columns = torch.tensor([pair.targets for pair in pairs], dtype=torch.float64).unbind(dim=1)
        return collated(items, self._pad_id, packed=self._packed)._asdict() | PairTargets(*columns)._asdict()


def of_batch(batch: dict[str, Any]) -> tuple[Sequences | PackedRow, PairTargets]:
    """Return the two parts of a collated batch."""
    kind = PackedRow if "layout" in batch else Sequences
    return kind(*(batch[name] for name in kind._fields)), PairTargets(*(batch[name] for name in PairTargets._fields))


def _steps_of_epoch(pairs: int, *, size: int, step: int) -> int:
    """Return the optimiser steps of an epoch, of nearly equal size; the number of processes does not matter.

    Args:
        pairs: of the epoch.
        size: most pairs of a pass.
        step: pairs of a step: at most, or a few more where one pair a pass leaves no other way.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    passes = step // size
    steps = -(-pairs // step)
    if steps * passes > pairs:
        # The last step would have passes without a pair: spread the pairs over one step less.
        steps = pairs // step
    if steps == 0 and pairs >= passes:
        steps = 1
    if steps == 0:
        raise ValueError(
            f"{pairs} pairs cannot fill the {passes} passes of a step: sample more prompts, or lower pairs_per_step"
        )
    return steps


def optimiser_steps(pairs: int, training: PolicyTrainingSection) -> tuple[int, int]:
    """Return the optimiser steps that are run, and those that the schedule is laid out for.

    Args:
        pairs: of the iteration.
        training: of the recipe.

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    an_epoch = _steps_of_epoch(pairs, size=training.pairs_per_pass, step=training.pairs_per_step)
    laid_out = training.schedule_epochs or training.epochs
    return max(math.ceil(training.epochs * an_epoch), 1), max(math.ceil(laid_out * an_epoch), 1)


def _slices(pairs: int, size: int, step: int) -> list[slice]:
    """Return which pairs of an epoch's order each pass has: near-equal shares, none empty."""
    passes = _steps_of_epoch(pairs, size=size, step=step) * (step // size)
    # Whole numbers by division, not by rounding: no pair is lost, and sizes differ by one at most.
    edges = [pairs * number // passes for number in range(passes + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(edges)]


class _Course(TrainerCallback):
    """Stop after the steps that are run of a longer schedule."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        if state.global_step >= self._steps:
            control.should_log = True
            control.should_training_stop = True
            control.should_save = False  # what comes out is written as a whole folder


class Observer(TrainerCallback):
    """Show the numbers of every line that is logged.

    Args:
        show: takes the number of the gradient step in this training, and values by name.
    """

    def __init__(self, show: Callable[[int, dict[str, float]], None]) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Show a line of gradient steps, not the summary at the end."""
        if state.is_world_process_zero and "loss" in logs:
            self._show(state.global_step, logs)


class _PairLoss:
    """A method's mean loss per pair over an optimiser step, and the sums of what people look at.

    Args:
        scale: what the raw loss is multiplied by for logs, and before the gradient unless ``raw``.
    """

    def __init__(self, method: Method, *, scale: float, raw: bool) -> None:
        self._method, self._scale, self._raw = method, scale, raw
        self._sums: dict[str, float] = {}

    def counts(self, batch: Mapping[str, Any]) -> tuple[int]:
        """Return the number of pairs of a pass."""
        return (len(batch["preference"]),)

    def share(self, network: nn.Module, batch: Mapping[str, Any], totals: Sequence[int]) -> Tensor:
        """Return a pass's part of the step's mean loss per pair."""
        sequences, targets = of_batch(dict(batch))
        chosen, rejected = network(sequences).chunk(2)
        losses = self._method.fit.loss(chosen, rejected, targets)
        # How far the policy has moved from the base, which is what a loss asks for.
        moved = chosen.detach() - targets.base_chosen, rejected.detach() - targets.base_rejected
        self._add(losses.detach(), *moved)
        return losses.sum() * (1.0 if self._raw else self._scale) / totals[0]

    def means(self) -> dict[str, float]:
        """Return the means per pair since the last call, of this process's pairs; nothing before the first pass."""
        sums, self._sums = self._sums, {}
        count = sums.pop("pairs", 0.0)
        return {name: value / count for name, value in sums.items()}

    def _add(self, losses: Tensor, chosen: Tensor, rejected: Tensor) -> None:
        sums = {
            "pairs": float(len(losses)),
            "loss": float(losses.sum()) * self._scale,
            "raw_loss": float(losses.sum()),
            "chosen_log_ratio": float(chosen.sum()),
            "rejected_log_ratio": float(rejected.sum()),
        }
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value


class PolicyTrainer(StepTrainer):
    """Train a ``ResponseLogprobs`` network on ``_PairPasses``.

    Args:
        network: in training.
        arguments: of the parent; one item is one pass.
        passes: of every epoch.
        method: of the recipe.
        scale: what the raw loss is multiplied by for logs, and before the gradient unless ``raw``.
        raw: take the gradient of the raw loss.
        steps: optimiser steps that are run.
    """

    def __init__(
        self,
        network: ResponseLogprobs,
        arguments: TrainingArguments,
        passes: _PairPasses,
        method: Method,
        *,
        scale: float,
        raw: bool,
        steps: int,
    ) -> None:
        self._losses = _PairLoss(method, scale=scale, raw=raw)
        super().__init__(network, arguments, passes, self._losses, callbacks=[_Course(steps)])
        self.network, self.passes, self.method, self.scale = network, passes, method, scale

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Return the loss of one pass, after its backward pass, in which layers may run again: as they ran before."""
        with self.network.packing():
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the means since the last line: the parent's loss is not scaled where the raw loss is trained on."""
        super().log(logs | self._losses.means() if "loss" in logs else logs, *args, **kwargs)


def policy_trainer(
    model: Any,
    pairs: Sequence[TrainingPair],
    work: Path,
    *,
    method: Method,
    training: PolicyTrainingSection,
    raw: bool,
    pad_id: int,
    seed: int,
) -> PolicyTrainer:
    """Return the trainer of one step.

    Args:
        model: a causal language model, with adapters or without.
        pairs: with frozen columns.
        work: folder of checkpoints.
        method: of the recipe.
        training: of the recipe.
        raw: take the gradient of the raw loss.
        pad_id: fills up.
        seed: of order and dropout.

    Raises:
        RunError: if there are too few pairs for a step, or a step does not divide among the processes.
    """
    size, step = training.pairs_per_pass, training.pairs_per_step
    network = response_logprobs(model, training)
    try:
        passes = _PairPasses(pairs, size=size, step=step, pad_id=pad_id, seed=seed, packed=network.packs)
    except ValueError as error:
        raise RunError(str(error)) from error
    if training.gradient_checkpointing:
        recompute_activations(model)
    largest = max(max(abs(pair.targets[1]), abs(pair.targets[2])) for pair in pairs)
    steps, laid_out = optimiser_steps(len(pairs), training)
    return PolicyTrainer(
        network,
        _arguments(work, training, laid_out, seed),
        passes,
        method,
        scale=method.fit.scale(largest),
        raw=raw,
        steps=steps,
    )


def _arguments(work: Path, training: PolicyTrainingSection, laid_out: int, seed: int) -> TrainingArguments:
    world = PartialState().num_processes
    # Steps have the same pairs on any number of processes, so a step has to divide.
    passes, rest = divmod(training.pairs_per_step, training.pairs_per_pass * world)
    if rest:
        raise RunError(
            f"training.pairs_per_step {training.pairs_per_step} is no multiple of pairs_per_pass "
            f"{training.pairs_per_pass} times {world} processes"
        )
    return training_arguments(
        work,
        training,
        max_steps=laid_out,
        warmup_steps=training.warmup,
        optim=training.optimiser,
        gradient_accumulation_steps=passes,
        seed=seed,
        data_seed=seed,
        eval_strategy="no",
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        save_total_limit=1,
        ddp_find_unused_parameters=False,
    )
