"""One regression: frozen log-probabilities, the checks before the first gradient, the gradient steps.

STEP/logprobs.parquet     one row per response that is in a pair: its log-probability under base and reference
STEP/start.json           the first-batch check and the noise floor
STEP/history.json         the trainer's log
STEP/policy/              the weights that came out; a step is done when this exists
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from transformers import set_seed

from paragone_training.policy.errors import RunError
from paragone_training.policy.gradient.batches import TrainingPair, of_batch
from paragone_training.policy.gradient.policy_trainer import Observer, PolicyTrainer, policy_trainer
from paragone_training.policy.methods.methods import Method, PairTargets
from paragone_training.policy.model.logprobs import autocast, frozen_logprobs, on_device, response_logprobs
from paragone_training.policy.model.sharding import check_sharding, is_sharded, whole_state
from paragone_training.policy.model.weights import Policy
from paragone_training.policy.rounds import Response
from paragone_training.policy.rows.files import need_space, read_table, write_json, write_table
from paragone_training.policy.sections import PolicyTrainingSection
from paragone_training.policy.targets import diagnostics
from paragone_training.policy.targets.pairs import LabelledPair
from paragone_training.settings import LoraSection

__all__ = ["check_start", "freeze_columns", "train_step", "training_pairs"]

logger = logging.getLogger(__name__)

_CHECKED_PAIRS = 64
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
        training: batch, chunk and precision.

    Raises:
        DiskFullError: if there is no room.
    """
    used = {(pair.prompt_id, number) for pair in pairs for number in (pair.chosen, pair.rejected)}
    wanted = [response for response in responses if (response.prompt_id, response.number) in used]
    items = [(response.prompt_ids, response.token_ids) for response in wanted]
    columns: dict[str, list[float]] = {}
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
        "prompt_id": [response.prompt_id for response in wanted],
        "number": [response.number for response in wanted],
        "base_logprob": columns[base],
        "reference_logprob": columns[reference],
    }
    write_table(path, table, _LOGPROBS)


def training_pairs(path: Path, responses: Sequence[Response], pairs: Sequence[LabelledPair]) -> list[TrainingPair]:
    """Return the pairs with their tokens and frozen columns.

    Args:
        path: of logprobs.parquet.
        responses: of the round.
        pairs: that are trained on.

    Raises:
        RunError: if the file cannot be read.
    """
    columns = read_table(path)
    frozen = {
        (prompt_id, number): (base, reference)
        for prompt_id, number, base, reference in zip(*(columns[name] for name in _LOGPROBS.names), strict=True)
    }
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


@torch.no_grad()
def check_start(trainer: PolicyTrainer, training: PolicyTrainingSection) -> dict[str, float]:
    """Refuse to train where the policy is not its frozen columns; return what was measured, for logs.

    The policy still is the step's base, so its loss has a closed form, and its log-probabilities differ from the frozen
    ones by noise alone.

    Args:
        trainer: before its first step.
        training: precision and limit.

    Raises:
        RunError: if the loss is not the closed form's, or the noise is above the limit.
    """
    network, passes, method, scale = trainer.network, trainer.passes, trainer.method, trainer.scale
    device = next(network.parameters()).device
    live, targets = [], []
    network.eval()
    for index in range(min(len(passes), max(_CHECKED_PAIRS // training.pairs_per_pass, 1))):
        sequences, columns = of_batch(passes[index])
        with autocast(device, bf16=training.bf16):
            live.append(network(on_device(sequences, device)).chunk(2))
        targets.append(PairTargets(*(column.to(device) for column in columns)))
    chosen, rejected = (torch.cat([one[side] for one in live]) for side in (0, 1))
    together = PairTargets(*(torch.cat(column) for column in zip(*targets, strict=True)))
    if method.setting is None and method.name != "dpo":
        new, old = torch.cat([chosen, rejected]), torch.cat([together.base_chosen, together.base_rejected])
    else:
        new, old = chosen - rejected, together.base_chosen - together.base_rejected
    wanted = method.wanted(together)
    floor = diagnostics.noise_floor(new.double().cpu().numpy(), old.double().cpu().numpy(), wanted)
    try:
        diagnostics.check_noise_floor(floor, limit=training.noise_limit)
    except ValueError as error:
        raise RunError(str(error)) from error
    loss, start = float(method.loss(chosen, rejected, together).double().mean()), float(method.start(together).mean())
    slope = method.number if method.name == "dpo" else 2.0 * math.sqrt(start)
    allowed = 2.0 * slope * floor.spread + 2.0 * floor.spread**2 + _ROUNDING * max(start, floor.scale**2)
    if abs(loss - start) > allowed:
        raise RunError(
            f"the first batch's loss is {loss:.6g} and its closed form {start:.6g}; {allowed:.2g} of difference are "
            "explained by noise: policy and frozen columns do not belong together, remove the step's folder and resume"
        )
    return {
        "pairs": len(wanted) if method.setting is not None or method.name == "dpo" else len(wanted) // 2,
        "loss": loss * scale,
        "closed_form": start * scale,
        "raw_loss": loss,
        "raw_closed_form": start,
        "noise_nats": floor.spread,
        "target_nats": floor.scale,
        "noise_share": floor.share,
    }


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
    tell: Callable[[int, dict[str, float]], None] = lambda _, __: None,
) -> None:
    """Take the gradient steps of one regression and write the policy that comes out.

    Args:
        policy: has the weights of the base; has those of the outcome at the end.
        pairs: with frozen columns.
        folder: of the step.
        method: whose loss.
        training: how.
        lora: adapters, or None.
        raw: take the gradient of the raw loss.
        dtype: storage type of the outcome.
        seed: of order and dropout.
        wait: returns when every process has called it; several processes need one.
        tell: takes the number of a gradient step and its logged values.

    Raises:
        RunError: if the checks before the first gradient fail, a setting does not go with FSDP, or the disk is full.
    """
    if not pairs:
        raise RunError(f"no pair to train on in {folder}: every comparison is tied or missing; sample more responses")
    held = sum(weight.numel() * weight.element_size() for weight in policy.model.parameters())
    need_space(folder, held * (4 if training.save_steps else 1) + 10_000_000, "training")
    set_seed(seed)
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
        trainer.add_callback(Observer(tell))
        checkpoint = _last_checkpoint(folder / "checkpoints") if training.save_steps else None
        if checkpoint is None:
            start = check_start(trainer, training)
            if trainer.is_world_process_zero():
                write_json(folder / "start.json", start)
            logger.info("%s on %d pairs; first batch %s", method.describe(), len(pairs), start)
        trainer.train(resume_from_checkpoint=checkpoint)
    sharded = is_sharded(policy.model)
    state = whole_state(policy.model) if sharded else None
    policy.model.eval()
    if trainer.is_world_process_zero():
        write_json(folder / "history.json", [line for line in trainer.state.log_history if "loss" in line])
        policy.save(folder / "policy", dtype=dtype, state=state)
    wait()
    # What is written is what goes on: rounded to the storage type, the same after a restart.
    policy.source = "in training"
    if sharded:
        del trainer, model
        policy.reload(folder / "policy")
    else:
        policy.become(folder / "policy")


def _last_checkpoint(folder: Path) -> str | None:
    """Return the last checkpoint that was written to its end, or None; the trainer's state is what it writes last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.removeprefix("checkpoint-")))) if whole else None
