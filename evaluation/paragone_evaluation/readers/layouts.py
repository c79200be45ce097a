"""Other people's columns, translated into our own rows: HelpSteer2, UltraFeedback, plain chosen and rejected.

| layout | pairs | ratings |
|---|---|---|
| ``paragone`` | prompt, first, second, strength | prompt, response, ratings {name: number} |
| ``helpsteer2`` | prompt, response_1, response_2, preference_strength (negative: response_1), split | prompt, response, and a column for each of the five attributes |
| ``chosen-rejected`` | chosen and rejected: text beside a prompt, or whole conversations | |
| ``groups`` | prompt, responses, comparisons [{first, second, label: first, second or tie}] | |
| ``ultrafeedback`` | | instruction, completions [{response, annotations {name: {Rating}}}] |
"""  # noqa: E501 - a table

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from paragone_evaluation.errors import DataError
from paragone_evaluation.readers.lines import field, text_field

__all__ = ["HELPSTEER_ATTRIBUTES", "PAIR_LAYOUTS", "RATING_LAYOUTS", "own_pairs", "own_ratings", "row_layout"]

Row = Mapping[str, Any]

HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer2, 0 to 4, in the order of its columns."""
MISSING = -100
"""What HelpSteer2 writes where there is no valid judgement."""

PAIR_LAYOUTS = {
    "paragone": ("first", "second"),
    "helpsteer2": ("response_1", "response_2", "preference_strength"),
    "chosen-rejected": ("chosen", "rejected"),
    "groups": ("responses", "comparisons"),
}
"""Columns that tell the layouts of pair files apart."""
RATING_LAYOUTS = {
    "paragone": ("ratings",),
    "ultrafeedback": ("completions",),
    "helpsteer2": HELPSTEER_ATTRIBUTES,
}
"""Columns that tell the layouts of rating files apart."""

_STRENGTHS = {"first": 1.0, "second": -1.0, "tie": 0.0}
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def row_layout(row: Row, where: str, before: str, layouts: Mapping[str, Sequence[str]]) -> str:
    """Return the layout of a row; one without telling columns has that of the rows before it.

    Args:
        row: one object of a file.
        where: file and line, for the message.
        before: layout of the rows before it, or empty.
        layouts: ``PAIR_LAYOUTS`` or ``RATING_LAYOUTS``.

    Raises:
        DataError: if it is of another layout than the rows before it.
    """
    # HelpSteer2's files of ratings have been published with fewer attributes: one is enough to know them.
    tests = {name: any if columns is HELPSTEER_ATTRIBUTES else all for name, columns in layouts.items()}
    found = [name for name, columns in layouts.items() if tests[name](column in row for column in columns)]
    if len(found) > 1 or (before and found and found[0] != before):
        mixed = [before, *found] if len(found) == 1 else found
        raise DataError(f"{where}: the file mixes the layouts {' and '.join(mixed)}: keep each in a file of its own")
    return found[0] if found else before or "paragone"


def own_pairs(row: Row, where: str, layout: str) -> Iterator[Row]:
    """Yield rows of pairs with our own fields; none where annotators found neither response valid.

    Args:
        row: one object of a file.
        where: file and line, for messages.
        layout: from ``row_layout``.

    Raises:
        DataError: if the row lacks a field or has an impossible one.
    """
    if layout == "helpsteer2":
        yield from _helpsteer_pair(row, where)
    elif layout == "chosen-rejected":
        yield _chosen_rejected(row, where)
    elif layout == "groups":
        yield from _compared(row, where)
    else:
        yield row


def own_ratings(row: Row, where: str, layout: str) -> Iterator[Row]:
    """Yield rows of ratings with our own fields; ratings that annotators left out are None.

    Args:
        row: one object of a file.
        where: file and line, for messages.
        layout: from ``row_layout``.

    Raises:
        DataError: if the row lacks a field or has an impossible one.
    """
    if layout == "helpsteer2":
        ratings = {name: _helpsteer_rating(row[name], name, where) for name in HELPSTEER_ATTRIBUTES if name in row}
        if not ratings:
            raise DataError(f"{where}: the row rates none of {', '.join(HELPSTEER_ATTRIBUTES)}")
        prompt = _helpsteer_prompt(text_field(row, "prompt", where))
        yield {**_named(row), "prompt": prompt, "response": field(row, "response", where), "ratings": ratings}
    elif layout == "ultrafeedback":
        yield from _ultrafeedback(row, where)
    else:
        yield row


def _named(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in ("id", "split", "group") if row.get(name) is not None}


def _helpsteer_pair(row: Row, where: str) -> Iterator[Row]:
    strength = field(row, "preference_strength", where)
    if strength == MISSING:
        return
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -3 <= strength <= 3:
        raise DataError(
            f"{where}: preference_strength is {strength!r}; it must lie between -3 (response_1 much better) and 3, or "
            f"be {MISSING} (neither is valid)"
        )
    named = _named(row)
    if "split" in named and named["split"] != "train":
        named["split"] = "validation"
    yield {
        **named,
        "prompt": _helpsteer_prompt(text_field(row, "prompt", where)),
        "first": field(row, "response_1", where),
        "second": field(row, "response_2", where),
        "strength": -strength,
        "reason": row.get("preference_statement"),
    }


def _helpsteer_rating(value: Any, name: str, where: str) -> float | None:
    """Return a rating from 0 to 4, or None where annotators gave none."""
    if value is None or value == MISSING:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4:
        raise DataError(f"{where}: {name} is {value!r}; it must be a number from 0 to 4, or {MISSING} (not rated)")
    return value


def _helpsteer_prompt(prompt: str) -> str | list[dict[str, str]]:
    """Return a prompt as text, or as messages where it holds several turns; the first one is the user's."""
    first, *rest = _TURN.split(prompt)
    if not rest:
        return prompt
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": role.lower(), "content": content} for role, content in turns]


def _chosen_rejected(row: Row, where: str) -> Row:
    chosen, rejected = field(row, "chosen", where), field(row, "rejected", where)
    strength = row.get("strength", 1)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 < strength <= 3:
        raise DataError(f"{where}: strength is {strength!r}; beside chosen and rejected it must lie in (0, 3]")
    named = {**_named(row), "strength": strength, "reason": row.get("reason")}
    if isinstance(chosen, str) and isinstance(rejected, str):
        return {**named, "prompt": field(row, "prompt", where), "first": chosen, "second": rejected}
    one, two = _conversation(chosen, "chosen", where), _conversation(rejected, "rejected", where)
    if one[:-1] != two[:-1]:
        raise DataError(
            f"{where}: chosen and rejected must share every message but the last: the shared ones are the prompt"
        )
    prompt = one[:-1] or field(row, "prompt", where)
    if len(prompt) == 1 and isinstance(prompt, list) and prompt[0]["role"] == "user" and len(prompt[0]) == 2:
        prompt = prompt[0]["content"]  # the same prompt as text and as one message is one prompt
    return {**named, "prompt": prompt, "first": one[-1]["content"], "second": two[-1]["content"]}


def _compared(row: Row, where: str) -> Iterator[Row]:
    """Yield a pair for each comparison between the responses of a group."""
    responses, comparisons = field(row, "responses", where), field(row, "comparisons", where)
    if not isinstance(responses, list) or not isinstance(comparisons, list) or not comparisons:
        raise DataError(f"{where}: fields 'responses' and 'comparisons' must be lists with something in them")
    named = _named(row)
    for number, comparison in enumerate(comparisons):
        if not isinstance(comparison, dict) or comparison.get("label") not in _STRENGTHS:
            raise DataError(f"{where}: comparisons[{number}] must be an object with label first, second or tie")
        places: list[Any] = [comparison.get("first"), comparison.get("second")]
        if not all(isinstance(place, int) and 0 <= place < len(responses) for place in places):
            raise DataError(f"{where}: comparisons[{number}] is between {places}; there are {len(responses)} responses")
        one, two = places
        yield {
            **named,
            **({"id": f"{row['id']}/{one}-{two}"} if row.get("id") is not None else {}),
            "prompt": row.get("prompt"),
            "first": responses[one],
            "second": responses[two],
            "strength": _STRENGTHS[comparison["label"]],
        }


def _conversation(value: Any, name: str, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: field {name!r} must be text, as the other one is, or a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise DataError(f"{where}: field {name!r} must hold messages with a role and a text as content")
    if value[-1]["role"] != "assistant":
        raise DataError(f"{where}: field {name!r} must end with the assistant's message, not {value[-1]['role']!r}")
    return value


def _ultrafeedback(row: Row, where: str) -> Iterator[Row]:
    completions = field(row, "completions", where)
    if not isinstance(completions, list):
        raise DataError(f"{where}: field 'completions' must be a list, not {type(completions).__name__}")
    for number, completion in enumerate(completions):
        annotations = completion.get("annotations") if isinstance(completion, dict) else None
        if not isinstance(annotations, dict):
            raise DataError(f"{where}: completions[{number}] must be an object with a response and annotations")
        ratings = {name: _rated(value, f"completions[{number}].{name}", where) for name, value in annotations.items()}
        prompt, response = field(row, "instruction", where), field(completion, "response", where)
        yield {**_named({**row, "id": None}), "prompt": prompt, "response": response, "ratings": ratings}


def _rated(annotation: Any, name: str, where: str) -> float | None:
    """Return the number of an annotation: ``{"Rating": "4"}``, or None for ``"N/A"``."""
    if not isinstance(annotation, dict) or "Rating" not in annotation:
        raise DataError(f"{where}: {name} must be an object with a Rating")
    rating = annotation["Rating"]
    if rating is None or rating == "N/A":
        return None
    try:
        value = float(rating)
    except (TypeError, ValueError):
        value = math.nan
    if not 1 <= value <= 5:
        raise DataError(f"{where}: {name}.Rating is {rating!r}; it must be a number from 1 to 5, or N/A")
    return value
