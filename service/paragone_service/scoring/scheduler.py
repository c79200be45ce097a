"""Dynamic batching for one model: responses of many requests, put into batches under a token budget.

There is no wait window: an idle device starts with what is there, and what arrives meanwhile makes the next batch.
A request that fits into one batch goes before the larger ones, but never all the time; each lane is first in, first
out for each client, and fair in tokens among clients. A small question of a client that has rested goes before all
others, every other time, in a batch of its own; and while such questions come, no batch takes much longer than the
smallest one does, so that they wait for about that long. Responses to one prompt stay together, and a batch is
sorted by length. The queue is bounded in tokens; with a few batches in it, it is ``stocked``, and texts need not be
read yet. Each response has one ticket, however many requests wait for it
(single flight); a ticket leaves the queue with the last client that waits for it.
"""

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.request import Deadline
from paragone_service.scoring.tickets import BatchRun, Job, Lane, Ticket, by_prompt
from paragone_service.tracing import batch_span, current_trace
from paragone_service.watchdog import Post

__all__ = ["Scheduler"]

logger = logging.getLogger("paragone.service")

_Represent = Callable[[Sequence[EncodeItem]], Awaitable[NDArray[np.float32]]]
"""Backbone and head: items to representations [n, d]."""

_Settle = Callable[[Sequence["Ticket"], NDArray[np.float32]], Sequence[bytes | ServiceError]]
"""What a finished batch means for each ticket: the value that holds from now on, or why there is none."""

_MAX_RETRY_AFTER_S = 60
_ENGINE_RETRY_AFTER_S = 5
_SPEED_MEMORY = 0.8  # of the mean speed, against the last batch's: about the last five batches count
_BULK_EVERY = 4
"""Every fourth batch begins with the large requests, so that small ones cannot hold them up for ever."""

_SMALL = 8
"""A question is small that takes up to this part of the budget."""
_BATCHES_OF_THE_SMALLEST = 6
"""While small questions come, a batch may take so many times as long as the smallest one: they wait half of that."""
_COME_S = 10.0
"""For how long after the last small question others are expected."""
_CREEP = 1.01
"""Growth a batch of the shortest time known, until one takes as long: a model may have become slower."""
_SURELY = 0.5
"""Of the time that a batch will take, the share that a response needs at the very least to come in time."""

_PATIENCE_S, _PATIENCE = 4.0, 5
"""How long a forward may take at least, and how many times as long as its size suggests, until it is overdue."""

_STOCK = 2
"""Batches that wait and are no bulk, with which the device has enough to do until more is read."""

_TURNS = 4
"""Turns of clients with large requests in one batch: a client keeps its turn for that part of the budget."""


class Scheduler:
    """Queue the responses of one model and run them in batches.

    Args:
        model: its name, for metrics and messages.
        represent: runs a batch; called with the device's turn held.
        settle: gets every finished batch before the waiting requests do.
        turn: the device's turn, shared by the models on one device.
        shares_prompts: whether a batch computes a prompt once for all its responses, so that it also counts once.
        max_batch_tokens: budget of a batch. A longer single response still runs, alone.
        max_queue_tokens: how much may wait. A request of any size may enter an empty queue.
        post: of the device, as the watchdog sees it.

    Attributes:
        max_batch_tokens: the budget now; smaller than it was once the device had not enough memory.
        when_not_stocked: called each time ``stocked`` ends.
    """

    def __init__(
        self,
        model: str,
        represent: _Represent,
        settle: _Settle,
        *,
        turn: asyncio.Lock,
        metrics: Metrics,
        shares_prompts: bool,
        max_batch_tokens: int,
        max_queue_tokens: int,
        post: Post | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.queue_tokens = 0
        self.queue_items = 0
        self.last_success = -math.inf
        self.last_failure = -math.inf
        self.last_batch_s = 0.0
        self.when_not_stocked: Callable[[], None] = lambda: None
        self._stock = 0
        self._represent = represent
        self._settle = settle
        self._turn = turn
        self._post = Post() if post is None else post
        self._metrics = metrics
        self._shares_prompts = shares_prompts
        self.max_batch_tokens = max_batch_tokens
        self.max_queue_tokens = max_queue_tokens
        self._clock = clock
        self._small = Lane()
        self._interactive = Lane()
        self._bulk = Lane()
        self._batches = 0
        self._flights: dict[bytes, Ticket] = {}
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._tokens_per_s = 0.0
        # A batch takes as long as the smallest one, and so much for each token: that, and fading sums of all of them.
        self._least_s = math.inf
        self._sum_s, self._sum_tokens, self._sum_batches = 0.0, 0.0, 0.0
        self._small_was_last = False
        self._small_came = -math.inf

    @property
    def died(self) -> bool:
        """Whether its worker has ended, though nobody closed it. Any thread may ask."""
        return self._worker is not None and self._worker.done()

    def stocked(self) -> bool:
        """Whether what waits and is no bulk makes a few batches."""
        return self._stock >= _STOCK * self.max_batch_tokens

    def start(self) -> None:
        """Start the worker; needs a running event loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Stop the worker, and answer ``shutting_down`` to whatever still waits."""
        if self._worker is not None:
            self._worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._worker  # a batch on the device runs to its end, but nobody hears of it
        shutdown = ServiceError(
            ErrorCode.SHUTTING_DOWN, "the server is shutting down; try another one", retry_after_s=1
        )
        # Those in a batch are in no lane any more, but still in flight.
        lanes = (self._small, self._interactive, self._bulk)
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
            ServiceError: ``overloaded``, with the time that the queue will take, if ``tokens`` more do not fit.
        """
        # An empty queue takes a request of any size: it would never find more room than that.
        if self.queue_tokens and self.queue_tokens + tokens > self.max_queue_tokens:
            wait_s = self.queue_tokens / self._tokens_per_s if self._tokens_per_s else 1.0
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
        self._arrived.set()
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

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            async with self._turn:
                # Taken only now, with the device's turn held: all that came while others had it is in this batch.
                batch = self._take()
                if batch:
                    await self._run(batch)
            # Not before the batch has run: what came meanwhile has set the event, and must not be slept through.
            if not self._small and not self._interactive and not self._bulk:
                self._arrived.clear()

    def _take(self) -> list[Ticket]:
        """Return the next batch, shortest first, and mark it as started."""
        taken: list[Ticket] = []
        prompts: set[int] = set()
        tokens = 0
        budget = self._budget()
        for lane in self._next_lanes():
            while lane:
                # What fits into a batch is taken whole when its client's turn comes: of a hundred requests that are
                # taken a part at a time, none has its answer before nearly all of them have.
                ticket = lane.peek(budget // _TURNS if lane is self._bulk else self.max_batch_tokens)
                # Whoever has no waiter left was abandoned in the queue; it is popped and costs its client nothing.
                cost = self._cost(ticket, prompts) if ticket.waiters else 0
                late = ticket.waiters > 0 and ticket.expired(_SURELY * self._expected_s(tokens + cost))
                cost = 0 if late else cost
                if cost and taken and tokens + cost > budget:
                    break  # no later one of its lane may pass it, though it would fit: a long one would wait for ever
                lane.pop(cost)
                if late:
                    self._expire(ticket)
                elif ticket.waiters:
                    taken.append(ticket)
                    prompts.add(ticket.prompt)
                    tokens += cost
                    self._unqueue(ticket)
        taken.sort(key=lambda ticket: ticket.tokens)  # an engine that pads puts neighbours side by side
        return taken

    def _next_lanes(self) -> list[Lane]:
        """Return the lanes that fill the next batch, in their order."""
        if self._small and not (self._small_was_last and (self._interactive or self._bulk)):
            self._small_was_last = True
            return [self._small]
        self._small_was_last = False
        self._batches += 1
        lanes = [self._interactive, self._bulk] if self._batches % _BULK_EVERY else [self._bulk, self._interactive]
        # The lanes that come later fill the rest of the batch, so no budget is wasted on who is first.
        return [*lanes, self._small]

    def _budget(self) -> int:
        if not self._sum_tokens or self._clock() - self._small_came > _COME_S:
            return self.max_batch_tokens
        most_s, per_token_s = (_BATCHES_OF_THE_SMALLEST - 1) * self._least_s, self._per_token_s()
        if most_s >= per_token_s * self.max_batch_tokens:
            return self.max_batch_tokens
        return max(round(most_s / per_token_s), self.max_batch_tokens // _SMALL, 1)

    def _per_token_s(self) -> float:
        return max(0.0, self._sum_s - self._least_s * self._sum_batches) / self._sum_tokens

    def _expected_s(self, tokens: int) -> float:
        """Return how long a batch will take, as far as is known."""
        return self._least_s + tokens * self._per_token_s() if self._sum_tokens else 0.0

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
        prompts: set[int] = set()
        costs = []
        for ticket in tickets:
            costs.append(self._cost(ticket, prompts))
            prompts.add(ticket.prompt)
        return costs

    def _cost(self, ticket: Ticket, prompts: Set[int]) -> int:
        """Return how many tokens a batch with these prompts grows by."""
        shared = self._shares_prompts and ticket.prompt in prompts
        # At least 1: an empty response still has a read, and a cost of 0 means that nobody waits.
        return max(1, ticket.tokens - ticket.item.prompt_length) if shared else ticket.tokens

    async def _run(self, tickets: list[Ticket]) -> None:
        batch = BatchRun(self._clock())
        for ticket in tickets:
            ticket.batch = batch  # from here on a ticket runs to its end, whoever leaves: it may be joined, and cached
        outcomes: Sequence[bytes | ServiceError]
        try:
            at_work = self._post.at_work(f"a forward of model {self.model}", self._patience_for(tickets))
            with at_work, batch_span(self.model, [ticket.trace for ticket in tickets]):
                rows = await self._represent([ticket.item for ticket in tickets])
            batch.finished = self._clock()
            outcomes = self._settle(tickets, rows)
        except EngineOutOfMemoryError as error:
            if len(tickets) > 1:
                await self._split(tickets)  # its halves settle their tickets themselves
                return
            logger.error("model %s: one response of %d tokens is too large: %s", self.model, tickets[0].tokens, error)
            outcomes = self._failures(tickets, "the device has not enough memory for this response")
        except EngineUnavailableError as error:
            logger.error("model %s: its engine is away, %d responses have none: %s", self.model, len(tickets), error)
            outcomes = self._failures(
                tickets,
                "what runs this model is away for now: try again later",
                code=ErrorCode.ENGINE_UNAVAILABLE,
                retry_after_s=_ENGINE_RETRY_AFTER_S,
            )
        except Exception:
            # Whatever it is, it fails these responses alone: the worker must live on for the next batch.
            logger.exception("model %s: the engine failed a batch of %d responses", self.model, len(tickets))
            outcomes = self._failures(tickets, "the engine failed; see the server's log")
        else:
            self._count(tickets, batch)
        batch.finished = self._clock()
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            self._forget(ticket)  # after its value was cached: in between nobody may miss it in both places
            if not ticket.outcome.done():
                ticket.outcome.set_result(outcome)

    def _patience_for(self, tickets: Sequence[Ticket]) -> float:
        if not self._tokens_per_s:
            return math.inf
        return max(_PATIENCE_S, _PATIENCE * sum(ticket.tokens for ticket in tickets) / self._tokens_per_s)

    async def _split(self, tickets: list[Ticket]) -> None:
        """Run two halves of a batch that did not fit, and keep later batches as small."""
        # Sorted by length: the first half is the smaller one, and may well fit where the second must be split again.
        half = len(tickets) // 2
        self.max_batch_tokens = max(1, min(self.max_batch_tokens, sum(ticket.tokens for ticket in tickets) // 2))
        self._metrics.memory_splits.labels(self.model).inc()
        logger.warning("model %s: out of memory, batches have %d tokens from now on", self.model, self.max_batch_tokens)
        await self._run(tickets[:half])
        await self._run(tickets[half:])

    def _failures(
        self,
        tickets: Sequence[Ticket],
        message: str,
        *,
        code: ErrorCode = ErrorCode.ENGINE_FAILED,
        retry_after_s: int | None = None,
    ) -> list[bytes | ServiceError]:
        self._metrics.batch_failures.labels(self.model).inc()
        self.last_failure = self._clock()
        # One error for all: it goes into answers, and is never raised from here.
        return [ServiceError(code, message, retry_after_s=retry_after_s)] * len(tickets)

    def _count(self, tickets: Sequence[Ticket], batch: BatchRun) -> None:
        self.last_success = batch.finished
        seconds = self.last_batch_s = batch.finished - batch.started  # readiness waits twice as long as this
        tokens = sum(ticket.tokens for ticket in tickets)
        longest = max(ticket.tokens for ticket in tickets)
        speed = tokens / max(seconds, 1e-6)
        if self._tokens_per_s:
            speed = _SPEED_MEMORY * self._tokens_per_s + (1 - _SPEED_MEMORY) * speed
        self._tokens_per_s = speed
        self._least_s = min(seconds, _CREEP * self._least_s)
        self._sum_s = _SPEED_MEMORY * self._sum_s + seconds
        self._sum_tokens = _SPEED_MEMORY * self._sum_tokens + tokens
        self._sum_batches = _SPEED_MEMORY * self._sum_batches + 1
        metrics, size = self._metrics, len(tickets)
        metrics.batch_size.labels(self.model).observe(size)
        metrics.batch_tokens.labels(self.model).observe(tokens)
        metrics.padding_ratio.labels(self.model).observe(1 - tokens / (size * longest))
        metrics.batch_seconds.labels(self.model).observe(seconds)

    def _unqueue(self, ticket: Ticket) -> None:
        self.queue_items -= 1
        self.queue_tokens -= ticket.tokens
        if ticket.stock:
            was_stocked = self.stocked()
            self._stock -= ticket.stock
            if was_stocked and not self.stocked():
                self.when_not_stocked()

    def _forget(self, ticket: Ticket) -> None:
        # The key may fly again by now, in a ticket of somebody who came after this one was abandoned.
        if ticket.key is not None and self._flights.get(ticket.key) is ticket:
            del self._flights[ticket.key]
