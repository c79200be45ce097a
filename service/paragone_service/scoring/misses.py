"""What becomes of the responses that no tier of the cache knew: joined, or read, queued and waited for.

What is on its way for another request is joined (single flight). The rest is read in a thread, all of it before the
first response is queued, so that an item that cannot be read refuses its request before anything was computed.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_service.cache.tiers import Cache
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.reading import Job, ReadingThread
from paragone_service.scoring.request import Asked, Call, as_conversation, items_of, placed
from paragone_service.scoring.scheduler import Scheduler, Ticket, waited

__all__ = ["Filled", "Misses"]

_Jobs = Mapping[bytes, Job | ServiceError]
_Tickets = dict[bytes, Ticket]


@dataclass
class Filled:
    """The values of a request's misses.

    Attributes:
        values: by key, or why there is none.
        forward_responses: those that this request ran.
        forward_tokens: their tokens.
        forward_answers: those among them that gave a representation.
    """

    values: dict[bytes, bytes | ServiceError]
    forward_responses: int = 0
    forward_tokens: int = 0
    forward_answers: int = 0


class Misses:
    """Find the values that the cache lacks, for one hosted model.

    Args:
        thread: reads its texts.
        scheduler: runs them.
        cache: asked once more after reading.
        clock: in seconds.
    """

    def __init__(
        self,
        thread: ReadingThread,
        scheduler: Scheduler,
        cache: Cache,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._thread = thread
        self._scheduler = scheduler
        self._cache = cache
        self._clock = clock

    async def fill(self, asked: list[Asked], call: Call, rows: Mapping[bytes, int]) -> Filled:
        """Return the values of missing keys, having run through the model what nobody else is running.

        Args:
            asked: the request; emptied once it was read.
            call: how it wants to be answered; its timings are filled in.
            rows: the missing keys, each with the first row of the request that has it, in the order of the rows.

        Raises:
            ServiceError: for the first item that cannot be read, unless the call reports errors; for the whole
                request, if the queue is full or the model reads no text.
        """
        joined: _Tickets = {}
        try:
            unread = {key: row for key, row in rows.items() if not self._joins(key, joined)}
            jobs = await self._jobs(asked, call, unread)
            asked.clear()  # the texts of all that waits would take more than its tokens do
            filled = Filled({key: error for key, error in jobs.items() if isinstance(error, ServiceError)})
            own = self._queue(jobs, filled, joined, call)
            filled.forward_responses = len(own)
            filled.forward_tokens = sum(ticket.tokens for ticket in own.values())
            joined.update(own)
            await waited(list(joined.values()), call.timings, self._clock)
            filled.values.update((key, ticket.outcome.result()) for key, ticket in joined.items())
            filled.forward_answers = sum(isinstance(filled.values[key], bytes) for key in own)
            return filled
        finally:
            self._scheduler.leave(list(joined.values()))

    def _joins(self, key: bytes, joined: _Tickets) -> bool:
        ticket = self._scheduler.join(key)
        if ticket is not None:
            joined[key] = ticket
        return ticket is not None

    async def _jobs(
        self, asked: Sequence[Asked], call: Call, rows: Mapping[bytes, int]
    ) -> dict[bytes, Job | ServiceError]:
        """Read the conversations at some rows; an error stands for what cannot be read, if the call reports errors."""
        if not rows:
            return {}
        self._scheduler.check_room()
        flat = [(one, response) for one in asked for response in one.responses]
        results = await self._thread.jobs([as_conversation(*flat[row]) for row in rows.values()], call)
        jobs: dict[bytes, Job | ServiceError] = {}
        for (key, row), result in zip(rows.items(), results, strict=True):
            if isinstance(result, TextError):
                error = ServiceError(ErrorCode(result.code), str(result))
                if not call.report:
                    raise placed(error, call, items_of(asked)[row])
                jobs[key] = error
            else:
                jobs[key] = result
        return jobs

    def _queue(self, jobs: _Jobs, filled: Filled, joined: _Tickets, call: Call) -> _Tickets:
        """Queue what still nobody knows: reading took time, in which others may have run the same."""
        known = dict(zip(jobs, self._cache.peek(list(jobs)), strict=True))
        fresh: dict[bytes, Job] = {}
        for key, job in jobs.items():
            value = known[key]
            if isinstance(job, ServiceError):
                continue
            if value is not None:
                filled.values[key] = value
            elif not self._joins(key, joined):
                fresh[key] = job
        if not fresh:
            return {}
        queued = [(key, *job) for key, job in fresh.items()]
        return dict(zip(fresh, self._scheduler.submit(queued, client=call.client), strict=True))
