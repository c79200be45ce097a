"""The workers of one model: a task for each of its devices, which takes batches from the queue and runs them.

A batch that fails fails its own responses alone. Where a model has several devices, what one of them failed is run
once more, on another, and that device gets no more batches until it has run two tokens soundly: a device in ruins fails
fast, and would take the most. The last device that serves is never set aside for a failure. What hung is not run again
elsewhere: a text that hangs every device would take one after the other.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.engine.balancing import PlaceSlowError
from paragone_service.engine.contract import EngineOutOfMemoryError, EngineUnavailableError
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.devices import Device
from paragone_service.scoring.tickets import BatchRun, Job, Ticket
from paragone_service.tracing import batch_span

__all__ = ["DeviceWatch", "Settle", "Workers"]

logger = logging.getLogger("paragone.service")

Settle = Callable[[Sequence[Ticket], NDArray[np.float32]], Sequence[bytes | ServiceError]]
"""What a finished batch means for each ticket: the value that holds from now on, or why there is none."""


class GiveBack(Protocol):
    """Put tickets in front of the queue; those that were started have left it before."""

    def __call__(self, tickets: Sequence[Ticket], *, started: bool) -> None: ...


_ENGINE_RETRY_AFTER_S = 5
_HUNG_RETRY_AFTER_S = 1
_MOST_FAILURES = 2
"""Batches with a response that an engine may fail until the response is taken for the reason."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class Workers:
    """Run the batches of one model on its devices.

    Args:
        model: its name, for metrics and messages.
        devices: at least one.
        settle: gets every finished batch before the waiting requests do.
        take: gives a device its next batch and marks it as started; empty if there is none.
        give_back: puts tickets in front of the queue.
        done: takes tickets that have their outcome out of the books.
        returned: called when a device that was away serves again.
        canary: two tokens that any device of the model can run, to see whether it does; needed with several devices.

    Attributes:
        last_success: when a batch last succeeded, by the clock.
        last_batch_s: how long that took.
    """

    def __init__(
        self,
        model: str,
        devices: Sequence[Device],
        settle: Settle,
        *,
        take: Callable[[Device], list[Ticket]],
        give_back: GiveBack,
        done: Callable[[Ticket], None],
        returned: Callable[[], None],
        metrics: Metrics,
        canary: EncodeItem | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.model = model
        self.devices = devices
        self.last_success = -math.inf
        self.last_failure = -math.inf
        self.last_batch_s = 0.0
        self._settle = settle
        self._take = take
        self._give_back = give_back
        self._done = done
        self._returned = returned
        self._metrics = metrics
        self._canary = canary
        self._clock = clock
        self._returning: dict[Device, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Start a worker for each device; needs a running event loop."""
        for device in self.devices:
            self._metrics.show_device(self.model, device.name)
            device.worker = asyncio.get_running_loop().create_task(self._work(device))

    async def close(self) -> None:
        """Stop every worker; a batch on a device runs to its end, but nobody hears of it."""
        tasks = [*self._returning.values(), *(device.worker for device in self.devices if device.worker is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Have every idle device look for work."""
        for device in self.devices:
            device.wake.set()

    def others(self, device: Device) -> list[Device]:
        """Return the other devices that serve."""
        return [other for other in self.devices if other is not device and not other.trouble()]

    def trouble(self) -> str:
        """Return why no device can run anything; empty if one can. Any thread may ask."""
        troubles = [device.trouble() for device in self.devices]
        return "; ".join(troubles) if all(troubles) else ""

    def overdue(self) -> bool:
        """Return whether the present batch of every device takes far longer than was to be expected."""
        return all(device.away or device.post.overdue() for device in self.devices)

    def suspend(self, device: Device, reason: str) -> None:
        """Give up what hangs on a device, and the device until it comes back, if others serve."""
        if not self.others(device):
            return
        hung = [ticket for ticket in device.running if not ticket.outcome.done()]
        error = ServiceError(
            ErrorCode.ENGINE_UNAVAILABLE,
            f"a device of model {self.model} cannot run ({reason}); others go on: try again",
            retry_after_s=_HUNG_RETRY_AFTER_S,
        )
        if hung:
            self.last_failure = self._clock()
        self._finish(hung, [error] * len(hung))
        self._set_aside(device, reason)

    async def _work(self, device: Device) -> None:
        while True:
            await device.wake.wait()
            async with device.turn:
                # Both only now, with the device's turn held: all that came while others had it is in this batch.
                device.wake.clear()
                batch = [] if device.away else self._take(device)
                if batch:
                    device.wake.set()  # there may be more
                    await self._run(device, batch)

    async def _run(self, device: Device, tickets: list[Ticket], rest: Sequence[Ticket] = ()) -> None:
        batch = BatchRun(self._clock())
        for ticket in tickets:
            ticket.batch = batch  # from here on a ticket runs to its end, whoever leaves: it may be joined, and cached
        device.running = [*tickets, *rest]  # whom the watchdog tells if this hangs: the rest waits behind it
        tokens = sum(ticket.tokens for ticket in tickets)
        outcomes: Sequence[bytes | ServiceError]
        try:
            at_work = device.post.at_work(f"a forward of model {self.model}", device.pace.patience_s(tokens))
            with at_work, batch_span(self.model, [ticket.trace for ticket in tickets]):
                rows = await device.represent(tickets)
            batch.finished = self._clock()
            outcomes = self._settle(tickets, rows)
        except EngineOutOfMemoryError as error:
            if len(tickets) > 1:
                await self._split(device, tickets, rest)  # its halves settle their tickets themselves
                return
            logger.error("model %s: one response of %d tokens is too large: %s", self.model, tickets[0].tokens, error)
            tickets = self._again_elsewhere(device, tickets, _MOST_FAILURES)
            outcomes = self._failures(tickets, "the device has not enough memory for this response")
        except EngineUnavailableError as error:
            logger.error("model %s: %s is away, %d responses wait: %s", self.model, device.name, len(tickets), error)
            # What was too slow runs nowhere else: all places would come to stand still.
            most = 1 if isinstance(error, PlaceSlowError) else len(self.devices)
            tickets = self._again_elsewhere(device, tickets, most, aside=f"it is away: {error}")
            outcomes = self._failures(
                tickets,
                "what runs this model is away for now: try again later",
                code=ErrorCode.ENGINE_UNAVAILABLE,
                retry_after_s=_ENGINE_RETRY_AFTER_S,
            )
        except Exception as error:
            # Whatever it is, it fails these responses alone: the worker must live on for the next batch.
            logger.exception("model %s: %s failed a batch of %d responses", self.model, device.name, len(tickets))
            aside = f"{device.name} failed a batch with {type(error).__name__}"
            tickets = self._again_elsewhere(device, tickets, _MOST_FAILURES, aside=aside)
            outcomes = self._failures(tickets, "the engine failed; see the server's log")
        else:
            self._count(device, tickets, batch)
        # Not where its worker dies: then the watchdog finds here whom to tell.
        device.running = ()
        batch.finished = self._clock()
        self._finish(tickets, outcomes)

    def _finish(self, tickets: Sequence[Ticket], outcomes: Sequence[bytes | ServiceError]) -> None:
        for ticket, outcome in zip(tickets, outcomes, strict=True):
            if ticket.batch is not None and math.isnan(ticket.batch.finished):
                ticket.batch.finished = self._clock()
            self._done(ticket)  # after its value was cached: in between nobody may miss it in both places
            if not ticket.outcome.done():
                ticket.outcome.set_result(outcome)

    def _again_elsewhere(self, device: Device, tickets: list[Ticket], most: int, *, aside: str = "") -> list[Ticket]:
        """Give tickets that a device failed to the others, and return those that have failed for good.

        Args:
            most: batches with a ticket that may fail.
            aside: why the device gets no batches for now; empty if it does.
        """
        self._metrics.device_failures.labels(self.model, device.name).inc()
        if not self.others(device):
            return tickets
        if aside:
            self._set_aside(device, aside)
        again, failed = [], []
        for ticket in tickets:
            ticket.failures += 1
            if ticket.outcome.done():
                continue  # given up while it hung
            if ticket.failures >= most:
                failed.append(ticket)
            else:
                ticket.batch, ticket.failed_on = None, device
                again.append(ticket)
        self._give_back(again, started=True)
        self.wake()
        return failed

    def _set_aside(self, device: Device, reason: str) -> None:
        if device.away:
            return
        device.away = reason
        device.forget_prompts()
        self._metrics.device_up.labels(self.model, device.name).set(0)
        logger.error("model %s: %s gets no batches for now: %s", self.model, device.name, reason)
        held = list(device.held)
        device.held.clear()
        self._give_back(held, started=False)
        self.wake()
        self._returning[device] = asyncio.get_running_loop().create_task(self._come_back(device))

    async def _come_back(self, device: Device) -> None:
        """Have a device serve again once it has run the canary; what hangs keeps its turn until it comes to an end."""
        pause_s = 0.0
        while not await self._runs_canary(device):
            pause_s = min(_LONGEST_PAUSE_S, 2 * pause_s) or _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
        device.away = ""
        del self._returning[device]
        if device.died:
            device.worker = asyncio.get_running_loop().create_task(self._work(device))
        self._metrics.device_up.labels(self.model, device.name).set(1)
        logger.warning("model %s: %s is back", self.model, device.name)
        self.wake()
        self._returned()

    async def _runs_canary(self, device: Device) -> bool:
        assert self._canary is not None
        async with device.turn:
            try:
                with device.post.at_work(f"a canary of model {self.model}"):
                    return bool(np.isfinite(await device.represent([Job(None, self._canary, 0)])).all())
            except Exception:  # whatever it is, the device is not back
                logger.info("model %s: %s is not back", self.model, device.name, exc_info=True)
                return False

    async def _split(self, device: Device, tickets: list[Ticket], rest: Sequence[Ticket]) -> None:
        """Run two halves of a batch that did not fit, and keep the device's later batches as small."""
        # Sorted by length: the first half is the smaller one, and may well fit where the second must be split again.
        half = len(tickets) // 2
        device.max_batch_tokens = max(1, min(device.max_batch_tokens, sum(ticket.tokens for ticket in tickets) // 2))
        self._metrics.memory_splits.labels(self.model).inc()
        logger.warning(
            "model %s: out of memory, batches of %s have %d tokens from now on",
            self.model,
            device.name,
            device.max_batch_tokens,
        )
        await self._run(device, tickets[:half], [*tickets[half:], *rest])
        await self._run(device, tickets[half:], rest)

    def _failures(
        self,
        tickets: Sequence[Ticket],
        message: str,
        *,
        code: ErrorCode = ErrorCode.ENGINE_FAILED,
        retry_after_s: int | None = None,
    ) -> list[bytes | ServiceError]:
        if not tickets:
            return []
        self._metrics.batch_failures.labels(self.model).inc()
        self.last_failure = self._clock()
        # One error for all: it goes into answers, and is never raised from here.
        return [ServiceError(code, message, retry_after_s=retry_after_s)] * len(tickets)

    def _count(self, device: Device, tickets: Sequence[Ticket], batch: BatchRun) -> None:
        self.last_success = batch.finished
        seconds = self.last_batch_s = batch.finished - batch.started  # readiness waits twice as long as this
        tokens = sum(ticket.tokens for ticket in tickets)
        longest = max(ticket.tokens for ticket in tickets)
        device.pace.add(seconds, tokens)
        metrics, size = self._metrics, len(tickets)
        metrics.batch_size.labels(self.model).observe(size)
        metrics.batch_tokens.labels(self.model).observe(tokens)
        metrics.padding_ratio.labels(self.model).observe(1 - tokens / (size * longest))
        metrics.batch_seconds.labels(self.model).observe(seconds)
        metrics.device_tokens.labels(self.model, device.name).inc(tokens)
        metrics.device_seconds.labels(self.model, device.name).inc(seconds)


class DeviceWatch:
    """One device of several, as the watchdog sees it: what hangs there is no reason to end the process.

    Args:
        workers: of every queue whose batches run there, with that device of theirs.
    """

    fatal = False

    def __init__(self, name: str, workers: Iterable[tuple[Workers, Device]]) -> None:
        self.name = name
        self._workers = tuple(workers)

    def stuck_worker(self) -> str:
        """Return what hangs; empty if nothing does."""
        for _, device in self._workers:
            if device.died:
                return device.trouble()
        return next((problem for _, device in self._workers if (problem := device.post.stuck())), "")

    def suspend(self, reason: str) -> None:
        """Set the device aside; it comes back when what hangs has ended and a canary succeeds."""
        for workers, device in self._workers:
            workers.suspend(device, reason)

    def resume(self) -> None:
        """Do nothing: the canary decides."""
