"""The door of one hosted model: how long a request would wait is expected before any of it is read.

What waits is counted in characters, because tokens are not known yet, from here to the request's answer. So whatever
is slow, reading, the device or the loop, shows in one number: the characters that are finished in a second. The device
is fair among clients, so a client waits behind as much of each other's work as it has itself.

Under load most requests are refused, and each must cost next to nothing. So a body is judged by its length before it is
parsed, with the share of its bytes that its client's last bodies had as work. What the cache answers is no work, so a
client whose questions are known is let in whatever waits. A body that is let in reserves its work until it is parsed
and admitted: of a burst, the later bodies are judged by the earlier ones, none of which is parsed yet.

A client with nothing on its way rests, and a rest earns it the right to go ahead of those who always ask, with a
question that takes a small part of the time it has rested for.

Without it the queue grows until nobody's answer comes in time, and all of the work is for nothing.
"""

import contextlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.fairness import Backlog
from paragone_service.scoring.request import Deadline, Reservation

__all__ = ["Admission", "Entry"]

_LOADED_S = 0.25
"""Work for so many seconds keeps a model busy. With less, what is finished shows who asks and not how fast it is."""
_MEMORY_S = 2.0
"""Loaded seconds over which the speed is a mean: several batches, else the end of a large one looks like a sprint."""
_SHARE_OF_A_DEADLINE = 0.5
"""The wait may take up to here of the time left: the expectation may be wrong by as much again."""
_MIN_COST = 64
"""Characters that every response costs at least: the cost of its row, and of a pass that is never empty."""
_RETURNING = 0.5
"""Of those who were sent away, the share that is expected to come back."""
_RETURN_MEMORY_S = 3.0
_MAX_RETRY_AFTER_S = 30
_CLIENTS_KNOWN = 8_192
"""Clients whose last bodies are remembered: twice as many as there are connections."""
_SHARE_MEMORY = 0.8  # of the mean share of all bodies that was work, against the last one's
_PARSED_EVERY = 8
"""Of the bodies of a client that are refused unparsed, every so many is parsed: it may hold what is known by now."""
_EARNED = 0.125
"""Seconds of work ahead of others for each second of rest."""
_SMALL = 4_096
"""Characters over which a request is no small question, whoever asks it."""
_MUCH_MORE = 1.25
"""Times the work that was reserved for it, over which a request is judged again once it is parsed."""
_HARDLY_ANY_S = 0.05
"""A wait that nobody is refused for: with less to do no body needs to be judged."""


class Entry:
    """A request that was admitted.

    Attributes:
        left: characters of it that are not done.
        rested: whether its client has rested for long enough to go ahead of others with it.
    """

    __slots__ = ("_door", "_part", "client", "left", "rested")

    def __init__(self, door: "Admission", client: Hashable, cost: int, responses: int, *, rested: bool) -> None:
        self._door = door
        self._part = cost // responses
        self.client = client
        self.left = cost
        self.rested = rested

    def one_finished(self, _: object = None) -> None:
        """Count one more of its responses as done; a callback of its ticket's outcome."""
        if self.left:  # a batch may end after the client has left
            self._door.finished(self, min(self._part, self.left))


@dataclass(slots=True)
class _Known:
    """What is remembered of a client.

    Attributes:
        share: of the bytes of its last body, how much was work; None before the first.
        unparsed: its bodies that were refused unparsed since one was parsed.
        resting_since: when it had nothing on its way any more.
    """

    share: float | None = None
    unparsed: int = 0
    resting_since: float = -math.inf


class Admission:
    """Admit requests while the wait that they can expect is short enough, and measure the speed.

    Args:
        model: its name, for messages and metrics.
        max_wait_s: the longest expected wait of a request whose client named no deadline.

    Attributes:
        characters_per_s: the speed seen; 0 until something was finished.
        waiting: characters admitted and not answered.
        reserved: characters of requests that are not parsed yet, as far as is known.
    """

    def __init__(
        self, model: str, metrics: Metrics, *, max_wait_s: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.characters_per_s = 0.0
        self.waiting = 0
        self.reserved = 0
        self._model = model
        self._metrics = metrics
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._clients = Backlog()
        self._known: OrderedDict[Hashable, _Known] = OrderedDict()
        self._strangers = _Known()  # whose share is the mean of all bodies
        # Fading sums whose ratio is the speed, of loaded times alone; and those of an unloaded time that is not over.
        self._finished, self._seconds = 0.0, 0.0
        self._light_finished, self._light_seconds = 0, 0.0
        self._measured_at = 0.0
        # Seconds of work that were sent away and may come back, and when this was so.
        self._returning_s, self._returning_at = 0.0, 0.0

    @property
    def busy(self) -> bool:
        """Whether so much waits that somebody may be refused."""
        return self.waiting + self.reserved > self.characters_per_s * _HARDLY_ANY_S > 0

    def parsed(self, client: Hashable, body_bytes: int, characters: int, responses: int) -> None:
        """Remember how much work was in a client's body, which was parsed: none, where the cache answered."""
        if not body_bytes:
            return
        share, mean = (characters + responses * _MIN_COST) / body_bytes, self._strangers.share
        self._strangers.share = share if mean is None else _SHARE_MEMORY * mean + (1 - _SHARE_MEMORY) * share
        known = self._known_of(client)
        known.share, known.unparsed = share, 0

    def judged(self, client: Hashable, body_bytes: int, deadline_s: float | None) -> ServiceError | Reservation:
        """Return what a request that was not parsed is refused with, or what it reserves if it is worth parsing.

        Args:
            deadline_s: how long its client waits, if it said so.
        """
        known = self._known.get(client)
        share = self._strangers.share if known is None or known.share is None else known.share
        if not share:
            return Reservation(0, self._reserve, client)
        cost = round(share * body_bytes)
        if not self.busy:
            return Reservation(cost, self._reserve, client)
        known = self._known_of(client)
        if known.unparsed >= _PARSED_EVERY:
            known.unparsed = 0
            return Reservation(
                0, self._reserve, client
            )  # which is no promise: most of these are refused once they are parsed
        try:
            self._check(self.expected_wait_s(cost, client), cost, deadline_s)
        except ServiceError as error:
            known.unparsed += 1
            return error
        return Reservation(cost, self._reserve, client)

    def _reserve(self, client: Hashable, characters: int) -> None:
        self.reserved += characters
        self._clients.add(client, characters)

    def backlog_s(self) -> float:
        """Return how long all that was admitted takes, as far as is known."""
        return self._clients.total / self.characters_per_s if self.characters_per_s else 0.0

    def expected_wait_s(self, characters: int, client: Hashable) -> float:
        """Return how long a client waits before its next so many characters begin, as far as is known."""
        if not self.characters_per_s:
            return 0.0
        return self._clients.ahead(client, characters) / self.characters_per_s

    @contextlib.contextmanager
    def admitted(
        self,
        characters: int,
        responses: int,
        client: Hashable,
        deadline: Deadline | None,
        *,
        before_s: float = 0.0,
        reservation: Reservation | None = None,
    ) -> Iterator["Entry"]:
        """Admit a request for as long as the context lasts.

        Args:
            characters: of all that has to be read, of so many responses.
            before_s: how long it waits to be read.
            reservation: what was reserved when it came, which ends here. What has grown by no more than a little since
                is not judged again: those who came later are no reason to send it away.

        Returns:
            What to tell of each response that is finished.

        Raises:
            ServiceError: ``overloaded``, if it would wait for too long.
        """
        cost = characters + responses * _MIN_COST
        if reservation is not None:
            reservation.release()
        if reservation is None or cost > _MUCH_MORE * reservation.cost:
            self.check_wait(max(before_s, self.expected_wait_s(cost, client)), cost, deadline)
        if not self.waiting:
            self._measured_at = self._clock()
        entry = Entry(self, client, cost, responses, rested=self._rested(client, cost))
        self.waiting += cost
        self._clients.add(client, cost)
        try:
            yield entry
        finally:
            # What is left was refused, dropped or found elsewhere: time has passed, and this has not been done in it.
            self._measure(0)
            self._leave(cost, client)
            entry.left = 0

    def check_wait(self, expected_s: float, cost: int, deadline: Deadline | None) -> None:
        """Refuse a request of so many characters that can expect to wait for too long.

        Raises:
            ServiceError: ``overloaded``.
        """
        named = deadline is not None and deadline.chosen
        self._check(expected_s, cost, deadline.left_s() if deadline and named else None)

    def _check(self, expected_s: float, cost: int, left_s: float | None) -> None:
        limit_s = self._max_wait_s if left_s is None else _SHARE_OF_A_DEADLINE * left_s
        if expected_s <= max(0.0, limit_s):
            return
        self._metrics.refused_wait.labels(self._model).inc()
        raise ServiceError(
            ErrorCode.OVERLOADED,
            f"model {self._model}: a wait of {expected_s:.1f} s is expected, over the {limit_s:.1f} s that it "
            "may wait: try again later, or with a longer deadline_s (where it names none, see --max-wait-s)",
            retry_after_s=self._retry_after_s(expected_s - limit_s, cost),
        )

    def _retry_after_s(self, excess_s: float, cost: int) -> int:
        """Return when the wait will be short enough, after those who were sent away before have come back.

        Without these, all who were refused would come back in one second, and be refused again.
        """
        now = self._clock()
        seconds, self._returning_at = now - self._returning_at, now
        # Most come back soon or never: what was sent away in the last seconds counts.
        self._returning_s = max(0.0, self._returning_s * math.exp(-seconds / _RETURN_MEMORY_S) - seconds)
        retry_after_s = excess_s + self._returning_s
        if retry_after_s < _MAX_RETRY_AFTER_S and self.characters_per_s:
            self._returning_s += _RETURNING * cost / self.characters_per_s
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(retry_after_s)))

    def finished(self, entry: "Entry", characters: int) -> None:
        """Count so much of a request as done; all of it waits on until the whole is answered."""
        self._measure(characters)
        entry.left -= characters

    def _leave(self, cost: int, client: Hashable) -> None:
        self.waiting -= cost
        self._clients.add(client, -cost)
        if client not in self._clients:
            self._known_of(client).resting_since = self._clock()

    def _rested(self, client: Hashable, cost: int) -> bool:
        if client in self._clients or cost > _SMALL:
            return False
        known = self._known.get(client)
        rest_s = math.inf if known is None else self._clock() - known.resting_since
        return cost <= _EARNED * rest_s * self.characters_per_s if self.characters_per_s else True

    def _known_of(self, client: Hashable) -> _Known:
        known = self._known.setdefault(client, _Known())
        self._known.move_to_end(client)
        if len(self._known) > _CLIENTS_KNOWN:
            self._known.popitem(last=False)
        return known

    def _measure(self, done: int) -> None:
        now = self._clock()
        seconds, self._measured_at = now - self._measured_at, now
        if self.characters_per_s and self.waiting > self.characters_per_s * _LOADED_S:
            fade = math.exp(-seconds / _MEMORY_S)
            self._set(self._finished * fade + done, self._seconds * fade + seconds)
            self._light_finished, self._light_seconds = 0, 0.0
            return
        self._light_finished += done
        self._light_seconds += seconds
        if self._light_seconds < _LOADED_S or not self._light_finished:
            return
        speed = self._light_finished / self._light_seconds
        self._light_finished, self._light_seconds = 0, 0.0
        # A time with little to do shows less than the model can: it must not make a later burst look hopeless.
        if speed > self.characters_per_s:
            self._set(speed * _MEMORY_S, _MEMORY_S)

    def _set(self, finished: float, seconds: float) -> None:
        self._finished, self._seconds = finished, seconds
        self.characters_per_s = finished / seconds
