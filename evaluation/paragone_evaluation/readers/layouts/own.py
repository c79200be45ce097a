"""Our own layouts: pairs, groups and ratings."""

import math
from collections.abc import Mapping
from typing import Any

from paragone_evaluation.readers.layouts.conversations import chosen_rejected_prompt
from paragone_evaluation.readers.layouts.fields import (
    common_of,
    described,
    float_of,
    number_of,
    optional_text,
    prompt_of,
    responses_of,
    sides_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, rated_row, with_any
from paragone_evaluation.readers.rows import STRONGEST, BadRowError, DataRow, Fields, Label

_OUTCOMES = {"first": 1.0, "second": -1.0, "tie": 0.0}


def _first_second(row: Fields, line: int) -> DataRow:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        raise BadRowError("the row mixes two schemas: first and second, and chosen and rejected")
    common, prompt, responses = common_of(row), prompt_of(row), sides_of(row, "first", "second")
    strength = number_of(value_of(row, "strength"), "strength", low=-STRONGEST, high=STRONGEST)
    return DataRow(
        line, prompt, responses, (Label(0, 1, strength),), graded=True,
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected(row: Fields, line: int) -> DataRow:
    common, prompt = common_of(row), chosen_rejected_prompt(row)
    sides = {name: value_of(row, name) for name in ("chosen", "rejected")}
    # Of a conversation, what the sides share is the prompt (checked there), so the last message is the response.
    last = {name: value[-1] if isinstance(value, list) else value for name, value in sides.items()}
    stated = row.get("strength")
    # Without a strength people only said which one: 1 is the weakest that says so, and is not called graded.
    strength = 1.0 if stated is None else number_of(stated, "strength", low=0, high=STRONGEST)
    if not strength:
        raise BadRowError("field 'strength' is 0; beside chosen and rejected it must lie in (0, 3]")
    return DataRow(
        line, prompt, sides_of(last, "chosen", "rejected"), (Label(0, 1, strength),), graded=stated is not None,
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _group(row: Fields, line: int) -> DataRow:
    common, prompt, responses = common_of(row), prompt_of(row), responses_of(row, "responses", at_least=2)
    comparisons = value_of(row, "comparisons")
    if not isinstance(comparisons, list) or not comparisons:
        raise BadRowError("field 'comparisons' must be a list of at least one comparison")
    labels = tuple(_comparison(value, f"comparisons[{at}]", len(responses)) for at, value in enumerate(comparisons))
    # In either order: the second one would be counted as one more judgement of the same two.
    if len({frozenset((label.first, label.second)) for label in labels}) < len(labels):
        raise BadRowError("two comparisons are of the same two responses")
    return DataRow(line, prompt, tuple(responses), labels, subset=optional_text(row, "subset"), **common)


def _comparison(value: Any, where: str, responses: int) -> Label:
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} must be an object with first, second and label")
    for side in ("first", "second"):
        place = value.get(side)
        # True and False are whole numbers to Python, and no index to anybody else.
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < responses:
            raise BadRowError(
                f"{where}.{side} is {described(place)}; it must be the index of one of {responses} responses"
            )
    first, second, outcome = value["first"], value["second"], value.get("label")
    if first == second:
        raise BadRowError(f"{where} compares response {first} with itself")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise BadRowError(f"{where}.label is {described(outcome)}; it must be first, second or tie")
    return Label(first, second, _OUTCOMES[outcome])


def _rating(row: Fields, line: int) -> DataRow:
    ratings = value_of(row, "ratings")
    if not isinstance(ratings, Mapping) or not ratings:
        raise BadRowError("field 'ratings' must be an object with a number per attribute")
    for name, value in ratings.items():
        # float_of also takes texts, which UltraFeedback needs; in our own layout a number is a number.
        if value is not None and (isinstance(value, str) or not math.isfinite(float_of(value))):
            raise BadRowError(
                f"field 'ratings.{name}' must be a number, or null where there is none, not {described(value)}"
            )
    numbers = {name: None if value is None else float(value) for name, value in ratings.items()}
    return rated_row(row, line, prompt_of(row), numbers)


FIRST_SECOND = FileLayout("pairs", _first_second, with_any("first", "second"), "first and second", signed=True)
CHOSEN_REJECTED = FileLayout(
    "pairs", _chosen_rejected, with_any("chosen", "rejected"), "chosen and rejected", chosen_rejected_prompt
)
GROUPS = FileLayout("groups", _group, with_any("comparisons", "responses"))
RATINGS = FileLayout("ratings", _rating, with_any("ratings", "response"), rates=True)
