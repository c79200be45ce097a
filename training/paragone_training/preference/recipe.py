"""The recipe of a preference model: every setting with its meaning and default, and which of them fit each other."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Strict, model_validator

from paragone_models.kinds import KindName
from paragone_models.spec import ModelSpec, Pooling
from paragone_training.errors import RecipeError
from paragone_training.scratch.sections import (
    BackboneSection,
    LexicalSection,
    PretrainingSection,
    TeacherSection,
    TokenizerSection,
)
from paragone_training.settings import DataFiles, Names, Rate, Section, Share, load, parse

__all__ = ["LoraSection", "LossName", "Recipe", "TrainingSection", "load_recipe", "parse_recipe"]

LossName = Literal["regular", "margin", "scaled", "soft", "score", "regression"]

_REWARDS = ("bradley-terry", "helpsteer")
_RATED = ("regression", "helpsteer")


class ModelSection(Section):
    """What is trained."""

    kind: KindName
    """What an output of the model is; docs/kinds.md has all of them."""
    dimension: int = 1
    """Length d of a representation: even for a general preference model, odd for a hybrid; rewards and kinds that rate
    leave it out."""
    gate: bool = False
    """Weigh each 2-block by a softmax over the prompt's last hidden state."""
    normalise: bool = True
    """L2-normalise general preference vectors."""
    temperature: PositiveFloat | None = None
    """What logits are divided by. Unless given, 1 for a reward, 0.1 where there is a vector, the start's for
    `helpsteer`; fitted for `regression`."""
    pooling: Pooling = "last"
    """Read the last token, or the mean over the response."""
    max_length: int = Field(default=2048, ge=8)
    """Longest conversation in tokens; longer ones lose their prompt from the left."""
    domain: str | None = None
    """What the model will know, in words, for its card and `/v1/models`."""
    demonstration: bool = False
    """The model shows the software; nobody should rely on its judgement."""
    attributes: Names = ()
    """Kinds that rate: names of the ratings, in the order of the head's rows."""
    start: str | None = None
    """Kinds that rate: a model to go on from, as `paragone serve --model` takes it. `helpsteer` needs a `regression`
    model of the same attributes and takes backbone, tokenizer and head. `regression` takes backbone and tokenizer, and
    the head where the attributes are the same. Without it, training starts from `[backbone]`."""


class DataSection(Section):
    """Which rows. Relative paths start at the recipe's folder, or at `--data`."""

    train: DataFiles = ()
    """Pair files. A `regression` learns nothing from them, but its attributes are merged as they say; without any it
    rates and does not compare."""
    evaluate: DataFiles = ()
    """Pair files for the held-out rows; the training files unless given."""
    train_split: str = "train"
    """Rows whose `split` is this are trained on; rows without a split always are."""
    evaluate_split: str = "test"
    """Rows whose `split` is this are held out."""
    allow_test_rows: bool = False
    """Train on rows marked `test` all the same."""
    limit: NonNegativeInt = 0
    """Only the first so many training pairs; 0 takes all."""
    ratings: DataFiles = ()
    """Kinds that rate: rating files; rows are chosen by the same splits as pairs."""
    evaluate_ratings: DataFiles = ()
    """Kinds that rate: rating files for the held-out rows; the files of `ratings` unless given."""


class LossSection(Section):
    """What is minimised, per pair."""

    name: LossName = "regular"
    """See the table of losses; `scaled` for `helpsteer` unless given, and `regression` for that kind alone."""
    margin: float = 0.0
    """Lead asked for by the `regular` loss, subtracted before the temperature divides."""
    certainty: float = Field(default=0.95, gt=0.5, le=1)
    """The `soft` label of the strongest preference; strength s has the label 1/2 + s/6, at most this."""
    ties: Literal["drop", "keep"] = "drop"
    """Keep pairs of strength 0 (`soft` and `score` can learn from them) or drop them."""
    ratings: NonNegativeFloat = 1.0
    """`helpsteer`: weight of the regression loss beside the loss of the pairs; it keeps the attributes true."""


class TrainingSection(Section):
    """How it is minimised."""

    epochs: PositiveInt = 1
    """Passes over the pairs."""
    learning_rate: Rate = 1e-5
    """Peak."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """transformers' name of the learning-rate schedule."""
    warmup_steps: float = 0.03
    """Steps, or below 1 the share of all steps."""
    weight_decay: float = 0.0
    """Of AdamW."""
    betas: Annotated[tuple[float, float], Strict(False)] = (0.9, 0.98)
    """Of AdamW."""
    max_gradient_norm: float = 1.0
    """Gradients are clipped to this."""
    batch_responses: int = Field(default=16, ge=2)
    """Responses of a forward pass at most; as few prompts as fit share it."""
    accumulation: PositiveInt = 1
    """Forward passes of a step."""
    bf16: bool = False
    """Mixed precision."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    seed: int = 0
    """Of everything random."""
    dropout: Share = 0.0
    """On the embedding and on what attention and feed-forward layers add; for backbones from random weights."""
    head_dropout: Share = 0.0
    """On the hidden states that the head reads."""
    token_noise: Share = 0.0
    """Share of tokens replaced by random ones."""
    average_decay: Share = 0.0
    """Keep an exponential moving average of the weights and save that; 0 saves the last weights."""
    checkpoints: PositiveInt = 1
    """How many to keep."""
    log_steps: PositiveInt = 10
    """Steps between two log lines."""


class LoraSection(Section):
    """Low-rank adapters in place of full fine-tuning; merged when the model is saved."""

    rank: PositiveInt = 16
    """Of each adapter."""
    alpha: float = 32.0
    """The adapter is scaled by alpha / rank."""
    dropout: float = 0.0
    """On the adapters' input."""
    targets: Names = ()
    """Names of the layers that get one; all linear layers of the backbone unless given."""


class OutputSection(Section):
    """What is written, and where."""

    folder: str | None = None
    """Of the model, relative to the working directory; `runs/NAME-OF-THE-RECIPE` unless given."""
    checkpoints: str | None = None
    """Where checkpoints go; `checkpoints` in the model's folder unless given."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Storage type of the backbone."""
    tokenizer: str | None = None
    """Another folder for the tokenizer, to share it between models; the model's own unless given."""
    notes: str | None = None
    """A paragraph for the model's card."""


class Recipe(Section):
    """How a preference model is trained."""

    model: ModelSection
    data: DataSection
    backbone: BackboneSection = BackboneSection()
    tokenizer: TokenizerSection = TokenizerSection()
    pretraining: PretrainingSection = PretrainingSection()
    lexical: LexicalSection | None = None
    teacher: TeacherSection | None = None
    loss: LossSection = LossSection()
    training: TrainingSection = TrainingSection()
    lora: LoraSection | None = None
    output: OutputSection = OutputSection()

    @property
    def rates(self) -> bool:
        """True for a kind that learns from ratings."""
        return self.model.kind in _RATED

    @property
    def spec(self) -> ModelSpec:
        """The contents of the model's paragone.json, but for what is fitted or taken from a start."""
        model = self.model
        pairs = model.kind in ("general-preference", "hybrid")
        return ModelSpec(
            kind=model.kind,
            dimension=len(model.attributes) + (model.kind == "helpsteer") if self.rates else model.dimension,
            attributes=model.attributes,
            temperature=model.temperature or (0.1 if pairs else 1.0),
            pooling=model.pooling,
            gate="softmax" if model.gate else "none",
            normalise=pairs and model.normalise,
            max_length=model.max_length,
            domain=model.domain,
            demonstration=model.demonstration,
        )

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_kind(cls, tables: Any) -> Any:
        """Put the loss that a kind has unless the recipe names one."""
        names = {"regression": "regression", "helpsteer": "scaled"}
        model, loss = tables.get("model"), tables.get("loss", {})
        name = names.get(str(model.get("kind"))) if isinstance(model, dict) else None
        return tables | {"loss": {"name": name, **loss}} if name and isinstance(loss, dict) else tables

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        _check_model(self.model)
        if self.rates:
            _check_rated(self)
        else:
            _check_unrated(self)
        _check_loss(self)
        _check_backbone(self)
        return self


def load_recipe(path: str | Path, assignments: Sequence[str] = (), *, data: Path | None = None) -> Recipe:
    """Return a recipe file, checked, its data paths made absolute.

    Args:
        path: a TOML file.
        assignments: ``section.key=value`` overrides.
        data: folder of relative data files, in place of the recipe's own.

    Raises:
        RecipeError: if it cannot be read or cannot be run.
    """
    recipe = load(Recipe, path, assignments, data=data)
    folder = recipe.output.folder or f"runs/{Path(path).stem}"
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": folder})})


def parse_recipe(tables: dict[str, Any]) -> Recipe:
    """Return a recipe built from TOML tables, checked.

    Raises:
        RecipeError: if a key or value is wrong, or two of them do not fit each other.
    """
    return parse(Recipe, tables)


def _check_model(model: ModelSection) -> None:
    kind, dimension = model.kind, model.dimension
    if kind in _RATED:
        if dimension != 1:
            raise RecipeError(f"model.dimension is {dimension}; a {kind} model has one per attribute: leave it out")
        if model.gate:
            raise RecipeError(f"model.gate scales general preference blocks; a {kind} model has none: set false")
    elif kind == "bradley-terry":
        if dimension != 1:
            raise RecipeError(f"model.dimension is {dimension}; a bradley-terry reward has 1: leave it out")
        if model.gate:
            raise RecipeError("model.gate scales general preference blocks; a bradley-terry reward has none: set false")
    elif kind == "hybrid" and (dimension < 3 or dimension % 2 == 0):
        raise RecipeError(
            f"model.dimension is {dimension}; a hybrid model has a reward and 2-blocks: use an odd number, "
            f"{max(3, dimension + 1 - dimension % 2)} say"
        )
    elif kind == "general-preference" and (dimension < 2 or dimension % 2):
        raise RecipeError(
            f"model.dimension is {dimension}; a general-preference vector is made of 2-blocks: "
            f"use an even number, {max(2, dimension + dimension % 2)} say"
        )
    elif model.gate and dimension in (2, 3):
        warnings.warn(
            f"model.gate with dimension {dimension} does nothing: the softmax over one block is always 1",
            UserWarning,
            stacklevel=2,
        )


def _check_rated(recipe: Recipe) -> None:
    model, data, loss = recipe.model, recipe.data, recipe.loss
    if not model.attributes or len(set(model.attributes)) < len(model.attributes):
        raise RecipeError(f"model.attributes is {list(model.attributes)}; name each rated attribute once, at least one")
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


def _check_unrated(recipe: Recipe) -> None:
    for name, value in (
        ("model.attributes", recipe.model.attributes),
        ("model.start", recipe.model.start),
        ("data.ratings", recipe.data.ratings),
        ("data.evaluate_ratings", recipe.data.evaluate_ratings),
        ("loss.ratings", "ratings" in recipe.loss.model_fields_set),
    ):
        if value:
            raise RecipeError(f"{name} is for {' and '.join(_RATED)} models, not {recipe.model.kind}: leave it out")


def _check_loss(recipe: Recipe) -> None:
    kind, loss = recipe.model.kind, recipe.loss
    if not recipe.data.train and kind != "regression":
        raise RecipeError("data.train is empty; name at least one file of pairs")
    if loss.name == "regression" and kind != "regression":
        raise RecipeError(f"loss.name 'regression' fits ratings; a {kind} model learns from pairs")
    if loss.name == "score" and loss.certainty == 1:
        raise RecipeError("loss.certainty is 1, which has no log-odds for loss.name 'score': set 0.95, say")
    if loss.name == "margin" and kind not in _REWARDS:
        raise RecipeError("loss.name 'margin' asks a reward for a lead in logits; use regular, scaled or soft here")
    if loss.margin and loss.name != "regular":
        raise RecipeError(f"loss.margin is {loss.margin}; only the regular loss has one: set loss.name")
    if loss.ties == "keep" and loss.name not in ("soft", "score"):
        raise RecipeError(f"loss.ties = 'keep' needs loss.name = 'soft' or 'score'; {loss.name} has no label for a tie")


def _check_backbone(recipe: Recipe) -> None:
    backbone, lexical = recipe.backbone, recipe.lexical
    if backbone.source or recipe.model.start:
        if recipe.pretraining.epochs:
            raise RecipeError("[pretraining] is for from-scratch backbones; set pretraining.epochs = 0 with a source")
        for name, section in (("lexical", lexical), ("teacher", recipe.teacher)):
            if section:
                raise RecipeError(
                    f"[{name}] helps from-scratch backbones over their first steps; remove it with a source"
                )
        return
    if recipe.lora:
        raise RecipeError("[lora] adapts trained weights; a from-scratch backbone has none: remove it or set source")
    if lexical and lexical.coordinates >= backbone.hidden_size:
        raise RecipeError(
            f"lexical.coordinates is {lexical.coordinates}; the backbone is {backbone.hidden_size} wide: ask for fewer"
        )
    if backbone.hidden_size % backbone.heads:
        raise RecipeError(f"backbone.hidden_size {backbone.hidden_size} is no multiple of {backbone.heads} heads")
