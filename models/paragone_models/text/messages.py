"""Messages in one form: their content as one text, without fields that say nothing, and what they count for."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paragone_models.errors import TextError
from paragone_models.spec import PRINCIPLE
from paragone_models.text.template import Message

__all__ = [
    "IMAGE_CHARACTERS",
    "MESSAGE_CHARACTERS",
    "characters",
    "plain_text",
    "question_of",
    "split_reasoning",
    "strip_reasoning",
    "written",
]

_OPENED = re.compile(r"^\s*<think>.*?(</think>\s*|$)", re.DOTALL)
_CLOSED = re.compile(r"^.*?</think>\s*", re.DOTALL)

MESSAGE_CHARACTERS = 16
"""What an empty message costs, in characters: its turn has to be rendered and tokenised like any other."""
IMAGE_CHARACTERS = 4096
"""What an image costs, in characters: about what it takes to decode one, and what it has in tokens."""
# Of any value that is no text: a number, or the brackets of a list.
_VALUE_CHARACTERS = 2
_COUNTED = ("tool_calls", "reasoning_content", "name")


def plain_text(message: Message, marked: Callable[[Message], str] | None = None) -> dict[str, Any]:
    """Return the message with its content as one string, text parts joined, and no empty fields.

    Args:
        marked: gives what stands for an image in the string; None: the model reads text alone.

    Raises:
        TextError: ``unsupported_content`` for a part that is not read, or something that is no message.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TextError("unsupported_content", "a message is a mapping with a role: this one is not")
    # What an SDK dumps has all fields of its type: those that are null or empty say nothing.
    values = {key: value for key, value in message.items() if not _says_nothing(value)}
    content = values.get("content", "")
    values["content"] = content if isinstance(content, str) else _joined(content, marked)
    return values


def _says_nothing(value: object) -> bool:
    return value is None or (not value and isinstance(value, str | Sequence | Mapping))


def _joined(parts: Any, marked: Callable[[Message], str] | None) -> str:
    if not isinstance(parts, Sequence) or not all(isinstance(part, Mapping) for part in parts):
        raise TextError("unsupported_content", "a message's content is a text or a list of parts: this one is neither")
    texts = []
    for part in parts:
        if marked is not None and part.get("type") == "image_url":
            texts.append(marked(part))
        elif part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            reads = "text" if marked is None else "text and images"
            raise TextError(
                "unsupported_content", f"this model reads {reads}; a content part has type {part.get('type')!r}"
            )
    return "".join(texts)


def strip_reasoning(message: Message) -> dict[str, Any]:
    """Return the message without its reasoning: the ``<think>`` part of the content and ``reasoning_content``.

    Args:
        message: with its content as one string.
    """
    values = {key: value for key, value in message.items() if key != "reasoning_content"}
    _, values["content"] = split_reasoning(values["content"])
    return values


def split_reasoning(content: str) -> tuple[str, str]:
    """Return the ``<think>`` part of a content, and the rest; the first is empty where there is none.

    A part that was never closed is reasoning to its end; one that was never opened (some templates write the opening
    tag into the prompt) ends at ``</think>``.
    """
    # First what the response opened itself; only without that a tag that the prompt opened.
    part = _OPENED.match(content) or _CLOSED.match(content)
    return ("", content) if part is None else (part.group(), content[part.end() :])


def question_of(question: str | None, principle: str | None) -> tuple[dict[str, Any], ...]:
    """Return the message that asks about a response, of a model that follows a principle; none of any other model.

    Args:
        question: the model's, with ``{principle}`` in it.

    Raises:
        TextError: ``unsupported_content`` if there is a question and no principle, or the other way about.
    """
    if question is None:
        if principle is not None:
            raise TextError("unsupported_content", "this model has no place for a principle: leave it out")
        return ()
    if not (principle or "").strip():
        raise TextError("unsupported_content", "this model judges by a principle: send one with each conversation")
    return ({"role": "user", "content": question.replace(PRINCIPLE, str(principle))},)


def characters(messages: Sequence[Message]) -> int:
    """Return how many characters of content messages have, and a few for each of them; no message costs nothing."""
    total = MESSAGE_CHARACTERS * len(messages)
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            total += len(content)
        # What is malformed is refused later, with its reason; here it only must not count.
        elif isinstance(content, Sequence):
            total += sum(_part_characters(part) for part in content if isinstance(part, Mapping))
        for name in _COUNTED if isinstance(message, Mapping) and len(message) > 2 else ():
            total += written(message[name]) if name in message else 0
    return total


def _part_characters(part: Message) -> int:
    return IMAGE_CHARACTERS if part.get("type") == "image_url" else len(str(part.get("text", "")))


def written(value: object) -> int:
    """Return about how many characters a template writes of a value, at any depth."""
    total, waiting = 0, [value]  # a stack of our own: recursion would end at a depth that a sender chooses
    while waiting:
        part = waiting.pop()
        total += len(part) if isinstance(part, str) else _VALUE_CHARACTERS
        if isinstance(part, Mapping):
            waiting.extend(part)
            waiting.extend(part.values())
        elif isinstance(part, list | tuple):
            waiting.extend(part)
    return total
