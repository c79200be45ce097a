"""Count what a body holds before anything is made of it: values of JSON, messages, parts, and what tools are made of.

A value of JSON costs two bytes to send and a microsecond to validate, on the thread that serves everybody. So the body
is counted as bytes before it is parsed, and what the wire types would walk through is counted before they do.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError

__all__ = ["MAX_DEPTH", "MAX_NODES", "MAX_PARTS", "MAX_VALUES", "check_counts", "check_values"]

MAX_VALUES = 1_000_000
"""Values of a body's JSON: as many as the most messages, parts and tools have, and some."""
MAX_PARTS = 200_000
"""Messages, content parts, tools and responses of all items of one request."""
MAX_NODES = 200_000
"""Values inside the tools, tool calls and other objects of a sender's own shape, of all items of one request."""
MAX_DEPTH = 64
"""How deep such an object may be nested: templates write it by recursion."""

_QUOTE, _COMMA, _LIST, _OBJECT = b'",[{'
_RESPONSES = ("responses", "references")


def check_values(body: bytes) -> None:
    """Refuse a body with too many values, unparsed.

    Raises:
        ServiceError: ``too_many_items``.
    """
    # Each value but the first of its list or object has a comma before it, and the first one a bracket.
    if body.count(b",") + body.count(b"[") + body.count(b"{") <= MAX_VALUES:
        return  # nearly always: texts rarely have that many commas
    # Without escapes every quotation mark opens or closes a text, and what lies inside does not count.
    letters = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    inside = np.bitwise_xor.accumulate(letters == _QUOTE)
    separators = (letters == _COMMA) | (letters == _LIST) | (letters == _OBJECT)
    values = int(np.count_nonzero(separators & ~inside))
    if values > MAX_VALUES:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"{values} JSON values in one request; the limit is {MAX_VALUES}: split it, or send smaller tools",
        )


def check_counts(items: Sequence[Any], list_field: str, *, max_messages: int) -> None:
    """Refuse more messages, parts, tools and responses than anybody has, and objects that are too large or too deep.

    A bad element ends its list at once, but a sound one becomes an object: a million messages of 16 bytes would hold up
    everybody else for seconds.

    Args:
        list_field: the name of the request's list, for messages.
        max_messages: most messages of one conversation.

    Raises:
        ServiceError: ``too_many_items``, or ``invalid_request`` for an object that is nested too deep.
    """
    parts = nodes = 0
    for index, item in enumerate(items):
        if type(item) is not dict:
            continue
        for value in item.values():
            if type(value) is not str:
                parts += _parts_of(value)
        messages = _longest_conversation(item)
        if messages > max_messages:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS,
                f"{list_field}[{index}]: {messages} messages in one conversation; the limit is {max_messages}: shorten "
                "it, or raise max_messages",
                item=index,
            )
        if parts <= MAX_PARTS:  # else it is refused below, and need not be looked into
            nodes += _nodes_of(item, MAX_NODES - nodes, f"{list_field}[{index}]", index)
    if parts > MAX_PARTS:
        raise ServiceError(
            ErrorCode.TOO_MANY_ITEMS,
            f"{parts} messages, parts, tools and responses in one request; the limit is {MAX_PARTS}: split it",
        )


def _parts_of(value: object) -> int:
    """Return how many messages, parts, tools or responses a field of an item holds."""
    if type(value) is dict:
        return sum(len(inner) for inner in value.values() if type(inner) is list)
    if type(value) is list:
        messages = [inner for inner in value if type(inner) is dict]
        return len(value) + sum(map(_parts_of, messages)) + sum(len(inner) for inner in value if type(inner) is list)
    return 0


def _longest_conversation(item: dict[str, Any]) -> int:
    """Return how many messages the longest conversation of an item has: its prompt's, and those of one response."""
    prompt = item.get("prompt")
    several = [inner for name in _RESPONSES if type(item.get(name)) is list for inner in item[name]]
    responses = [item.get("response"), item.get("first"), item.get("second"), *several]
    longest = max((len(response) for response in responses if type(response) is list), default=1)
    return longest + (len(prompt) if type(prompt) is list else 1)


def _nodes_of(item: dict[str, Any], most: int, place: str, index: int) -> int:
    """Return how many values an item's objects of free shape hold.

    Raises:
        ServiceError: as soon as there are more than ``most``, or one is nested too deep.
    """
    count = 0
    # A stack of our own: recursion would end at a depth that a sender chooses.
    waiting = [(value, 1) for value in _free_objects(item)]
    while waiting:
        value, depth = waiting.pop()
        inner = value.values() if type(value) is dict else value
        count += len(inner)
        if count > most:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS,
                f"{place}: more than {MAX_NODES} values in the tools and tool calls of one request: split it, or send "
                "smaller tools",
                item=index,
            )
        if depth > MAX_DEPTH:
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                f"{place}: an object nested more than {MAX_DEPTH} deep in its tools or tool calls: flatten it",
                item=index,
            )
        waiting.extend((one, depth + 1) for one in inner if type(one) is dict or type(one) is list)
    return count


def _free_objects(item: dict[str, Any]) -> Iterator[list[Any] | dict[str, Any]]:
    """Yield the tools of an item, and of its messages all that is neither a text nor a list of text parts."""
    for name, value in item.items():
        if name == "tools" and type(value) is list:
            yield value
            continue
        turns = value if name in _RESPONSES and type(value) is list else [value]
        for messages in turns:
            for message in messages if type(messages) is list else [messages]:
                if type(message) is dict and len(message) > 1:
                    yield from _free_objects_of(message)


def _free_objects_of(message: dict[str, Any]) -> Iterator[list[Any] | dict[str, Any]]:
    for name, value in message.items():
        if name == "content" and type(value) is list:
            for part in value:
                if type(part) is dict:
                    yield from (inner for inner in part.values() if type(inner) is dict or type(inner) is list)
        elif type(value) is dict or type(value) is list:
            yield value
