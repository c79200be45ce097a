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
from paragone_training.preference.ratings.sections import (
    RATED_KINDS,
    RatedDataSection,
    RatedLossSection,
    RatedModelSection,
)
from paragone_training.preference.sections import (
    BackboneSection,
    DataSection,
    LexicalSection,
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

__all__ = ["RatedRecipe", "Recipe", "load_recipe", "parse_recipe"]

_REWARDS = ("bradley-terry", "helpsteer")
_PATHS = ("train", "evaluate", "ratings", "evaluate_ratings")


@dataclass(frozen=True)
class Recipe:
    """One recipe, checked.

    Attributes:
        model: what is trained.
        data: which rows.
        backbone: what reads the text.
        tokenizer: where tokens come from.
        pretraining: language modelling first.
        lexical: what is told of words and length next, or None.
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
    lexical: LexicalSection | None = None
    teacher: TeacherSection | None = None
    loss: LossSection = field(default_factory=LossSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    lora: LoraSection | None = None
    output: OutputSection = field(default_factory=OutputSection)

    @property
    def spec(self) -> ModelSpec:
        """The contents of the model's paragone.json."""
        pairs = self.model.kind in ("general-preference", "hybrid")
        return ModelSpec(
            kind=next(kind for kind in KINDS if kind == self.model.kind),
            dimension=self.model.dimension,
            temperature=self.model.temperature or (0.1 if pairs else 1.0),
            pooling=self.model.pooling,
            gate="softmax" if self.model.gate else "none",
            normalise=pairs and self.model.normalise,
            max_length=self.model.max_length,
            domain=self.model.domain,
            demonstration=self.model.demonstration,
        )


@dataclass(frozen=True)
class RatedRecipe(Recipe):
    """A recipe of a kind that rates attributes, checked.

    Attributes:
        model: what is trained, its attributes, and what it goes on from.
        data: which pairs and which ratings.
        loss: what is minimised, and how much ratings count.
    """

    model: RatedModelSection
    data: RatedDataSection
    loss: RatedLossSection = field(default_factory=RatedLossSection)

    @property
    def spec(self) -> ModelSpec:
        """The contents of the model's paragone.json, but for what is fitted or taken from the start."""
        attributes = self.model.attributes
        return ModelSpec(
            kind="helpsteer" if self.model.kind == "helpsteer" else "regression",
            dimension=len(attributes) + (self.model.kind == "helpsteer"),
            attributes=attributes,
            temperature=self.model.temperature or 1.0,
            pooling=self.model.pooling,
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
        for key in _PATHS:
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
    model = tables.get("model")
    kind = model.get("kind") if isinstance(model, dict) else None
    if kind in RATED_KINDS:
        loss = {"name": "regression" if kind == "regression" else "scaled", **tables.get("loss", {})}
        recipe: Recipe = build(RatedRecipe, {**tables, "loss": loss})
    else:
        recipe = build(Recipe, tables)
    _check_model(recipe.model)
    _check_numbers(recipe)
    _check_fit(recipe)
    if isinstance(recipe, RatedRecipe):
        _check_rated(recipe)
    return recipe


def _check_rated(recipe: RatedRecipe) -> None:
    model, data, loss = recipe.model, recipe.data, recipe.loss
    if not model.attributes or len(set(model.attributes)) < len(model.attributes):
        raise RecipeError(f"model.attributes is {list(model.attributes)}; name each rated attribute once, at least one")
    if model.dimension != 1:
        raise RecipeError(
            f"model.dimension is {model.dimension}; a {model.kind} model has one per attribute: leave it out"
        )
    if not data.ratings:
        raise RecipeError(f"data.ratings is empty; a {model.kind} model learns from ratings: name at least one file")
    if model.kind == "regression" and loss.name != "regression":
        raise RecipeError(f"loss.name is {loss.name!r}; a regression model has the regression loss alone: leave it out")
    if model.kind == "regression" and model.temperature is not None:
        raise RecipeError("model.temperature of a regression model is fitted with its weights: leave it out")
    if model.kind == "helpsteer" and not model.start:
        raise RecipeError("model.start is missing; a helpsteer model starts from a trained regression model: name it")
    if model.start and recipe.backbone.source:
        raise RecipeError("model.start and backbone.source both name a backbone: leave one of them out")
    if recipe.pretraining.epochs or recipe.lexical:
        raise RecipeError(
            f"[pretraining] and [lexical] are not for {model.kind} models: set model.start to a trained one"
        )
    if loss.ratings < 0:
        raise RecipeError(f"loss.ratings is {loss.ratings}; it must be 0 or more")


def _check_model(model: ModelSection) -> None:
    if model.kind not in KINDS:
        raise RecipeError(f"model.kind is {model.kind!r}, which is unknown; it must be one of {', '.join(KINDS)}")
    if model.max_length < 8:
        raise RecipeError(f"model.max_length is {model.max_length}; it must be at least 8 tokens")
    if model.temperature is not None and model.temperature <= 0:
        raise RecipeError(f"model.temperature is {model.temperature}; it must be positive")
    if model.kind in RATED_KINDS:
        if model.gate:
            raise RecipeError(f"model.gate scales general preference blocks; a {model.kind} model has none: set false")
    elif model.kind == "bradley-terry":
        if model.dimension != 1:
            raise RecipeError(f"model.dimension is {model.dimension}; a bradley-terry reward has 1: leave it out")
        if model.gate:
            raise RecipeError("model.gate scales general preference blocks; a bradley-terry reward has none: set false")
    elif model.kind == "hybrid" and (model.dimension < 3 or model.dimension % 2 == 0):
        raise RecipeError(
            f"model.dimension is {model.dimension}; a hybrid model has a reward and 2-blocks: use an odd number, "
            f"{max(3, model.dimension + 1 - model.dimension % 2)} say"
        )
    elif model.kind == "general-preference" and (model.dimension < 2 or model.dimension % 2):
        raise RecipeError(
            f"model.dimension is {model.dimension}; a general-preference vector is made of 2-blocks: "
            f"use an even number, {max(2, model.dimension + model.dimension % 2)} say"
        )
    elif model.gate and model.dimension in (2, 3):
        warnings.warn(
            f"model.gate with dimension {model.dimension} does nothing: the softmax over one block is always 1",
            UserWarning,
            stacklevel=2,
        )


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
        ("lexical.steps", recipe.lexical.steps if recipe.lexical else 1, 1),
        ("lexical.coordinates", recipe.lexical.coordinates if recipe.lexical else 1, 1),
        ("lexical.batch_responses", recipe.lexical.batch_responses if recipe.lexical else 3, 3),
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
        ("lexical.token_noise", recipe.lexical.token_noise if recipe.lexical else 0.0),
    ):
        if not 0 <= share < 1:
            raise RecipeError(f"{name} is {share}; it must lie in [0, 1)")
    if recipe.teacher and recipe.teacher.imprint < 0:
        raise RecipeError(f"teacher.imprint is {recipe.teacher.imprint}; it must be 0 or more")
    if recipe.lexical and recipe.lexical.imprint < 0:
        raise RecipeError(f"lexical.imprint is {recipe.lexical.imprint}; it must be 0 or more")
    for name, rate in (
        ("training.learning_rate", training.learning_rate),
        ("pretraining.learning_rate", pretraining.learning_rate),
        ("lexical.learning_rate", recipe.lexical.learning_rate if recipe.lexical else 1e-3),
    ):
        if not 0 < rate < 1:
            raise RecipeError(f"{name} is {rate}; it must lie in (0, 1)")
    if not 0.5 < loss.certainty <= 1:
        raise RecipeError(f"loss.certainty is {loss.certainty}; it must lie in (0.5, 1]")


def _check_fit(recipe: Recipe) -> None:
    if not recipe.data.train and recipe.model.kind != "regression":
        raise RecipeError("data.train is empty; name at least one file of pairs")
    if recipe.loss.name == "regression" and recipe.model.kind != "regression":
        raise RecipeError(f"loss.name 'regression' fits ratings; a {recipe.model.kind} model learns from pairs")
    if recipe.loss.name == "score" and recipe.loss.certainty == 1:
        raise RecipeError("loss.certainty is 1, which has no log-odds for loss.name 'score': set 0.95, say")
    if recipe.loss.name == "margin" and recipe.model.kind not in _REWARDS:
        raise RecipeError("loss.name 'margin' asks a reward for a lead in logits; use regular, scaled or soft here")
    if recipe.loss.margin and recipe.loss.name != "regular":
        raise RecipeError(f"loss.margin is {recipe.loss.margin}; only the regular loss has one: set loss.name")
    if recipe.loss.ties == "keep" and recipe.loss.name not in ("soft", "score"):
        raise RecipeError(
            f"loss.ties = 'keep' needs loss.name = 'soft' or 'score'; {recipe.loss.name} has no label for a tie"
        )
    start = isinstance(recipe, RatedRecipe) and recipe.model.start
    scratch = recipe.backbone.source is None and not start
    if scratch and recipe.lora:
        raise RecipeError("[lora] adapts trained weights; a from-scratch backbone has none: remove it or set source")
    if not scratch and recipe.pretraining.epochs:
        raise RecipeError("[pretraining] is for from-scratch backbones; set pretraining.epochs = 0 with a source")
    if not scratch and recipe.lexical:
        raise RecipeError("[lexical] helps from-scratch backbones over their first steps; remove it with a source")
    if scratch and recipe.lexical and recipe.lexical.coordinates >= recipe.backbone.hidden_size:
        raise RecipeError(
            f"lexical.coordinates is {recipe.lexical.coordinates}; the backbone is {recipe.backbone.hidden_size} wide: "
            "ask for fewer"
        )
    if not scratch and recipe.teacher:
        raise RecipeError("[teacher] helps from-scratch backbones over their first steps; remove it with a source")
    if scratch and recipe.backbone.hidden_size % recipe.backbone.heads:
        raise RecipeError(
            f"backbone.hidden_size {recipe.backbone.hidden_size} is no multiple of {recipe.backbone.heads} heads"
        )
