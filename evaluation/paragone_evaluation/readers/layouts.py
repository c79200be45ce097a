"""Layouts of files: the columns that tell a layout, and how its rows become ours. One object each, in ``FILE_LAYOUTS``.

A new layout is one entry there and one function, made of the checks of single fields that stand first. They raise
``BadRowError`` where a field is wrong. docs/data-files.md lists the columns of all layouts.

Sources: the data set cards of nvidia/HelpSteer2 and openbmb/UltraFeedback; the cards and code of
allenai/reward-bench, allenai/reward-bench-2, THU-KEG/RM-Bench and ScalerLab/JudgeBench.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from paragone_evaluation.dataset import ResponseText
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
    "FILE_LAYOUTS",
    "TIES_ID",
    "FileLayout",
    "fitting_layout",
    "prompt_row",
    "split_name",
    "split_of",
    "value_of",
]

TIES_ID = re.compile(r"(ref|tied):(\d+)")
"""What ids of RewardBench 2's Ties subset look like."""

_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""Attributes of HelpSteer2, 0 to 4, in the order of its columns."""
_INVALID = -100
"""What HelpSteer2 writes where there is no valid judgement."""
_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
_ROLES = ("system", "developer", "user", "assistant", "tool")
_OUTCOMES = {"first": 1.0, "second": -1.0, "tie": 0.0}


def value_of(row: Fields, name: str) -> Any:
    """Return a field that must be there."""
    if name not in row:
        raise BadRowError(f"field {name!r} is missing; the row has {', '.join(sorted(row)) or 'none'}")
    return row[name]


def _optional_text(row: Fields, name: str) -> str | None:
    """Return a field that must be text where it is there, and None where it is empty."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {_described(value)}")
    _check_encodable(value, name)
    return value or None


def _identifier(row: Fields, name: str = "id") -> str | None:
    """Return the row's id as text, None where it has none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    # bool is an int to Python: ids True and 1 would be taken for each other.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"field {name!r} must be text or a whole number, not {_described(value)}")
    _check_encodable(str(value), name)
    return str(value)


def split_name(split: str | None) -> str | None:
    """Return the name that we use for a split: files say ``val`` and ``validation`` for the same one."""
    return "validation" if split == "val" else split


def split_of(row: Fields) -> str | None:
    """Return the row's split, as ``split_name`` writes it."""
    return split_name(_optional_text(row, "split"))


def _tools_of(row: Fields) -> Sequence[Mapping[str, Any]] | None:
    """Return the row's tools."""
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRowError("field 'tools' must be a list of objects")
    return tools or None


def _prompt_of(row: Fields, name: str = "prompt") -> Content:
    """Return the prompt: text, or messages; one message of the user is the same prompt as its text."""
    value = value_of(row, name)
    messages = _messages_of(value, name)
    content = value if isinstance(value, str) else _as_prompt(messages) if messages else None
    if content is None:
        raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {_described(value)}")
    if isinstance(content, str) and not content.strip():
        raise BadRowError(f"field {name!r} is empty")
    _check_encodable(content, name)
    return content


def _as_prompt(messages: list[dict[str, Any]]) -> Content:
    """Return messages as a prompt: the text of a lone message of the user, so that both forms are one prompt."""
    alone = messages[0] if len(messages) == 1 else {}
    # A name, say, is part of what a template renders: such a message is more than its text.
    plain = alone.get("role") == "user" and isinstance(alone.get("content"), str) and len(alone) == 2
    return alone["content"] if plain else messages


def _response_of(value: Any, name: str) -> ResponseText:
    """Return a response: text, a message, or messages; a lone message of the assistant is the same as its text."""
    if isinstance(value, str):
        _check_encodable(value, name)
        return value
    messages = _messages_of([value] if isinstance(value, Mapping) else value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {_described(value)}")
    _check_encodable(messages, name)
    if len(messages) > 1:
        return tuple(messages)
    (message,) = messages
    plain = message["role"] == "assistant" and isinstance(message.get("content"), str) and len(message) == 2
    return str(message["content"]) if plain else message


def _responses_of(row: Fields, name: str, *, at_least: int) -> list[ResponseText]:
    """Return a list of responses."""
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else _described(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least} responses, not {kind}")
    return [_response_of(response, f"{name}[{index}]") for index, response in enumerate(value)]


def _messages_of(value: Any, name: str) -> list[dict[str, Any]] | None:
    """Return a list of messages, or None for anything else."""
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        return None
    for message in value:
        _check_message(message, name)
    # Tables have a column for every key that some message has: null stands for a key that this one lacks.
    return [{key: part for key, part in message.items() if part is not None or key == "content"} for message in value]


def _check_message(message: Mapping[str, Any], name: str) -> None:
    role, content = message.get("role"), message.get("content")
    # Templates drop or misplace roles that they do not know, mostly without a word.
    if role not in _ROLES:
        raise BadRowError(
            f"field {name!r} must be text or messages, each with a role; a role is {_described(role)}, and must be one "
            f"of {', '.join(_ROLES)}"
        )
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str | None) for part in content
    ):
        raise BadRowError(f"field {name!r} has a message whose content is neither text nor a list of parts")


def _number_of(value: Any, name: str, *, low: float, high: float) -> float:
    """Return a number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError(f"field {name!r} must be a number from {low:g} to {high:g}, not {_described(value)}")
    if not low <= value <= high:
        raise BadRowError(f"field {name!r} is {_described(value)}; it must lie in {low:g} … {high:g}")
    return float(value)


def _check_encodable(content: Any, name: str) -> None:
    # Models, caches and answers are written as UTF-8: what it cannot carry would fail hours later.
    try:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"field {name!r} holds a lone surrogate, which no UTF-8 can carry") from None
    except RecursionError:
        raise BadRowError(f"field {name!r} is nested too deeply") from None


def _described(value: Any) -> str:
    """Return a value as messages show it: short ones as they are, others by their type."""
    if value is None:
        return "null"
    # Long texts are what the file holds, and that stays out of messages, which go into logs. JSON also has numbers of
    # 4,000 digits.
    short = isinstance(value, bool | int | float | str) and len(shown := repr(value)) <= 24
    return shown if short else type(value).__name__


@dataclass(frozen=True)
class FileLayout:
    """One layout of files.

    Attributes:
        name: as ``--layout`` takes it; two schemas of one layout share it.
        row: makes our row of the fields; the number is that of the line.
        fits: whether a row with these fields is one of this layout.
        schema: what its rows have, in words, where two layouts share a name.
        prompt: of the fields, for files that are read for their prompts alone.
        signed: whether either response may be the preferred one.
        rates: whether single responses are rated in place of being compared.
    """

    name: str
    row: Callable[[Fields, int], DataRow]
    fits: Callable[[Fields], bool]
    schema: str = ""
    prompt: Callable[[Fields], Content] = _prompt_of
    signed: bool = False
    rates: bool = False


def fitting_layout(row: Fields, layouts: Sequence[FileLayout]) -> FileLayout | None:
    """Return the first of the layouts that a row's fields belong to, or None."""
    return next((layout for layout in layouts if layout.fits(row)), None)


def prompt_row(row: Fields, line: int) -> DataRow:
    """Return a row's prompt and id alone; a file of prompts needs no layout."""
    known = fitting_layout(row, FILE_LAYOUTS)
    prompt = known.prompt(row) if known else _prompt_of(row)
    return DataRow(line, prompt, id=_identifier(row), split=split_of(row))


def _common(row: Fields) -> dict[str, Any]:
    return {
        "id": _identifier(row), "split": split_of(row), "group": _optional_text(row, "group"), "tools": _tools_of(row)
    }  # fmt: skip


def _sides(row: Fields, *names: str) -> tuple[ResponseText, ...]:
    return tuple(_response_of(value_of(row, name), name) for name in names)


def _first_second(row: Fields, line: int) -> DataRow:
    if row.get("chosen") is not None or row.get("rejected") is not None:
        raise BadRowError("the row mixes two schemas: first and second, and chosen and rejected")
    common, prompt, responses = _common(row), _prompt_of(row), _sides(row, "first", "second")
    strength = _number_of(value_of(row, "strength"), "strength", low=-STRONGEST, high=STRONGEST)
    return DataRow(
        line, prompt, responses, (Label(0, 1, strength),), graded=True,
        subset=_optional_text(row, "subset") or common["group"], reason=_optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected(row: Fields, line: int) -> DataRow:
    common, prompt = _common(row), _chosen_rejected_prompt(row)
    sides = {name: value_of(row, name) for name in ("chosen", "rejected")}
    # Of a conversation, what the sides share is the prompt (checked there), so the last message is the response.
    last = {name: value[-1] if isinstance(value, list) else value for name, value in sides.items()}
    stated = row.get("strength")
    # Without a strength people only said which one: 1 is the weakest that says so, and is not called graded.
    strength = 1.0 if stated is None else _number_of(stated, "strength", low=0, high=STRONGEST)
    if not strength:
        raise BadRowError("field 'strength' is 0; beside chosen and rejected it must lie in (0, 3]")
    return DataRow(
        line, prompt, _sides(last, "chosen", "rejected"), (Label(0, 1, strength),), graded=stated is not None,
        subset=_optional_text(row, "subset") or common["group"], reason=_optional_text(row, "reason"), **common,
    )  # fmt: skip


def _chosen_rejected_prompt(row: Fields) -> Content:
    """Return what both conversations begin with; ``prompt`` where they are texts or the answers alone."""
    sides = row.get("chosen"), row.get("rejected")
    if not any(isinstance(side, list) for side in sides):
        return _prompt_of(row)
    shared, other = (_conversation(side, name) for side, name in zip(sides, ("chosen", "rejected"), strict=True))
    if shared != other:
        raise BadRowError("chosen and rejected must share every message but the last: the shared ones are the prompt")
    before = _messages_of(row.get("prompt"), "prompt") or []
    # Mostly the conversations repeat the prompt, and reading it twice would be wrong. Sometimes they go on from it.
    if not all(message in shared for message in before):
        shared = [*before, *shared]
    return _as_prompt(shared) if shared else _prompt_of(row)


def _conversation(value: Any, name: str) -> list[dict[str, Any]]:
    """Return the messages before the last one, which must be the assistant's."""
    messages = _messages_of(value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, as the other one is, or a list of messages")
    if messages[-1]["role"] != "assistant":
        raise BadRowError(f"field {name!r} must end with the assistant's message, not {messages[-1]['role']!r}")
    return messages[:-1]


def _group(row: Fields, line: int) -> DataRow:
    common, prompt, responses = _common(row), _prompt_of(row), _responses_of(row, "responses", at_least=2)
    comparisons = value_of(row, "comparisons")
    if not isinstance(comparisons, list) or not comparisons:
        raise BadRowError("field 'comparisons' must be a list of at least one comparison")
    labels = tuple(_comparison(value, f"comparisons[{at}]", len(responses)) for at, value in enumerate(comparisons))
    # In either order: the second one would be counted as one more judgement of the same two.
    if len({frozenset((label.first, label.second)) for label in labels}) < len(labels):
        raise BadRowError("two comparisons are of the same two responses")
    return DataRow(line, prompt, tuple(responses), labels, subset=_optional_text(row, "subset"), **common)


def _comparison(value: Any, where: str, responses: int) -> Label:
    if not isinstance(value, Mapping):
        raise BadRowError(f"{where} must be an object with first, second and label")
    for side in ("first", "second"):
        place = value.get(side)
        # True and False are whole numbers to Python, and no index to anybody else.
        if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < responses:
            raise BadRowError(
                f"{where}.{side} is {_described(place)}; it must be the index of one of {responses} responses"
            )
    first, second, outcome = value["first"], value["second"], value.get("label")
    if first == second:
        raise BadRowError(f"{where} compares response {first} with itself")
    if not isinstance(outcome, str) or outcome not in _OUTCOMES:
        raise BadRowError(f"{where}.label is {_described(outcome)}; it must be first, second or tie")
    return Label(first, second, _OUTCOMES[outcome])


def _rating(row: Fields, line: int) -> DataRow:
    ratings = value_of(row, "ratings")
    if not isinstance(ratings, Mapping) or not ratings:
        raise BadRowError("field 'ratings' must be an object with a number per attribute")
    for name, value in ratings.items():
        # _float also takes texts, which UltraFeedback needs; in our own layout a number is a number.
        if value is not None and (isinstance(value, str) or not math.isfinite(_float(value))):
            raise BadRowError(
                f"field 'ratings.{name}' must be a number, or null where there is none, not {_described(value)}"
            )
    numbers = {name: None if value is None else float(value) for name, value in ratings.items()}
    return _rated(row, line, _prompt_of(row), numbers)


def _rated(row: Fields, line: int, prompt: Content, ratings: Mapping[str, float | None]) -> DataRow:
    common = _common(row)
    return DataRow(line, prompt, _sides(row, "response"), ratings=(ratings,), subset=common["group"], **common)


def _float(value: Any) -> float:
    """Return a number, or a text that writes one, as a float; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _helpsteer_pair(row: Fields, line: int) -> DataRow:
    strength = value_of(row, "preference_strength")
    if strength == _INVALID:
        raise LeftOutError(f"annotators found neither response valid (preference_strength {_INVALID})")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not -STRONGEST <= strength <= STRONGEST:
        raise BadRowError(
            f"preference_strength is {_described(strength)}; it must lie between -3 (response_1 much better) and 3, or "
            f"be {_INVALID} (neither is valid)"
        )
    common = _common(row)
    # HelpSteer2 counts towards the second response: 3 says that response_2 is much better.
    return DataRow(
        line, _helpsteer_prompt(row), _sides(row, "response_1", "response_2"), (Label(0, 1, -float(strength)),),
        graded=True, subset=common["group"], reason=_optional_text(row, "preference_statement"), **common,
    )  # fmt: skip


def _helpsteer_rating(row: Fields, line: int) -> DataRow:
    ratings = {name: _helpsteer_number(row[name], name) for name in _ATTRIBUTES if name in row}
    if not ratings:
        raise BadRowError(f"the row rates none of {', '.join(_ATTRIBUTES)}")
    return _rated(row, line, _helpsteer_prompt(row), ratings)


def _helpsteer_number(value: Any, name: str) -> float | None:
    if value is None or value == _INVALID:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 4:
        raise BadRowError(f"{name} is {_described(value)}; it must be a number from 0 to 4, or {_INVALID} (not rated)")
    return float(value)


def _helpsteer_prompt(row: Fields) -> Content:
    """Return a prompt as text, or as messages where it holds several turns; the first one is the user's."""
    prompt = _prompt_of(row)
    if not isinstance(prompt, str) or not _TURN.search(prompt):
        return prompt
    # The pattern's group is kept by split, so roles and texts take turns behind the first text.
    first, *rest = _TURN.split(prompt)
    turns = [("User", first), *zip(rest[::2], rest[1::2], strict=True)]
    return [{"role": role.lower(), "content": content} for role, content in turns]


def _ultrafeedback(row: Fields, line: int) -> DataRow:
    common, completions = _common(row), value_of(row, "completions")
    if not isinstance(completions, list):
        raise BadRowError(f"field 'completions' must be a list, not {_described(completions)}")
    responses: list[ResponseText] = []
    ratings = []
    for at, completion in enumerate(completions):
        annotations = completion.get("annotations") if isinstance(completion, Mapping) else None
        if not isinstance(annotations, Mapping):
            raise BadRowError(f"completions[{at}] must be an object with a response and annotations")
        responses += _sides(dict(completion), "response")
        ratings.append({name: _annotation(value, f"completions[{at}].{name}") for name, value in annotations.items()})
    prompt = _prompt_of(row, "instruction")
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
    value = _float(rating)
    if not 1 <= value <= 5:
        raise BadRowError(f"{name}.Rating is {_described(rating)}; it must be a number from 1 to 5, or N/A")
    return value


def _benchmark(row: Fields, line: int, right: list[ResponseText], wrong: list[ResponseText], subset: str) -> DataRow:
    """Return a row whose right responses come first, each preferred to each wrong one."""
    places = itertools.product(range(len(right)), range(len(right), len(right) + len(wrong)))
    labels = tuple(Label(first, second, 1.0) for first, second in places)
    return DataRow(
        line, _prompt_of(row), (*right, *wrong), labels, id=_identifier(row), split=split_of(row), subset=subset,
        right=len(right),
    )  # fmt: skip


def _needed(row: Fields, name: str) -> str:
    value = _optional_text(row, name)
    if not value:
        raise BadRowError(f"field {name!r} is missing or empty")
    return value


def _rewardbench(row: Fields, line: int) -> DataRow:
    pair, subset = _chosen_rejected(row, line), _needed(row, "subset")
    # Ids of RewardBench 1 start again in some subsets, and an id may stand for one row only.
    return replace(pair, id=f"{subset}/{pair.name}", right=1, subset=subset, graded=False)


def _rewardbench2(row: Fields, line: int) -> DataRow:
    right, wrong = _responses_of(row, "chosen", at_least=1), _responses_of(row, "rejected", at_least=1)
    if row.get("num_correct") not in (None, len(right)):
        raise BadRowError(
            f"field 'num_correct' is {_described(row['num_correct'])}, and there are {len(right)} in 'chosen'"
        )
    made = _benchmark(row, line, right, wrong, _needed(row, "subset"))
    if str(made.subset).lower() == "ties":
        if not TIES_ID.fullmatch(made.name):
            raise BadRowError(f"the id of a row of Ties is {made.name[:40]!r}; it must be ref:NUMBER or tied:NUMBER")
    elif len(right) != 1:
        raise BadRowError(f"only Ties have several right responses; {made.subset} has {len(right)}")
    return made


def _rm_bench(row: Fields, line: int) -> DataRow:
    right, wrong = _responses_of(row, "chosen", at_least=3), _responses_of(row, "rejected", at_least=3)
    if len(right) != 3 or len(wrong) != 3:
        raise BadRowError(f"there are three styles; the row has {len(right)} chosen and {len(wrong)} rejected")
    made = _benchmark(row, line, right, wrong, _needed(row, "domain"))
    # Ids count within a domain here.
    return replace(made, id=f"{made.subset}/{made.name}")


def _judgebench(row: Fields, line: int) -> DataRow:
    label, source = value_of(row, "label"), _optional_text(row, "source")
    if label not in ("A>B", "B>A"):
        raise BadRowError(f"field 'label' is {_described(label)}; it must be 'A>B' or 'B>A'")
    return DataRow(
        line, _prompt_of(row, "question"), _sides(row, "response_A", "response_B"),
        (Label(0, 1, 1.0 if label == "A>B" else -1.0),), id=_identifier(row, "pair_id"), split=split_of(row),
        # mmlu-pro-law and the like: the part before the first dash is the suite, except livebench and livecodebench.
        subset=source.split("-")[0] if source else None,
    )  # fmt: skip


# Null is no sign of a layout: tables have every column in every row.
def _with_any(*names: str, but: str = "") -> Callable[[Fields], bool]:
    return lambda row: row.get(but) is None and any(row.get(name) is not None for name in names)


def _with_all(*names: str) -> Callable[[Fields], bool]:
    return lambda row: all(row.get(name) is not None for name in names)


def _lists_of_texts(row: Fields, beside: str) -> bool:
    """Return whether chosen and rejected are lists of responses, and not conversations, which are lists as well."""
    sides = row.get("chosen"), row.get("rejected")
    lists = all(isinstance(side, list) and not any(isinstance(item, Mapping) for item in side) for side in sides)
    return lists and row.get(beside) is not None


_question, _instruction = partial(_prompt_of, name="question"), partial(_prompt_of, name="instruction")

# The first that fits is taken: layouts whose columns are their own come before those whose columns others have as well.
# HelpSteer2's files of ratings have been published with fewer attributes: one is enough to know them.
FILE_LAYOUTS = (
    FileLayout("judgebench", _judgebench, _with_any("response_A", "pair_id"), prompt=_question, signed=True),
    FileLayout("rm-bench", _rm_bench, lambda row: _lists_of_texts(row, "domain")),
    FileLayout("rewardbench2", _rewardbench2, lambda row: _lists_of_texts(row, "subset")),
    FileLayout("rewardbench", _rewardbench, _with_all("chosen", "rejected", "subset"), prompt=_chosen_rejected_prompt),
    FileLayout("ultrafeedback", _ultrafeedback, _with_any("completions"), prompt=_instruction, rates=True),
    FileLayout(
        "helpsteer2-preferences", _helpsteer_pair, _with_any("preference_strength", "response_1", "response_2"),
        prompt=_helpsteer_prompt, signed=True,
    ),
    FileLayout("groups", _group, _with_any("comparisons", "responses")),
    FileLayout(
        "helpsteer2", _helpsteer_rating, _with_any(*_ATTRIBUTES, but="ratings"), prompt=_helpsteer_prompt, rates=True
    ),
    FileLayout("ratings", _rating, _with_any("ratings", "response"), rates=True),
    FileLayout("pairs", _first_second, _with_any("first", "second"), "first and second", signed=True),
    FileLayout(
        "pairs", _chosen_rejected, _with_any("chosen", "rejected"), "chosen and rejected", _chosen_rejected_prompt
    ),
)  # fmt: skip
"""Every layout that is read."""
