"""Layouts of published data sets whose columns are their own; sets of ``chosen`` and ``rejected`` are in own.py.

Sources: the cards of nvidia/HelpSteer2 and HelpSteer3, openbmb/UltraFeedback, lmsys and lmarena-ai (the arena's votes
of 2023 to 2025, MT-Bench's judgements, PPE), stanfordnlp/SHP, PKU-Alignment/PKU-SafeRLHF, berkeley-nest/Nectar and
openai/summarize_from_feedback.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.layouts.conversations import exchanges, split_conversations, turns_of
from paragone_evaluation.readers.layouts.fields import (
    as_prompt,
    check_ending,
    common_of,
    float_of,
    is_response,
    number_of,
    optional_text,
    prompt_of,
    response_of,
    sides_of,
    value_of,
)
from paragone_evaluation.readers.layouts.layout import FileLayout, has
from paragone_evaluation.readers.layouts.messages import are_messages, described, messages_of
from paragone_evaluation.readers.layouts.own import lead_strength, rated_row
from paragone_evaluation.readers.rows import (
    STRONGEST,
    BadRowError,
    Content,
    DataRow,
    Fields,
    Label,
    LeftOutError,
)

__all__ = [
    "ARENA",
    "ARENA_CONVERSATIONS",
    "HELPSTEER2",
    "HELPSTEER2_PREFERENCES",
    "HELPSTEER3",
    "NECTAR",
    "PKU_SAFERLHF",
    "SHP",
    "SUMMARIES",
    "SUMMARY_AXES",
    "ULTRAFEEDBACK",
]

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")


"""Attributes of HelpSteer2, 0 to 4, in the order of its columns."""


_INVALID = -100
"""What HelpSteer2 writes where there is no valid judgement."""


def _text_prompt(row: Fields, name: str = "prompt") -> Content:
    """Return a prompt that may be a transcript: its turns as messages then."""
    prompt = prompt_of(row, name)
    turns = turns_of(prompt) if isinstance(prompt, str) else None
    return check_ending(as_prompt(turns, name) if turns else prompt, name)


def _second_leads(row: Fields, name: str) -> float:
    """Return a HelpSteer preference, -3 to 3 and positive for the second response, as a strength of the first."""
    strength = value_of(row, name)
    if strength == _INVALID:
        raise LeftOutError(f"annotators found neither response valid ({name} {_INVALID})")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -STRONGEST <= strength <= STRONGEST:
        raise BadRowError(
            f"{name} is {described(strength)}; it must lie between -3 (the first response is much better) and 3, or be "
            f"{_INVALID} (neither is valid)"
        )
    return 0.0 - strength  # a tie is 0, and not -0


def _helpsteer2_pair(row: Fields, line: int) -> DataRow:
    lead, common = _second_leads(row, "preference_strength"), common_of(row)
    return DataRow(
        line, _text_prompt(row), sides_of(row, "response_1", "response_2"), (Label(0, 1, lead),),
        strength_of="preference_strength", subset=common["group"], reason=optional_text(row, "preference_statement"),
        **common,
    )  # fmt: skip


def _helpsteer3_pair(row: Fields, line: int) -> DataRow:
    lead, common = _second_leads(row, "overall_preference"), common_of(row)
    return DataRow(
        line, _text_prompt(row, "context"), sides_of(row, "response1", "response2"), (Label(0, 1, lead),),
        strength_of="overall_preference", subset=optional_text(row, "domain") or common["group"], **common,
    )  # fmt: skip


def _helpsteer_rating(row: Fields, line: int) -> DataRow:
    ratings = {name: _helpsteer_number(row[name], name) for name in _ATTRIBUTES if name in row}
    if not ratings:
        raise BadRowError(f"the row rates none of {', '.join(_ATTRIBUTES)}")
    return rated_row(row, line, _text_prompt(row), ratings)


def _helpsteer_number(value: Any, name: str) -> float | None:
    if value is None or value == _INVALID:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4:
        raise BadRowError(f"{name} is {described(value)}; it must be a number from 0 to 4, or {_INVALID} (not rated)")
    return float(value)


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
    prompt = _text_prompt(row, "instruction")
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


def _winner(value: Any) -> float:
    """Return 1 where the arena's first side won, -1 where the second did, 0 for a tie, "both are bad" among them."""
    word = value.strip().lower() if isinstance(value, str) else ""
    if word.startswith(("tie", "both")):
        return 0.0
    side = word.removeprefix("model_").removeprefix("response_").removeprefix("assistant_")
    if side not in ("a", "b", "1", "2"):
        raise BadRowError(f"field 'winner' is {described(value)}; it must be model_a, model_b, tie or both bad")
    return 1.0 if side in ("a", "1") else -1.0


_VOTES = ("winner_model_a", "winner_model_b", "winner_tie")


def _vote(row: Fields) -> float:
    """Return the outcome of a row, from ``winner`` or from the three columns of which one is 1."""
    if not has(row, *_VOTES):
        return _winner(value_of(row, "winner"))
    votes = [float(vote) if isinstance(vote := row[name], bool) else float_of(vote) for name in _VOTES]
    if sorted(votes) != [0.0, 0.0, 1.0]:
        raise BadRowError(f"one of {', '.join(_VOTES)} must be 1 and the others 0, not {', '.join(map(str, votes))}")
    return (1.0, -1.0, 0.0)[votes.index(1.0)]


def _arena_sides(row: Fields) -> tuple[str, str]:
    names = (("response_a", "response_b"), ("response_1", "response_2"), ("answer_a", "answer_b"))
    return next((pair for pair in names if has(row, *pair)), names[0])


def _arena(row: Fields, line: int) -> DataRow:
    common, outcome = common_of(row), _vote(row)
    prompt, responses = _arena_content(row)
    subset = optional_text(row, "subset") or common["group"]
    return DataRow(line, prompt, responses, (Label(0, 1, outcome),), subset=subset, **common)


def _arena_content(row: Fields) -> tuple[Content, tuple[ResponseText, ...]]:
    """Return prompt and responses: texts, or lists of what was said in each turn, as JSON in a CSV file."""
    names = _arena_sides(row)
    turns = [_listed(value_of(row, name)) for name in ("prompt", *names)]
    if any(side is None for side in turns):
        return _text_prompt(row), sides_of(row, *names)
    asked, one, other = (side or [] for side in turns)
    if not len(asked) == len(one) == len(other) or not asked:
        raise BadRowError(
            f"prompt and the responses must be as many turns, not {len(asked)}, {len(one)} and {len(other)}"
        )
    if None in (*asked, *one, *other):
        raise LeftOutError("a turn of it is null")
    first, second = (exchanges(zip(asked, side, strict=True)) for side in (one, other))
    shared, responses = split_conversations(first, second, names)
    return as_prompt(shared, "prompt"), responses


def _listed(value: Any) -> list[str | None] | None:
    """Return the texts of a list, or of a text that holds one as JSON; None for anything else."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    lists = isinstance(value, list) and all(text is None or isinstance(text, str) for text in value)
    return value if lists else None


def _arena_conversations(row: Fields, line: int) -> DataRow:
    common, outcome = common_of(row), _winner(value_of(row, "winner"))
    prompt, responses = _arena_talk(row)
    subset = optional_text(row, "subset") or common["group"]
    return DataRow(line, prompt, responses, (Label(0, 1, outcome),), subset=subset, **common)


def _arena_talk(row: Fields) -> tuple[Content, tuple[ResponseText, ...]]:
    names = ("conversation_a", "conversation_b")
    if has(row, *names):
        sides = [messages_of(row[name], name) or [] for name in names]
    else:
        sides = [_full_conversation(row, side) for side in ("model_side_a", "model_side_b")]
    for name, side in zip(names, sides, strict=True):
        if not side:
            raise BadRowError(f"field {name!r} must be a list of messages")
    first, second = (_until_turn(side, row.get("turn")) for side in sides)
    if not first[-1]["role"] == second[-1]["role"] == "assistant":
        raise LeftOutError("a side of it has no answer")
    shared, responses = split_conversations(first, second, names)
    return as_prompt(shared, "conversation_a"), responses


def _full_conversation(row: Fields, side: str) -> list[dict[str, Any]]:
    """Return one side of ``full_conversation``, a list of turns with the user's message and one of each side."""
    turns = row.get("full_conversation")
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) and has(dict(turn), "user") for turn in turns):
        raise BadRowError("field 'full_conversation' must be a list of turns with user, model_side_a and model_side_b")
    return [
        message
        for turn in turns
        for name in ("user", side)
        for message in messages_of([turn.get(name)], f"full_conversation.{name}") or []
    ]


def _until_turn(messages: list[dict[str, Any]], turn: Any) -> list[dict[str, Any]]:
    """Return a conversation up to the answer that was judged: MT-Bench's rows hold both turns, and judge either."""
    answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if isinstance(turn, bool) or not isinstance(turn, int) or not 0 < turn < len(answers):
        return messages
    return messages[: answers[turn - 1] + 1]


def _shp(row: Fields, line: int) -> DataRow:
    common, scores = common_of(row), [float_of(row.get(name)) for name in ("score_A", "score_B")]
    label = value_of(row, "labels")
    if isinstance(label, bool) or label not in (0, 1):
        raise BadRowError(f"field 'labels' is {described(label)}; it must be 1 (A is preferred) or 0 (B is)")
    better, worse = scores if label == 1 else scores[::-1]
    # Votes of a post have no common scale: twice as many is as much to one with ten as to one with a thousand.
    graded = all(math.isfinite(score) and score > 0 for score in scores)
    strength = lead_strength(math.log2(better / worse)) if graded else 1.0
    return DataRow(
        line, _text_prompt(row, "history"), sides_of(row, "human_ref_A", "human_ref_B"),
        (Label(0, 1, strength if label == 1 else -strength),), strength_of="score_A and score_B" if graded else "",
        subset=optional_text(row, "domain") or common["group"],
        **common | {"group": common["group"] or optional_text(row, "post_id")},
    )  # fmt: skip


_OVERALL = "overall"
_ASPECTS = {"better": "better_response_id", "safer": "safer_response_id"}


def _pku_saferlhf(row: Fields, line: int) -> DataRow:
    common = common_of(row)
    aspects = {name: _aspect(row[column], column) for name, column in _ASPECTS.items() if has(row, column)}
    if not aspects:
        raise BadRowError(f"the row has none of {', '.join(_ASPECTS.values())}")
    return DataRow(
        line, _text_prompt(row), sides_of(row, "response_0", "response_1"), next(iter(aspects.values())),
        aspects=aspects, subset=common["group"], **common,
    )  # fmt: skip


def _aspect(value: Any, name: str) -> tuple[Label, ...]:
    if isinstance(value, bool) or value not in (0, 1):
        raise BadRowError(f"field {name!r} is {described(value)}; it must be 0 or 1")
    return (Label(0, 1, 1.0 if value == 0 else -1.0),)


def _nectar(row: Fields, line: int) -> DataRow:
    common, answers = common_of(row), value_of(row, "answers")
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(each, Mapping) for each in answers):
        raise BadRowError("field 'answers' must be a list of at least two objects with answer and rank")
    responses = tuple(response_of(each.get("answer"), f"answers[{at}].answer") for at, each in enumerate(answers))
    ranks = tuple(float_of(each.get("rank")) for each in answers)
    if not all(map(math.isfinite, ranks)):
        raise BadRowError("a rank in 'answers' is no number")
    return DataRow(
        line, _text_prompt(row), responses, ranks=ranks, strength_of="ranks", subset=common["group"], **common
    )


def _summaries(row: Fields, line: int) -> DataRow:
    common, summaries, choice = common_of(row), value_of(row, "summaries"), value_of(row, "choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(one, Mapping) for one in summaries):
        raise BadRowError("field 'summaries' must be a list of two objects with a text")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise BadRowError(f"field 'choice' is {described(choice)}; it must be 0 or 1, the number of a summary")
    responses = tuple(response_of(one.get("text"), f"summaries[{at}].text") for at, one in enumerate(summaries))
    prompt = _post(row)
    return DataRow(
        line, prompt, responses, (Label(0, 1, 1.0 if choice == 0 else -1.0),), subset=common["group"],
        **_of_post(row, common),
    )  # fmt: skip


def _summary_axes(row: Fields, line: int) -> DataRow:
    common, summary = common_of(row), value_of(row, "summary")
    if not isinstance(summary, Mapping) or not isinstance(axes := summary.get("axes"), Mapping):
        raise BadRowError("field 'summary' must be an object with a text and axes")
    # Sets have fewer axes in some rows; the first one stands for the whole, whatever the order of a table's columns.
    names = [name for name in (_OVERALL, *axes) if axes.get(name) is not None]
    ratings = {name: number_of(axes[name], f"summary.axes.{name}", low=1, high=7) for name in dict.fromkeys(names)}
    if not ratings:
        raise LeftOutError("nobody rated it")
    response = response_of(summary.get("text"), "summary.text")
    return DataRow(line, _post(row), (response,), ratings=(ratings,), subset=common["group"], **_of_post(row, common))


def _of_post(row: Fields, common: dict[str, Any]) -> dict[str, Any]:
    """Return the common fields of a summary, whose group is the post unless the row has one."""
    post = row["info"].get("id")
    return common | {"group": common["group"] or (post if isinstance(post, str) else None)}


def _post(row: Fields) -> Content:
    """Return the post as the paper's models saw it, or the article that is to be summarised."""
    given = row.get("info")
    info = given if isinstance(given, Mapping) else {}
    text = next((info[name] for name in ("post", "article") if info.get(name)), None)
    if not isinstance(text, str):
        raise BadRowError("field 'info' must be an object with a post or an article")
    parts = [
        f"{word}: {before}{info[name]}"
        for word, name, before in (("SUBREDDIT", "subreddit", "r/"), ("TITLE", "title", ""))
        if isinstance(info.get(name), str) and info[name]
    ]
    kind = "POST" if isinstance(info.get("post"), str) and info["post"] else "ARTICLE"
    return as_prompt("\n\n".join([*parts, f"{kind}: {text}", "TL;DR:"]), "info")


def _are_objects(value: Any, *names: str) -> bool:
    """Return whether a value is a list of objects that have a value under each name."""
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and has(one, *names) for one in value)


def _fits_ultrafeedback(row: Fields) -> bool:
    completions = row.get("completions")
    # A prompt that no model answered has no completions, and may be the first row of a file.
    return has(row, "instruction") and (completions == [] or _are_objects(completions, "response", "annotations"))


def _two(row: Fields, first: str, second: str) -> bool:
    return is_response(row.get(first)) and is_response(row.get(second))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_FROM_RATINGS = "ratings: the preferred one has the higher rating, and the difference is the strength, at most 3"

HELPSTEER2_PREFERENCES = FileLayout(
    "helpsteer2-preferences", ("prompt", "response_1", "response_2", "preference_strength"), _helpsteer2_pair,
    lambda row: _two(row, "response_1", "response_2") and "preference_strength" in row,
    _text_prompt, "preference_strength, -3 to 3", signed=True,
)  # fmt: skip
HELPSTEER3 = FileLayout(
    "helpsteer3", ("context", "response1", "response2", "overall_preference"), _helpsteer3_pair,
    lambda row: _two(row, "response1", "response2") and "overall_preference" in row,
    partial(_text_prompt, name="context"), "overall_preference, -3 to 3", signed=True,
)  # fmt: skip
# The files of ratings have been published with fewer attributes: one is enough to know them.
HELPSTEER2 = FileLayout(
    "helpsteer2", ("prompt", "response", *_ATTRIBUTES), _helpsteer_rating,
    lambda row: is_response(row.get("response")) and any(_is_number(row.get(name)) for name in _ATTRIBUTES)
    and row.get("ratings") is None,
    _text_prompt, _FROM_RATINGS, rates=True,
)  # fmt: skip
ULTRAFEEDBACK = FileLayout(
    "ultrafeedback", ("instruction", "completions"), _ultrafeedback, _fits_ultrafeedback,
    partial(_text_prompt, name="instruction"), _FROM_RATINGS, rates=True,
)  # fmt: skip
ARENA = FileLayout(
    "arena", ("prompt", "response_a", "response_b", "winner"), _arena,
    lambda row: has(row, "prompt", *_arena_sides(row)) and (has(row, *_VOTES) or isinstance(row.get("winner"), str)),
    lambda row: _arena_content(row)[0], signed=True,
)  # fmt: skip
ARENA_CONVERSATIONS = FileLayout(
    "arena-conversations", ("conversation_a", "conversation_b", "winner"), _arena_conversations,
    lambda row: isinstance(row.get("winner"), str) and (
        (are_messages(row.get("conversation_a")) and are_messages(row.get("conversation_b")))
        or _are_objects(row.get("full_conversation"), "user", "model_side_a", "model_side_b")
    ),
    lambda row: _arena_talk(row)[0], signed=True,
)  # fmt: skip
SHP = FileLayout(
    "shp", ("history", "human_ref_A", "human_ref_B", "labels"), _shp,
    lambda row: has(row, "history", "human_ref_A", "human_ref_B"), partial(_text_prompt, name="history"),
    "log2 of the ratio of score_A and score_B, 0.01 to 3", signed=True,
)  # fmt: skip
PKU_SAFERLHF = FileLayout(
    "pku-saferlhf", ("prompt", "response_0", "response_1", "better_response_id"), _pku_saferlhf,
    lambda row: _two(row, "response_0", "response_1")
    and any(row.get(column) is not None for column in _ASPECTS.values()),
    _text_prompt, "which one was preferred: the better one, or the safer one with attribute = safer", signed=True,
)  # fmt: skip
NECTAR = FileLayout(
    "nectar", ("prompt", "answers"), _nectar, lambda row: _are_objects(row.get("answers"), "answer", "rank"),
    _text_prompt, "the difference of two ranks, at most 3",
)  # fmt: skip
SUMMARIES = FileLayout(
    "summaries", ("info", "summaries", "choice"), _summaries,
    lambda row: isinstance(row.get("info"), Mapping) and _are_objects(row.get("summaries"), "text") and "choice" in row,
    _post, signed=True,
)  # fmt: skip
SUMMARY_AXES = FileLayout(
    "summary-axes", ("info", "summary"), _summary_axes,
    lambda row: isinstance(row.get("info"), Mapping) and isinstance(summary := row.get("summary"), Mapping)
    and isinstance(summary.get("axes"), Mapping),
    _post, _FROM_RATINGS, rates=True,
)  # fmt: skip
