"""One run of a kind that rates, from a recipe file's contents to a folder that ``paragone serve`` loads."""

import json
import logging
from pathlib import Path

import torch
from accelerate import PartialState

from paragone_evaluation.readers import read_pairs, read_ratings, split_name
from paragone_models.files.saving import save_model
from paragone_training.data.groups import training_pairs, training_ratings
from paragone_training.errors import DataError
from paragone_training.preference.ratings.card import write_rated_card
from paragone_training.preference.ratings.fitting import RatedRows, fit_rated
from paragone_training.preference.recipe import Recipe

__all__ = ["load_rated_rows", "train_rated"]

logger = logging.getLogger(__name__)


def load_rated_rows(recipe: Recipe) -> RatedRows:
    """Return the rows that a recipe names.

    Args:
        recipe: which files and splits.

    Raises:
        DataError: if a file cannot be read, ``test`` rows would be trained on, or nobody rated an attribute.
    """
    data, attributes = recipe.data, recipe.model.attributes
    rated = read_ratings(*data.ratings)
    ratings = training_ratings(rated, attributes, split=data.train_split, allow_test_rows=data.allow_test_rows)
    candidates = read_ratings(*data.evaluate_ratings) if data.evaluate_ratings else rated
    held_out_ratings = [
        rating
        for rating in candidates
        if rating.split == split_name(data.evaluate_split) and any(name in rating.ratings for name in attributes)
    ]
    if data.evaluate_ratings and not held_out_ratings:
        raise DataError(f"no row of data.evaluate_ratings is marked {data.evaluate_split!r}: set data.evaluate_split")
    read = read_pairs(*data.train)
    pairs = training_pairs(read, split=data.train_split, allow_test_rows=data.allow_test_rows) if read else []
    others = read_pairs(*data.evaluate) if data.evaluate else read
    held_out = [pair for pair in others if pair.split == split_name(data.evaluate_split) and pair.strength]
    if data.evaluate and not held_out:
        raise DataError(f"no row of data.evaluate is marked {data.evaluate_split!r}: set data.evaluate_split")
    logger.info(
        "%d ratings and %d pairs to learn from, %d ratings and %d decided pairs held out",
        len(ratings), len(pairs), len(held_out_ratings), len(held_out),
    )  # fmt: skip
    return RatedRows(pairs[: data.limit] if data.limit else pairs, ratings, held_out, held_out_ratings)


def train_rated(recipe: Recipe, folder: Path, work: Path, *, resume: bool = False) -> Path:
    """Train a model that rates and return the folder it was saved to.

    Args:
        recipe: what, on what, and how.
        folder: where the model goes.
        work: where checkpoints and the log go.
        resume: go on from the last checkpoint there.

    Raises:
        RecipeError: if the recipe cannot be run.
        DataError: if the data cannot be used.
    """
    rows = load_rated_rows(recipe)
    outcome = fit_rated(recipe, rows, work, resume=resume)
    if not PartialState().is_main_process:
        return folder
    tokenizer = outcome.student.tokenizer
    if recipe.output.tokenizer:
        tokenizer.save_pretrained(recipe.output.tokenizer)
        tokenizer = None
    card = write_rated_card(folder.name, recipe, rows, outcome)
    dtype = getattr(torch, recipe.output.dtype)
    save_model(folder, outcome.student.network, outcome.student.spec, tokenizer, card=card, dtype=dtype)
    (work / "history.json").write_text(json.dumps(outcome.history, indent=1), encoding="utf-8")
    logger.info("saved %s", folder)
    return folder
