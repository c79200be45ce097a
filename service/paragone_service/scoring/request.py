"""A request on its way through the server: its items, their rows, how it wants to be answered, and what is wrong.

An item is a pair, an item or a group of the request's list; its index is its place in that list, as it was sent. A row
is one response of an item. Rows stand in the order of the request, n of them; d is the length of a representation.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from paragone.codes import ErrorCode
from paragone.wire import ItemError, Message, Prompt, Response, Truncation, Usage
from paragone_models.steps import Aggregation
from paragone_models.text.pairs import PairText
from paragone_models.text.reader import Readable, conversation
from paragone_models.text.rendered import Rendered
from paragone_service.http.errors import ServiceError
from paragone_service.quotas import Spending

if TYPE_CHECKING:  # what is asked together has calls of its own
    from paragone_service.scoring.together import Together

__all__ = [
    "Call",
    "Deadline",
    "Problems",
    "Represented",
    "RequestItem",
    "Reservation",
    "ResponseId",
    "Row",
    "Steps",
    "Timings",
    "as_conversations",
    "prompt_messages",
    "response_messages",
]

Result = TypeVar("Result")


@dataclass
class Problems:
    """What is wrong with the items of one request.

    Here alone it is decided what an item's error does: it refuses the request, or it is kept and takes the place of
    the item's answer. Validation, reading, the cache, the engine and the arithmetic all add to the same object.

    Attributes:
        where: name of the request's list, for messages: pairs, items or groups.
        report: keep errors, instead of refusing the request.
        errors: those kept, by the items' indices.
        by_member: keep errors of single responses and references apart, so that the others of their item are answered
            for: it is a group, and has no order among its members.
        members: those kept, by the items' indices and the rows' positions.
    """

    where: str
    report: bool
    errors: dict[int, ServiceError] = field(default_factory=dict)
    by_member: bool = False
    members: dict[int, dict[int, ServiceError]] = field(default_factory=dict)

    def add(self, item: int, error: ServiceError, *, refusal: ServiceError | None = None) -> None:
        """Refuse the request, or keep the error; the first one of an item counts.

        Args:
            item: index of the item at fault.
            refusal: what the request is refused with, if not the item's error.

        Raises:
            ServiceError: unless the request reports errors.
        """
        if not self.report:
            # Here the error leaves its item: its message must say which one it was.
            whole = refusal or error
            raise whole.at(
                item,
                f"{self.where}[{item}]: {whole.message}",
                response=whole.response,
                reference=whole.reference,
                opponent=whole.opponent,
            )
        self.errors.setdefault(item, error)

    def add_row(self, row: "Row", error: ServiceError) -> None:
        """Refuse the request for what is wrong with one row, or keep the error, of the row or of its item.

        Raises:
            ServiceError: unless the request reports errors.
        """
        # A prompt is no row's own: its error is the item's, whose rows all have it.
        shared = error.code is ErrorCode.EMPTY_PROMPT
        response = row.position if self.by_member and row.reference is None and not shared else None
        reference = None if shared else row.reference
        if not self.report:
            name = "" if response is None else f".responses[{response}]"
            name = name if reference is None else f".references[{reference}]"
            message = f"{self.where}[{row.item}]{name}: {error.message}"
            raise error.at(row.item, message, response=response, reference=reference)
        error = error.at(row.item, response=response, reference=reference)
        if self.by_member:
            self.members.setdefault(row.item, {}).setdefault(row.position, error)
        else:
            self.errors.setdefault(row.item, error)

    def place(self, rows: Sequence[Result]) -> list[Result | ItemError]:
        """Return an answer's list: the rows of all items without an error, and each error in its item's place."""
        # Rows and errors together are all items: none has both, and none has neither.
        sound = iter(rows)
        return [
            self.errors[item].in_place(item) if item in self.errors else next(sound)
            for item in range(len(rows) + len(self.errors))
        ]


@dataclass(slots=True)
class Timings:
    """Times of one request, in seconds; zero where nothing was to do.

    Attributes:
        tokenize_s: rendering and tokenizing what no cache knew.
        queue_s: waiting for the thread that reads, and for the device: there from the queueing of the first response to
            the end of the last, without ``inference_s``.
        inference_s: the batches that responses of this request were in.
    """

    tokenize_s: float = 0.0
    queue_s: float = 0.0
    inference_s: float = 0.0


class Deadline:
    """The time until which a request wants its answer.

    Args:
        seconds: from now on.
        running: the timeout that ends the request, moved when the deadline is.
        chosen: whether the client named it, or the server's default counts.
    """

    def __init__(self, seconds: float, running: asyncio.Timeout | None = None, *, chosen: bool = True) -> None:
        self.seconds = seconds
        self.chosen = chosen
        self._started = time.monotonic()
        self._running = running

    def left_s(self) -> float:
        """Return how many seconds are left; negative once it has passed."""
        return self._started + self.seconds - time.monotonic()

    def shorten(self, seconds: float) -> None:
        """Have it end so many seconds after its start, unless the client chose an earlier end already."""
        if self.chosen and seconds >= self.seconds:
            return
        self.seconds, self.chosen = seconds, True
        if self._running is not None:
            self._running.reschedule(asyncio.get_running_loop().time() + self.left_s())

    def error(self) -> ServiceError:
        """Return what a request is refused with that has no answer in time."""
        return ServiceError(
            ErrorCode.DEADLINE_EXCEEDED,
            f"there was no answer within the {self.seconds:g} s that the request had: send fewer items at a time, or "
            "a longer deadline_s",
        )


class Reservation:
    """The work that a body is expected to hold which was not parsed yet.

    Args:
        cost: in characters.
        reserve: told to count so many more of a client's, or less.
    """

    __slots__ = ("_client", "_held", "_reserve", "cost")

    def __init__(self, cost: int, reserve: Callable[[Hashable, int], None], client: Hashable) -> None:
        self.cost = self._held = cost
        self._reserve = reserve
        self._client = client
        reserve(client, cost)

    def release(self) -> None:
        """Give it back; what was given back already stays so."""
        if self._held:
            self._reserve(self._client, -self._held)
            self._held = 0


@dataclass(frozen=True)
class Call:
    """How a request wants to be answered.

    Attributes:
        truncation: what happens to conversations over the limit.
        gone: returns once the client has left; None if nobody can leave.
        timings: filled in on the way.
        ids: whether the answer names each response by an id.
        tenant: whose entries of the cache count; None: those that everybody shares.
        spending: what is left of its key's quota; None for no end.
        deadline: when the answer is of no use any more; None for never.
        client: who asks, for fairness among those who wait: requests of equal clients wait in one line.
        rested: whether its client has rested for long enough to go ahead of others with something small.
        body_bytes: how long its body was; 0 where there was none.
        reservation: of its work, until it is admitted.
        rationales: whether the answer says what a judge said.
        bills: what judges on other servers have charged it, by their names.
        aggregation: what makes one reward of the steps of a process model; None: as the model says.
        together: the models of one backbone that it asks about the same responses, this one among them.
    """

    problems: Problems
    truncation: Truncation = "prompt"
    gone: Callable[[], Awaitable[None]] | None = None
    timings: Timings = field(default_factory=Timings)
    ids: bool = False
    client: Hashable = None
    body_bytes: int = 0
    deadline: Deadline | None = None
    tenant: str | None = None
    rested: bool = False
    spending: Spending | None = None
    reservation: Reservation | None = None
    rationales: bool = False
    bills: dict[str, Any] = field(default_factory=dict)
    aggregation: Aggregation | None = None
    together: "Together | None" = None


@dataclass(frozen=True, slots=True)
class ResponseId:
    """A response that is named by the id of an earlier answer."""

    id: str


@dataclass(frozen=True, slots=True)
class Steps:
    """A response that came as single steps, for a process model."""

    texts: tuple[str, ...]


AnyResponse = Response | ResponseId | Rendered | PairText | Steps


@dataclass(frozen=True, slots=True)
class RequestItem:
    """One item of a request: a prompt, and the responses to it whose representations are needed.

    Attributes:
        index: place in the request's list, as it was sent.
        prompt: what was asked; None where all responses are ids, or rendered with their prompts.
        responses: its own ones, and after them its references.
        own: how many are its own; None: all.
        has_ids: whether any of them is an id.
        principle: what they are judged by, if the request says.
    """

    index: int
    prompt: Prompt | None
    tools: list[dict[str, JsonValue]] | None
    responses: Sequence[AnyResponse]
    own: int | None = None
    has_ids: bool = False
    principle: str | None = None


# Slots, because a request of 10,000 pairs has 20,000 rows.
@dataclass(slots=True)
class Row:
    """One response of a request.

    Attributes:
        item: index of the item that it belongs to.
        position: its place among the responses and references of its item.
        prompt: digest of its prompt, where the answer shall name it by an id; None for an id that is not ours.
        id: the id that stands for it in the request; None where it came in full.
        reference: its place among the references of its item; None where it is one of the item's own responses.
    """

    item: int
    position: int
    key: bytes
    prompt: bytes | None = None
    id: str | None = None
    reference: int | None = None


@dataclass(frozen=True)
class Represented:
    """The representations of a request.

    Attributes:
        vectors: float32, NaN in the rows that have an error. [n, d]
        dropped: tokens cut from each prompt. [n]
        shown: whether the model saw all words of each conversation that were not cut. [n]
        items: the index of each item, in the order of its rows.
        ids: the id of each response, None where it has none; empty unless the call wants ids. [n]
        tokens: that the model read for each, now or when it was cached; None where nobody knows. [n]
        steps: log-odds of each step of a process model, NaN behind the last one; ``vectors`` are then what their
            aggregation gives, NaN without one. [n, most steps]
    """

    vectors: NDArray[np.float32]
    dropped: NDArray[np.uint32]
    shown: NDArray[np.bool_]
    items: Sequence[int]
    usage: Usage
    ids: Sequence[str | None] = ()
    tokens: NDArray[np.uint32] | None = None
    steps: NDArray[np.float32] | None = None


def as_conversations(
    rows: Sequence[tuple[RequestItem, Response | ResponseId | Rendered | PairText | Steps]],
) -> list[Readable]:
    """Return responses with their prompts as the models know them; all of them must have come in full.

    The conversations of one item share their prompt and tools as the same objects, made once.
    """
    found: list[Readable] = []
    last: RequestItem | None = None
    prompt: Sequence[dict[str, Any]] = ()
    tools: Sequence[dict[str, Any]] | None = None
    for item, response in rows:
        if isinstance(response, Rendered | PairText):
            found.append(response)
            continue
        if item is not last:
            assert item.prompt is not None
            prompt = prompt_messages(item.prompt)
            tools = tuple(item.tools) if item.tools else None
            last = item
        assert not isinstance(response, ResponseId)
        if isinstance(response, Steps):
            # The text is there to be counted; the steps are what is read.
            whole = conversation(prompt, "\n\n".join(response.texts), tools)
            found.append(replace(whole, steps=response.texts, principle=item.principle))
            continue
        after = response if isinstance(response, str) else response_messages(response)
        talk = conversation(prompt, after, tools)
        found.append(talk if item.principle is None else replace(talk, principle=item.principle))
    return found


def prompt_messages(prompt: Prompt) -> tuple[dict[str, Any], ...]:
    """Return the messages of a prompt; a text is one of the user's."""
    if isinstance(prompt, str):
        return ({"role": "user", "content": prompt},)
    return tuple(_plain(message) for message in prompt)


def response_messages(response: Response) -> list[dict[str, Any]]:
    """Return the messages of a response; a text is one of the assistant's."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return [_plain(message) for message in ([response] if isinstance(response, Message) else response)]


def _plain(message: Message) -> dict[str, Any]:
    return message.model_dump(mode="json", exclude_none=True)
