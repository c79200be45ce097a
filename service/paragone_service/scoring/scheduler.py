"""Dynamic batching for one model: responses of many requests, put into batches under a token budget.

There is no wait window: an idle device starts with what is there, and what arrives meanwhile makes the next batch.
A request that fits into one batch goes before the larger ones, but never all the time; each lane is first in, first
out for each client, and fair in tokens among clients. A small question of a client that has rested goes before all
others, every other time, in a batch of its own; and while such questions come, no batch takes much longer than the
smallest one does, so that they wait for about that long. Responses to one prompt stay together, and a batch is
sorted by length. The queue is bounded in tokens; with a few batches in it, it is ``stocked``, and texts need not be
read yet. Each response has one ticket, however many requests wait for it
(single flight); a ticket leaves the queue with the last client that waits for it.

A model may have several devices. One that is idle takes from the one queue, its share of it where others are idle too,
and leaves a response to the device that has the keys and values of its prompt, as long as no more than a batch is held
for that one. With nothing else to do it takes back what is held for another, if that one would come to it later than
the prompt can be run again: a prompt that everybody asks about keeps all devices busy.
"""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.devices import Device, Line
from paragone_service.scoring.request import Deadline
from paragone_service.scoring.tickets import Job, Lane, Ticket, by_prompt
from paragone_service.scoring.workers import Settle, Workers
from paragone_service.tracing import current_trace

__all__ = ["Scheduler"]

_MAX_RETRY_AFTER_S = 60
_BULK_EVERY = 4
"""Every fourth batch begins with the large requests, so that small ones cannot hold them up for ever."""

_SMALL = 8
"""A question is small that takes up to this part of the budget."""
_BATCHES_OF_THE_SMALLEST = 6
"""While small questions come, a batch may take so many times as long as the smallest one: they wait half of that."""
_COME_S = 10.0
"""For how long after the last small question others are expected."""
_SURELY = 0.5
"""Of the time that a batch will take, the share that a response needs at the very least to come in time."""

_STOCK = 2
"""Batches for each device that wait and are no bulk, with which there is enough to do until more is read."""

_TURNS = 4
"""Turns of clients with large requests in one batch: a client keeps its turn for that part of the budget."""


class Scheduler:
    """Queue the responses of one model and run them in batches.

    Args:
        model: its name, for metrics and messages.
        devices: what runs them, at least one. A response that is longer than a device's budget still runs, alone.
        settle: gets every finished batch before the waiting requests do.
        shares_prompts: whether a batch computes a prompt once for all its responses, so that it also counts once.
        max_queue_tokens: how much may wait. A request of any size may enter an empty queue.
        canary: two tokens that show whether a device works; needed with several.

    Attributes:
        workers: one for each device.
        when_not_stocked: called each time ``stocked`` ends.
    """

    def __init__(
        self,
        model: str,
        devices: Sequence[Device],
        settle: Settle,
        *,
        metrics: Metrics,
        shares_prompts: bool,
        max_queue_tokens: int,
        canary: EncodeItem | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.queue_tokens = 0
        self.queue_items = 0
        self.max_queue_tokens = max_queue_tokens
        self.when_not_stocked: Callable[[], None] = lambda: None
        self.devices = tuple(devices)
        self.workers = Workers(
            model,
            self.devices,
            settle,
            take=self._take,
            give_back=self._give_back,
            done=self._forget,
            returned=self._device_returned,
            metrics=metrics,
            canary=canary,
            clock=clock,
        )
        self._stock = 0
        self._closed = False
        self._metrics = metrics
        self._shares_prompts = shares_prompts
        self._clock = clock
        self._first = Line()
        self._small = Lane()
        self._interactive = Lane()
        self._bulk = Lane()
        self._batches = 0
        self._flights: dict[bytes, Ticket] = {}
        self._small_was_last = False
        self._small_came = -math.inf

    @property
    def max_batch_tokens(self) -> int:
        """The budget of the largest batch now; smaller than it was once a device had not enough memory."""
        return max(device.max_batch_tokens for device in self.devices)

    def stocked(self) -> bool:
        """Whether what waits and is no bulk makes a few batches for each device."""
        return self.lacking() <= 0

    def lacking(self) -> int:
        """Return how many tokens more would make it stocked."""
        return _STOCK * sum(device.max_batch_tokens for device in self.devices if not device.away) - self._stock

    def start(self) -> None:
        """Start the workers; needs a running event loop."""
        self.workers.start()

    async def close(self) -> None:
        """Stop the workers, and answer ``shutting_down`` to whatever still waits."""
        self._closed = True
        await self.workers.close()
        shutdown = ServiceError(
            ErrorCode.SHUTTING_DOWN, "the server is shutting down; try another one", retry_after_s=1
        )
        # Those in a batch are in no lane any more, but still in flight.
        lanes: list[Lane | Line] = [
            *(device.held for device in self.devices),
            self._first,
            self._small,
            self._interactive,
            self._bulk,
        ]
        for ticket in [*itertools.chain.from_iterable(lanes), *self._flights.values()]:
            if not ticket.outcome.done():
                ticket.outcome.set_result(shutdown)
        for lane in lanes:
            lane.clear()
        self._flights.clear()

    def join(self, keys: Iterable[bytes], *, deadline: Deadline | None = None) -> dict[bytes, Ticket]:
        """Return the tickets of the responses that are on their way already, with the caller as one more waiter."""
        tickets = {key: self._flights[key] for key in keys if key in self._flights}
        for ticket in tickets.values():
            ticket.waiters += 1
            ticket.deadlines.append(deadline)
        return tickets

    def check_room(self, tokens: int = 1) -> None:
        """Refuse when the queue is full.

        Raises:
            ServiceError: ``overloaded``, with the time that the queue will take, if ``tokens`` more do not fit;
                ``engine_unavailable``, if it was closed.
        """
        if self._closed:
            raise ServiceError(
                ErrorCode.ENGINE_UNAVAILABLE, f"model {self.model} was just replaced: ask again", retry_after_s=1
            )
        # An empty queue takes a request of any size: it would never find more room than that.
        if self.queue_tokens and self.queue_tokens + tokens > self.max_queue_tokens:
            speed = sum(device.pace.tokens_per_s for device in self.devices if not device.away)
            wait_s = self.queue_tokens / speed if speed else 1.0
            raise ServiceError(
                ErrorCode.OVERLOADED,
                f"{self.queue_tokens} tokens wait for model {self.model}, {tokens} more than fit into "
                f"{self.max_queue_tokens}: try again later, or raise --max-queue-tokens",
                # Half the queue will do: by then there is room, and the device has not run dry.
                retry_after_s=min(_MAX_RETRY_AFTER_S, max(1, math.ceil(wait_s / 2))),
            )

    def submit(
        self,
        jobs: Sequence[Job],
        *,
        client: Hashable = None,
        deadline: Deadline | None = None,
        rested: bool = False,
    ) -> list[Ticket]:
        """Queue the jobs of a request; all or none.

        Ask ``join`` first: a key must not be on its way already, nor come twice.

        Args:
            jobs: at least one.
            client: whose they are; among clients the device's time is shared by tokens.
            deadline: when they are of no use any more; then they are dropped from the queue.
            rested: whether they may go ahead of others, if they are small.

        Returns:
            One ticket per job, in the order of the jobs. Hand each back with ``leave``.

        Raises:
            ServiceError: ``overloaded``, if they do not fit into the queue.
        """
        tokens = sum(len(job.item.token_ids) for job in jobs)
        self.check_room(tokens)
        now, loop, trace = self._clock(), asyncio.get_running_loop(), current_trace()
        tickets = [Ticket(*job, loop.create_future(), now, [deadline], trace=trace) for job in jobs]
        for ticket in tickets:
            if ticket.key is not None:
                # Two tickets of one key would break single flight; there is no await between ``join`` and here.
                assert ticket.key not in self._flights
                self._flights[ticket.key] = ticket
        # What fits into one batch is somebody who waits for an answer; what does not is a job in bulk.
        costs = self._costs(tickets)
        cost = sum(costs)
        lane = self._interactive if cost <= self.max_batch_tokens else self._bulk
        if rested and cost * _SMALL <= self.max_batch_tokens:
            lane, self._small_came = self._small, now
        if lane is not self._bulk:
            self._stock += cost
            for ticket, stock in zip(tickets, costs, strict=True):
                ticket.stock = stock
        lane.extend(client, by_prompt(tickets))
        self.queue_items += len(tickets)
        self.queue_tokens += tokens
        self.workers.wake()
        return tickets

    def leave(self, tickets: Sequence[Ticket]) -> None:
        """Stop waiting for tickets; the last waiter takes a ticket out of the queue, if it has not started."""
        for ticket in tickets:
            ticket.waiters -= 1
            if ticket.waiters == 0 and ticket.batch is None and not ticket.outcome.done():
                # It stays in its lane, which cannot be searched cheaply: the next batch drops it at no cost to its
                # client. Nobody can join it from now on.
                self._forget(ticket)
                self._unqueue(ticket)
                self._metrics.dropped.labels(self.model).inc()

    def _take(self, device: Device) -> list[Ticket]:
        """Return a device's next batch, shortest first, and mark it as started."""
        idle = 1 + sum(other.idle for other in self.devices if other is not device)
        share = math.inf if idle == 1 else self.queue_tokens / idle
        batch = _Batch(self._budget(device), share, shares_prompts=self._shares_prompts)
        for lane in self._next_lanes(device):
            # What fits into a batch is taken whole when its client's turn comes: of a hundred requests that are taken
            # a part at a time, none has its answer before nearly all of them have.
            quantum = batch.budget // _TURNS if lane is self._bulk else device.max_batch_tokens
            while lane and not batch.full and self._take_one(lane, lane.peek(quantum), batch, device):
                pass
        if not batch.tickets:
            self._take_back(device, batch)
        for ticket in batch.tickets:
            device.remember_prompt_of(ticket)
            self._unqueue(ticket)
        return sorted(batch.tickets, key=lambda ticket: ticket.tokens)  # an engine that pads puts neighbours together

    def _take_one(self, lane: Lane | Line, ticket: Ticket, batch: "_Batch", device: Device) -> bool:
        """Take the ticket at the top of a lane for the batch, another device or nobody; return False if it stays."""
        if not ticket.waiters:
            lane.pop(0)  # it was abandoned in the queue, and costs its client nothing
            return True
        cost = batch.cost(ticket)
        if ticket.expired(_SURELY * device.pace.expected_s(batch.tokens + cost)):
            lane.pop(0)
            self._expire(ticket)
            return True
        if ticket.failed_on is device and self.workers.others(device):
            return False
        home = self._home(ticket, device) if lane is self._interactive or lane is self._bulk else None
        if home is not None:
            lane.pop(ticket.own_tokens)
            home.held.extend([ticket])
            home.wake.set()
            return True
        if not batch.has_room(ticket, cost):
            return False  # no later one of its lane may pass it, though it would fit: a long one would wait for ever
        lane.pop(cost)
        batch.add(ticket, cost)
        return True

    def _home(self, ticket: Ticket, device: Device) -> Device | None:
        """Return the other device that a ticket is left to, because it has the keys and values of its prompt."""
        if len(self.devices) == 1 or not self._shares_prompts or device.has_prompt_of(ticket):
            return None
        homes = [
            other
            for other in self.workers.others(device)
            if other.has_prompt_of(ticket) and other.held.tokens + ticket.own_tokens <= other.max_batch_tokens
        ]
        return min(homes, key=lambda home: home.load_tokens, default=None)

    def _take_back(self, device: Device, batch: "_Batch") -> None:
        """Fill an empty batch with siblings that are held for another device, where that is the sooner way."""
        for other in sorted(self.devices, key=lambda other: -other.load_tokens):
            if other is device or not other.held:
                continue
            family = other.held.take_family(batch.budget)
            # Behind what the other one has to do, or here, behind their prompt.
            if other.load_tokens <= family[0].item.prompt_length:
                other.held.extend(family)
                continue
            for ticket in family:
                if ticket.waiters:
                    batch.add(ticket, batch.cost(ticket))
            return

    def _next_lanes(self, device: Device) -> list[Lane | Line]:
        """Return the lanes that fill a device's next batch, in their order."""
        if self._small and not (
            self._small_was_last and (self._first or device.held or self._interactive or self._bulk)
        ):
            self._small_was_last = True
            return [self._small]
        self._small_was_last = False
        self._batches += 1
        lanes = [self._interactive, self._bulk] if self._batches % _BULK_EVERY else [self._bulk, self._interactive]
        # The lanes that come later fill the rest of the batch, so no budget is wasted on who is first.
        return [self._first, device.held, *lanes, self._small]

    def _budget(self, device: Device) -> int:
        if self._clock() - self._small_came > _COME_S:
            return device.max_batch_tokens
        most = device.pace.tokens_in(_BATCHES_OF_THE_SMALLEST)
        if most >= device.max_batch_tokens:
            return device.max_batch_tokens
        return max(round(most), device.max_batch_tokens // _SMALL, 1)

    def _give_back(self, tickets: Sequence[Ticket], *, started: bool) -> None:
        """Put tickets that a device will not run in front of the queue.

        Args:
            started: whether they have left the queue; nobody may wait for them any more.
        """
        waiting = [ticket for ticket in tickets if ticket.waiters]
        self._first.extend(waiting)
        if not started:
            return
        for ticket in tickets:
            if not ticket.waiters:
                self._forget(ticket)
                continue
            self.queue_items += 1
            self.queue_tokens += ticket.tokens
            self._stock += ticket.stock

    def _expire(self, ticket: Ticket) -> None:
        """Drop a ticket that is too late for everybody; their requests' own timeouts may not have fired yet."""
        self._unqueue(ticket)
        self._forget(ticket)
        self._metrics.expired.labels(self.model).inc()
        deadline = ticket.deadlines[-1]
        assert deadline is not None  # none of them is, where all have passed
        ticket.outcome.set_result(deadline.error())

    def _costs(self, tickets: Sequence[Ticket]) -> list[int]:
        """Return how many tokens an empty batch grows by for each of these, one after the other."""
        batch = _Batch(self.max_queue_tokens, math.inf, shares_prompts=self._shares_prompts)
        costs = []
        for ticket in tickets:
            costs.append(batch.cost(ticket))
            batch.add(ticket, costs[-1])
        return costs

    def _unqueue(self, ticket: Ticket) -> None:
        self.queue_items -= 1
        self.queue_tokens -= ticket.tokens
        if ticket.stock:
            was_stocked = self.stocked()
            self._stock -= ticket.stock
            if was_stocked and not self.stocked():
                self.when_not_stocked()

    def _device_returned(self) -> None:
        # With one device more the same queue may be too short: nothing of it has to leave for that.
        if not self.stocked():
            self.when_not_stocked()

    def _forget(self, ticket: Ticket) -> None:
        # The key may fly again by now, in a ticket of somebody who came after this one was abandoned.
        if ticket.key is not None and self._flights.get(ticket.key) is ticket:
            del self._flights[ticket.key]


class _Batch:
    """A batch that is being filled.

    Args:
        budget: most tokens; what is longer runs alone.
        share: of all that waits, in tokens: no prompt more is begun once the batch has so much.

    Attributes:
        full: whether nothing more of any lane is to be taken, because others are idle.
    """

    def __init__(self, budget: int, share: float, *, shares_prompts: bool) -> None:
        self.budget = budget
        self.tickets: list[Ticket] = []
        self.tokens = 0
        self.full = False
        self._share = share
        self._shares_prompts = shares_prompts
        self._all_tokens = 0
        self._prompts: set[int] = set()

    def cost(self, ticket: Ticket) -> int:
        """Return how many tokens the batch grows by; at least 1, as an empty response still has a read."""
        return ticket.own_tokens if self._shares_prompts and ticket.prompt in self._prompts else ticket.tokens

    def has_room(self, ticket: Ticket, cost: int) -> bool:
        """Return whether a ticket fits; there is always room for the first."""
        if not self.tickets:
            return True
        self.full = self._all_tokens + ticket.tokens > self._share and ticket.prompt not in self._prompts
        return not self.full and self.tokens + cost <= self.budget

    def add(self, ticket: Ticket, cost: int) -> None:
        """Put a ticket in."""
        self.tickets.append(ticket)
        self.tokens += cost
        self._all_tokens += ticket.tokens
        self._prompts.add(ticket.prompt)
