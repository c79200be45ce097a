"""Our own layouts: pairs, groups and ratings. Chosen and rejected are also what most published pairs and trainers use.

Whatever a file calls them (``chosen_response``, ``chosen_conversations`` ...), one side is preferred to the other, both
are texts, messages, conversations or transcripts, and the prompt stands in a column beside them or in their beginning.
Known to be read: HelpSteer and UltraFeedback binarised (HuggingFaceH4, argilla, TRL), Anthropic's HH, Skywork, RLHFlow,
the Orca pairs, and the files of TRL, LLaMA-Factory, axolotl, torchtune, ms-swift, NeMo Aligner and NeMo RL.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from paragone_evaluation.readers.layouts.conversations import column_prompt, compared_sides, is_repeated
from paragone_evaluation.readers.layouts.fields import (
    as_prompt,
    check_ending,
    common_of,
    float_of,
    is_response,
    number_of,
    optional_text,
    prompt_of,
    responses_of,
    sides_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout
from paragone_evaluation.readers.layouts.messages import are_messages, described, messages_of
from paragone_evaluation.readers.rows import (
    STRONGEST,
    WEAKEST,
    BadRowError,
    Content,
    DataRow,
    Fields,
    Label,
    LeftOutError,
)

__all__ = ["CHOSEN_REJECTED", "FIRST_SECOND", "GROUPS", "RATINGS", "SWIFT", "lead_strength", "rated_row"]

_OUTCOMES = {"first": 1.0, "second": -1.0, "tie": 0.0}
_SIDES = (
    ("chosen", "rejected"), ("chosen_response", "rejected_response"), ("chosen_messages", "rejected_messages"),
    ("chosen_conversations", "rejected_conversations"),
)  # fmt: skip
# What people or models gave each side, under the names of TRL, HuggingFaceH4, argilla, RLHFlow and NeMo.
_SCORES = (
    ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen-rating", "rejected-rating"),
    ("chosen_rating", "rejected_rating"), ("rating_chosen", "rating_rejected"),
    ("chosen_avg_rating", "rejected_avg_rating"), ("chosen_reward", "rejected_reward"),
)  # fmt: skip
_STATED = frozenset({"strength", "margin", *(name for names in _SCORES for name in names)})


def lead_strength(lead: float) -> float:
    """Return the strength of a lead that is known to be the preferred one's: on our scale, and never a tie."""
    return min(max(lead, WEAKEST), STRONGEST)


def _prompt_before(row: Fields) -> Content:
    return check_ending(prompt_of(row), "prompt")


def _first_second(row: Fields, line: int) -> DataRow:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        raise BadRowError("the row mixes two schemas: first and second, and chosen and rejected")
    common, prompt, responses = common_of(row), _prompt_before(row), sides_of(row, "first", "second")
    strength = number_of(value_of(row, "strength"), "strength", low=-STRONGEST, high=STRONGEST)
    return DataRow(
        line, prompt, responses, (Label(0, 1, strength),), strength_of="strength",
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected(row: Fields, line: int, *, names: tuple[str, str], repeated: bool = False) -> DataRow:
    for name in names:
        value_of(row, name)
    common, (prompt, responses) = common_of(row), compared_sides(row, *names, repeated=repeated)
    strength, source = _stated_strength(row)
    # Without a strength people only said which one: 1 is the weakest that says so, and is not called graded.
    return DataRow(
        line, prompt, responses, (Label(0, 1, strength),), strength_of=source,
        subset=optional_text(row, "subset") or common["group"], reason=optional_text(row, "reason"), **common,
    )  # fmt: skip


def _stated_strength(row: Fields) -> tuple[float, str]:
    """Return how strongly the row says that chosen was preferred, and where; 1 and nowhere where it says only that."""
    status = row.get("status")
    if isinstance(status, str) and status.strip().lower() == "tie":
        return 0.0, ""  # argilla's Orca pairs: the sides are called chosen and rejected all the same
    if _STATED.isdisjoint(row):
        return 1.0, ""  # most files have none of them, and a million rows are told apart here
    stated = row.get("strength")
    if stated is not None:
        strength = number_of(stated, "strength", low=0, high=STRONGEST)
        if not strength:
            raise BadRowError("field 'strength' is 0; beside chosen and rejected it must lie in (0, 3]")
        return strength, "strength"
    if (margin := _given(row, "margin")) is not None:
        return lead_strength(margin), "margin"
    for names in _SCORES:
        chosen, rejected = (_given(row, name) for name in names)
        if chosen is not None and rejected is not None:
            # Which one is chosen is said by the columns. Scores say how much better it is, and may be equal.
            return lead_strength(chosen - rejected), " and ".join(names)
    return 1.0, ""


def _given(row: Fields, name: str) -> float | None:
    """Return a number that may be missing: null, an empty cell, or NaN as pandas writes it."""
    value = row.get(name)
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    number = float_of(value)
    if not math.isfinite(number):
        raise BadRowError(f"field {name!r} must be a number, not {described(value)}")
    return number


def _side_prompt(row: Fields, *, names: tuple[str, str], repeated: bool = False) -> Content:
    try:
        return compared_sides(row, *names, repeated=repeated)[0]
    except LeftOutError:
        # Two equal answers are no pair, and a prompt all the same.
        if (before := column_prompt(row)) is None:
            raise
        return as_prompt(before, "prompt")


def _has_sides(row: Fields, *, names: tuple[str, str]) -> bool:
    return all(is_response(row.get(name)) for name in names)


def _begins_with_prompt(row: Fields, *, names: tuple[str, str]) -> bool:
    return _has_sides(row, names=names) and is_repeated(row, *names)


def _group(row: Fields, line: int) -> DataRow:
    common, prompt, responses = common_of(row), _prompt_before(row), responses_of(row, "responses", at_least=2)
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
    return rated_row(row, line, _prompt_before(row), numbers)


def rated_row(row: Fields, line: int, prompt: Content, ratings: Mapping[str, float | None]) -> DataRow:
    """Return the row of one rated response."""
    common = common_of(row)
    return DataRow(line, prompt, sides_of(row, "response"), ratings=(ratings,), subset=common["group"], **common)


FIRST_SECOND = FileLayout(
    "pairs", ("prompt", "first", "second", "strength"), _first_second,
    lambda row: _has_sides(row, names=("first", "second")) and "strength" in row,
    strengths="strength, -3 to 3", schema="first and second", signed=True,
)  # fmt: skip


def _sided(names: tuple[str, str], *, repeated: bool) -> FileLayout:
    return FileLayout(
        "pairs", ("prompt", *names), partial(_chosen_rejected, names=names, repeated=repeated),
        partial(_begins_with_prompt if repeated else _has_sides, names=names),
        prompt=partial(_side_prompt, names=names, repeated=repeated),
        strengths=f"strength, margin, or the lead of {names[0]}'s score or rating where the row has one, "
        f"{WEAKEST:g} to {STRONGEST:g}; 1 where it has none, and a tie where its status is tie",
        schema=f"{' and '.join(names)}{', which begin with the prompt' if repeated else ''}",
    )  # fmt: skip


CHOSEN_REJECTED = tuple(_sided(names, repeated=repeated) for repeated in (True, False) for names in _SIDES)
"""One for each pair of names; those in which both texts begin with the prompt come first."""


def _swift_sides(row: Fields) -> Fields:
    """Return the row with the two sides of ms-swift's: a conversation, and its last answer or all of it once more."""
    messages = messages_of(row.get("messages"), "messages")
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRowError("field 'messages' must be a conversation that ends with the assistant's answer")
    rejected = row.get("rejected_messages")
    if rejected is None:
        answer = value_of(row, "rejected_response")
        turns = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        rejected = [*messages[:-1], *(turns if isinstance(turns, list) else [turns])]
    others = {name: value for name, value in row.items() if name != "messages"}
    return others | {"chosen": messages, "rejected": rejected}


def _fits_swift(row: Fields) -> bool:
    other = is_response(row.get("rejected_response")) or are_messages(row.get("rejected_messages"))
    return other and row.get("chosen") is None and are_messages(row.get("messages"))


SWIFT = FileLayout(
    "pairs", ("messages", "rejected_response"),
    lambda row, line: _chosen_rejected(_swift_sides(row), line, names=("chosen", "rejected")), _fits_swift,
    prompt=lambda row: _side_prompt(_swift_sides(row), names=("chosen", "rejected")),
    strengths=CHOSEN_REJECTED[0].strengths, schema="messages and rejected_response, as ms-swift writes them",
)  # fmt: skip
GROUPS = FileLayout(
    "groups", ("prompt", "responses", "comparisons"), _group,
    lambda row: isinstance(row.get("responses"), list) and isinstance(row.get("comparisons"), list),
)  # fmt: skip
RATINGS = FileLayout(
    "ratings", ("prompt", "response", "ratings"), _rating,
    lambda row: is_response(row.get("response")) and isinstance(row.get("ratings"), Mapping), rates=True,
    strengths="ratings: the preferred one has the higher rating, and the difference is the strength, at most 3",
)  # fmt: skip
