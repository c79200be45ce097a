"""The recipe of a preference model: every setting with its meaning and default, and which of them fit each other."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Strict, model_validator

from paragone_evaluation.readers import HELD_OUT, Rankings, ReadOptions, split_name
from paragone_models.kinds import KINDS, KindName, LossName
from paragone_models.spec import ModelSpec, Pooling
from paragone_models.symmetrise import Symmetrise
from paragone_training.errors import RecipeError
from paragone_training.scratch.sections import (
    BackboneSection,
    LexicalSection,
    PretrainingSection,
    TeacherSection,
    TokenizerSection,
)
from paragone_training.settings import DataFiles, DataSection, LoraSection, Names, Rate, Section, Share, load

__all__ = ["Recipe", "load_recipe"]

# Of a backbone from random weights.
_SIZES = {"hidden_size", "layers", "heads", "intermediate_size"}


class _ModelSection(Section):
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
    """Longest conversation in tokens; longer ones lose their prompt from the left. Unless given, 2048, or what the
    backbone has positions for where that is less."""
    domain: str | None = None
    """What the model will know, in words, for its card and `/v1/models`."""
    demonstration: bool = False
    """The model shows the software; nobody should rely on its judgement."""
    symmetrise: Symmetrise | None = None
    """`pairwise`: what makes one answer of both orders, as when it is hosted; unless given, that of its start."""
    attributes: Names = ()
    """Kinds that rate: names of the ratings, in the order of the head's rows."""
    start: str | None = None
    """A trained model to go on from, as `paragone serve --model` takes it: backbone, tokenizer and, where it means the
    same, head. `helpsteer` needs a `regression` model of the same attributes, or a `helpsteer` one. Without it,
    training starts from `[backbone]`."""
    head: Literal["keep", "new"] | None = None
    """The head of `start`, or of a `backbone.source` that is a reward model: keep it, or draw a new one. Unless given,
    it is kept where kind, attributes, dimension, pooling and gate are the same; log and card say which."""


class _DataSection(DataSection):
    """Which rows. Relative paths start at the recipe's folder, or at `--data`."""

    train: DataFiles = ()
    """Pair files, or rating files, of which pairs are made. A `regression` learns nothing from them, but its attributes
    are merged as they say; without any it rates and does not compare."""
    evaluate: DataFiles = ()
    """Pair files for the held-out rows, those of `evaluate_split` and those without a split; the training files
    unless given."""
    train_split: str = "train"
    """Rows whose `split` is this are trained on; rows without a split always are."""
    evaluate_split: str = "test"
    """Rows whose `split` is this are held out; a split that the recipe names must not be empty."""
    allow_test_rows: bool = False
    """Train on rows marked `test` all the same."""
    holdout: Share = 0.0
    """Of files in which no row is marked `test`: the share of the prompts that is held out, 0.1 say. The text of a
    prompt, or of its group, decides, so `paragone eval FILE --holdout` with the same number reads the same rows."""
    limit: NonNegativeInt = 0
    """Only the first so many training pairs; 0 takes all."""
    ratings: DataFiles = ()
    """Kinds that rate: rating files; rows are chosen by the same splits as pairs."""
    evaluate_ratings: DataFiles = ()
    """Kinds that rate: rating files for the held-out rows; the files of `ratings` unless given."""
    attribute: str | None = None
    """What rated responses are compared by where pairs are made of ratings; helpfulness, or the first one, if omitted.
    Of PKU-SafeRLHF, `better` or `safer`."""
    gap: NonNegativeFloat = 0.0
    """Ratings no further apart than this are a tie."""
    rankings: Rankings = "all"
    """Of a ranking, compare `all` responses with one another or `neighbours` only."""
    layout: str = "auto"
    """Of all files; `annotated` takes a model's probabilities where people compared the same responses too."""

    @property
    def reading(self) -> ReadOptions:
        """How files are read."""
        own = {name: getattr(self, name) for name in ("attribute", "gap", "rankings", "layout", "holdout")}
        return replace(super().reading, **own)


class _LossSection(Section):
    """What is minimised, per pair."""

    name: LossName = "regular"
    """See the table of losses; `scaled` for `helpsteer` unless given, and `regression` for that kind alone."""
    margin: float = 0.0
    """Lead asked for by the `regular` loss, subtracted before the temperature divides."""
    certainty: float = Field(default=0.95, gt=0.5, le=1)
    """The `soft` label of the strongest preference; strength s has the label 1/2 + s/6, at most this. Where all
    strengths are 1, as in files that only say who won, every label is 2/3."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs whose label the `regular` loss takes for wrong."""
    centre: NonNegativeFloat = 0.0
    """Weight of (r1 + r2)² beside the loss of each pair, 0.01 say: it keeps rewards around 0; kinds with a reward."""
    ties: Literal["drop", "keep"] = "drop"
    """Keep pairs of strength 0 (`soft` and `score` can learn from them) or drop them; `distil` always keeps them."""
    ratings: NonNegativeFloat = 1.0
    """`helpsteer`: weight of the regression loss beside the loss of the pairs; it keeps the attributes true."""

    @property
    def keeps_ties(self) -> bool:
        """Whether pairs of strength 0 are learned from."""
        return self.ties == "keep" or self.distils

    @property
    def distils(self) -> bool:
        """Whether labels are another model's probabilities."""
        return self.name == "distil"


class _TrainingSection(Section):
    """How it is minimised."""

    epochs: PositiveInt = 1
    """Passes over the pairs."""
    learning_rate: Rate = 1e-5
    """Peak."""
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    """transformers' name of the learning-rate schedule."""
    warmup_steps: NonNegativeFloat = 0.03
    """Steps, or below 1 the share of all steps, which leaves one step at least."""
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
    save_steps: PositiveInt | None = None
    """Steps between two checkpoints; every five minutes unless given. The end of an epoch has one always."""
    log_steps: PositiveInt = 10
    """Steps between two log lines."""


class _HeadSection(Section):
    """How a head is fitted to a frozen backbone: by `train head`, and by `train model` before it begins."""

    start: Literal["fit", "random"] | None = None
    """What `train model` begins with where a pretrained `backbone.source` has no head: a fitted one, or random numbers.
    Unless given, a fitted one where the rows allow a fit."""
    learning_rate: Rate | None = None
    """Of the head in `train model`; unless given, that of the backbone, and a tenth of it for a fitted head."""
    penalty: PositiveFloat | None = None
    """Times half the squared norm of the weights of standardised features; chosen by cross-validation unless given."""
    folds: int = Field(default=5, ge=2)
    """Parts that the questions are dealt into for cross-validation."""
    states: str | None = None
    """Folder of hidden states, which later fits to the same backbone and rows find again; unless given, `runs/states`
    for `train head`, and beside the checkpoints for `train model`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the backbone's forward passes, as `paragone serve` takes it."""


class _OutputSection(Section):
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

    model: _ModelSection
    data: _DataSection
    backbone: BackboneSection = BackboneSection()
    tokenizer: TokenizerSection = TokenizerSection()
    pretraining: PretrainingSection = PretrainingSection()
    lexical: LexicalSection | None = None
    teacher: TeacherSection | None = None
    loss: _LossSection = _LossSection()
    training: _TrainingSection = _TrainingSection()
    lora: LoraSection | None = None
    head: _HeadSection = _HeadSection()
    output: _OutputSection = _OutputSection()

    @property
    def spec(self) -> ModelSpec:
        """The contents of the model's paragone.json, but for what is fitted or taken from a start."""
        model, kind = self.model, KINDS[self.model.kind]
        return ModelSpec(
            kind=kind.name,
            dimension=model.dimension if kind.has_vector else kind.nearest_dimension(1, len(model.attributes)),
            attributes=model.attributes,
            temperature=model.temperature or kind.default_temperature,
            pooling=model.pooling,
            gate="softmax" if model.gate else "none",
            normalise=kind.has_vector and model.normalise,
            max_length=model.max_length,
            pair_format="letters" if kind.reads_pairs else None,
            symmetrise=model.symmetrise or "mean-probability" if kind.reads_pairs else None,
            domain=model.domain,
            demonstration=model.demonstration,
        )

    def within(self, positions: int | None) -> Self:
        """Return the recipe with a ``model.max_length`` that a backbone has positions for; None is no limit.

        Raises:
            RecipeError: if the recipe itself names a longer one.
        """
        model = self.model
        if positions is None or model.max_length <= positions:
            return self
        if "max_length" in model.model_fields_set:
            raise RecipeError(
                f"model.max_length is {model.max_length}; the backbone has {positions} positions: ask for no more"
            )
        return self.model_copy(update={"model": model.model_copy(update={"max_length": positions})})

    def settings_read(self, *, head_alone: bool = False) -> dict[str, Any]:
        """Return the tables without the settings that a run of this recipe does not look at.

        Args:
            head_alone: the run is one of ``train head``.
        """
        unread: dict[str, Any] = {} if self.pretraining.epochs else {"pretraining": True}
        if not KINDS[self.model.kind].has_attributes:
            unread |= {"loss": {"ratings"}}
        if self.backbone.source or self.model.start:
            unread |= {"backbone": _SIZES, "tokenizer": {"vocabulary_size"}}
        else:
            unread |= {"head": True}
        if head_alone:
            unread |= {"tokenizer": True, "lora": True, "training": set(_TrainingSection.model_fields) - {"seed"}}
        return self.model_dump(exclude=unread)

    @model_validator(mode="before")
    @classmethod
    def _loss_of_the_kind(cls, tables: Any) -> Any:
        """Put the first loss that fits the kind, unless the recipe names one."""
        # Before validation, when tables may still be anything: what is wrong with them is said by the fields.
        model, loss = tables.get("model"), tables.get("loss", {})
        names = {str(name): kind.losses[0] for name, kind in KINDS.items() if kind.losses}
        name = names.get(str(model.get("kind"))) if isinstance(model, dict) else None
        return tables | {"loss": {"name": name, **loss}} if name and isinstance(loss, dict) else tables

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        # In the order of what decides what: a wrong kind would make every later message misleading.
        _check_model(self.model)
        _check_holdout(self.data)
        _check_ratings(self)
        _check_loss(self)
        _check_backbone(self)
        return self


def load_recipe(path: str | Path, assignments: Sequence[str] = (), *, data: Path | None = None) -> Recipe:
    """Return a recipe file, checked, its data paths made absolute; arguments as those of ``settings.load``.

    Raises:
        RecipeError: if it cannot be read or cannot be run.
    """
    recipe = load(Recipe, path, assignments, data=data)
    # Settled here, so that a dry run shows where the model would go.
    folder = recipe.output.folder or f"runs/{Path(path).stem}"
    return recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": folder})})


def _check_model(model: _ModelSection) -> None:
    """Refuse a dimension or a gate that the kind cannot have, and attributes of a kind that rates nothing."""
    kind, dimension, attributes = KINDS[model.kind], model.dimension, model.attributes
    if not kind.losses:
        raise RecipeError(f"model.kind is {kind.name!r}: no loss trains it here, it is only hosted")
    if kind.reads_pairs and (model.pooling != "last" or model.head):
        raise RecipeError(
            f"a {kind.name} model is read where its answer A or B would come, by the output rows of the letters: leave "
            "model.pooling and model.head out"
        )
    if model.symmetrise and not kind.reads_pairs:
        raise RecipeError(
            f"model.symmetrise is of models that read both responses; {kind.name} reads one: leave it out"
        )
    if kind.has_attributes and (not attributes or len(set(attributes)) < len(attributes)):
        raise RecipeError(f"model.attributes is {list(attributes)}; name each rated attribute once, at least one")
    if not kind.has_vector:
        # The dimension follows from kind and attributes; 1, the default, means that nobody gave one.
        if dimension != 1:
            raise RecipeError(f"model.dimension is {dimension}; {kind.dimension_rule}: leave it out")
        if model.gate:
            raise RecipeError(f"model.gate scales general preference blocks; a {kind.name} model has none: set false")
    elif not kind.dimension_fits(dimension, 0):
        parity = "odd" if kind.has_reward else "even"
        raise RecipeError(
            f"model.dimension is {dimension}; {kind.dimension_rule}: use an {parity} number, "
            f"{kind.nearest_dimension(dimension, 0)} say"
        )
    elif model.gate and kind.blocks(dimension) == 1:
        warnings.warn(
            f"model.gate with dimension {dimension} does nothing: the softmax over one block is always 1",
            UserWarning,
            stacklevel=2,
        )


def _check_holdout(data: _DataSection) -> None:
    """Refuse a recipe that says twice what is held out."""
    if not data.holdout:
        return
    for name, value, free in (
        ("evaluate", data.evaluate, ()),
        ("evaluate_ratings", data.evaluate_ratings, ()),
        ("evaluate_split", split_name(data.evaluate_split), HELD_OUT),
        ("train_split", split_name(data.train_split), "train"),
        ("allow_test_rows", data.allow_test_rows, False),
    ):
        if value != free:
            raise RecipeError(
                f"data.holdout is {data.holdout:g}, and data.{name} says too which rows are held out: leave one of "
                "them out"
            )


def _check_ratings(recipe: Recipe) -> None:
    """Refuse a recipe that lacks what a kind that rates needs, or gives it to a kind that does not rate."""
    model, data, kind = recipe.model, recipe.data, KINDS[recipe.model.kind]
    if not kind.has_attributes:
        for name, value in (
            ("model.attributes", model.attributes),
            ("data.ratings", data.ratings),
            ("data.evaluate_ratings", data.evaluate_ratings),
            # Its default is no 0, so what counts is whether the recipe names it.
            ("loss.ratings", "ratings" in recipe.loss.model_fields_set),
        ):
            if value:
                rating = " and ".join(name for name, other in KINDS.items() if other.has_attributes)
                raise RecipeError(f"{name} is for {rating} models, not for {kind.name}: leave it out")
        return
    if not data.ratings:
        raise RecipeError(f"data.ratings is empty; a {kind.name} model learns from ratings: name at least one file")
    # A temperature of the recipe would be overwritten by the fit, in silence.
    if kind.merges_attributes and model.temperature is not None:
        raise RecipeError(f"model.temperature of a {kind.name} model is fitted with its weights: leave it out")
    if kind.starts_from and not model.start and not recipe.backbone.source:
        raise RecipeError(
            f"model.start is missing; a {kind.name} model starts from a trained {kind.starts_from} model: name it"
        )
    if recipe.pretraining.epochs or recipe.lexical:
        raise RecipeError(
            f"[pretraining] and [lexical] are not for {kind.name} models: set model.start to a trained one"
        )


def _check_loss(recipe: Recipe) -> None:
    kind, loss = KINDS[recipe.model.kind], recipe.loss
    if not recipe.data.train and kind.learns_pairs:
        raise RecipeError("data.train is empty; name at least one file of pairs")
    if loss.name not in kind.losses:
        raise RecipeError(f"loss.name is {loss.name!r}; a {kind.name} model has {', '.join(kind.losses)}")
    # certainty = 1 makes a label of 0 or 1.
    if loss.name == "score" and loss.certainty == 1:
        raise RecipeError("loss.certainty is 1, which has no log-odds for loss.name 'score': set 0.95, say")
    # Ignored elsewhere, which a recipe should not be able to hide.
    if loss.margin and loss.name != "regular":
        raise RecipeError(f"loss.margin is {loss.margin}; only the regular loss has one: set loss.name")
    if loss.label_smoothing and loss.name != "regular":
        raise RecipeError(
            f"loss.label_smoothing is {loss.label_smoothing}; only the regular loss has one (soft has loss.certainty)"
        )
    if loss.centre and not (kind.has_reward and kind.learns_pairs):
        raise RecipeError(f"loss.centre is {loss.centre}; a {kind.name} model learns no reward: leave it out")
    if loss.ties == "keep" and loss.name not in ("soft", "score", "distil"):
        raise RecipeError(f"loss.ties = 'keep' needs loss.name = 'soft' or 'score'; {loss.name} has no label for a tie")


def _check_backbone(recipe: Recipe) -> None:
    backbone, lexical, model = recipe.backbone, recipe.lexical, recipe.model
    if KINDS[model.kind].reads_pairs and not (model.start or backbone.source):
        raise RecipeError(
            f"backbone.source is missing; a {model.kind} model answers by the letters A and B of a causal LM: name one"
        )
    # One of them would be ignored.
    if model.start and backbone.source:
        raise RecipeError("model.start and backbone.source both name a backbone: leave one of them out")
    if model.head and not (model.start or backbone.source):
        raise RecipeError(f"model.head is {model.head!r}; a backbone from random weights has no head: leave it out")
    if model.head == "new" and KINDS[model.kind].starts_from:
        raise RecipeError(f"model.head is 'new'; a {model.kind} model starts as the one it goes on from: leave it out")
    # With trained weights nothing may run before the labels: it would write over what they know.
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
    # Each coordinate is written into one of the embedding, and the length takes one more.
    if lexical and lexical.coordinates >= backbone.hidden_size:
        raise RecipeError(
            f"lexical.coordinates is {lexical.coordinates}; the backbone is {backbone.hidden_size} wide: ask for fewer"
        )
    if backbone.hidden_size % backbone.heads:
        raise RecipeError(f"backbone.hidden_size {backbone.hidden_size} is no multiple of {backbone.heads} heads")
