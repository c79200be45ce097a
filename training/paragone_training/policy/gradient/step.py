"""One step of an iteration: frozen log-probabilities, the checks before the first gradient, the gradient steps.

STEP/logprobs.parquet     one row per response that is in a pair: its log-probability under base and reference
STEP/start.json           the first-batch check and the noise floor
STEP/history.json         the trainer's log
STEP/policy/              the weights that came out; a step is done when this exists
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import PartialState
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import set_seed

from paragone_training.policy.errors import RunError
from paragone_training.policy.gradient.trainer import Observer, PolicyTrainer, of_batch, policy_trainer
from paragone_training.policy.methods.method import Method, PairTargets, describe, numbers, same_shape
from paragone_training.policy.model.logprobs import autocast, frozen_logprobs, on_device, response_logprobs
from paragone_training.policy.model.weights import Policy, check_sharding, is_sharded, whole_state
from paragone_training.policy.recipe import PolicyTrainingSection
from paragone_training.policy.rows.folder import need_space, read_table, write_json, write_table
from paragone_training.policy.rows.rows import LabelledPair, Response, TrainingPair
from paragone_training.settings import LoraSection

__all__ = [
    "check_sampler",
    "freeze_columns",
    "train_step",
    "with_logprobs",
]

logger = logging.getLogger(__name__)

_CHECKED_PAIRS = 64
_CHECKED_RESPONSES = 8
_ROUNDING = 1e-4
"""Relative distance from the closed-form start value that float32 explains."""

_LOGPROBS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("number", pa.int32()),
        ("base_logprob", pa.float64()),
        ("reference_logprob", pa.float64()),
    ]
)


def freeze_columns(
    path: Path,
    policy: Policy,
    responses: Sequence[Response],
    pairs: Sequence[LabelledPair],
    *,
    base: str,
    reference: str,
    training: PolicyTrainingSection,
) -> None:
    """Write the log-probabilities of all responses in pairs under the base and the reference.

    Args:
        path: of logprobs.parquet.
        policy: takes the weights of both, one after the other; has those of the base at the end.
        responses: of the round.
        pairs: that are trained on.
        base: source of the base's weights.
        reference: source of the reference's weights.
        training: of the recipe.

    Raises:
        DiskFullError: if there is no room.
    """
    # Responses without a pair, tied or dropped ones, need no log-probabilities.
    used = {(pair.prompt_id, number) for pair in pairs for number in (pair.chosen, pair.rejected)}
    rows = [response for response in responses if (response.prompt_id, response.number) in used]
    items = [(response.prompt_ids, response.token_ids) for response in rows]
    columns: dict[str, list[float]] = {}
    # The base last, because training goes on from it; where both are one policy it is asked once.
    for source in dict.fromkeys((reference, base)):
        policy.become(source)
        columns[source] = frozen_logprobs(
            response_logprobs(policy.model, training),
            items,
            pad_id=policy.tokenizer.pad_token_id,
            batch=2 * training.pairs_per_pass,
            bf16=training.bf16,
        )
    table: dict[str, list[Any]] = {
        "prompt_id": [response.prompt_id for response in rows],
        "number": [response.number for response in rows],
        "base_logprob": columns[base],
        "reference_logprob": columns[reference],
    }
    write_table(path, table, _LOGPROBS)


def with_logprobs(path: Path, responses: Sequence[Response], pairs: Sequence[LabelledPair]) -> list[TrainingPair]:
    """Return the pairs with their tokens and frozen columns.

    Args:
        path: of logprobs.parquet.
        responses: of the round.
        pairs: that are trained on.

    Raises:
        RunError: if the file cannot be read.
    """
    frozen = _frozen(path)
    known = {(response.prompt_id, response.number): response for response in responses}
    rows = []
    for pair in pairs:
        won, lost = known[pair.prompt_id, pair.chosen], known[pair.prompt_id, pair.rejected]
        base_won, reference_won = frozen[pair.prompt_id, pair.chosen]
        base_lost, reference_lost = frozen[pair.prompt_id, pair.rejected]
        own = (pair.preference, pair.chosen_target, pair.rejected_target)
        rows.append(
            TrainingPair(
                tuple(won.prompt_ids),
                tuple(won.token_ids),
                tuple(lost.token_ids),
                (*own, base_won, base_lost, reference_won, reference_lost),
            )
        )
    return rows


def _frozen(path: Path) -> dict[tuple[str, int], tuple[float, float]]:
    """Return log-probabilities under base and reference, by prompt id and number."""
    columns = read_table(path)
    return {
        (prompt_id, number): (base, reference)
        for prompt_id, number, base, reference in zip(*(columns[name] for name in _LOGPROBS.names), strict=True)
    }


def check_sampler(path: Path, responses: Sequence[Response], *, tolerance: float) -> float | None:
    """Return how far a sampler's log-probabilities are from the trainer's, in nats a token; refuse another policy.

    Args:
        path: of logprobs.parquet, whose base is the policy that was sampled from.
        responses: of the round.
        tolerance: nats a token.

    Raises:
        RunError: if eight responses are farther from each other: the sampler is not the policy.
    """
    frozen = _frozen(path)
    known = [row for row in responses if row.sampler_logprob is not None and (row.prompt_id, row.number) in frozen]
    distances = [
        abs(row.sampler_logprob - frozen[row.prompt_id, row.number][0]) / max(len(row.token_ids), 1)
        for row in known[:_CHECKED_RESPONSES]
        if row.sampler_logprob is not None
    ]
    if not distances:
        return None
    if max(distances) > tolerance:
        raise RunError(
            f"the sampler's log-probabilities differ from the trainer's by {max(distances):.3g} nats a token, and "
            f"sampling.tolerance is {tolerance:g}: it has other weights, or another dtype"
        )
    return float(max(distances))


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

    Raises:
        ValueError: if shapes differ, there is nothing, or something is not finite.
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
    """Refuse a run in which noise has a larger share of the targets' scale than ``limit``.

    Raises:
        ValueError: if the share exceeds the limit.
    """
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

    Args:
        trainer: before its first step.
        training: of the recipe.

    Raises:
        RunError: if the loss is not the closed form's, or the noise is above the limit.
    """
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
        sequences, columns = of_batch(passes[index])
        with autocast(device, bf16=training.bf16):
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
    wait: Callable[[], None] = lambda: None,
    show: Callable[[int, dict[str, float]], None] = lambda _, __: None,
) -> None:
    """Take the gradient steps and write the policy that comes out.

    Args:
        policy: has the weights of the base; has those of the outcome at the end.
        pairs: with frozen columns.
        folder: of the step.
        method: of the recipe.
        training: of the recipe.
        lora: adapters, or None.
        raw: take the gradient of the raw loss.
        dtype: storage type of the outcome.
        seed: of order and dropout.
        wait: returns when every process has called it; several processes need one.
        show: takes the number of a gradient step and its logged values.

    Raises:
        RunError: if the checks before the first gradient fail, a setting does not go with FSDP, or the disk is full.
    """
    if not pairs:
        raise RunError(f"no pair to train on in {folder}: every comparison is tied or missing; sample more responses")
    size = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
    need_space(folder, size * (4 if training.save_steps else 1) + 10_000_000, "training")
    # Before adapters are made: their start is random.
    set_seed(seed)
    # The trainer ends with this call, so that a sharded model is gone when a whole one is read below.
    sharded, state, history = _trained(
        policy, pairs, folder, method=method, training=training, lora=lora, raw=raw, seed=seed, show=show
    )
    if PartialState().is_main_process:
        write_json(folder / "history.json", history)
        policy.save(folder / "policy", dtype=dtype, state=state)
    wait()
    # What is written is what goes on: rounded to the storage type, the same after a restart.
    policy.source = "in training"
    if sharded:
        policy.reload(folder / "policy")
    else:
        policy.become(folder / "policy")


def _trained(
    policy: Policy,
    pairs: Sequence[TrainingPair],
    folder: Path,
    *,
    method: Method,
    training: PolicyTrainingSection,
    lora: LoraSection | None,
    raw: bool,
    seed: int,
    show: Callable[[int, dict[str, float]], None],
) -> tuple[bool, dict[str, Tensor] | None, list[dict[str, Any]]]:
    """Take the gradient steps; return whether the model is in shares, its whole weights if so, and the log."""
    with policy.adapted(lora) as model:
        trainer = policy_trainer(
            model,
            pairs,
            folder / "checkpoints",
            method=method,
            training=training,
            raw=raw,
            pad_id=policy.tokenizer.pad_token_id,
            seed=seed,
        )
        check_sharding(getattr(trainer.accelerator.state, "fsdp_plugin", None), training)
        trainer.add_callback(Observer(show))
        # Without checkpoints a step that was interrupted begins again, from the base.
        checkpoint = _last_checkpoint(folder / "checkpoints") if training.save_steps else None
        # In the middle of training the policy is not the base any more, and there is no closed form.
        if checkpoint is None:
            start = _check_start(trainer, training)
            if trainer.is_world_process_zero():
                write_json(folder / "start.json", start)
            logger.info("%s on %d pairs; first batch %s", describe(method), len(pairs), start)
        trainer.train(resume_from_checkpoint=checkpoint)
    # Every process has to take part in gathering, so it is asked for before the main process goes its own way.
    sharded = is_sharded(policy.model)
    state = whole_state(policy.model) if sharded else None
    policy.model.eval()
    return sharded, state, [line for line in trainer.state.log_history if "loss" in line]


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written to its end, or None; the trainer's state is what it writes last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))) if whole else None
