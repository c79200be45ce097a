"""Fit a head to rows and a frozen backbone: one forward pass per distinct response, then a fit of seconds.

Rows → hidden states, kept on disk → ``paragone_models.fitting`` → the head, and what it says about rows that it was not
fitted to. ``train head`` saves it alone, and ``train model`` starts from it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paragone_evaluation.readers import STRONGEST, RowAccount
from paragone_models.errors import ModelLoadError, NonFiniteError
from paragone_models.files.loading import Backbone, load_backbone
from paragone_models.fitting import PENALTIES, Choices, FitError, FittedHead, States, fit_head
from paragone_models.kinds import KINDS
from paragone_models.network import RepresentationHead, output_width
from paragone_models.rotary import positions_of
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import Reading, TextReader
from paragone_training.data import PromptGroup, group_pairs
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.agreement import Examined, Judged, examined_pairs
from paragone_training.preference.backbone import ModelParts
from paragone_training.preference.card import HeadOutcome, Rows
from paragone_training.preference.fitting_rows import FittingGroups, read_fitting_rows
from paragone_training.preference.frozen_states import FrozenBackbone
from paragone_training.preference.head_progress import HeadProgress
from paragone_training.preference.objective import Objective
from paragone_training.preference.ratings import rating_errors
from paragone_training.preference.recipe import Recipe

__all__ = [
    "FITTED",
    "backbone_of",
    "check_head_recipe",
    "check_head_run",
    "fit_to_rows",
    "head_of",
    "put_head",
    "spec_of",
    "start_from_fit",
]

logger = logging.getLogger(__name__)

FITTED = "fitted to the frozen backbone before training"
"""Where a model's head comes from that training starts from."""


def check_head_recipe(recipe: Recipe) -> None:
    """Refuse a recipe that names no trained backbone, or a loss that a fit has not.

    Raises:
        RecipeError: if it cannot be run.
    """
    if recipe.model.start:
        raise RecipeError("model.start names a trained model; a head is fitted to a backbone: set backbone.source")
    if recipe.backbone.source is None:
        raise RecipeError("backbone.source is missing; a head is fitted to a trained backbone: name a folder or an id")
    if KINDS[recipe.model.kind].reads_pairs:
        raise RecipeError(
            f"model.kind is {recipe.model.kind!r}, whose backbone reads both responses at once: there are no states of "
            "single ones to fit a head to; take `train model`, with [lora]"
        )
    if recipe.loss.name == "score":
        raise RecipeError("loss.name is 'score', which `train head` has not: use 'soft', whose labels are the same")


def fit_to_rows(
    recipe: Recipe,
    rows: Rows,
    states: Path,
    backbone: Backbone | None = None,
    *,
    progress: HeadProgress | None = None,
) -> HeadOutcome:
    """Fit a head to rows and return it with what it says about the held-out ones; the recipe's files are not read.

    Args:
        states: folder of kept hidden states.
        backbone: the recipe's, if it was loaded already.
        progress: told how far it is.

    Raises:
        RecipeError: if the backbone cannot be loaded or does not fit the recipe, or the fit is refused.
        DataError: if a response does not fit the model, or states are not finite.
    """
    backbone, progress = backbone or backbone_of(recipe), progress or HeadProgress()
    recipe = recipe.within(positions_of(backbone.module.config))
    spec, attributes = spec_of(recipe), recipe.model.attributes
    learned, measured, rows = _fitting(recipe, rows, backbone)
    frozen = FrozenBackbone(backbone, states)
    try:
        # All at once, so that whoever watches knows how many there are.
        frozen.complete([*_readings(learned), *_readings(measured)], on_progress=progress.responses)
    except NonFiniteError as error:
        raise DataError(str(error)) from error
    progress.stage("fitting the head")
    trained, held_out = _Read.of(learned, frozen), _Read.of(measured, frozen)
    choices = _choices(trained, recipe, spec)
    try:
        fitted = fit_head(
            spec,
            States(trained.states[:, -1], trained.question, trained.states[:, 0] if spec.gate != "none" else None),
            choices,
            trained.ratings if attributes else None,
            penalties=PENALTIES if recipe.head.penalty is None else (recipe.head.penalty,),
            folds=recipe.head.folds,
            seed=recipe.training.seed,
        )
    except FitError as error:
        raise RecipeError(str(error)) from error
    penalties = ", ".join(f"{name} {value:.3g}" for name, value in fitted.penalties.items())
    logger.info("%d sequences passed the backbone; penalties: %s", frozen.computed, penalties)
    outcome = HeadOutcome(
        fitted,
        backbone.reference,
        _objective(recipe, fitted.spec),
        questions=len(np.unique(trained.question)),
        probe=None if fitted.logits is None else trained.judged(fitted.logits),
        scalar=None if fitted.scalar is None else trained.judged(fitted.scalar),
        errors=None if fitted.ratings is None else rating_errors(fitted.ratings, trained.ratings, attributes),
        after=_examined(fitted, held_out, output_width(backbone.module.config), distils=recipe.loss.distils),
        rows=rows,
    )
    for line in outcome.lines():
        logger.info("%s", line)
    return outcome


def check_head_run(recipe: Recipe, rows: Rows) -> None:
    """Tokenise everything that a fit would, and check that it fits; what is left out is added to the rows' account.

    Raises:
        RecipeError: as ``fit_to_rows`` does for the backbone.
        DataError: if a response does not fit the model and is not to be left out, or nothing is left.
    """
    backbone = backbone_of(recipe)
    _fitting(recipe.within(positions_of(backbone.module.config)), rows, backbone)


def _fitting(recipe: Recipe, rows: Rows, backbone: Backbone) -> tuple[FittingGroups, FittingGroups, Rows]:
    config: Any = backbone.module.config
    attributes = recipe.model.attributes
    reader = TextReader(backbone.tokenizer, spec_of(recipe), vocabulary=config.get_text_config().vocab_size)
    learned = group_pairs(rows.pairs, rows.ratings, attributes, ties=recipe.loss.keeps_ties)
    held_out = group_pairs(rows.held_out_pairs, rows.held_out_ratings, attributes, ties=recipe.loss.distils)
    return read_fitting_rows(recipe, rows, learned, held_out, reader)


def start_from_fit(recipe: Recipe, rows: Rows, model: ModelParts, states: Path) -> HeadOutcome | None:
    """Put a fitted head on a pretrained backbone that has none, and return the fit; None where nothing was fitted.

    Args:
        model: its head and its spec are changed.
        states: folder of kept hidden states, unless the recipe says where.

    Raises:
        RecipeError: if the recipe asks for a fit, and it is refused.
    """
    asked, drawn = recipe.head.start, (model.head_origin or "").startswith("new")
    if recipe.backbone.source is None or not drawn or asked == "random" or recipe.model.head == "new":
        return None
    try:
        check_head_recipe(recipe)
        # What is cut was counted by the caller, who has read these rows.
        apart = replace(rows, account=RowAccount(files=list(rows.account.files)))
        outcome = fit_to_rows(recipe, apart, Path(recipe.head.states or states))
    except RecipeError as error:
        if asked == "fit":
            raise
        logger.warning("no head was fitted, and training starts from random numbers: %s", error)
        return None
    put_head(outcome, model)
    return outcome


def put_head(outcome: HeadOutcome, model: ModelParts) -> None:
    """Put a fitted head in the place of a model's own."""
    model.spec = outcome.fitted.spec
    model.network.head = head_of(outcome.fitted, output_width(model.network.config))
    model.head_origin, model.fitted = FITTED, True


def spec_of(recipe: Recipe) -> ModelSpec:
    """Return what a fitted head is: its vector is not normalised unless the recipe says so.

    Lengths are taken of a response and its prompt together, so normalising lets a prompt's offset change how much two
    responses differ. That is learned away by a backbone that is trained, and cannot be by a head alone.
    """
    return recipe.spec if "normalise" in recipe.model.model_fields_set else replace(recipe.spec, normalise=False)


def _objective(recipe: Recipe, spec: ModelSpec) -> Objective:
    loss = recipe.loss
    return Objective(
        spec.kind, spec.temperature, loss.name, loss.margin, loss.certainty, spec.weights, spec.attributes, loss.ratings
    )


def backbone_of(recipe: Recipe) -> Backbone:
    """Return the backbone that a recipe names, frozen.

    Raises:
        RecipeError: if it cannot be loaded.
    """
    assert recipe.backbone.source is not None
    try:
        return load_backbone(
            recipe.backbone.source, revision=recipe.backbone.revision, device="auto", dtype=recipe.head.dtype
        )
    except ModelLoadError as error:
        raise RecipeError(f"backbone.source: {error}") from error


def head_of(fitted: FittedHead, width: int) -> RepresentationHead:
    """Return the module of a fitted head, for states of so many numbers."""
    tensors = fitted.tensors
    linear = nn.Linear(width, fitted.spec.dimension, bias="value_head.bias" in tensors)
    head = RepresentationHead(width, fitted.spec, value_head=linear, gate_bias="prompt_head.bias" in tensors)
    head.load_state_dict(tensors)
    return head


def _readings(fitting: FittingGroups) -> list[Reading]:
    return [reading for group in fitting[1] for reading in group]


@dataclass(frozen=True)
class _Read:
    """Rows with the states of their responses.

    Attributes:
        first: row of each group's first response.
        pairs: rows of states, the first's win is measured. [P, 2]
    """

    groups: Sequence[PromptGroup]
    states: NDArray[np.float32]
    first: list[int]

    @classmethod
    def of(cls, fitting: FittingGroups, frozen: FrozenBackbone) -> "_Read":
        groups, readings = fitting[0], _readings(fitting)
        states = frozen.states(readings) if readings else np.zeros((0, 1, 1), dtype=np.float32)
        sizes = [len(group.responses) for group in groups]
        return cls(groups, states, [sum(sizes[:number]) for number in range(len(sizes))])

    @property
    def pairs(self) -> NDArray[np.int64]:
        rows = [
            (start + label.first, start + label.second)
            for group, start in zip(self.groups, self.first, strict=True)
            for label in group.labels
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    @property
    def strength(self) -> NDArray[np.float64]:
        return np.array([label.strength for group in self.groups for label in group.labels])

    @property
    def weight(self) -> NDArray[np.float64]:
        return np.array([label.weight for group in self.groups for label in group.labels])

    @property
    def question(self) -> NDArray[np.int64]:
        names = [group.pair.question for group in self.groups for _ in group.responses]
        return np.unique(names, return_inverse=True)[1]

    @property
    def ratings(self) -> NDArray[np.float64]:
        return np.array([row for group in self.groups for row in group.ratings], dtype=np.float64)

    def examined(self, logits: NDArray[np.float64], *, distils: bool = False) -> Examined:
        """Return log-odds of the pairs beside what their labels say. [P]."""
        borders = np.cumsum([len(group.labels) for group in self.groups])[:-1]
        return examined_pairs(self.groups, [part.tolist() for part in np.split(logits, borders)], distils=distils)

    def judged(self, logits: NDArray[np.float64]) -> Judged | None:
        """Return log-odds of the pairs beside what people said; None if nothing was decided. [P]."""
        return self.examined(logits).judged


def _choices(read: _Read, recipe: Recipe, spec: ModelSpec) -> Choices | None:
    """Return the labels as a fit takes them: what the loss makes of their strengths."""
    strength, loss = read.strength, recipe.loss
    if not len(strength):
        return None
    target, lead, weight = (strength > 0).astype(float), np.zeros(len(strength)), read.weight
    if loss.name == "soft":
        target = np.clip(0.5 + strength / (2 * STRONGEST), 1 - loss.certainty, loss.certainty)
    elif loss.distils:
        target = 0.5 + strength / (2 * STRONGEST)
    elif loss.name == "margin":
        lead = strength
    elif loss.name == "scaled":
        weight = weight * np.abs(strength)
    elif loss.name == "regular":
        # A margin is asked for in the unit of scores, which the temperature divides.
        lead = np.sign(strength) * loss.margin / spec.temperature
    return Choices(read.pairs, target, lead, weight)


def _examined(fitted: FittedHead, read: _Read, width: int, *, distils: bool) -> Examined:
    """Return what a fitted head says about held-out rows."""
    if not read.groups:
        return Examined()
    spec, head = fitted.spec, head_of(fitted, width)
    states = read.states[:, -head.reads :]
    with torch.no_grad():
        values = head(torch.from_numpy(np.ascontiguousarray(states))).double().numpy()
    pairs, compared, errors = read.pairs, Examined(), None
    if len(pairs) and KINDS[spec.kind].compares(spec.weights):
        first, second = values[pairs[:, 0]], values[pairs[:, 1]]
        logits = KINDS[spec.kind].logit(first, second, temperature=spec.temperature, weights=spec.weights)
        compared = read.examined(logits, distils=distils)
    if spec.attributes and not np.isnan(read.ratings).all():
        errors = rating_errors(values[:, -len(spec.attributes) :], read.ratings, spec.attributes)
    return replace(compared, errors=errors)
