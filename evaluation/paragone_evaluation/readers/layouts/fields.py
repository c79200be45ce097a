"""Checks of single fields and messages of a row: each returns what is there or raises ``BadRowError``."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from paragone_evaluation.dataset import ResponseText
from paragone_evaluation.readers.rows import BadRowError, Content, Fields

_ROLES = ("system", "developer", "user", "assistant", "tool")


def value_of(row: Fields, name: str) -> Any:
    """Return a field that must be there."""
    if name not in row:
        raise BadRowError(f"field {name!r} is missing; the row has {', '.join(sorted(row)) or 'none'}")
    return row[name]


def optional_text(row: Fields, name: str) -> str | None:
    """Return a field that must be text where it is there, and None where it is empty."""
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {described(value)}")
    _check_encodable(value, name)
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
    # bool is an int to Python: ids True and 1 would be taken for each other.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"field {name!r} must be text or a whole number, not {described(value)}")
    _check_encodable(str(value), name)
    return str(value)


def split_name(split: str | None) -> str | None:
    """Return the name that we use for a split: files say ``val`` and ``validation`` for the same one."""
    return "validation" if split == "val" else split


def split_of(row: Fields) -> str | None:
    """Return the row's split, as ``split_name`` writes it."""
    return split_name(optional_text(row, "split"))


def tools_of(row: Fields) -> Sequence[Mapping[str, Any]] | None:
    """Return the row's tools."""
    tools = row.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise BadRowError("field 'tools' must be a list of objects")
    return tools or None


def common_of(row: Fields) -> dict[str, Any]:
    """Return what every row may have, by the names of ``DataRow``."""
    return {
        "id": identifier(row), "split": split_of(row), "group": optional_text(row, "group"), "tools": tools_of(row)
    }  # fmt: skip


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
    messages = messages_of(value, name)
    content = value if isinstance(value, str) else as_prompt(messages) if messages else None
    if content is None:
        raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {described(value)}")
    if isinstance(content, str) and not content.strip():
        raise BadRowError(f"field {name!r} is empty")
    _check_encodable(content, name)
    return content


def as_prompt(messages: list[dict[str, Any]]) -> Content:
    """Return messages as a prompt: the text of a lone message of the user, so that both forms are one prompt."""
    alone = messages[0] if len(messages) == 1 else {}
    # A name, say, is part of what a template renders: such a message is more than its text.
    plain = alone.get("role") == "user" and isinstance(alone.get("content"), str) and len(alone) == 2
    return alone["content"] if plain else messages


def sides_of(row: Fields, *names: str) -> tuple[ResponseText, ...]:
    """Return the responses in the fields named."""
    return tuple(response_of(value_of(row, name), name) for name in names)


def response_of(value: Any, name: str) -> ResponseText:
    """Return a response: text, a message, or messages; a lone message of the assistant is the same as its text."""
    if isinstance(value, str):
        _check_encodable(value, name)
        return value
    messages = messages_of([value] if isinstance(value, Mapping) else value, name)
    if not messages:
        raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {described(value)}")
    _check_encodable(messages, name)
    if len(messages) > 1:
        return tuple(messages)
    (message,) = messages
    plain = message["role"] == "assistant" and isinstance(message.get("content"), str) and len(message) == 2
    return str(message["content"]) if plain else message


def responses_of(row: Fields, name: str, *, at_least: int) -> list[ResponseText]:
    """Return a list of responses."""
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        kind = f"a list of {len(value)}" if isinstance(value, list) else described(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least} responses, not {kind}")
    return [response_of(response, f"{name}[{index}]") for index, response in enumerate(value)]


def messages_of(value: Any, name: str) -> list[dict[str, Any]] | None:
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
            f"field {name!r} must be text or messages, each with a role; a role is {described(role)}, and must be one "
            f"of {', '.join(_ROLES)}"
        )
    if content is None or isinstance(content, str):
        return
    if not isinstance(content, list) or not all(
        isinstance(part, Mapping) and isinstance(part.get("text"), str | None) for part in content
    ):
        raise BadRowError(f"field {name!r} has a message whose content is neither text nor a list of parts")


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


def described(value: Any) -> str:
    """Return a value as messages show it: short ones as they are, others by their type."""
    if value is None:
        return "null"
    # Long texts are what the file holds, and that stays out of messages, which go into logs. JSON also has numbers of
    # 4,000 digits.
    short = isinstance(value, bool | int | float | str) and len(shown := repr(value)) <= 24
    return shown if short else type(value).__name__
