"""One training run, from a recipe's files to a folder that ``paragone serve`` loads."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from paragone_evaluation.readers import Pair, Rating, read_pairs, read_ratings, split_name
from paragone_models.files.saving import save_model
from paragone_training.data.groups import training_pairs, training_ratings
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.card import write_card
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.stages import Rows, fit

__all__ = ["load_rows", "train_model"]

logger = logging.getLogger(__name__)


def train_model(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train a model and return the folder it was saved to.

    Args:
        folder: where the model goes; checkpoints and the log go to ``folder/checkpoints`` unless the recipe says where.
        resume: go on from the last checkpoint there.

    Raises:
        RecipeError: if the recipe cannot be run, or there is an earlier run's model or checkpoint and no ``resume``.
        DataError: if the data cannot be used.
    """
    work = Path(recipe.output.checkpoints) if recipe.output.checkpoints else folder / "checkpoints"
    # The main process alone refuses and writes: another one may look when the folder is filled already.
    main = PartialState().is_main_process
    if main and not resume and work.exists() and any(work.iterdir()):
        raise RecipeError(f"{work} holds an earlier run: go on with --resume, or choose another --output")
    rows = load_rows(recipe)
    outcome = fit(recipe, rows, work, resume=resume)
    if not main:
        return folder
    tokenizer = outcome.model.tokenizer
    if recipe.output.tokenizer:
        # Several models may share one tokenizer's folder; none of its files goes into the model's own then.
        tokenizer.save_pretrained(recipe.output.tokenizer)
        tokenizer = None
    card, dtype = write_card(folder.name, recipe, rows, outcome), getattr(torch, recipe.output.dtype)
    save_model(folder, outcome.model.network, outcome.model.spec, tokenizer, card=card, dtype=dtype)
    (work / "history.json").write_text(json.dumps(outcome.history, indent=1), encoding="utf-8")
    logger.info("saved %s", folder)
    return folder


def load_rows(recipe: Recipe) -> Rows:
    """Return the rows that a recipe names.

    Raises:
        DataError: if a file cannot be read, ``test`` rows would be trained on, or nobody rated an attribute.
    """
    data, attributes, split = recipe.data, recipe.model.attributes, split_name(recipe.data.evaluate_split)
    chosen: Any = {"split": data.train_split, "allow_test_rows": data.allow_test_rows}
    read = read_pairs(*data.train)
    pairs = training_pairs(read, **chosen) if read else []
    # Rows without a split are trained on and never held out. Ties are held out from nothing: they decide nothing.
    candidates = read_pairs(*data.evaluate) if data.evaluate else read
    held_out = [pair for pair in candidates if pair.split == split and pair.strength]
    _check_held_out("evaluate", data.evaluate, held_out, data.evaluate_split)
    rated = read_ratings(*data.ratings)
    ratings = training_ratings(rated, attributes, **chosen) if rated else []
    rated = read_ratings(*data.evaluate_ratings) if data.evaluate_ratings else rated
    held_out_ratings = [row for row in rated if row.split == split and not row.ratings.keys().isdisjoint(attributes)]
    _check_held_out("evaluate_ratings", data.evaluate_ratings, held_out_ratings, data.evaluate_split)
    # The limit cuts what is learned from: runs with different limits are held to the same rows.
    rows = Rows(pairs[: data.limit] if data.limit else pairs, ratings, held_out, held_out_ratings)
    logger.info("%s; %d of the pairs are ties", rows.describe(), sum(not pair.strength for pair in rows.pairs))
    return rows


def _check_held_out(key: str, files: Sequence[str], rows: Sequence[Pair] | Sequence[Rating], split: str) -> None:
    if files and not rows:
        raise DataError(f"no row of data.{key} is marked {split!r}: set data.evaluate_split")
