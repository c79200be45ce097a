"""Messages of a row, whatever a file calls their keys and roles, as ours: ``role``, ``content`` and what stands beside.

| files have | read as |
|---|---|
| ``from``, ``value`` | ``role``, ``content`` |
| ``human``, ``gpt``, ``model``, ``bot``, ``observation``, and our roles with capitals | our roles |
| ``function_call`` | an assistant's message with a tool call |
| content in text parts | one text |
| messages as JSON in a text | messages |
| texts as a JSON list in a text | texts |
| a null, an empty list, keys of a trainer's own (``masked``, ``weight`` ...) | nothing |
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from paragone_evaluation.readers.rows import BadRowError

__all__ = ["are_messages", "are_texts_written", "described", "messages_of", "texts_written"]

_ROLES = {
    **{role: role for role in ("system", "developer", "user", "assistant", "tool")},
    "human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant",
    "observation": "tool", "function_call": "assistant",
}  # fmt: skip
_BESIDE = ("name", "tool_calls", "tool_call_id", "reasoning_content")
_THOUGHTS = ("thinking", "reasoning")
# Messages written into a text, in JSON or as Python prints them. An answer that goes on behind them is a text.
_WRITTEN_ONE = re.compile(r"\s*\{\s*(['\"])(role|from)\1\s*:.*\}\s*", re.DOTALL)
_WRITTEN_TEXTS = re.compile(r"\s*\[\s*(['\"]).*\1\s*\]\s*", re.DOTALL)
_WRITTEN = re.compile(r"\s*\[\s*\{\s*(['\"])(role|content|from|value)\1\s*:.*\]\s*", re.DOTALL)


def described(value: Any) -> str:
    """Return a value as messages show it: short ones as they are, others by their type."""
    if value is None:
        return "null"
    # Long texts are what the file holds, and that stays out of messages, which go into logs. JSON also has numbers of
    # 4,000 digits.
    short = isinstance(value, bool | int | float | str) and len(shown := repr(value)) <= 24
    return shown if short else type(value).__name__


def are_messages(value: Any) -> bool:
    """Return whether a value is a list of messages, or a text that holds one as JSON."""
    if isinstance(value, str):
        return _is_written(value)
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_written(text: str) -> bool:
    # Most texts are told by one character, and a pattern that looks for the end of each would cost as much as all else.
    start = text.lstrip()[:1]
    return start in ("[", "{") and bool(_WRITTEN.fullmatch(text) or _WRITTEN_ONE.fullmatch(text))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or "from" in value)


def messages_of(value: Any, name: str) -> list[dict[str, Any]] | None:
    """Return a list of messages, or None for anything else; the name is that of the field."""
    if isinstance(value, str):
        if not _is_written(value):
            return None
        value = _parsed(value, name)
        value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        return None
    return [_message(message, name) for message in value]


def are_texts_written(text: str) -> bool:
    """Return whether a text looks like a list of texts, in JSON or as Python prints it."""
    return text.lstrip()[:1] == "[" and _WRITTEN_TEXTS.fullmatch(text) is not None


def texts_written(text: str, name: str) -> list[Any]:
    """Return the list that a text holds as JSON; the name is that of the field."""
    value = _parsed(text, name, what="a list of texts") if are_texts_written(text) else None
    if not isinstance(value, list):
        raise BadRowError(f"field {name!r} must be a list of texts, or one as JSON, not another text")
    return value


def _parsed(text: str, name: str, *, what: str = "messages") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        # As text such messages would be one long turn of the user, and no number would look wrong.
        raise BadRowError(
            f"field {name!r} holds {what} in a text that is not JSON (Python's own notation?): write them as JSON"
        ) from None


def _message(message: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return one message in our keys; what says nothing is left out."""
    sharegpt = "role" not in message and "from" in message
    given, content = (message["from"], message.get("value")) if sharegpt else (message.get("role"), None)
    role = _ROLES.get(given.lower()) if isinstance(given, str) else None
    # Templates drop or misplace roles that they do not know, mostly without a word.
    if role is None:
        raise BadRowError(
            f"field {name!r} must be text or messages, each with a role; a role is {described(given)}, and must be one "
            f"of {', '.join(_ROLES)}"
        )
    if given == "function_call":
        return {"role": role, "content": None, "tool_calls": [_call(content, name)]}
    content = _text(content if sharegpt else message.get("content"), name)
    made = {"role": role, "content": content}
    # Tables have a column for every key that some message has: null stands for a key that this one lacks.
    made |= {key: message[key] for key in _BESIDE if message.get(key)}
    thoughts = next((message[key] for key in _THOUGHTS if isinstance(message.get(key), str) and message[key]), None)
    if thoughts is not None:
        made.setdefault("reasoning_content", thoughts)
    if content is None and "tool_calls" not in made:
        raise BadRowError(f"field {name!r} has a message of {role!r} without content")
    return made


def _text(content: Any, name: str) -> str | None:
    """Return a message's content as one text."""
    if content is None or isinstance(content, str):
        return content
    parts = [content] if isinstance(content, Mapping) else content
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        raise BadRowError(f"field {name!r} has a message whose content is neither text nor a list of parts")
    for part in parts:
        kind = part.get("type", "text")
        if kind != "text" or not isinstance(part.get("text"), str | None):
            raise BadRowError(f"field {name!r} has a part of type {described(kind)}: only texts are read")
    # Joined as the models' templates join them, so that parts and text are one content.
    return "".join(part.get("text") or "" for part in parts)


def _call(content: Any, name: str) -> dict[str, Any]:
    """Return the tool call of ShareGPT's ``function_call``, whose value is JSON."""
    try:
        call = json.loads(content) if isinstance(content, str) else content
    except (ValueError, RecursionError):
        call = None
    if not isinstance(call, Mapping) or not isinstance(call.get("name"), str):
        raise BadRowError(f"field {name!r} has a function_call whose value is not JSON with a name and arguments")
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments") or {}}}
