"""The door of one hosted model: how long a request would wait is expected before any of it is read.

What waits is counted in characters, because tokens are not known yet, from here to the request's answer. So whatever
is slow, reading, the device or the loop, shows in one number: the characters that are finished in a second. The device
is fair among clients, so a client waits behind as much of each other's work as it has itself.

Without it the queue grows until nobody's answer comes in time, and all of the work is for nothing.
"""

import contextlib
import math
import time
from collections.abc import Callable, Hashable, Iterator

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.request import Deadline

__all__ = ["Admission"]

_WINDOW_S = 0.25
"""Busy seconds over which a speed is measured: several batches, else the end of a large one looks like a sprint."""
_MEMORY = 0.7
"""Of the speed so far, against the last window's: a change is seen in about a second."""
_SHARE_OF_A_DEADLINE = 0.5
"""The wait may take up to here of the time left: the expectation may be wrong by as much again."""
_MIN_COST = 64
"""Characters that every response costs at least: the cost of its row, and of a pass that is never empty."""
_MAX_RETRY_AFTER_S = 60


class Admission:
    """Admit requests while the wait that they can expect is short enough, and measure the speed.

    Args:
        model: its name, for messages and metrics.
        max_wait_s: the longest expected wait of a request whose client named no deadline.

    Attributes:
        characters_per_s: the speed seen; 0 until something was finished.
        waiting: characters admitted and not answered.
    """

    def __init__(
        self, model: str, metrics: Metrics, *, max_wait_s: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.characters_per_s = 0.0
        self.waiting = 0
        self._model = model
        self._metrics = metrics
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._clients: dict[Hashable, int] = {}
        # The window: since when it runs, its busy seconds and what was finished in it.
        self._busy_since = math.nan
        self._busy_s = 0.0
        self._finished = 0

    def expected_wait_s(self, characters: int, client: Hashable) -> float:
        """Return how long a client waits before its next so many characters begin, as far as is known."""
        if not self.characters_per_s:
            return 0.0
        own = self._clients.get(client, 0)
        ahead = own + sum(min(waiting, own + characters) for other, waiting in self._clients.items() if other != client)
        return ahead / self.characters_per_s

    @contextlib.contextmanager
    def admitted(self, characters: int, responses: int, client: Hashable, deadline: Deadline | None) -> Iterator[None]:
        """Admit a request for as long as the context lasts.

        Args:
            characters: of all that has to be read, of so many responses.

        Raises:
            ServiceError: ``overloaded``, if it would wait for too long.
        """
        cost = characters + responses * _MIN_COST
        self._check(cost, client, deadline)
        if not self.waiting:
            self._busy_since = self._clock()
        self.waiting += cost
        self._clients[client] = self._clients.get(client, 0) + cost
        done = 0
        try:
            yield
            done = cost  # what is refused or dropped on the way has taken no full share of the time
        finally:
            self._leave(cost, client)
            self._measure(done)

    def _check(self, cost: int, client: Hashable, deadline: Deadline | None) -> None:
        limit_s = self._max_wait_s
        if deadline is not None and deadline.chosen:
            limit_s = _SHARE_OF_A_DEADLINE * deadline.left_s()
        expected_s = self.expected_wait_s(cost, client)
        if expected_s <= max(0.0, limit_s):
            return
        self._metrics.refused_wait.labels(self._model).inc()
        raise ServiceError(
            ErrorCode.OVERLOADED,
            f"model {self._model}: a wait of {expected_s:.1f} s is expected, over the {limit_s:.1f} s that it "
            "may wait: try again later, or with a longer deadline_s (where it names none, see --max-wait-s)",
            # By then the wait is as short as it must be, if nobody else comes.
            retry_after_s=min(_MAX_RETRY_AFTER_S, max(1, math.ceil(expected_s - limit_s))),
        )

    def _leave(self, cost: int, client: Hashable) -> None:
        self.waiting -= cost
        self._clients[client] -= cost
        if not self._clients[client]:
            del self._clients[client]

    def _measure(self, done: int) -> None:
        now = self._clock()
        self._busy_s += now - self._busy_since
        self._busy_since = now
        self._finished += done
        if self._busy_s < _WINDOW_S or not self._finished:
            return
        speed = self._finished / self._busy_s
        known = self.characters_per_s
        # A window with little to do shows less than the model can: it must not make a later burst look hopeless.
        if not known:
            self.characters_per_s = speed
        elif speed > known or self.waiting > known * _WINDOW_S:
            self.characters_per_s = _MEMORY * known + (1 - _MEMORY) * speed
        self._busy_s, self._finished = 0.0, 0
