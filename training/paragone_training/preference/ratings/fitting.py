"""From rated and labelled rows to a trained model that rates, and compares as people's choices say."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from paragone_evaluation.readers import Pair, Rating
from paragone_models.text.reader import Reading, TextReader
from paragone_training.data.batches import read_groups
from paragone_training.data.groups import PromptGroup, group_pairs
from paragone_training.preference.agreement import Judged, judge, represented, summarise
from paragone_training.preference.average import WeightAverage
from paragone_training.preference.backbone import Student, add_adapters, merged, save_memory
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings.batches import RatedBatches, RatedGroup, rated_groups
from paragone_training.preference.ratings.merging import Merging, fit_merging
from paragone_training.preference.ratings.objective import RatedObjective
from paragone_training.preference.ratings.rated_trainer import RatedTrainer
from paragone_training.preference.ratings.rating_errors import RatingErrors, rating_errors
from paragone_training.preference.ratings.student import Start, build_rated_student
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.stages import PREPARED, padding_id, token_noise, training_arguments
from paragone_training.scratch.dropout import residual_dropout
from paragone_training.scratch.rating_teacher import learn_from_teacher
from paragone_training.scratch.sections import TeacherSection

__all__ = ["RatedOutcome", "RatedRows", "fit_rated"]

logger = logging.getLogger(__name__)

_BUDGET = 64
"""Responses of one forward pass outside training."""


@dataclass(frozen=True)
class RatedRows:
    """The rows of a run.

    Attributes:
        pairs: learned from, or merged by.
        ratings: learned from.
        held_out_pairs: may be empty.
        held_out_ratings: may be empty; errors are then those on ``ratings``.
    """

    pairs: Sequence[Pair]
    ratings: Sequence[Rating]
    held_out_pairs: Sequence[Pair] = ()
    held_out_ratings: Sequence[Rating] = ()


@dataclass(frozen=True)
class RatedOutcome:
    """What a run gives.

    Attributes:
        student: the trained network and its spec, weights and temperature fitted.
        start: what it went on from, or None.
        merging: fitted weights of a regression model, or None.
        judged: what it says about the held-out pairs, or None without any.
        judged_before: what a helpsteer model said about them before its first step.
        errors: of its ratings.
        errors_before: of a helpsteer model's before its first step, or None.
        history: the trainer's log.
    """

    student: Student
    start: Start | None
    merging: Merging | None
    judged: Judged | None
    judged_before: Judged | None
    errors: RatingErrors
    errors_before: RatingErrors | None
    history: list[dict[str, Any]]


class _Examined:
    """Held-out rows, read once, and what a network says about them."""

    def __init__(
        self, groups: Sequence[RatedGroup], reader: TextReader, attributes: Sequence[str], pad_id: int
    ) -> None:
        self._attributes, self._pad_id = attributes, pad_id
        readings = read_groups([group.group for group in groups], reader)
        both = list(zip(groups, readings, strict=True))
        self._labelled = [(group.group, read) for group, read in both if group.group.labels]
        self._rated = [(group, read) for group, read in both if group.rated]

    @property
    def has_pairs(self) -> bool:
        return bool(self._labelled)

    def judged(self, network: nn.Module, objective: Objective) -> Judged:
        groups, readings = [group for group, _ in self._labelled], [read for _, read in self._labelled]
        return judge(network, objective, groups, readings, budget=_BUDGET, pad_id=self._pad_id)

    def errors(self, network: nn.Module) -> RatingErrors:
        found = represent_all(network, [read for _, read in self._rated], self._pad_id)
        predicted = np.concatenate(found)[:, -len(self._attributes) :]
        ratings = np.array([row for group, _ in self._rated for row in group.ratings], dtype=np.float64)
        return rating_errors(predicted, ratings, self._attributes)


def fit_rated(recipe: Recipe, rows: RatedRows, work: Path, *, resume: bool = False) -> RatedOutcome:
    """Train a model that rates, fit how its ratings merge, and return it with what it says about held-out rows.

    Args:
        recipe: what and how; its files are not read.
        rows: to learn from, and held out.
        work: folder of checkpoints.
        resume: go on from the last checkpoint there.

    Raises:
        RecipeError: if start, backbone, tokenizer and recipe do not fit each other.
        DataError: if a response does not fit the model.
    """
    attributes, combined = recipe.model.attributes, recipe.model.kind == "helpsteer"
    ties = recipe.loss.ties == "keep"
    groups = rated_groups(rows.pairs if combined else [], rows.ratings, attributes, ties=ties)
    texts = [text for group in groups for text in (group.group.pair.prompt, *group.group.responses)]
    student, start = build_rated_student(recipe, texts)
    reader, objective = TextReader(student.tokenizer, student.spec), _objective(recipe, student)
    held_out = rated_groups(rows.held_out_pairs, rows.held_out_ratings or rows.ratings, attributes)
    examined = _Examined(held_out, reader, attributes, padding_id(student))
    errors_before = examined.errors(student.network) if combined else None
    judged_before = examined.judged(student.network, objective) if combined and examined.has_pairs else None
    history = _train(recipe, student, objective, groups, examined, work, resume=resume)
    student.network = merged(student.network).eval()
    merging = None
    if not combined:
        merging = _merging(student, group_pairs(rows.pairs), reader)
        if merging:
            student.spec = replace(student.spec, weights=merging.weights, temperature=merging.temperature)
            objective = replace(objective, weights=merging.weights, temperature=merging.temperature)
        student.network.head.spec = student.spec
    comparable = examined.has_pairs and (combined or merging is not None)
    judged = examined.judged(student.network, objective) if comparable else None
    errors = examined.errors(student.network)
    return RatedOutcome(student, start, merging, judged, judged_before, errors, errors_before, history)


def represent_all(network: nn.Module, readings: Sequence[Sequence[Reading]], pad_id: int) -> list[Any]:
    """Return the representations of the responses of every group, each [n, d] in float64.

    Args:
        network: in any mode; it is put back into that.
        readings: of every group, at least one each.
        pad_id: of the tokenizer.
    """
    mode = network.training
    network.eval()
    with torch.no_grad():
        found = [represented(network, read, budget=_BUDGET, pad_id=pad_id).double().numpy() for read in readings]
    network.train(mode)
    return found


def _objective(recipe: Recipe, student: Student) -> RatedObjective:
    loss, spec = recipe.loss, student.spec
    return RatedObjective(
        spec.kind,
        spec.temperature,
        loss.name,
        loss.margin,
        loss.certainty,
        attributes=spec.attributes,
        share=loss.ratings,
    )


def _train(
    recipe: Recipe,
    student: Student,
    objective: RatedObjective,
    groups: Sequence[RatedGroup],
    examined: _Examined,
    work: Path,
    *,
    resume: bool,
) -> list[dict[str, Any]]:
    """Run the trainer and return its log; the averaged weights, if any, end up in the network."""
    training, network = recipe.training, student.network
    work.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(work)) if resume else None
    readings = read_groups([group.group for group in groups], TextReader(student.tokenizer, student.spec))
    if recipe.teacher and not checkpoint:
        _learn_first(recipe.teacher, student, groups, work / PREPARED, training.seed, resume=resume)
    if recipe.lora:
        add_adapters(network, recipe.lora)
    if training.gradient_checkpointing:
        save_memory(network.backbone)
    batches = RatedBatches(
        groups,
        readings,
        budget=training.batch_responses,
        pad_id=padding_id(student),
        seed=training.seed,
        noise=token_noise(student, training.token_noise),
    )
    average = WeightAverage(network, training.average_decay) if training.average_decay else None
    if average and checkpoint:
        average.load(Path(checkpoint))

    def evaluation() -> dict[str, float]:
        with average.applied() if average else nullcontext():
            found = examined.errors(network).metrics("eval")
            if objective.learns_pairs and examined.has_pairs:
                found |= summarise(examined.judged(network, objective)).metrics("eval")
            return found

    set_seed(training.seed)
    trainer = RatedTrainer(
        network,
        training_arguments(recipe, work, evaluates=True),
        batches,
        objective,
        evaluation=evaluation,
        callbacks=[average] if average else [],
    )
    backbone: Any = network.backbone
    head_share = training.head_dropout
    with residual_dropout(backbone, network.head.value_head, share=training.dropout, head_share=head_share):
        trainer.train(resume_from_checkpoint=checkpoint)
    if average:
        average.put()
    return list(trainer.state.log_history)


def _learn_first(
    section: TeacherSection, student: Student, groups: Sequence[RatedGroup], path: Path, seed: int, *, resume: bool
) -> None:
    """Teach the network what a linear teacher knows, or take that from the file of an interrupted run."""
    if resume and path.is_file():
        student.network.load_state_dict(load_file(path))
        return
    learn_from_teacher(student, groups, section, seed=seed)
    if PartialState().is_main_process:
        save_file(student.network.state_dict(), path)


def _merging(student: Student, groups: Sequence[PromptGroup], reader: TextReader) -> Merging | None:
    """Return the merging fitted on the training pairs' decided choices."""
    if not groups:
        return None
    found = represent_all(student.network, read_groups(groups, reader), padding_id(student))
    differences = [
        np.sign(label.strength) * (values[label.first] - values[label.second])
        for group, values in zip(groups, found, strict=True)
        for label in group.labels
        if label.strength
    ]
    merging = fit_merging(np.array(differences)) if differences else None
    if merging:
        named = ", ".join(
            f"{weight:+.3f} {name}" for name, weight in zip(student.spec.attributes, merging.weights, strict=True)
        )
        logger.info("merged by %d pairs: %s, temperature %.3f", merging.pairs, named, merging.temperature)
    return merging
