"""What a model sees of a recipe's rows, and which of them fit it; ``train model`` and ``train head`` share it."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from paragone_evaluation.readers import RowAccount
from paragone_models.text.reader import Reading, TextReader
from paragone_training.data import PromptGroup, read_fitting_groups
from paragone_training.errors import DataError
from paragone_training.preference.card import Rows
from paragone_training.preference.recipe import Recipe

__all__ = ["FittingGroups", "read_fitting_rows"]

logger = logging.getLogger(__name__)

FittingGroups = tuple[list[PromptGroup], list[list[Reading]]]
"""Groups, and what the model sees of each of their responses."""


def read_fitting_rows(
    recipe: Recipe, rows: Rows, learned: Sequence[PromptGroup], held_out: Sequence[PromptGroup], reader: TextReader
) -> tuple[FittingGroups, FittingGroups, Rows]:
    """Return what the model sees of the groups to learn from and of the held-out ones, and the rows that fit.

    Raises:
        DataError: if a response does not fit and is not to be left out, or nothing is left.
    """
    leave_out, account = recipe.data.reading.leaves_out, RowAccount(files=list(rows.account.files))
    fitting = read_fitting_groups(learned, reader, account, leave_out=leave_out, use="to learn from")
    measured = read_fitting_groups(held_out, reader, account, leave_out=leave_out, use="held out")
    account.log(logger)
    rows.account.add(account)
    if not fitting[0]:
        raise DataError(f"no row fits the model's {reader.spec.max_length} tokens: set model.max_length")
    outside = {f"{place.file}:{place.line}" for place, _ in account.unused}
    fields = ("pairs", "ratings", "held_out_pairs", "held_out_ratings")
    inside: Any = {name: [row for row in getattr(rows, name) if row.where not in outside] for name in fields}
    return fitting, measured, replace(rows, **inside) if outside else rows
