"""What goes into an oracle and what comes out: the words that routes, oracle and answers share.

Rows are responses in the order of the request, n of them; an item is a pair, an item or a group of the request; d is
the length of a representation.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from paragone.wire import Message, Prompt, Response, Truncation, Usage
from paragone_models.messages import Conversation, conversation
from paragone_service.errors import ClientGoneError, ServiceError
from paragone_service.timings import Timings

__all__ = ["Asked", "Call", "Represented", "as_conversation", "item_of", "placed", "unless_gone"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a request and the responses to it whose representations are wanted."""

    prompt: Prompt
    tools: list[dict[str, JsonValue]] | None
    responses: Sequence[Response]


@dataclass(frozen=True)
class Call:
    """How a request wants to be answered.

    Attributes:
        where: name of the request's list, for messages: pairs, items or groups.
        truncation: what happens to conversations over the limit.
        report: put errors in the place of items, instead of refusing the request.
        gone: returns once the client has left; None if nobody can leave.
        timings: filled in on the way.
        client: who asks, for fairness among those who wait: requests of equal clients wait in one line.
    """

    where: Literal["pairs", "items", "groups"]
    truncation: Truncation = "prompt"
    report: bool = False
    gone: Callable[[], Awaitable[None]] | None = None
    timings: Timings = field(default_factory=Timings)
    client: Hashable = None


@dataclass(frozen=True)
class Represented:
    """The representations of a request.

    Attributes:
        vectors: float32, NaN in the rows of an item with a problem. [n, d]
        dropped: tokens cut from each prompt. [n]
        problems: why an item has no answer, by its index; empty unless the call reports errors.
        usage: what it cost.
    """

    vectors: NDArray[np.float32]
    dropped: NDArray[np.uint32]
    problems: dict[int, ServiceError]
    usage: Usage


def as_conversation(asked: Asked, response: Response) -> Conversation:
    """Return a wire conversation as the models know it."""
    prompt = asked.prompt if isinstance(asked.prompt, str) else [_plain(message) for message in asked.prompt]
    if isinstance(response, str):
        return conversation(prompt, response, asked.tools)
    if isinstance(response, Message):
        return conversation(prompt, _plain(response), asked.tools)
    return conversation(prompt, [_plain(message) for message in response], asked.tools)


def _plain(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude_none=True)


def placed(error: ServiceError, call: Call, item: int) -> ServiceError:
    """Return the error of one item as the error of the whole request."""
    return error.at(item, f"{call.where}[{item}]: {error.message}")


def item_of(asked: Sequence[Asked], row: int) -> int:
    """Return the index of the item that a row belongs to."""
    for item, one in enumerate(asked):
        row -= len(one.responses)
        if row < 0:
            return item
    raise IndexError("a row beyond the last response")


async def unless_gone(work: Coroutine[Any, Any, Result], gone: Callable[[], Awaitable[None]]) -> Result:
    """Return what ``work`` returns, or cancel it when the client leaves first.

    Raises:
        ClientGoneError: if the client left.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
