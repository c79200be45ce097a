"""What a judge is shown of a prompt and of responses: texts, and conversations written out where they are longer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.text.messages import plain_text, strip_reasoning
from paragone_service.http.errors import ServiceError
from paragone_service.judge.verdicts import Shown
from paragone_service.pairs.source import Duel
from paragone_service.scoring.request import response_messages

__all__ = ["shown_texts"]


def shown_texts(duel: Duel, places: Sequence[str], *, keep_reasoning: bool, as_chat: bool) -> Shown:
    """Return what a judge is shown of a duel.

    Args:
        places: which of its responses, first or second, in the order of showing.
        keep_reasoning: show the thoughts of responses too.
        as_chat: whether the prompt is sent as messages, which have no place for tools.

    Raises:
        ServiceError: ``empty_prompt`` or ``unsupported_content``.
    """
    try:
        prompt = _plain([{"role": "user", "content": duel.prompt}] if isinstance(duel.prompt, str) else _dumped(duel))
        responses = [_response(getattr(duel, place), keep_reasoning=keep_reasoning) for place in places]
    except TextError as error:
        raise ServiceError(ErrorCode(error.code), str(error)) from None
    if not any(message["content"].strip() or message.get("tool_calls") for message in prompt):
        raise ServiceError(ErrorCode.EMPTY_PROMPT, "the prompt is empty: there is nothing that a response could answer")
    if duel.tools and as_chat:
        raise ServiceError(
            ErrorCode.UNSUPPORTED_CONTENT,
            "this judge is sent the prompt as a conversation and would take the tools for its own: leave them out, or "
            "ask a judge with another format",
        )
    text = _written(prompt, "user")
    if duel.tools:
        text += "\n\n[tools]\n" + json.dumps(duel.tools, ensure_ascii=False)
    return Shown(prompt, text, tuple(responses))


def _dumped(duel: Duel) -> list[dict[str, Any]]:
    assert not isinstance(duel.prompt, str)
    return [message.model_dump(mode="json", exclude_none=True) for message in duel.prompt]


def _plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [plain_text(message) for message in messages]


def _response(response: Any, *, keep_reasoning: bool) -> str:
    messages = _plain(response_messages(response))
    if not messages:
        raise TextError("unsupported_content", "a response needs at least one message; an empty one has content ''")
    if not keep_reasoning:
        messages = [strip_reasoning(message) for message in messages]
    return _written(messages, "assistant")


def _written(messages: Sequence[Mapping[str, Any]], role: str) -> str:
    """Return messages as one text: the content of a single one of its usual role, else a transcript."""
    if len(messages) == 1 and messages[0]["role"] == role and messages[0].keys() == {"role", "content"}:
        return str(messages[0]["content"])
    turns = []
    for message in messages:
        lines = [f"[{message['role']}]"]
        if message.get("reasoning_content"):
            lines.append(f"<think>{message['reasoning_content']}</think>")
        lines.append(message["content"])
        if message.get("tool_calls"):
            lines.append("[tool calls] " + json.dumps(message["tool_calls"], ensure_ascii=False))
        turns.append("\n".join(line for line in lines if line))
    return "\n\n".join(turns)
