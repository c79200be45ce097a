"""The gradient steps of a training step: its loss, transformers' Trainer, and the checks beforehand.

STEP/start.json           the first-batch check and the noise floor
STEP/history.json         the trainer's log
STEP/policy/              the weights that came out; a step is done when this exists

The mean over an optimiser step comes from ``paragone_training.trainer``. B pairs of a pass.
"""

import functools
import logging
import math
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
from transformers import TrainerCallback, TrainingArguments, get_scheduler, set_seed

from paragone_training.adapters import recompute_activations
from paragone_training.dropout import dropout_off
from paragone_training.errors import RecipeError, RunError
from paragone_training.policy.methods.method import Method, PairTargets, describe, numbers, same_shape
from paragone_training.policy.methods.sft import sft_loss
from paragone_training.policy.model.logprobs import ResponseLogprobs, on_device, response_logprobs
from paragone_training.policy.model.weights import (
    Policy,
    check_sharding,
    is_sharded,
    update_kept,
    weight_samples,
    whole_state,
)
from paragone_training.policy.passes import PairPasses, of_batch, optimiser_steps
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows import TrainingPair, need_space, write_json
from paragone_training.settings import LoraSection
from paragone_training.trainer import StepTrainer, last_checkpoint, training_arguments, warmup_steps

__all__ = ["PolicyTrainer", "check_schedule", "policy_trainer", "train_step"]

logger = logging.getLogger(__name__)


_CHECKED_PAIRS = 64
# Smallest share of an update that may survive storage without a warning.
_KEPT = 0.9
# Optimiser steps of a training step of which one without effect is told.
_FEW_STEPS = 10
# Relative distance from the closed-form start value that float32 explains.
_ROUNDING = 1e-4


def check_schedule(training: PolicyTrainingSection, steps: int, laid_out: int) -> str:
    """Return what the warm-up takes of a training step's optimiser steps, in words; empty where it takes nothing.

    Raises:
        RecipeError: if it is one.
    """
    rises = warmup_steps(training.warmup, steps=steps, laid_out=laid_out)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=1.0)
    try:
        get_scheduler(training.schedule, optimiser, num_warmup_steps=rises, num_training_steps=laid_out)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"training.schedule is {training.schedule!r}: {error}") from error
    # Of few steps the first is a large part, and it costs what every other one does.
    idle = rises > 0 and optimiser.param_groups[0]["lr"] == 0
    return f"the first of the {steps} has learning rate 0 by the warm-up (training.warmup = 0 uses it)" if idle else ""


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
    """The mean loss per pair over an optimiser step, a method's and the SFT term's, and what people look at.

    Args:
        sft: weight of the SFT term beside the loss that is trained on.
    """

    def __init__(self, method: Method, *, scale: float, raw: bool, sft: float = 0.0) -> None:
        self._method, self._sft = method, sft
        # What the raw loss is multiplied by in training, and the trained one for logs.
        self._trained, self._shown = (1.0, scale) if raw else (scale, 1.0)
        self._sums: dict[str, float] = {}

    def total(self, losses: Tensor, chosen: Tensor, tokens: Tensor, preference: Tensor) -> Tensor:
        """Return what is trained on, from raw losses and the log-probabilities of chosen responses. [B]."""
        total = losses * self._trained
        return total + self._sft * sft_loss(chosen, tokens, preference) if self._sft else total

    def explained(self, raw: float, nats: float) -> float:
        """Return how far ``total`` may be from its value at the base.

        Args:
            raw: what noise does to the raw loss.
            nats: what it does to the SFT term.
        """
        return self._trained * raw + self._sft * nats

    def shown(self, total: float) -> float:
        """Return a total as logs have it."""
        return total * self._shown

    def counts(self, batch: Mapping[str, Any]) -> tuple[int]:
        """Return the number of pairs of a pass."""
        return (len(batch["preference"]),)

    def share(self, network: nn.Module, batch: Mapping[str, Any], totals: Sequence[int]) -> Tensor:
        """Return a pass's part of the step's mean loss per pair."""
        sequences, targets = of_batch(dict(batch))
        chosen, rejected = network(sequences).chunk(2)
        losses = self._method.fit.loss(chosen, rejected, targets)
        total = self.total(losses, chosen, batch["chosen_tokens"], targets.preference)
        # How far the policy has moved from the base, which is what a loss asks for.
        self._add(
            {
                "loss": total * self._shown,
                "raw_loss": losses,
                "chosen_log_ratio": chosen - targets.base_chosen,
                "rejected_log_ratio": rejected - targets.base_rejected,
                "chosen_nats_per_token": -chosen / batch["chosen_tokens"],
            }
        )
        return total.sum() / totals[0]

    def means(self) -> dict[str, float]:
        """Return the means per pair since the last call, of this process's pairs; nothing before the first pass."""
        sums, self._sums = self._sums, {}
        count = sums.pop("pairs", 0.0)
        return {name: value / count for name, value in sums.items()}

    def _add(self, columns: Mapping[str, Tensor]) -> None:
        sums = {name: float(column.detach().sum()) for name, column in columns.items()}
        for name, value in ({"pairs": float(len(columns["loss"]))} | sums).items():
            # Sums over passes, since passes may differ by one pair; divided once, by all pairs.
            self._sums[name] = self._sums.get(name, 0.0) + value


class PolicyTrainer(StepTrainer):
    """Train a ``ResponseLogprobs`` network on ``PairPasses``."""

    def __init__(
        self,
        network: ResponseLogprobs,
        arguments: TrainingArguments,
        passes: PairPasses,
        method: Method,
        *,
        scale: float,
        raw: bool,
        sft: float,
        steps: int,
    ) -> None:
        self.losses = _PairLoss(method, scale=scale, raw=raw, sft=sft)
        super().__init__(network, arguments, passes, self.losses, callbacks=[_Course(steps)])
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
        super().log(logs | self.losses.means() if "loss" in logs else logs, *args, **kwargs)


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
    sft: float = 0.0,
) -> PolicyTrainer:
    """Return the trainer of one step.

    Args:
        raw: train on the raw loss.
        sft: weight of the SFT term.

    Raises:
        RunError: if there are too few pairs for a step, or a step does not divide among the processes.
    """
    size, step = training.pairs_per_pass, training.pairs_per_step
    if all(pair.targets[0] == 0.5 for pair in pairs):
        raise RunError(f"all {len(pairs)} pairs are ties: there is no preference to learn from; sample more responses")
    # Asked first whether it packs: the order inside a step depends on it.
    network = response_logprobs(model, training)
    try:
        passes = PairPasses(pairs, size=size, step=step, pad_id=pad_id, seed=seed, packed=network.packs)
    except ValueError as error:
        raise RunError(str(error)) from error
    if training.gradient_checkpointing:
        recompute_activations(model)
    # For losses whose targets have no bound of their own.
    largest = max(max(abs(pair.targets[1]), abs(pair.targets[2])) for pair in pairs)
    steps, laid_out = optimiser_steps(len(pairs), training)
    if (idle := check_schedule(training, steps, laid_out)) and steps <= _FEW_STEPS:
        logger.warning("of the optimiser steps %s", idle)
    return PolicyTrainer(
        network,
        _arguments(work, training, steps, laid_out, seed),
        passes,
        method,
        scale=method.fit.scale(largest),
        raw=raw,
        sft=sft,
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
    chosen, rejected, tokens, targets = _first_pairs(trainer, training)
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
    raw_loss, raw_start = fit.loss(chosen, rejected, targets).double(), torch.from_numpy(fit.start(targets))
    raw, raw_at_base = float(raw_loss.mean()), float(raw_start.mean())
    of_chosen = tokens, targets.preference
    loss = float(trainer.losses.total(raw_loss, chosen.double(), *of_chosen).mean())
    start = float(trainer.losses.total(raw_start.to(raw_loss), targets.base_chosen.double(), *of_chosen).mean())
    # What the noise in the log-ratios can do to the loss: its slope, and the curvature of a square.
    explained = 2.0 * fit.slope(raw_at_base) * floor.spread + 2.0 * floor.spread**2
    explained += _ROUNDING * max(raw_at_base, floor.scale**2)
    # And what it can do to the likelihood of chosen responses, which no common offset cancels in.
    off = float(((chosen - targets.base_chosen) / tokens).abs().max())
    nats = off + _ROUNDING * float((targets.base_chosen / tokens).abs().max())
    explained = trainer.losses.explained(explained, nats)
    if abs(loss - start) > explained:
        raise RunError(
            f"the first batch's loss is {loss:.6g} and its closed form {start:.6g}; {explained:.2g} of difference are "
            "explained by noise: policy and frozen columns do not belong together, remove the step's folder and resume"
        )
    return {
        "pairs": len(chosen),
        "loss": trainer.losses.shown(loss),
        "closed_form": trainer.losses.shown(start),
        "raw_loss": raw,
        "raw_closed_form": raw_at_base,
        "noise_nats": floor.spread,
        "target_nats": floor.scale,
        "noise_share": floor.share,
    }


def _first_pairs(trainer: PolicyTrainer, training: PolicyTrainingSection) -> tuple[Tensor, Tensor, Tensor, PairTargets]:
    """Return log-probabilities of an epoch's first pairs under the policy in training, tokens of chosen, targets."""
    network, passes = trainer.network, trainer.passes
    device = next(network.parameters()).device
    live, targets, tokens = [], [], []
    # No dropout: the frozen columns were computed without.
    network.eval()
    for index in range(min(len(passes), max(_CHECKED_PAIRS // training.pairs_per_pass, 1))):
        batch = passes[index]
        sequences, columns = of_batch(batch)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=training.bf16):
            live.append(network(on_device(sequences, device)).chunk(2))
        tokens.append(batch["chosen_tokens"].to(device))
        targets.append(PairTargets(*(column.to(device) for column in columns)))
    chosen, rejected = (torch.cat([halves[side] for halves in live]) for side in (0, 1))
    return (
        chosen,
        rejected,
        torch.cat(tokens),
        PairTargets(*(torch.cat(column) for column in zip(*targets, strict=True))),
    )


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
    sft: float = 0.0,
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
        sft=sft,
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
