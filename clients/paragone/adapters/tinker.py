"""tinker-cookbook: a ``PreferenceModel`` for its preference environments."""

from collections.abc import Sequence
from typing import Any, Protocol

from paragone.async_client import AsyncClient

__all__ = ["PreferenceModel"]


class _Comparison(Protocol):
    """What is read of tinker-cookbook's ``Comparison``: three lists of messages."""

    prompt_conversation: Sequence[Any]
    completion_A: Sequence[Any]  # noqa: N815 (the host's name)
    completion_B: Sequence[Any]  # noqa: N815


class PreferenceModel:
    """Says how much B is preferred to A: 1 strongly, 0 not at all, -1 when A is strongly preferred.

    Args:
        model: id of a hosted model; the client's if None.
    """

    def __init__(self, client: AsyncClient, *, model: str | None = None) -> None:
        self._client = client
        self._model = model

    async def __call__(self, comparison: _Comparison) -> float:
        """Return ``P(B ≻ A) − P(A ≻ B)``, in [-1, 1].

        Raises:
            ParagoneError: if there is no answer. It is not a tie: a 0 would say that both are equally good.
        """
        probability = await self._client.prefer(
            _messages(comparison.prompt_conversation),
            _messages(comparison.completion_B),
            _messages(comparison.completion_A),
            model=self._model,
        )
        return 2.0 * probability - 1.0


def _messages(turns: Sequence[Any]) -> list[dict[str, Any]]:
    return [_message(turn) for turn in turns]


def _message(turn: Any) -> dict[str, Any]:
    """Return a message of tinker-cookbook's renderers as the wire takes it.

    Thoughts are put into their own field, and what is there for training only is left out. Parts that are neither text
    nor thoughts stay parts: the service refuses what its model cannot read.
    """
    message = {name: turn[name] for name in ("role", "content", "name", "tool_call_id") if turn.get(name) is not None}
    calls = turn.get("tool_calls")
    if calls:
        message["tool_calls"] = [call if isinstance(call, dict) else call.model_dump(mode="json") for call in calls]
    parts = message.get("content")
    if isinstance(parts, list):
        # Parts of text alone become one text: most chat templates read nothing else.
        thoughts = "".join(part["thinking"] for part in parts if part.get("type") == "thinking")
        rest = [part for part in parts if part.get("type") != "thinking"]
        plain = all(part.get("type") == "text" for part in rest)
        message["content"] = "".join(part["text"] for part in rest) if plain else rest
        if thoughts:
            message["reasoning_content"] = thoughts
    return message
