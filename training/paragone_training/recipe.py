"""A recipe: everything that decides how a preference model is trained, as one frozen value.

Read once, at the door; functions get flat parameters, never the recipe. docs/training.md has the same table for people.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paragone_models.spec import KINDS, ModelSpec
from paragone_training.errors import RecipeError
from paragone_training.sections import (
    BackboneSection,
    DataSection,
    LoraSection,
    LossSection,
    ModelSection,
    OutputSection,
    PretrainingSection,
    TeacherSection,
    TokenizerSection,
    TrainingSection,
)
from paragone_training.settings import build, overridden, read_toml

__all__ = ["Recipe", "load_recipe", "parse_recipe"]

TRAINABLE: tuple[str, ...] = ("bradley-terry", "general-preference")


@dataclass(frozen=True)
class Recipe:
    """One recipe, checked.

    Attributes:
        model: what is trained.
        data: which rows.
        backbone: what reads the text.
        tokenizer: where tokens come from.
        pretraining: language modelling first.
        teacher: what is distilled next, or None.
        loss: what is minimised.
        training: how.
        lora: adapters, or None for full fine-tuning.
        output: where to.
    """

    model: ModelSection
    data: DataSection
    backbone: BackboneSection = field(default_factory=BackboneSection)
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    pretraining: PretrainingSection = field(default_factory=PretrainingSection)
    teacher: TeacherSection | None = None
    loss: LossSection = field(default_factory=LossSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    lora: LoraSection | None = None
    output: OutputSection = field(default_factory=OutputSection)

    @property
    def spec(self) -> ModelSpec:
        """The contents of the model's paragone.json."""
        pairs = self.model.kind == "general-preference"
        return ModelSpec(
            kind="general-preference" if pairs else "bradley-terry",
            dimension=self.model.dimension,
            temperature=self.model.temperature or (0.1 if pairs else 1.0),
            pooling=self.model.pooling,
            gate="softmax" if self.model.gate else "none",
            normalise=pairs and self.model.normalise,
            max_length=self.model.max_length,
            domain=self.model.domain,
            demonstration=self.model.demonstration,
        )


def load_recipe(path: str | Path, assignments: Sequence[str] = ()) -> Recipe:
    """Return a recipe file, checked, its data paths made absolute.

    Args:
        path: a TOML file.
        assignments: ``section.key=value`` overrides.

    Raises:
        RecipeError: if it cannot be read or cannot be run.
    """
    tables = overridden(read_toml(path), assignments)
    data = tables.get("data")
    if isinstance(data, dict):
        folder = Path(path).resolve().parent
        for key in ("train", "evaluate"):
            if isinstance(data.get(key), list):
                data[key] = [str((folder / name).resolve()) if isinstance(name, str) else name for name in data[key]]
    output = tables.setdefault("output", {})
    if isinstance(output, dict):
        output.setdefault("folder", f"runs/{Path(path).stem}")
    return parse_recipe(tables)


def parse_recipe(tables: dict[str, Any]) -> Recipe:
    """Return a recipe built from TOML tables, checked.

    Args:
        tables: by section.

    Raises:
        RecipeError: if a key or value is wrong, or two of them do not fit each other.
    """
    recipe = build(Recipe, tables)
    _check_model(recipe.model)
    _check_numbers(recipe)
    _check_fit(recipe)
    return recipe


def _check_model(model: ModelSection) -> None:
    if model.kind not in TRAINABLE:
        known = "hosted but not trained yet" if model.kind in KINDS else "unknown"
        raise RecipeError(f"model.kind is {model.kind!r}, which is {known}; it must be one of {', '.join(TRAINABLE)}")
    if model.kind == "bradley-terry":
        if model.dimension != 1:
            raise RecipeError(f"model.dimension is {model.dimension}; a bradley-terry reward has 1: leave it out")
        if model.gate:
            raise RecipeError("model.gate scales general preference blocks; a bradley-terry reward has none: set false")
    elif model.dimension < 2 or model.dimension % 2:
        raise RecipeError(
            f"model.dimension is {model.dimension}; a general-preference vector is made of 2-blocks: "
            f"use an even number, {max(2, model.dimension + model.dimension % 2)} say"
        )
    elif model.gate and model.dimension == 2:
        warnings.warn(
            "model.gate with dimension 2 does nothing: the softmax over one block is always 1",
            UserWarning,
            stacklevel=2,
        )
    if model.max_length < 8:
        raise RecipeError(f"model.max_length is {model.max_length}; it must be at least 8 tokens")
    if model.temperature is not None and model.temperature <= 0:
        raise RecipeError(f"model.temperature is {model.temperature}; it must be positive")


def _check_numbers(recipe: Recipe) -> None:
    training, pretraining, loss = recipe.training, recipe.pretraining, recipe.loss
    for name, value, least in (
        ("training.epochs", training.epochs, 1),
        ("training.batch_responses", training.batch_responses, 2),
        ("training.accumulation", training.accumulation, 1),
        ("training.checkpoints", training.checkpoints, 1),
        ("training.log_steps", training.log_steps, 1),
        ("pretraining.epochs", pretraining.epochs, 0),
        ("tokenizer.vocabulary_size", recipe.tokenizer.vocabulary_size, 300),
        ("data.limit", recipe.data.limit, 0),
        ("teacher.steps", recipe.teacher.steps if recipe.teacher else 1, 1),
        ("teacher.batch_responses", recipe.teacher.batch_responses if recipe.teacher else 2, 2),
        ("lora.rank", recipe.lora.rank if recipe.lora else 1, 1),
    ):
        if value < least:
            raise RecipeError(f"{name} is {value}; it must be at least {least}")
    for name, share in (
        ("training.dropout", training.dropout),
        ("training.head_dropout", training.head_dropout),
        ("training.token_noise", training.token_noise),
        ("training.average_decay", training.average_decay),
        ("pretraining.dropout", pretraining.dropout),
    ):
        if not 0 <= share < 1:
            raise RecipeError(f"{name} is {share}; it must lie in [0, 1)")
    if recipe.teacher and recipe.teacher.imprint < 0:
        raise RecipeError(f"teacher.imprint is {recipe.teacher.imprint}; it must be 0 or more")
    for name, rate in (
        ("training.learning_rate", training.learning_rate),
        ("pretraining.learning_rate", pretraining.learning_rate),
    ):
        if not 0 < rate < 1:
            raise RecipeError(f"{name} is {rate}; it must lie in (0, 1)")
    if not 0.5 < loss.certainty <= 1:
        raise RecipeError(f"loss.certainty is {loss.certainty}; it must lie in (0.5, 1]")


def _check_fit(recipe: Recipe) -> None:
    if not recipe.data.train:
        raise RecipeError("data.train is empty; name at least one file of pairs")
    if recipe.loss.name == "margin" and recipe.model.kind != "bradley-terry":
        raise RecipeError("loss.name 'margin' asks a reward for a lead in logits; use regular, scaled or soft here")
    if recipe.loss.margin and recipe.loss.name != "regular":
        raise RecipeError(f"loss.margin is {recipe.loss.margin}; only the regular loss has one: set loss.name")
    if recipe.loss.ties == "keep" and recipe.loss.name != "soft":
        raise RecipeError(f"loss.ties = 'keep' needs loss.name = 'soft'; {recipe.loss.name} has no label for a tie")
    scratch = recipe.backbone.source is None
    if scratch and recipe.lora:
        raise RecipeError("[lora] adapts trained weights; a from-scratch backbone has none: remove it or set source")
    if not scratch and recipe.pretraining.epochs:
        raise RecipeError("[pretraining] is for from-scratch backbones; set pretraining.epochs = 0 with a source")
    if not scratch and recipe.teacher:
        raise RecipeError("[teacher] helps from-scratch backbones over their first steps; remove it with a source")
    if scratch and recipe.backbone.hidden_size % recipe.backbone.heads:
        raise RecipeError(
            f"backbone.hidden_size {recipe.backbone.hidden_size} is no multiple of {recipe.backbone.heads} heads"
        )
