"""Layouts of published data sets.

Sources: the data set cards of nvidia/HelpSteer2 and openbmb/UltraFeedback.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.layouts.fields import (
    common_of,
    described,
    float_of,
    optional_text,
    prompt_of,
    sides_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, rated_row, with_any
from paragone_evaluation.readers.rows import (
    STRONGEST,
    BadRowError,
    Content,
    DataRow,
    Fields,
    Label,
    LeftOutError,
)

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


"""Attributes of HelpSteer2, 0 to 4, in the order of its columns."""


_INVALID = -100


"""What HelpSteer2 writes where there is no valid judgement."""


_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


def _helpsteer_pair(row: Fields, line: int) -> DataRow:
    strength = value_of(row, "preference_strength")
    if strength == _INVALID:
        raise LeftOutError(f"annotators found neither response valid (preference_strength {_INVALID})")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -STRONGEST <= strength <= STRONGEST:
        raise BadRowError(
            f"preference_strength is {described(strength)}; it must lie between -3 (response_1 much better) and 3, or "
            f"be {_INVALID} (neither is valid)"
        )
    common = common_of(row)
    # HelpSteer2 counts towards the second response: 3 says that response_2 is much better.
    return DataRow(
        line, _helpsteer_prompt(row), sides_of(row, "response_1", "response_2"), (Label(0, 1, -float(strength)),),
        graded=True, subset=common["group"], reason=optional_text(row, "preference_statement"), **common,
    )  # fmt: skip


def _helpsteer_rating(row: Fields, line: int) -> DataRow:
    ratings = {name: _helpsteer_number(row[name], name) for name in _ATTRIBUTES if name in row}
    if not ratings:
        raise BadRowError(f"the row rates none of {', '.join(_ATTRIBUTES)}")
    return rated_row(row, line, _helpsteer_prompt(row), ratings)


def _helpsteer_number(value: Any, name: str) -> float | None:
    if value is None or value == _INVALID:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4:
        raise BadRowError(f"{name} is {described(value)}; it must be a number from 0 to 4, or {_INVALID} (not rated)")
    return float(value)


def _helpsteer_prompt(row: Fields) -> Content:
    """Return a prompt as text, or as messages where it holds several turns; the first one is the user's."""
    prompt = prompt_of(row)
    if not isinstance(prompt, str) or not _TURN.search(prompt):
        return prompt
    # The pattern's group is kept by split, so roles and texts take turns behind the first text.
    first, *rest = _TURN.split(prompt)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": role.lower(), "content": content} for role, content in turns]


def _ultrafeedback(row: Fields, line: int) -> DataRow:
    common, completions = common_of(row), value_of(row, "completions")
    if not isinstance(completions, list):
        raise BadRowError(f"field 'completions' must be a list, not {described(completions)}")
    responses: list[ResponseText] = []
    ratings = []
    for at, completion in enumerate(completions):
        annotations = completion.get("annotations") if isinstance(completion, Mapping) else None
        if not isinstance(annotations, Mapping):
            raise BadRowError(f"completions[{at}] must be an object with a response and annotations")
        responses += sides_of(dict(completion), "response")
        ratings.append({name: _annotation(value, f"completions[{at}].{name}") for name, value in annotations.items()})
    prompt = prompt_of(row, "instruction")
    # The published file has prompts that no model answered: nothing is wrong with them, and nothing can be learned.
    if not responses:
        raise LeftOutError("it has no completions")
    return DataRow(line, prompt, tuple(responses), ratings=tuple(ratings), subset=common["group"], **common)


def _annotation(annotation: Any, name: str) -> float | None:
    """Return the number of an annotation: ``{"Rating": "4"}``, or None for ``"N/A"``."""
    if annotation is None:
        return None  # a table has a column for every name that some completion is rated by
    if not isinstance(annotation, Mapping) or "Rating" not in annotation:
        raise BadRowError(f"{name} must be an object with a Rating")
    rating = annotation["Rating"]
    if rating is None or rating == "N/A":
        return None
    value = float_of(rating)
    if not 1 <= value <= 5:
        raise BadRowError(f"{name}.Rating is {described(rating)}; it must be a number from 1 to 5, or N/A")
    return value


HELPSTEER2_PREFERENCES = FileLayout(
    "helpsteer2-preferences", _helpsteer_pair, with_any("preference_strength", "response_1", "response_2"),
    prompt=_helpsteer_prompt, signed=True,
)  # fmt: skip
# The files of ratings have been published with fewer attributes: one is enough to know them.
HELPSTEER2 = FileLayout(
    "helpsteer2", _helpsteer_rating, with_any(*_ATTRIBUTES, but="ratings"), prompt=_helpsteer_prompt, rates=True
)
ULTRAFEEDBACK = FileLayout(
    "ultrafeedback", _ultrafeedback, with_any("completions"), prompt=partial(prompt_of, name="instruction"), rates=True
)
