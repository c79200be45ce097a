"""Conversations: what a caller gives, in one form.

A message is a mapping in OpenAI's shape: ``role``, ``content`` (text, text parts or None), and optionally
``tool_calls``, ``tool_call_id``, ``reasoning_content`` and ``name``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paragone_models.errors import TextError

__all__ = ["OPTIONAL_FIELDS", "Conversation", "Message", "characters", "conversation", "plain_text", "strip_reasoning"]

Message = Mapping[str, Any]

OPTIONAL_FIELDS = ("tool_calls", "tool_call_id", "reasoning_content", "name")
"""What a message may have beside role and content."""

_OPENED = re.compile(r"^\s*<think>.*?(</think>\s*|$)", re.DOTALL)
_CLOSED = re.compile(r"^.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt, one response to it, and the tools that were on offer.

    Attributes:
        prompt: messages before the response.
        response: the messages whose quality is judged: one by the assistant, or an agent's turns.
        tools: JSON schemas of the tools, or None.
    """

    prompt: tuple[Message, ...]
    response: tuple[Message, ...]
    tools: tuple[Message, ...] | None = None


def conversation(
    prompt: str | Sequence[Message],
    response: str | Message | Sequence[Message],
    tools: Sequence[Message] | None = None,
) -> Conversation:
    """Return the one form of a conversation.

    Args:
        prompt: one user message as text, or messages.
        response: the assistant's message as text, as a message, or an agent's messages.
        tools: JSON schemas of tools, or None.
    """
    before = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
    if isinstance(response, str):
        after: tuple[Message, ...] = ({"role": "assistant", "content": response},)
    elif isinstance(response, Mapping):
        after = (response,)
    else:
        after = tuple(response)
    return Conversation(before, after, tuple(tools) if tools else None)


def characters(messages: Sequence[Message]) -> int:
    """Return how many characters of content messages have; what is no message counts for nothing.

    Args:
        messages: in OpenAI's shape.
    """
    total = 0
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            total += len(content)
        elif isinstance(content, Sequence):
            total += sum(len(str(part.get("text", ""))) for part in content if isinstance(part, Mapping))
    return total


def plain_text(message: Message) -> dict[str, Any]:
    """Return the message with its content as one string, text parts joined, and no empty fields.

    Args:
        message: in OpenAI's shape.

    Raises:
        TextError: ``unsupported_content`` for a part that is not text, or something that is no message.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TextError("unsupported_content", "a message is a mapping with a role: this one is not")
    values = {key: value for key, value in message.items() if value is not None}
    for field in OPTIONAL_FIELDS:
        if field in values and not values[field]:
            del values[field]
    content = values.get("content", "")
    values["content"] = content if isinstance(content, str) else _joined(content)
    return values


def _joined(parts: Any) -> str:
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise TextError("unsupported_content", "a message's content is a text or a list of parts: this one is neither")
    for part in parts:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise TextError(
                "unsupported_content", f"this model reads text; a content part has type {part.get('type')!r}"
            )
    return "".join(part["text"] for part in parts)


def strip_reasoning(message: Message) -> dict[str, Any]:
    """Return the message without its reasoning: the ``<think>`` part of the content and ``reasoning_content``.

    A part that was never closed is reasoning to its end; one that was never opened (some templates write the opening
    tag into the prompt) ends at ``</think>``.

    Args:
        message: with its content as one string.
    """
    values = {key: value for key, value in message.items() if key != "reasoning_content"}
    content = values["content"]
    stripped = _OPENED.sub("", content, count=1)
    values["content"] = stripped if stripped != content else _CLOSED.sub("", content, count=1)
    return values
