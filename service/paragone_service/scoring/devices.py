"""One device as the scheduler of a model sees it: what it runs, what is held for it, how fast it is, if it serves."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from paragone_service.scoring.heads import Run
from paragone_service.scoring.pace import Pace
from paragone_service.scoring.tickets import Ticket
from paragone_service.watchdog import Post

__all__ = ["Device", "Line"]

Represent = Callable[[Sequence[Run]], Awaitable[NDArray[np.float32]]]
"""Backbone and head: sequences to representations [n, d]."""

_PROMPTS_KNOWN = 1_024
"""Prompts that a device is taken to have keys and values of; of one that it let go, the cost is a prompt run again."""
_MIN_KEPT = 32
"""Tokens below which an engine keeps no prompt."""


class Line:
    """Queue tickets first in, first out, whoever they are of; it is asked as a lane is.

    Attributes:
        tokens: what is left to run of its tickets on a device that has their prompts.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._tickets: deque[Ticket] = deque()

    def __bool__(self) -> bool:
        """Return whether anything waits."""
        return bool(self._tickets)

    def __iter__(self) -> Iterator[Ticket]:
        """Iterate over what waits."""
        return iter(self._tickets)

    def extend(self, tickets: Sequence[Ticket]) -> None:
        """Queue tickets."""
        self._tickets.extend(tickets)
        self.tokens += sum(ticket.own_tokens for ticket in tickets)

    def peek(self, quantum: int) -> Ticket:  # noqa: ARG002 (that of a lane)
        """Return the next ticket, which stays."""
        return self._tickets[0]

    def pop(self, tokens: int) -> None:  # noqa: ARG002 (that of a lane)
        """Take the ticket that was peeked at."""
        self.tokens -= self._tickets.popleft().own_tokens

    def take_family(self, most_tokens: int) -> list[Ticket]:
        """Take the siblings at the end, with their prompt no more tokens than that, but at least one."""
        family = [self._tickets.pop()]
        tokens = family[0].tokens
        while self._tickets and self._tickets[-1].prompt == family[0].prompt:
            tokens += self._tickets[-1].own_tokens
            if tokens > most_tokens:
                break
            family.append(self._tickets.pop())
        self.tokens -= sum(ticket.own_tokens for ticket in family)
        return family[::-1]

    def clear(self) -> None:
        """Forget everything that waits."""
        self._tickets.clear()
        self.tokens = 0


@dataclass(eq=False)
class Device:
    """One device that runs batches of a model, or a server that does.

    Attributes:
        name: for logs, metrics and people.
        represent: runs a batch; called with the device's turn held.
        turn: shared by the models on the device.
        post: the forward that runs, as the watchdog sees it.
        max_batch_tokens: the budget now; smaller than it was once there was not enough memory.
        held: tickets whose prompt it has keys and values of, left to it by other devices.
        running: the batch that it runs.
        away: why it gets no batches; empty while it serves.
        wake: set when there may be something to do.
    """

    name: str
    represent: Represent
    turn: asyncio.Lock
    max_batch_tokens: int
    post: Post = field(default_factory=Post)
    pace: Pace = field(default_factory=Pace)
    held: Line = field(default_factory=Line)
    running: Sequence[Ticket] = ()
    away: str = ""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    worker: asyncio.Task[None] | None = None
    _prompts: OrderedDict[int, None] = field(default_factory=OrderedDict)

    @property
    def idle(self) -> bool:
        """Whether it could start a batch now."""
        return not self.away and not self.turn.locked()

    @property
    def died(self) -> bool:
        """Whether its worker has ended, though nobody closed it. Any thread may ask."""
        return self.worker is not None and self.worker.done()

    @property
    def load_tokens(self) -> int:
        """Tokens that it runs now or that are held for it."""
        return sum(ticket.own_tokens for ticket in self.running) + self.held.tokens

    def has_prompt_of(self, ticket: Ticket) -> bool:
        """Return whether it should still have the keys and values of a ticket's prompt."""
        return ticket.prompt in self._prompts

    def remember_prompt_of(self, ticket: Ticket) -> None:
        """Remember that it has, or is about to have, the keys and values of a ticket's prompt."""
        if ticket.item.prompt_length < _MIN_KEPT:
            return
        self._prompts[ticket.prompt] = None
        self._prompts.move_to_end(ticket.prompt)
        if len(self._prompts) > _PROMPTS_KNOWN:
            self._prompts.popitem(last=False)

    def forget_prompts(self) -> None:
        """Take its keys and values for lost."""
        self._prompts.clear()

    def trouble(self) -> str:
        """Return why it cannot run anything; empty if it can. Any thread may ask."""
        if self.died:
            return f"its queue has no worker any more on {self.name}"
        return self.post.stuck() or self.away
