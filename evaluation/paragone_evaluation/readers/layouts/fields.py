"""Checks of single fields of a row: each returns what is there or raises ``BadRowError``."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.layouts.messages import are_messages, described, messages_of
from paragone_evaluation.readers.rows import BadRowError, Content, Fields

__all__ = [
    "as_prompt",
    "as_response",
    "check_encodable",
    "check_ending",
    "common_of",
    "float_of",
    "identifier",
    "is_response",
    "list_of",
    "needed_text",
    "number_of",
    "optional_text",
    "prompt_of",
    "response_of",
    "responses_of",
    "sides_of",
    "split_name",
    "split_of",
    "tools_of",
    "value_of",
]


def value_of(row: Fields, name: str) -> Any:
    """Return a field that must be there."""
    if name not in row:
        names = ", ".join(sorted(map(str, row))) or "none"
        raise BadRowError(f"field {name!r} is missing; the row has {names}")
    return row[name]


def optional_text(row: Fields, name: str) -> str | None:
    """Return a field that must be text where it is there, and None where it is empty."""
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {described(value)}")
    check_encodable(value, name)
    return value or None


def needed_text(row: Fields, name: str) -> str:
    """Return a text that must be there."""
    value = optional_text(row, name)
    if not value:
        raise BadRowError(f"field {name!r} is missing or empty")
    return value


def identifier(row: Fields, name: str = "id") -> str | None:
    """Return the row's id as text, None where it has none."""
    value = row.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of whole numbers in which one is missing, as pandas writes it
    # bool is an int to Python: ids True and 1 would be taken for each other.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"field {name!r} must be text or a whole number, not {described(value)}")
    check_encodable(str(value), name)
    return str(value)


def split_name(split: str | None) -> str | None:
    """Return the name that we use for a split: files say ``val`` and ``validation`` for the same one."""
    return "validation" if split == "val" else split


def split_of(row: Fields) -> str | None:
    """Return the row's split, as ``split_name`` writes it."""
    return split_name(optional_text(row, "split"))


def tools_of(tools: Any) -> Sequence[Mapping[str, Any]] | None:
    """Return the tools on offer, a list or JSON of one; None where there are none."""
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise BadRowError("field 'tools' is a text, and no JSON: write a list of objects") from None
    if tools not in (None, "") and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRowError("field 'tools' must be a list of objects")
    return tools or None


def common_of(row: Fields) -> dict[str, Any]:
    """Return what every row may have, by the names of ``DataRow``."""
    return {
        "id": identifier(row),
        "split": split_of(row),
        "group": optional_text(row, "group"),
        "tools": tools_of(row.get("tools")),
    }


def number_of(value: Any, name: str, *, low: float, high: float) -> float:
    """Return a number in a range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError(f"field {name!r} must be a number from {low:g} to {high:g}, not {described(value)}")
    if not low <= value <= high:
        raise BadRowError(f"field {name!r} is {described(value)}; it must lie in {low:g} … {high:g}")
    return float(value)


def float_of(value: Any) -> float:
    """Return a number, or a text that writes one, as a float; NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def prompt_of(row: Fields, name: str = "prompt") -> Content:
    """Return the prompt: text, or messages; one message of the user is the same prompt as its text."""
    value = value_of(row, name)
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if messages is None and not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {described(value)}")
    return as_prompt(messages if messages is not None else value, name)


def as_prompt(prompt: Content, name: str) -> Content:
    """Return a prompt in its one form: the text of a lone message of the user, otherwise messages."""
    alone = prompt[0] if not isinstance(prompt, str) and len(prompt) == 1 else {}
    # A name, say, is part of what a template renders: such a message is more than its text.
    plain = alone.get("role") == "user" and isinstance(alone.get("content"), str) and len(alone) == 2
    content: Content = alone["content"] if plain else prompt
    if isinstance(content, str) and not content.strip():
        raise BadRowError(f"field {name!r} is empty")
    check_encodable(content, name)
    return content


def check_ending(prompt: Content, name: str) -> Content:
    """Return a prompt that a response may follow; refuse one that ends with the assistant's own message."""
    if not prompt:
        raise BadRowError(f"field {name!r} is empty")
    # Templates write two assistants' turns then, or raise: no model was trained on either.
    if not isinstance(prompt, str) and prompt[-1]["role"] not in ("user", "tool"):
        raise BadRowError(
            f"field {name!r} ends with a message of {prompt[-1]['role']!r}, and a response can follow one of the user "
            "or of a tool: move that message into the responses, or take it out"
        )
    return prompt


def is_response(value: Any) -> bool:
    """Return whether a value may be a response: text, a message or messages."""
    return isinstance(value, str) or are_messages([value] if isinstance(value, Mapping) else value)


def sides_of(row: Fields, *names: str) -> tuple[ResponseText, ...]:
    """Return the responses in the fields named."""
    return tuple(response_of(value_of(row, name), name) for name in names)


def response_of(value: Any, name: str) -> ResponseText:
    """Return a response: text, a message, or messages; a lone message of the assistant is the same as its text."""
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if messages:
        return as_response(messages, name)
    if not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {described(value)}")
    check_encodable(value, name)
    return value


def as_response(messages: Sequence[dict[str, Any]], name: str) -> ResponseText:
    """Return messages as a response in its one form."""
    check_encodable(messages, name)
    if len(messages) > 1:
        return tuple(messages)
    (message,) = messages
    plain = message["role"] == "assistant" and isinstance(message.get("content"), str) and len(message) == 2
    return str(message["content"]) if plain else message


def list_of(row: Fields, name: str, *, at_least: int = 1) -> list[Any]:
    """Return a list that must be there."""
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else described(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least}, not {kind}")
    return value


def responses_of(row: Fields, name: str, *, at_least: int) -> list[ResponseText]:
    """Return a list of responses."""
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else described(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least} responses, not {kind}")
    return [response_of(response, f"{name}[{index}]") for index, response in enumerate(value)]


def check_encodable(content: Any, name: str) -> None:
    """Refuse what no UTF-8 can carry."""
    if content is None:
        return
    # Models, caches and answers are written as UTF-8: what it cannot carry would fail hours later.
    try:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError:
        raise BadRowError(f"field {name!r} holds a lone surrogate, which no UTF-8 can carry") from None
    except RecursionError:
        raise BadRowError(f"field {name!r} is nested too deeply") from None
