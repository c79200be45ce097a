"""The gradient steps of a training step: the passes over its pairs, transformers' Trainer, and the checks beforehand.

STEP/start.json           the first-batch check and the noise floor
STEP/history.json         the trainer's log
STEP/policy/              the weights that came out; a step is done when this exists

The mean over an optimiser step comes from ``paragone_training.trainer``. B pairs of a pass; its 2B sequences are all
chosen ones, then all rejected ones. An epoch is cut into steps and passes of nearly equal size, so that the pairs of a
step do not depend on the number of processes. Inside a step pairs of like length share a pass: a step's mean does not
depend on their order, and there is less padding. Packed passes have no padding; there pairs of one prompt share a pass,
and those of like length come next.
"""

import functools
import itertools
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments, get_scheduler, set_seed

from paragone_training.adapters import recompute_activations
from paragone_training.dropout import dropout_off
from paragone_training.errors import RecipeError, RunError
from paragone_training.policy.methods.method import Method, PairTargets, describe, numbers, same_shape
from paragone_training.policy.model.logprobs import (
    PackedRow,
    ResponseLogprobs,
    Sequences,
    collated,
    longest_of_prompts,
    on_device,
    response_logprobs,
)
from paragone_training.policy.model.weights import (
    Policy,
    check_sharding,
    is_sharded,
    update_kept,
    weight_samples,
    whole_state,
)
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair, need_space, write_json
from paragone_training.settings import LoraSection
from paragone_training.trainer import StepTrainer, last_checkpoint, training_arguments, warmup_steps

__all__ = ["PolicyTrainer", "check_schedule", "optimiser_steps", "policy_trainer", "train_step"]

logger = logging.getLogger(__name__)


_CHECKED_PAIRS = 64
# Smallest share of an update that may survive storage without a warning.
_KEPT = 0.9
# Relative distance from the closed-form start value that float32 explains.
_ROUNDING = 1e-4


class _PairPasses(Dataset[dict[str, Any]]):
    """The passes of an epoch."""

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


def _of_batch(batch: dict[str, Any]) -> tuple[Sequences | PackedRow, PairTargets]:
    """Return the two parts of a collated batch."""
    kind = PackedRow if "layout" in batch else Sequences
    return kind(*(batch[name] for name in kind._fields)), PairTargets(*(batch[name] for name in PairTargets._fields))


def _steps_of_epoch(pairs: int, *, size: int, step: int) -> int:
    """Return the optimiser steps of an epoch, of nearly equal size; the number of processes does not matter."""
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

    Raises:
        ValueError: if there are fewer pairs than one step has passes.
    """
    an_epoch = _steps_of_epoch(pairs, size=training.pairs_per_pass, step=training.pairs_per_step)
    laid_out = training.schedule_epochs or training.epochs
    # A part of an epoch is rounded up: a training step takes at least one gradient step.
    return max(math.ceil(training.epochs * an_epoch), 1), max(math.ceil(laid_out * an_epoch), 1)


def check_schedule(training: PolicyTrainingSection, steps: int, laid_out: int) -> None:
    """Refuse a schedule that transformers does not know, or whose warm-up the run does not outlast.

    Raises:
        RecipeError: if it is one.
    """
    rises = warmup_steps(training.warmup, steps=steps, laid_out=laid_out)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    try:
        get_scheduler(training.schedule, optimiser, num_warmup_steps=rises, num_training_steps=laid_out)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training.schedule is {training.schedule!r}: {error}") from error


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


class _Observer(TrainerCallback):
    """Show the numbers of every line that is logged."""

    def __init__(self, show: Callable[[int, dict[str, float]], None]) -> None:
        self._show = show

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Show a line of gradient steps, not the summary at the end."""
        # The summary at the end of training has no loss, and is no gradient step.
        if state.is_world_process_zero and "loss" in logs:
            self._show(state.global_step, logs)


class _PairLoss:
    """A method's mean loss per pair over an optimiser step, and the sums of what people look at."""

    def __init__(self, method: Method, *, scale: float, raw: bool) -> None:
        self._method, self._scale, self._raw = method, scale, raw
        self._sums: dict[str, float] = {}

    def counts(self, batch: Mapping[str, Any]) -> tuple[int]:
        """Return the number of pairs of a pass."""
        return (len(batch["preference"]),)

    def share(self, network: nn.Module, batch: Mapping[str, Any], totals: Sequence[int]) -> Tensor:
        """Return a pass's part of the step's mean loss per pair."""
        sequences, targets = _of_batch(dict(batch))
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
            # Sums over passes, since passes may differ by one pair; divided once, by all pairs.
            self._sums[name] = self._sums.get(name, 0.0) + value


class PolicyTrainer(StepTrainer):
    """Train a ``ResponseLogprobs`` network on ``_PairPasses``."""

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
        # The backward pass may run layers again: they must find the attention of the forward pass.
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

    Raises:
        RunError: if there are too few pairs for a step, or a step does not divide among the processes.
    """
    size, step = training.pairs_per_pass, training.pairs_per_step
    if all(pair.targets[0] == 0.5 for pair in pairs):
        raise RunError(f"all {len(pairs)} pairs are ties: there is no preference to learn from; sample more responses")
    # Asked first whether it packs: the order inside a step depends on it.
    network = response_logprobs(model, training)
    try:
        passes = _PairPasses(pairs, size=size, step=step, pad_id=pad_id, seed=seed, packed=network.packs)
    except ValueError as error:
        raise RunError(str(error)) from error
    if training.gradient_checkpointing:
        recompute_activations(model)
    # For losses whose targets have no bound of their own.
    largest = max(max(abs(pair.targets[1]), abs(pair.targets[2])) for pair in pairs)
    steps, laid_out = optimiser_steps(len(pairs), training)
    check_schedule(training, steps, laid_out)
    return PolicyTrainer(
        network,
        _arguments(work, training, steps, laid_out, seed),
        passes,
        method,
        scale=method.fit.scale(largest),
        raw=raw,
        steps=steps,
    )


def _arguments(work: Path, training: PolicyTrainingSection, steps: int, laid_out: int, seed: int) -> TrainingArguments:
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
        # What the schedule counts to; ``_Course`` may stop the run before.
        max_steps=laid_out,
        warmup_steps=warmup_steps(training.warmup, steps=steps, laid_out=laid_out),
        optim=training.optimiser,
        gradient_accumulation_steps=passes,
        seed=seed,
        data_seed=seed,
        eval_strategy="no",
        save_strategy="steps" if training.save_steps else "no",
        save_steps=training.save_steps or 500,
        # A run goes on from the last one alone.
        save_total_limit=1,
        # Every weight has a gradient in every pass, and looking for others walks the graph each time.
        ddp_find_unused_parameters=False,
    )


@dataclass(frozen=True)
class _NoiseFloor:
    """How much two computations of the same log-probabilities differ, and whether that drowns the goal of the loss.

    Attributes:
        spread: root mean square of the difference, in nats.
        scale: root mean square of the loss's goal, in nats.
        largest: largest absolute difference, in nats.
    """

    spread: float
    scale: float
    largest: float

    @property
    def share(self) -> float:
        """The spread as a share of the goal's scale; infinite for a goal of 0."""
        return self.spread / self.scale if self.scale > 0 else (math.inf if self.spread > 0 else 0.0)


def _noise_floor(logprob: ArrayLike, stored_logprob: ArrayLike, target: ArrayLike) -> _NoiseFloor:
    """Return the noise of log pi - log pi_t at step 0, where the two are the same policy computed twice.

        share = rms(log pi - log pi_t) / rms(target)

    Root mean squares and not deviations: a common offset does not cancel in SPPO's loss. For the pairwise losses hand
    in differences of a pair's two log-probabilities.

    Args:
        logprob: as the trainer computes it. [B]
        stored_logprob: the frozen column. [B]
        target: what the loss asks log pi - log pi_t to become: eta (P - ½), s/beta, gain * label. [B]
    """
    first, second = same_shape(logprob, stored_logprob)
    _, goal = same_shape(logprob, target)
    if first.size == 0 or not np.isfinite([first, second, goal]).all():
        raise ValueError("the noise floor needs finite log-probabilities and targets of at least one response")
    # Their policies are the same here, so that whatever differs is noise.
    difference = first - second
    return _NoiseFloor(
        spread=float(np.sqrt((difference**2).mean())),
        scale=float(np.sqrt((goal**2).mean())),
        largest=float(np.abs(difference).max()),
    )


def _check_noise_floor(floor: _NoiseFloor, *, limit: float = 0.05) -> None:
    """Refuse a run in which noise has a larger share of the targets' scale than ``limit``."""
    if floor.share > limit:
        raise ValueError(
            f"log-probabilities computed twice differ by {floor.spread:.3g} nats (rms), {floor.share:.1%} of the "
            f"targets' {floor.scale:.3g} nats, and the limit is {limit:.0%}: use a wider dtype, the same kernels for "
            "both computations, or a larger step"
        )


@torch.no_grad()
def _check_start(trainer: PolicyTrainer, training: PolicyTrainingSection) -> dict[str, float]:
    """Refuse to train where the policy is not its frozen columns; return what was measured, for logs.

    The policy still is the step's base, so its loss has a closed form, and its log-probabilities differ from the frozen
    ones by noise alone.
    """
    # Before adapters have learnt anything: they begin as zeros, so the policy still is its base.
    fit = trainer.method.fit
    chosen, rejected, targets = _first_pairs(trainer, training)
    # What the loss looks at: a log-ratio of each response, or the difference of a pair, in which a common offset
    # cancels.
    if fit.per_response:
        live = torch.cat([chosen, rejected])
        stored = torch.cat([targets.base_chosen, targets.base_rejected])
    else:
        live, stored = chosen - rejected, targets.base_chosen - targets.base_rejected
    floor = _noise_floor(numbers(live), numbers(stored), fit.goal(targets))
    try:
        _check_noise_floor(floor, limit=training.noise_limit)
    except ValueError as error:
        raise RunError(str(error)) from error
    loss, start = float(fit.loss(chosen, rejected, targets).double().mean()), float(fit.start(targets).mean())
    # What the noise in the log-ratios can do to the loss: its slope, and the curvature of a square.
    explained = 2.0 * fit.slope(start) * floor.spread + 2.0 * floor.spread**2
    explained += _ROUNDING * max(start, floor.scale**2)
    if abs(loss - start) > explained:
        raise RunError(
            f"the first batch's loss is {loss:.6g} and its closed form {start:.6g}; {explained:.2g} of difference are "
            "explained by noise: policy and frozen columns do not belong together, remove the step's folder and resume"
        )
    return {
        "pairs": len(chosen),
        "loss": loss * trainer.scale,
        "closed_form": start * trainer.scale,
        "raw_loss": loss,
        "raw_closed_form": start,
        "noise_nats": floor.spread,
        "target_nats": floor.scale,
        "noise_share": floor.share,
    }


def _first_pairs(trainer: PolicyTrainer, training: PolicyTrainingSection) -> tuple[Tensor, Tensor, PairTargets]:
    """Return log-probabilities under the policy in training, and the targets, of the first pairs of an epoch."""
    network, passes = trainer.network, trainer.passes
    device = next(network.parameters()).device
    live, targets = [], []
    # No dropout: the frozen columns were computed without.
    network.eval()
    for index in range(min(len(passes), max(_CHECKED_PAIRS // training.pairs_per_pass, 1))):
        sequences, columns = _of_batch(passes[index])
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.bf16):
            live.append(network(on_device(sequences, device)).chunk(2))
        targets.append(PairTargets(*(column.to(device) for column in columns)))
    chosen, rejected = (torch.cat([halves[side] for halves in live]) for side in (0, 1))
    return chosen, rejected, PairTargets(*(torch.cat(column) for column in zip(*targets, strict=True)))


def train_step(
    policy: Policy,
    pairs: Sequence[TrainingPair],
    folder: Path,
    *,
    method: Method,
    training: PolicyTrainingSection,
    lora: LoraSection | None,
    raw: bool,
    dtype: str,
    seed: int,
    learnt: Callable[[Any], None] = lambda _: None,
    wait: Callable[[], None] = lambda: None,
    show: Callable[[int, dict[str, float]], None] = lambda _, __: None,
) -> None:
    """Take the gradient steps and write the policy that comes out.

    Args:
        learnt: gets the model with its trained adapters, before they are merged.
        wait: returns when every process has called it; several processes need one.

    Raises:
        RunError: if the checks before the first gradient fail, a setting does not go with FSDP, or the disk is full.
    """
    if not pairs:
        raise RunError(f"no pair to train on in {folder}: every comparison is tied or missing; sample more responses")
    # Beside the outcome a checkpoint has the weights and two moments of the optimiser.
    size = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
    need_space(folder, size * (4 if training.save_steps else 1) + 10_000_000, "training")
    before = weight_samples(policy.model.state_dict()) if PartialState().is_main_process else {}
    # Before adapters are made: their start is random.
    set_seed(seed)
    logger.info("%s on %d pairs", describe(method), len(pairs))
    trainer_of = functools.partial(
        policy_trainer,
        pairs=pairs,
        work=folder / "checkpoints",
        method=method,
        training=training,
        raw=raw,
        pad_id=policy.tokenizer.pad_token_id,
        seed=seed,
    )
    # The trainer ends with this call, so that a sharded model is gone when a whole one is read below.
    adapted = policy.adapted(lora, learnt)
    sharded, state, history = _trained(policy, trainer_of, folder, training=training, adapted=adapted, show=show)
    if PartialState().is_main_process:
        write_json(folder / "history.json", history)
        _check_update(update_kept(before, weight_samples(state or policy.model.state_dict()), dtype), folder, dtype)
        policy.save(folder / "policy", dtype=dtype, state=state)
    wait()
    # What is written is what goes on: rounded to the storage type, the same after a restart.
    # Whatever happens below, these weights are not those of a file.
    policy.source = "in training"
    if sharded:
        policy.reload(folder / "policy")
    else:
        policy.become(folder / "policy")


def _check_update(kept: dict[str, float], folder: Path, dtype: str) -> None:
    """Write down how much of the step's update survives storage, and warn where that is too little."""
    write_json(folder / "update.json", kept)
    share, changed = kept["update_kept"], kept["weights_changed"]
    logger.info(
        "stored in %s, %.1f %% of the update is kept; %.1f %% of the weights changed", dtype, 100 * share, 100 * changed
    )
    if share < _KEPT:
        logger.warning(
            "only %.1f %% of the update survives storage in %s, and the next step starts from what is stored: set "
            "output.dtype = 'float32', or raise training.learning_rate",
            100 * share,
            dtype,
        )


def _trained(
    policy: Policy,
    trainer_of: Callable[[nn.Module], PolicyTrainer],
    folder: Path,
    *,
    training: PolicyTrainingSection,
    adapted: AbstractContextManager[nn.Module],
    show: Callable[[int, dict[str, float]], None],
) -> tuple[bool, dict[str, Tensor] | None, list[dict[str, Any]]]:
    """Take the gradient steps; return whether the model is in shares, its whole weights if so, and the log."""
    # The frozen columns were computed without dropout: with it every log-ratio would start below 0.
    with adapted as model, dropout_off(model):
        trainer = trainer_of(model)
        check_sharding(getattr(trainer.accelerator.state, "fsdp_plugin", None), policy.model.config, training)
        trainer.add_callback(_Observer(show))
        # Without checkpoints a step that was interrupted begins again, from the base.
        checkpoint = last_checkpoint(folder / "checkpoints") if training.save_steps else None
        # In the middle of training the policy is not the base any more, and there is no closed form.
        if checkpoint is None:
            start = _check_start(trainer, training)
            if trainer.is_world_process_zero():
                write_json(folder / "start.json", start)
            logger.info("first batch %s", start)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    # Every process has to take part in gathering, so it is asked for before the main process goes its own way.
    sharded = is_sharded(policy.model)
    state = whole_state(policy.model) if sharded else None
    policy.model.eval()
    return sharded, state, [line for line in trainer.state.log_history if "loss" in line]
