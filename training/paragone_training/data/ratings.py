"""Rating files: how people rated single responses, attribute by attribute.

One row: ``{"prompt", "response", "ratings": {name: number}}`` and optionally ``id``, ``split``, ``group``. An attribute
may be missing or null: nobody rated it. Other people's columns are translated by ``layouts``.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paragone_evaluation.readers.layouts import RATING_LAYOUTS, own_ratings, row_layout
from paragone_evaluation.readers.lines import field, read_lines, text_field
from paragone_training.data.pairs import prompt_field
from paragone_training.errors import DataError

__all__ = ["Rating", "read_rating_files", "read_ratings", "training_ratings"]


@dataclass(frozen=True, slots=True)
class Rating:
    """One response to a prompt and what people rated.

    Attributes:
        prompt: text, or messages as JSON.
        response: the text.
        ratings: by attribute; what nobody rated is not there.
        messages: True where ``prompt`` is JSON of messages.
        id: of the row, or empty.
        split: ``train``, ``test`` or whatever the file says, or None.
        group: what the row belongs to; the prompt unless the file says.
        where: file and line.
    """

    prompt: str
    response: str
    ratings: Mapping[str, float]
    messages: bool = False
    id: str = ""
    split: str | None = None
    group: str = ""
    where: str = ""


def read_ratings(path: str | Path) -> list[Rating]:
    """Return the rows of a rating file.

    Args:
        path: a .jsonl or .jsonl.gz file, in any layout of ``layouts.RATING_LAYOUTS``.

    Raises:
        DataError: if it cannot be read, a row lacks a field, a rating is no finite number, an id comes twice, the file
            mixes layouts, or it is empty. File and line are named.
    """
    rows: list[Rating] = []
    seen: dict[str, str] = {}
    layout = ""
    for number, row in read_lines(path):
        where = f"{path}:{number}"
        layout = row_layout(row, where, layout, RATING_LAYOUTS)
        for own in own_ratings(row, where, layout):
            rating = _rating(own, where)
            if rating.id and rating.id in seen:
                raise DataError(f"{where}: id {rating.id!r} was already used in {seen[rating.id]}; ids must be unique")
            seen[rating.id] = where
            rows.append(rating)
    if not rows:
        raise DataError(f"{path} has no rows")
    return rows


def read_rating_files(paths: Sequence[str | Path]) -> list[Rating]:
    """Return the rows of several rating files, in order.

    Args:
        paths: .jsonl or .jsonl.gz files.

    Raises:
        DataError: as ``read_ratings``.
    """
    return [rating for path in paths for rating in read_ratings(path)]


def training_ratings(
    ratings: Iterable[Rating], attributes: Sequence[str], *, split: str, allow_test_rows: bool = False
) -> list[Rating]:
    """Return the rows that may be trained on: those of the split, and those without one, that rate something wanted.

    Args:
        ratings: rows of training files.
        attributes: what is learned.
        split: name of the split.
        allow_test_rows: train on rows marked ``test`` if that split is asked for.

    Raises:
        DataError: if rows marked ``test`` would be trained on and that was not allowed, or nobody rated an attribute.
    """
    chosen = [rating for rating in ratings if rating.split in (None, split)]
    forbidden = next((rating for rating in chosen if rating.split == "test"), None)
    if forbidden and not allow_test_rows:
        raise DataError(
            f"{forbidden.where}: this row is marked 'test' and would be trained on; choose another data.train_split, "
            "or force it with data.allow_test_rows = true"
        )
    if not chosen:
        raise DataError(
            f"no rating is marked {split!r}: data.train_split names a split that data.ratings does not have"
        )
    rated = {name for rating in chosen for name in rating.ratings}
    if missing := [name for name in attributes if name not in rated]:
        raise DataError(
            f"no row of data.ratings rates {', '.join(missing)}; rated are {', '.join(sorted(rated)) or 'none'}: "
            "set model.attributes"
        )
    return [rating for rating in chosen if any(name in rating.ratings for name in attributes)]


def _rating(row: Mapping[str, Any], where: str) -> Rating:
    prompt, messages = prompt_field(row, where)
    given = field(row, "ratings", where)
    if not isinstance(given, dict) or not given:
        raise DataError(f"{where}: field 'ratings' must be an object with a number per attribute")
    ratings = {}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"{where}: the rating of {name!r} must be a number, or null where there is none, not {value!r}"
            )
        ratings[name] = float(value)
    return Rating(
        prompt,
        text_field(row, "response", where),
        ratings,
        messages=messages,
        id=str(row.get("id") or ""),
        split=row.get("split"),
        group=str(row.get("group") or prompt),
        where=where,
    )
