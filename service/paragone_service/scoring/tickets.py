"""What waits for a device: jobs, their tickets, and lanes in which tickets of many clients queue."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from paragone_models.text.reader import EncodeItem
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.fairness import Order
from paragone_service.scoring.heads import Rider
from paragone_service.scoring.request import Deadline, Timings
from paragone_service.tracing import Trace

__all__ = ["BatchRun", "Job", "Lane", "Ticket", "by_prompt", "wait_for"]


class Job(NamedTuple):
    """One response to run.

    Attributes:
        key: its cache key; None for what nobody can join and nobody keeps: a canary, a prompt for the gate.
        dropped: tokens cut from its prompt.
        shown: whether the item holds all words of the conversation that were not cut.
        riders: further heads that read its hidden states.
    """

    key: bytes | None
    item: EncodeItem
    dropped: int
    shown: bool = True
    riders: tuple[Rider, ...] = ()


@dataclass(slots=True, eq=False)
class BatchRun:
    """When a batch ran, by the scheduler's clock."""

    started: float
    finished: float = math.nan


@dataclass(slots=True, eq=False)
class Ticket:
    """A job on its way through the model.

    Attributes:
        outcome: the value, or the error, once it is there. Never an exception.
        waiters: how many requests wait for it.
        batch: the batch that it ran in; set before ``outcome``.
        deadlines: of the requests that wait for it; None among them for one that has none.
        trace: of the request that queued it.
        stock: tokens that a batch grows by for it, where it is no bulk; else 0.
        failures: how many batches with it an engine has failed.
        failed_on: the device that failed the last one.
        prompt: hash of the prompt's tokens. Two prompts with the same one would only misjudge the size of a batch.
        own_tokens: those after its prompt, at least 1: an empty response still has a read.
    """

    key: bytes | None
    item: EncodeItem
    dropped: int
    shown: bool
    riders: tuple[Rider, ...]
    outcome: asyncio.Future[bytes | ServiceError]
    submitted: float
    deadlines: list[Deadline | None]
    waiters: int = 1
    batch: BatchRun | None = None
    trace: Trace | None = None
    stock: int = 0
    failures: int = 0
    failed_on: object = None
    tokens: int = field(init=False)
    own_tokens: int = field(init=False)
    prompt: int = field(init=False)

    def expired(self, margin_s: float = 0.0) -> bool:
        """Return whether all requests that wait for it have less time left than that."""
        return all(deadline is not None and deadline.left_s() <= margin_s for deadline in self.deadlines)

    def __post_init__(self) -> None:
        self.tokens = len(self.item.token_ids)
        self.own_tokens = max(1, self.tokens - self.item.prompt_length)
        self.prompt = hash(tuple(self.item.token_ids[: self.item.prompt_length]))


class Lane:
    """Queue tickets of several clients: first in, first out for each, and among them as fair in tokens as it goes.

    The lane counts the tokens that each client has had. The client that has had least is next, and keeps its turn for a
    quantum, so that the responses to one prompt stay together. A client that comes, or comes back, starts where the
    turn is now: nobody saves up while away, and one client's thousand responses wait behind another's one. With one
    client a lane is a plain queue.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Ticket]] = {}
        self._order = Order()
        self._turn: Hashable = None
        self._turn_tokens_left = 0
        self._level = 0.0

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._queues)

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over everything that waits, client by client."""
        for queue in self._queues.values():
            yield from queue

    def extend(self, client: Hashable, tickets: Sequence[Ticket]) -> None:
        """Queue tickets of a client, at least one, in their order."""
        if client not in self._queues:
            self._queues[client] = deque()
            self._order.add(client, self._level)
        # In the order of their prompts, which ``by_prompt`` made: a client's turn takes whole families.
        self._queues[client].extend(tickets)

    def peek(self, quantum: int) -> Ticket:
        """Return the next ticket, which stays; a client keeps its turn for a quantum of tokens."""
        if self._turn not in self._queues or self._turn_tokens_left <= 0:
            first = self._order.first()
            assert first is not None  # nobody peeks into an empty lane
            self._level, _, self._turn = first
            self._turn_tokens_left = quantum
        return self._queues[self._turn][0]

    def pop(self, tokens: int) -> None:
        """Take the ticket that was peeked at; it costs its client so many tokens."""
        queue = self._queues[self._turn]
        queue.popleft()
        self._order.raise_to(self._turn, self._order.had(self._turn) + tokens)
        self._turn_tokens_left -= tokens
        if not queue:
            # The level never falls: else a client could leave and come back to be served before those who stayed.
            first = self._order.first()
            assert first is not None
            self._level = max(self._level, first[0])
            self._order.remove(self._turn)
            del self._queues[self._turn]

    def clear(self) -> None:
        """Forget everything that waits."""
        self._queues.clear()
        self._order.clear()


async def wait_for(tickets: Sequence[Ticket], timings: Timings, clock: Callable[[], float]) -> None:
    """Wait until every ticket has its outcome, and add how long that took to a request's timings.

    The batches that the tickets were in count as inference, the rest of the time as waiting.

    Args:
        tickets: of one scheduler.
    """
    started = clock()
    waiting = [ticket.outcome for ticket in tickets if not ticket.outcome.done()]
    if waiting:
        await asyncio.wait(waiting)  # not gather, which would cancel the tickets of other waiters with this request
    # By identity, because tickets share batches: each counts once, however many responses of this request it had.
    batches = {id(ticket.batch): ticket.batch for ticket in tickets if ticket.batch is not None}
    ran_s = sum(batch.finished - batch.started for batch in batches.values())
    timings.inference_s += ran_s
    timings.queue_s += max(0.0, clock() - started - ran_s)


def by_prompt(tickets: Sequence[Ticket]) -> list[Ticket]:
    """Return tickets with those of one prompt side by side, the prompt with the longest response first."""
    siblings: dict[int, list[Ticket]] = {}
    for ticket in tickets:
        siblings.setdefault(ticket.prompt, []).append(ticket)
    families = [sorted(family, key=lambda ticket: -ticket.tokens) for family in siblings.values()]
    # Families of similar lengths become neighbours, so that they share batches: an engine that pads wastes less.
    families.sort(key=lambda family: -family[0].tokens)
    return [ticket for family in families for ticket in family]
