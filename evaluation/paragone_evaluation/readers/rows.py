"""Checked access to the fields of one row; what is wrong with a row is a ``BadRowError``, collected with its line."""

from collections.abc import Mapping, Sequence
from typing import Any

from paragone_evaluation.dataset import PromptText, ResponseText
from paragone_evaluation.readers.files import Row

__all__ = [
    "BadRowError",
    "identifier",
    "number_of",
    "optional_text",
    "prompt_of",
    "response_of",
    "texts_of",
    "value_of",
]

_ROLES = ("system", "developer", "user", "assistant", "tool")


class BadRowError(ValueError):
    """Say what is wrong with one row; the reader adds the line number."""


def value_of(row: Row, name: str) -> Any:
    """Return a field that must be there.

    Raises:
        BadRowError: if it is missing.
    """
    if row.get(name) is None and name not in row:
        raise BadRowError(f"field {name!r} is missing; the row has {', '.join(sorted(row)) or 'none'}")
    return row[name]


def identifier(row: Row, name: str = "id") -> str:
    """Return the row's id as text.

    Raises:
        BadRowError: if it is missing, or neither text nor a whole number.
    """
    value = value_of(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f"field {name!r} must be text or a whole number, not {_told(value)}")
    return str(value)


def optional_text(row: Row, name: str) -> str | None:
    """Return a field that must be text where it is there.

    Raises:
        BadRowError: if it is something else.
    """
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"field {name!r} must be text, not {_told(value)}")
    return value


def prompt_of(row: Row, name: str = "prompt") -> PromptText:
    """Return the prompt: text, or messages.

    Raises:
        BadRowError: if it is missing, empty, or neither.
    """
    value = value_of(row, name)
    if isinstance(value, str):
        if not value.strip():
            raise BadRowError(f"field {name!r} is empty")
        return _encodable(value, name)
    if _messages(value) and value:
        return tuple(value)
    raise BadRowError(f"field {name!r} must be text or a list of messages with a role, not {_told(value)}")


def response_of(value: Any, name: str) -> ResponseText:
    """Return a response: text, a message, or messages. An empty text is a response.

    Raises:
        BadRowError: if it is something else.
    """
    if isinstance(value, str):
        return _encodable(value, name)
    if isinstance(value, Mapping) and _messages([value]):
        return value
    if _messages(value) and value:
        return tuple(value)
    raise BadRowError(f"field {name!r} must be text, a message or a list of messages, not {_told(value)}")


def texts_of(row: Row, name: str, *, at_least: int) -> list[ResponseText]:
    """Return a list of responses.

    Raises:
        BadRowError: if it is missing, no list, or shorter than ``at_least``.
    """
    value = value_of(row, name)
    if not isinstance(value, list) or len(value) < at_least:
        told = f"a list of {len(value)}" if isinstance(value, list) else _told(value)
        raise BadRowError(f"field {name!r} must be a list of at least {at_least} responses, not {told}")
    return [response_of(response, f"{name}[{index}]") for index, response in enumerate(value)]


def number_of(value: Any, name: str, *, low: float, high: float) -> float:
    """Return a number in a range.

    Raises:
        BadRowError: if it is no number, or out of the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRowError(f"field {name!r} must be a number from {low:g} to {high:g}, not {_told(value)}")
    if not low <= value <= high:
        raise BadRowError(f"field {name!r} is {value:g}; it must lie in {low:g} … {high:g}")
    return float(value)


def _messages(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return False
    return all(isinstance(message, Mapping) and message.get("role") in _ROLES for message in value)


def _encodable(text: str, name: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRowError(f"field {name!r} holds a lone surrogate, which no UTF-8 can carry") from None
    return text


def _told(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value!r}" if isinstance(value, bool | int | float) else type(value).__name__
