"""One training run, from a recipe file's contents to a folder that ``paragone serve`` loads."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState

from paragone_evaluation.readers import Pair, read_pairs, split_name
from paragone_models.files.saving import save_model
from paragone_training.data.groups import training_pairs
from paragone_training.errors import DataError, RecipeError
from paragone_training.preference.agreement import summarise
from paragone_training.preference.card import Report, write_card
from paragone_training.preference.ratings.train_rated import train_rated
from paragone_training.preference.recipe import Recipe
from paragone_training.preference.stages import fit

__all__ = ["Rows", "load_rows", "train_model"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rows:
    """The rows of a run.

    Attributes:
        train: trained on.
        evaluate: held out; may be empty.
    """

    train: list[Pair]
    evaluate: list[Pair]


def load_rows(recipe: Recipe) -> Rows:
    """Return the rows that a recipe names.

    Args:
        recipe: which files and splits.

    Raises:
        DataError: if a file cannot be read, or ``test`` rows would be trained on.
    """
    data = recipe.data
    read = read_pairs(*data.train)
    train = training_pairs(read, split=data.train_split, allow_test_rows=data.allow_test_rows)
    candidates = read_pairs(*data.evaluate) if data.evaluate else read
    evaluate = [pair for pair in candidates if pair.split == split_name(data.evaluate_split) and pair.strength]
    if data.evaluate and not evaluate:
        raise DataError(f"no row of data.evaluate is marked {data.evaluate_split!r}: set data.evaluate_split")
    logger.info(
        "%d rows to train on (%d ties), %d decided rows held out",
        len(train), sum(not pair.strength for pair in train), len(evaluate),
    )  # fmt: skip
    return Rows(train[: data.limit] if data.limit else train, evaluate)


def train_model(recipe: Recipe, folder: Path, *, resume: bool = False) -> Path:
    """Train a model and return the folder it was saved to.

    Args:
        recipe: what, on what, and how.
        folder: where the model goes; checkpoints and the log go to ``folder/checkpoints`` unless the recipe says where.
        resume: go on from the last checkpoint there.

    Raises:
        RecipeError: if the recipe cannot be run, or there is an earlier run's model or checkpoint and no ``resume``.
        DataError: if the data cannot be used.
    """
    work = Path(recipe.output.checkpoints) if recipe.output.checkpoints else folder / "checkpoints"
    main = PartialState().is_main_process
    if main and not resume and work.exists() and any(work.iterdir()):
        raise RecipeError(f"{work} holds an earlier run: go on with --resume, or choose another --output")
    if recipe.rates:
        return train_rated(recipe, folder, work, resume=resume)
    rows = load_rows(recipe)
    outcome = fit(recipe, rows.train, rows.evaluate, work, resume=resume)
    if not main:
        return folder
    report = Report(
        folder.name, recipe, rows.train, rows.evaluate, summarise(outcome.judged) if outcome.judged else None
    )
    tokenizer = outcome.student.tokenizer
    if recipe.output.tokenizer:
        tokenizer.save_pretrained(recipe.output.tokenizer)
        tokenizer = None
    dtype = getattr(torch, recipe.output.dtype)
    save_model(folder, outcome.student.network, outcome.student.spec, tokenizer, card=write_card(report), dtype=dtype)
    (work / "history.json").write_text(json.dumps(outcome.history, indent=1), encoding="utf-8")
    logger.info("saved %s", folder)
    return folder
