"""The watchdog: a thread beside the event loop that sees when a worker hangs or died, and in the end ends the process.

A worker of this process (the forward of a model, its reading, the event loop) that is over its limit will hardly come
back by itself, and no thread can be ended from outside. So the model's requests are failed at once, readiness fails,
other models go on; and if nothing changes the process ends itself with code 70, for its supervisor to restart it. A
process that was told to end, and hangs, ends likewise.
"""

import asyncio
import contextlib
import faulthandler
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

__all__ = ["EXIT_CODE", "Post", "Watchdog", "Watched"]

logger = logging.getLogger("paragone.service")

EXIT_CODE = 70
"""EX_SOFTWARE of sysexits.h: not the code of a drained process, nor one of a shell or a signal."""
_PERIOD_S = 0.25
_AFTER_DRAIN_S = 4.0
"""Uvicorn closes what is left two seconds after the time of requests in flight; the rest is for caches and engines."""


class Post:
    """A worker that is watched: what it does now, and since when. Any thread may ask.

    Args:
        limit_s: how long one piece of work may take.
    """

    def __init__(self, limit_s: float = math.inf) -> None:
        self._limit_s = limit_s
        self._work = ""
        self._patience_s = math.inf
        self._since = math.nan

    @contextlib.contextmanager
    def at_work(self, work: str, patience_s: float = math.inf) -> Iterator[None]:
        """Be at a piece of work as long as the context lasts.

        Args:
            work: for the log and for messages.
            patience_s: after which it is overdue: no reason to give it up, but not to send more work either.
        """
        self._work, self._patience_s = work, patience_s
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = math.nan

    def stuck(self) -> str:
        """Return what takes longer than the limit, and for how long; empty if nothing does."""
        busy_s = self.busy_s()
        if busy_s <= self._limit_s:
            return ""
        return f"{self._work} for {busy_s:.0f} s, over its limit of {self._limit_s:g} s"

    def overdue(self) -> bool:
        """Return whether its present work takes far longer than was to be expected."""
        return self.busy_s() > self._patience_s

    def busy_s(self) -> float:
        """Return for how long it is at its present work; 0 if it is at none."""
        since = self._since  # once: its own thread may change it meanwhile
        return 0.0 if math.isnan(since) else time.monotonic() - since


class Watched(Protocol):
    """A hosted model, or one of its devices, as the watchdog sees it."""

    name: str
    fatal: bool
    """Whether the process ends for what is stuck: nothing else would mend it."""

    def stuck_worker(self) -> str:
        """Return which of its workers hangs or died, and since when; empty if none. Called from another thread."""
        ...

    def suspend(self, reason: str) -> None:
        """Fail its requests, those to come too; called on the event loop."""
        ...

    def resume(self) -> None:
        """Take requests again; called on the event loop."""
        ...


class Watchdog:
    """Look at every worker four times a second, from a thread of its own.

    Args:
        loop_limit_s: how long the event loop may be held up.
        exit_s: how long something may be stuck before the process ends; 0 for ever.
        drain_s: how long after the first signal requests may go on; the process ends seconds later.
        draining: whether there was a signal.
        leave: ends the process.
    """

    def __init__(
        self,
        *,
        loop_limit_s: float,
        exit_s: float,
        drain_s: float,
        draining: Callable[[], bool],
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._loop_limit_s = loop_limit_s
        self._exit_s = exit_s
        self._drain_s = drain_s
        self._draining = draining
        self._leave = leave
        self._loop: asyncio.AbstractEventLoop | None = None
        self._models: Sequence[Watched] = ()
        self._suspended: set[Watched] = set()
        self._asked_at = self._answered_at = 0.0
        self._draining_since = self._stuck_since = math.nan
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread; it watches for the end of a drain from now on."""
        self._wind_timer()
        self._thread.start()

    def watch(self, loop: asyncio.AbstractEventLoop, models: Sequence[Watched]) -> None:
        """Watch a running loop and its models too."""
        self._asked_at = self._answered_at = time.monotonic()
        self._models, self._loop = models, loop
        self._suspended &= set(models)

    def unwatch(self) -> None:
        """Watch neither loop nor models any more: they are being closed."""
        self._loop, self._models = None, ()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        while not self._over.wait(_PERIOD_S):
            try:
                self._look(time.monotonic())
            except Exception:  # it must outlive whatever it looks at
                logger.exception("the watchdog failed to look")
            self._wind_timer()

    def _wind_timer(self) -> None:
        """Set back a timer in C, for what holds up every thread, this one too: an extension that keeps the lock."""
        if self._exit_s and self._leave is os._exit:
            faulthandler.dump_traceback_later(self._loop_limit_s + self._exit_s + 5, exit=True)

    def _look(self, now: float) -> None:
        if self._draining():
            if math.isnan(self._draining_since):
                self._draining_since = now
            if now - self._draining_since > self._drain_s + _AFTER_DRAIN_S:
                self._end("the server was told to end, and something hangs")
        problems = [*self._look_at_loop(now), *self._look_at_models()]
        if not problems:
            if not math.isnan(self._stuck_since):
                logger.warning("nothing is stuck any more")
            self._stuck_since = math.nan
        elif math.isnan(self._stuck_since):
            self._stuck_since = now
            logger.error("stuck: %s; where every thread is follows", "; ".join(problems))
            _dump_stacks()
        elif self._exit_s and now - self._stuck_since > self._exit_s:
            self._end(f"stuck for {self._exit_s:g} s: {'; '.join(problems)}")

    def _look_at_loop(self, now: float) -> list[str]:
        loop = self._loop
        if loop is None:
            return []
        if self._answered_at >= self._asked_at:
            self._asked_at = now
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._answer)
        held_up_s = now - self._asked_at
        return [f"the event loop for {held_up_s:.0f} s"] if held_up_s > self._loop_limit_s else []

    def _answer(self) -> None:
        self._answered_at = time.monotonic()

    def _look_at_models(self) -> list[str]:
        problems = []
        for model in self._models:
            problem = model.stuck_worker()
            if problem and model.fatal:
                problems.append(problem)
            if bool(problem) == (model in self._suspended) or self._loop is None:
                continue
            with contextlib.suppress(RuntimeError):
                if problem:
                    self._suspended.add(model)
                    self._loop.call_soon_threadsafe(model.suspend, problem)
                else:
                    self._suspended.discard(model)
                    self._loop.call_soon_threadsafe(model.resume)
        return problems

    def _end(self, why: str) -> None:
        logger.critical("%s: the process ends with code %d", why, EXIT_CODE)
        _dump_stacks()
        self._over.set()
        self._leave(EXIT_CODE)


def _dump_stacks() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file behind it, as in tests
        sys.stderr.flush()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
