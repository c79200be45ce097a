"""What a chat template makes of messages, found by trying it: how it takes a tool call's arguments, what it leaves out.

A template is a program, and what it does with a message cannot be read off its text. Conversations of marked words
tell: a mark that is not in the rendered text was left out.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from paragone_models.errors import TextError
from paragone_models.text.rendering import StoppedError

__all__ = ["PROBE", "PROBE_TOOL", "Arguments", "arguments_form", "leaves_out", "notes_of", "with_arguments"]

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str | TextError]
Arguments = Literal["mapping", "text", "either"]
"""How a template takes the arguments of a tool call: as a mapping, as a text that it concatenates, or either way."""

PROBE = "paragone7probe"
"""Stands in for a text to see whether a template writes it."""

PROBE_TOOL: Message = {
    "type": "function",
    "function": {"name": "look", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
"""Stands in for the tools of a conversation, where a template is one for those."""

_KEY, _VALUE = "paragone7key", "paragone7value"
_ARGUMENTS = {_KEY: _VALUE}
_THOUGHT, _EARLIER, _ANSWER = "paragone7thought", "paragone7earlier", "paragone7answer"
_THINK_TAGS = re.compile(r"</?think>")
# How often a text that was not found behind the one before it is looked for from the start: some templates move the
# system message, and a search from the start for every message would take the square of their number.
_MOVED = 512


def arguments_form(render: Render) -> Arguments:
    """Return how a template takes the arguments of a tool call, tried on both forms."""
    for bare in (False, True):  # templates that want every call answered, and such that know no tool results
        mapped = render(_calling(_ARGUMENTS, bare=bare))
        written = render(_calling(json.dumps(_ARGUMENTS), bare=bare))
        # Quoted once more, a text would not be there as it is.
        takes_text = isinstance(written, str) and json.dumps(_ARGUMENTS) in written
        # Python's own form of a mapping is no JSON: a template that writes it was made for a text.
        if isinstance(mapped, str) and _KEY in mapped and _VALUE in mapped and f"'{_KEY}'" not in mapped:
            return "either" if takes_text else "mapping"
        if takes_text:
            return "text"
        if isinstance(mapped, StoppedError):
            break  # tried again it takes as long again
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
    if arguments is None or arguments == "":  # SDKs write so what a call without arguments has
        arguments = {}
    if form == "text" and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif form != "text" and isinstance(arguments, str):
        arguments = _parsed(arguments, form)
    return {**call, "arguments": arguments}


def _parsed(arguments: str, form: Arguments) -> dict[str, Any] | str:
    try:
        parsed = json.loads(arguments, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        if form == "either":
            return arguments  # what a policy wrote wrongly is judged as it wrote it
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
            found = _end_of(words, text, place)
            if found < 0:
                moved += 1
                # The next one follows where the others were, so the place stays.
                if moved > _MOVED or _end_of(words, text, 0) < 0:
                    return True
            else:
                place = found
    return False


def _words(message: Message) -> list[str]:
    pieces = _THINK_TAGS.split(message["content"])
    thoughts = message.get("reasoning_content")
    if isinstance(thoughts, str):
        pieces.insert(0, thoughts)
    for call in message.get("tool_calls") or () if "tool_calls" in message else ():
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            pieces += _strings([function.get("name"), function.get("arguments")])
    return [stripped for piece in pieces if (stripped := piece.strip())]


def _strings(values: list[Any]) -> list[str]:
    """Return all texts in values, at any depth, in the order of their writing."""
    strings, waiting = [], values[::-1]  # a stack of our own: recursion would end at a depth that a sender chooses
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            strings.append(value)
        elif isinstance(value, Mapping):
            waiting.extend(part for pair in reversed(list(value.items())) for part in reversed(pair))
        elif isinstance(value, list | tuple):
            waiting.extend(reversed(value))
    return strings


def _end_of(words: str, text: str, start: int) -> int:
    """Return where words end in a text, from a place on, as they are or as JSON; -1 where they are not."""
    for written in _FORMS:
        form = written(words)
        found = text.find(form, start)
        if found >= 0:
            return found + len(form)
    return -1


# Called one after the other: nearly all words are found as they are.
_FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda words: json.dumps(words, ensure_ascii=False)[1:-1],
    lambda words: json.dumps(words)[1:-1],
)


def notes_of(render: Render, *, keeps_thoughts: bool, arguments: Arguments | None) -> list[str]:
    """Return what a template leaves out of conversations, in sentences.

    Args:
        keeps_thoughts: the model is meant to read a response's thoughts.
        arguments: how it takes the arguments of tool calls; None where it has no place for calls.
    """
    question: Message = {"role": "user", "content": "q"}
    answer: Message = {"role": "assistant", "content": _ANSWER}
    thinking: Message = {"role": "assistant", "content": f"<think>{_THOUGHT}</think>{_ANSWER}"}
    apart: Message = {"role": "assistant", "content": _ANSWER, "reasoning_content": _THOUGHT}
    plain = render([question, answer])
    if isinstance(plain, TextError):  # one probe is enough: each takes as long as the template may
        return [f"not even a question and its answer can be read: {plain}"]
    notes = []
    if keeps_thoughts and _lacks(render, [question, thinking], _THOUGHT):
        notes.append("the chat template cuts the thoughts of a response (<think>…</think>) away: they are not scored")
    if keeps_thoughts and _lacks(render, [question, apart], _THOUGHT):
        notes.append("the chat template leaves out reasoning_content")
    if _lacks(render, [question, thinking, question, answer], _THOUGHT):
        notes.append("the chat template cuts the thoughts of earlier turns away")
    if _lacks(render, [{"role": "system", "content": _EARLIER}, question, answer], _EARLIER):
        notes.append("the chat template leaves out system messages: they are refused")
    if arguments is not None:
        calling = [with_arguments(dict(message), arguments) for message in _calling(_ARGUMENTS, bare=False)]
        if _lacks(render, calling, _VALUE):
            notes.append("the chat template leaves out the arguments of tool calls")
    if _ANSWER not in plain:
        notes.append("the chat template leaves out the response: every text is refused")
    return notes


def _lacks(render: Render, messages: Sequence[Message], mark: str) -> bool:
    text = render(messages)
    return isinstance(text, str) and mark not in text
