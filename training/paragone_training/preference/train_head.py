"""Fits of heads, from recipes' files to folders of kilobytes that ``paragone serve`` loads.

A recipe is one of ``train model``; its ``[training]`` and ``[lora]`` are not looked at, because no weight of the
backbone changes.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paragone_models.files.backbones import save_head
from paragone_models.files.families.own import SPEC_FILE
from paragone_models.files.loading import Backbone
from paragone_training.errors import RecipeError
from paragone_training.preference.card import HeadOutcome, write_head_card
from paragone_training.preference.head_fit import backbone_of, check_head_recipe, fit_to_rows
from paragone_training.preference.head_progress import HeadProgress
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.report import head_page
from paragone_training.preference.train_model import load_rows

__all__ = ["train_heads"]

logger = logging.getLogger(__name__)

_STATES = "runs/states"


def train_heads(heads: Sequence[tuple[Recipe, Path]]) -> list[Path]:
    """Fit heads, each of its own recipe and to its own folder, and return the folders in order.

    A backbone that several recipes name is loaded once, and a response that several have passes it once.

    Raises:
        RecipeError: if a recipe cannot be run, a folder holds a model or is named twice, or what was fitted is no
            better than a simpler head.
        DataError: if the data cannot be used.
    """
    # All of them first: a mistake in the last one is not to cost the work of the others.
    for recipe, folder in heads:
        check_head_recipe(recipe)
        if (folder / SPEC_FILE).exists():
            raise RecipeError(f"{folder} holds a model: choose another --output")
        if sum(other == folder for _, other in heads) > 1:
            raise RecipeError(f"two heads would go to {folder}: name the recipes differently, or fit them one by one")
    backbones: dict[tuple[Any, ...], Backbone] = {}
    for recipe, folder in heads:
        progress = HeadProgress(folder)
        progress.begins("reading the rows and the backbone")
        try:
            outcome = _fit(recipe, backbones, progress)
            card = write_head_card(folder.name, recipe, outcome)
            save_head(folder, outcome.fitted.tensors, outcome.fitted.spec, outcome.backbone, card=card)
            (folder / "report.html").write_text(head_page(folder.name, recipe, outcome), encoding="utf-8")
        except BaseException as error:
            progress.ends(f"ended by {type(error).__name__}: see what it printed")
            raise
        progress.ends("saved", outcome.numbers())
        logger.info("saved %s, with report.html; to host it: paragone serve --model %s=%s", folder, folder.name, folder)
    return [folder for _, folder in heads]


def _fit(recipe: Recipe, backbones: dict[tuple[Any, ...], Backbone], progress: HeadProgress) -> HeadOutcome:
    rows = load_rows(recipe)
    name = (recipe.backbone.source, recipe.backbone.revision, recipe.head.dtype)
    backbones[name] = backbones.get(name) or backbone_of(recipe)
    return fit_to_rows(recipe, rows, Path(recipe.head.states or _STATES), backbones[name], progress=progress)
