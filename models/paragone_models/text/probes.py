"""What a chat template makes of messages, found by trying it: how it takes a tool call's arguments, what it leaves out.

A template is a program, and what it does with a message cannot be read off its text. Conversations of marked words
tell: a mark that is not in the rendered text was left out.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from paragone_models.errors import TextError

__all__ = ["PROBE", "Arguments", "arguments_form", "leaves_out", "notes_of", "with_arguments"]

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str | TextError]
Arguments = Literal["mapping", "text"]
"""How a template takes the arguments of a tool call: as a mapping, or as the text of one, which it concatenates."""

PROBE = "paragone7probe"
"""Stands in for a text to see whether a template writes it."""

_KEY, _VALUE = "paragone7key", "paragone7value"
_THOUGHT, _EARLIER, _ANSWER = "paragone7thought", "paragone7earlier", "paragone7answer"
_THINK_TAGS = re.compile(r"</?think>")
# How often a text that was not found behind the one before it is looked for from the start: some templates move the
# system message, and a search from the start for every message would take the square of their number.
_MOVED = 64


def arguments_form(render: Render) -> Arguments:
    """Return how a template takes the arguments of a tool call, tried on both forms."""
    for bare in (False, True):  # templates that want every call answered, and such that know no tool results
        mapped = render(_calling({_KEY: _VALUE}, bare=bare))
        written = render(_calling(json.dumps({_KEY: _VALUE}), bare=bare))
        # Python's own form of a mapping is no JSON: a template that writes it was made for a text.
        if isinstance(mapped, str) and _KEY in mapped and _VALUE in mapped and f"'{_KEY}'" not in mapped:
            return "mapping"
        if isinstance(written, str) and _VALUE in written:
            return "text"
    return "mapping"


def _calling(arguments: object, *, bare: bool) -> list[Message]:
    # Nine letters and digits, as Mistral's templates want an id to be.
    call = {"id": "paragone7", "type": "function", "function": {"name": "look", "arguments": arguments}}
    messages: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    if bare:
        return messages
    result = {"role": "tool", "content": "r", "tool_call_id": "paragone7", "name": "look"}
    return [*messages, result, {"role": "assistant", "content": "a"}]


def with_arguments(message: dict[str, Any], form: Arguments) -> dict[str, Any]:
    """Return a message with the arguments of its tool calls in a template's form.

    Raises:
        TextError: ``unsupported_content``, if the template writes a mapping and a text holds none.
    """
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        return message
    return {**message, "tool_calls": [_formed(call, form) for call in calls]}


def _formed(call: Any, form: Arguments) -> Any:
    if not isinstance(call, Mapping):
        return call
    inner = call.get("function")
    if isinstance(inner, Mapping):
        return {**call, "function": _formed(inner, form)}
    if "arguments" not in call:
        return call
    arguments = call["arguments"]
    if form == "text":
        return call if isinstance(arguments, str) else {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    if arguments is None or arguments == "":  # SDKs write so what a call without arguments has
        return {**call, "arguments": {}}
    return {**call, "arguments": _parsed(arguments)} if isinstance(arguments, str) else call


def _parsed(arguments: str) -> dict[str, Any]:
    try:
        parsed = json.loads(arguments, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise TextError(
            "unsupported_content",
            "the arguments of a tool call are a text that is no JSON object, and the model's chat template writes "
            "the fields of one: send an object",
        )
    return parsed


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def leaves_out(messages: Sequence[Message], text: str) -> bool:
    """Return whether words of the messages are not in the rendered text as they were sent.

    White space around them and the tags of thoughts do not count: templates write their own.
    """
    place, moved = 0, 0
    for message in messages:
        for words in _words(message):
            found = text.find(words, place)
            if found < 0 and moved < _MOVED:
                moved += 1
                found = _anywhere(text, words)
                if found >= 0:
                    continue  # the next one follows where the others were
            if found < 0:
                return True
            place = found + len(words)
    return False


def _words(message: Message) -> list[str]:
    pieces = _THINK_TAGS.split(message["content"])
    thoughts = message.get("reasoning_content")
    if isinstance(thoughts, str):
        pieces.insert(0, thoughts)
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _anywhere(text: str, words: str) -> int:
    # As it is, or as JSON: some templates write what a tool returned so.
    for form in (words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1]):
        found = text.find(form)
        if found >= 0:
            return found
    return -1


def notes_of(render: Render, *, keeps_thoughts: bool) -> list[str]:
    """Return what a template leaves out of conversations without refusing them, in sentences.

    Args:
        keeps_thoughts: the model is meant to read a response's thoughts.
    """
    question: Message = {"role": "user", "content": "q"}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    thinking: Message = {"role": "assistant", "content": f"<think>{_THOUGHT}</think>{_ANSWER}"}
    apart: Message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT}
    notes = []
    if keeps_thoughts and _lacks(render, [question, thinking], _THOUGHT):
        notes.append("the chat template cuts the thoughts of a response (<think>…</think>) away: they are not scored")
    if keeps_thoughts and _lacks(render, [question, apart], _THOUGHT):
        notes.append("the chat template leaves out reasoning_content")
    if _lacks(render, [question, thinking, question, answer], _THOUGHT):
        notes.append("the chat template cuts the thoughts of earlier turns away")
    if _lacks(render, [{"role": "system", "content": _EARLIER}, question, answer], _EARLIER):
        notes.append("the chat template leaves out system messages: they are refused")
    if _lacks(render, [question, answer], _ANSWER):
        notes.append("the chat template leaves out the response: every text is refused")
    return notes


def _lacks(render: Render, messages: Sequence[Message], mark: str) -> bool:
    text = render(messages)
    return isinstance(text, str) and mark not in text
