"""One fit of a head, from a recipe's files to a folder of kilobytes that ``paragone serve`` loads.

The recipe is the one of ``train model``; its ``[training]`` and ``[lora]`` are not looked at, because no weight of the
backbone changes.
"""

import logging
from pathlib import Path

from paragone_models.files.backbones import save_head
from paragone_models.files.families.own import SPEC_FILE
from paragone_training.errors import RecipeError
from paragone_training.preference.card import write_head_card
from paragone_training.preference.head_fit import check_head_recipe, fit_to_rows
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.train_model import load_rows

__all__ = ["train_head"]

logger = logging.getLogger(__name__)

_STATES = "runs/states"


def train_head(recipe: Recipe, folder: Path) -> Path:
    """Fit a head and return the folder it was saved to; states that an interrupted run computed are taken from disk.

    Raises:
        RecipeError: if the recipe cannot be run, the folder holds a model, or what was fitted is no better than a
            simpler head.
        DataError: if the data cannot be used.
    """
    check_head_recipe(recipe)
    if (folder / SPEC_FILE).exists():
        raise RecipeError(f"{folder} holds a model: choose another --output")
    rows = load_rows(recipe)
    outcome = fit_to_rows(recipe, rows, Path(recipe.head.states or _STATES))
    card = write_head_card(folder.name, recipe, outcome)
    save_head(folder, outcome.fitted.tensors, outcome.fitted.spec, outcome.backbone, card=card)
    logger.info("saved %s", folder)
    return folder
