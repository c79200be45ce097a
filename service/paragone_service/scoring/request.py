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
from paragone_models.text.reader import Conversation, conversation
from paragone_service.http.errors import ClientGoneError, ServiceError
from paragone_service.http.timings import Timings

__all__ = ["Asked", "Call", "Named", "Represented", "as_conversation", "items_of", "placed", "unless_gone"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Named:
    """A response that is named by the id of an earlier answer."""

    id: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a request and the responses to it whose representations are wanted.

    Attributes:
        prompt: what was asked; None where all responses are named.
        tools: the tools on offer, or None.
        responses: in full, or named.
        named: whether any of them is.
    """

    prompt: Prompt | None
    tools: list[dict[str, JsonValue]] | None
    responses: Sequence[Response | Named]
    named: bool = False


@dataclass(frozen=True)
class Call:
    """How a request wants to be answered.

    Attributes:
        where: name of the request's list, for messages: pairs, items or groups.
        truncation: what happens to conversations over the limit.
        report: put errors in the place of items, instead of refusing the request.
        gone: returns once the client has left; None if nobody can leave.
        timings: filled in on the way.
        ids: whether the answer names each response by an id.
        client: who asks, for fairness among those who wait: requests of equal clients wait in one line.
    """

    where: Literal["pairs", "items", "groups"]
    truncation: Truncation = "prompt"
    report: bool = False
    gone: Callable[[], Awaitable[None]] | None = None
    timings: Timings = field(default_factory=Timings)
    ids: bool = False
    client: Hashable = None


@dataclass(frozen=True)
class Represented:
    """The representations of a request.

    Attributes:
        vectors: float32, NaN in the rows of an item with a problem. [n, d]
        dropped: tokens cut from each prompt. [n]
        problems: why an item has no answer, by its index; empty unless the call reports errors.
        usage: what it cost.
        ids: the id of each response, None where it has none; empty unless the call wants ids. [n]
    """

    vectors: NDArray[np.float32]
    dropped: NDArray[np.uint32]
    problems: dict[int, ServiceError]
    usage: Usage
    ids: Sequence[str | None] = ()


def as_conversation(asked: Asked, response: Response | Named) -> Conversation:
    """Return a wire conversation as the models know it; it must have come in full."""
    assert asked.prompt is not None
    assert not isinstance(response, Named)
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


def items_of(asked: Sequence[Asked]) -> list[int]:
    """Return for each row the index of the item that it belongs to, [n]."""
    return [item for item, one in enumerate(asked) for _ in one.responses]


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
