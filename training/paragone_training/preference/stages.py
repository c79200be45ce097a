"""The stages of training, from rows to a trained network.

Tokenizer and network → for from-scratch backbones language modelling, words and length, a linear teacher → preferences.
What comes before the preferences is one file; the preference stage writes checkpoints. ``resume`` goes on from the last
one and repeats nothing before it.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from paragone_evaluation.readers import Pair
from paragone_models.text.reader import Reading, TextReader
from paragone_training.data.batches import PairBatches, TokenNoise, read_groups
from paragone_training.data.groups import PromptGroup, group_pairs
from paragone_training.preference.agreement import Judged, judge, summarise
from paragone_training.preference.average import WeightAverage
from paragone_training.preference.backbone import Student, add_adapters, build_student, merged, save_memory
from paragone_training.preference.objective import Objective
from paragone_training.preference.pair_trainer import PreferenceTrainer
from paragone_training.preference.recipe import Recipe
from paragone_training.scratch.corpus import lessons, reason_documents, token_lengths
from paragone_training.scratch.dropout import residual_dropout
from paragone_training.scratch.lexical import fit_lexicon, learn_lexicon
from paragone_training.scratch.pretraining import pretrain
from paragone_training.scratch.teacher import distil, fit_teacher, imprint

__all__ = ["PREPARED", "Outcome", "fit", "padding_id", "prepare", "token_noise", "training_arguments"]

logger = logging.getLogger(__name__)

PREPARED = "prepared.safetensors"
"""File of the weights before the preference stage, in the folder of checkpoints."""


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        student: the trained network, adapters merged, averaged weights in place.
        judged: what it says about the held-out rows, or None without any.
        history: the trainer's log, one mapping a line.
    """

    student: Student
    judged: Judged | None
    history: list[dict[str, Any]]


def fit(
    recipe: Recipe, train: Sequence[Pair], evaluate: Sequence[Pair], work: Path, *, resume: bool = False
) -> Outcome:
    """Train a network and return it with what it says about the held-out rows.

    Args:
        recipe: what and how; its files are not read.
        train: rows to learn from.
        evaluate: rows held out; may be empty.
        work: folder of checkpoints.
        resume: go on from the last checkpoint there.

    Raises:
        RecipeError: if backbone, tokenizer and recipe do not fit each other.
        DataError: if a response does not fit the model.
    """
    groups, held_out = group_pairs(train, ties=recipe.loss.ties == "keep"), group_pairs(evaluate)
    student = build_student(recipe, [text for group in groups for text in (group.pair.prompt, *group.responses)])
    network, reader = student.network, TextReader(student.tokenizer, student.spec)
    readings, held_out_readings = read_groups(groups, reader), read_groups(held_out, reader)
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(work)) if resume else None
    objective = _objective(recipe, student)
    if not checkpoint and (recipe.pretraining.epochs or recipe.lexical or recipe.teacher):
        if resume and (work / PREPARED).is_file():
            network.load_state_dict(load_file(work / PREPARED))
        else:
            reasons = reason_documents(train, reader) if recipe.pretraining.reasons else []
            prepare(recipe, student, objective, groups, readings, reasons)
            if PartialState().is_main_process:
                save_file(network.state_dict(), work / PREPARED)
    if recipe.lora:
        add_adapters(network, recipe.lora)
    if recipe.training.gradient_checkpointing:
        save_memory(network.backbone)

    def judged() -> Judged:
        return judge(network, objective, held_out, held_out_readings, budget=64, pad_id=padding_id(student))

    batches = PairBatches(
        groups,
        readings,
        budget=recipe.training.batch_responses,
        pad_id=padding_id(student),
        seed=recipe.training.seed,
        noise=token_noise(student, recipe.training.token_noise),
    )
    history = _train(
        recipe, student, batches, objective, work, checkpoint=checkpoint, judged=judged if held_out else None
    )
    student.network = merged(network).eval()
    return Outcome(student, judged() if held_out else None, history)


def prepare(
    recipe: Recipe,
    student: Student,
    objective: Objective,
    groups: Sequence[PromptGroup],
    readings: Sequence[Sequence[Reading]],
    reasons: Sequence[Sequence[int]],
) -> None:
    """Give a from-scratch network its start: language modelling, words and length, then the linear teacher.

    Args:
        recipe: what of it, and how.
        student: whose network is changed in place.
        objective: turns representations into logits; the teacher alone needs it.
        groups: prompts with responses; the teacher alone looks at their labels.
        readings: what the model sees of the responses.
        reasons: token ids of more texts to model.

    Raises:
        DataError: if a prompt leaves no room for a response.
    """
    seed, pad_id = recipe.training.seed, padding_id(student)
    if recipe.pretraining.epochs:
        texts = [reading.token_ids for group in readings for reading in group]
        pretrain(student.network.backbone, [*texts, *reasons], recipe.pretraining, pad_id=pad_id, seed=seed)
    if not (recipe.lexical or recipe.teacher):
        return
    taught = lessons(groups, readings, TextReader(student.tokenizer, student.spec))
    lengths = token_lengths(student.tokenizer)
    if recipe.lexical:
        lexicon = fit_lexicon(taught, lengths, coordinates=recipe.lexical.coordinates)
        learn_lexicon(student.network, student.spec, lexicon, taught, recipe.lexical, pad_id=pad_id, seed=seed)
    if recipe.teacher:
        teacher = fit_teacher(groups, taught, lengths, penalty=recipe.teacher.penalty)
        if recipe.teacher.imprint:
            backbone: Any = student.network.backbone
            imprint(backbone.get_input_embeddings(), teacher, recipe.teacher.imprint)
        distil(student.network, student.spec, teacher, taught, objective, recipe.teacher, pad_id=pad_id, seed=seed)


def _train(
    recipe: Recipe,
    student: Student,
    batches: PairBatches,
    objective: Objective,
    work: Path,
    *,
    checkpoint: str | None,
    judged: Callable[[], Judged] | None,
) -> list[dict[str, Any]]:
    """Run the preference stage and return its log; the averaged weights, if any, end up in the network."""
    training, network = recipe.training, student.network
    average = WeightAverage(network, training.average_decay) if training.average_decay else None
    if average and checkpoint:
        average.load(Path(checkpoint))

    def evaluation() -> dict[str, float]:
        with average.applied() if average else nullcontext():
            return {} if judged is None else summarise(judged()).metrics("eval")

    set_seed(training.seed)
    trainer = PreferenceTrainer(
        network,
        training_arguments(recipe, work, evaluates=judged is not None),
        batches,
        objective,
        evaluation=evaluation,
        callbacks=[average] if average else [],
    )
    backbone: Any = network.backbone
    share = training.dropout
    with residual_dropout(backbone, network.head.value_head, share=share, head_share=training.head_dropout):
        trainer.train(resume_from_checkpoint=checkpoint)
    if average:
        average.put()
    return list(trainer.state.log_history)


def training_arguments(recipe: Recipe, work: Path, *, evaluates: bool) -> TrainingArguments:
    """Return transformers' arguments for a recipe.

    Args:
        recipe: how to train.
        work: folder of checkpoints.
        evaluates: True where there are held-out rows to evaluate after every epoch.
    """
    training = recipe.training
    return TrainingArguments(
        output_dir=str(work),
        num_train_epochs=training.epochs,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.betas[0],
        adam_beta2=training.betas[1],
        max_grad_norm=training.max_gradient_norm,
        per_device_train_batch_size=1,  # one item is a whole batch of responses
        gradient_accumulation_steps=training.accumulation,
        bf16=training.bf16,
        seed=training.seed,
        data_seed=training.seed,
        eval_strategy="epoch" if evaluates else "no",
        save_strategy="epoch",
        save_total_limit=training.checkpoints,
        logging_steps=training.log_steps,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )


def _objective(recipe: Recipe, student: Student) -> Objective:
    loss = recipe.loss
    return Objective(student.spec.kind, student.spec.temperature, loss.name, loss.margin, loss.certainty)


def token_noise(student: Student, share: float) -> TokenNoise | None:
    """Return what replaces tokens in training, or None for a share of 0.

    Args:
        student: whose vocabulary.
        share: of tokens.
    """
    if not share:
        return None
    special = frozenset(student.tokenizer.all_special_ids)
    vocabulary = [index for index in range(len(student.tokenizer)) if index not in special]
    return TokenNoise(share, vocabulary, special)


def padding_id(student: Student) -> int:
    """Return the token that fills up shorter sequences.

    Args:
        student: whose tokenizer.
    """
    return int(student.tokenizer.pad_token_id)
