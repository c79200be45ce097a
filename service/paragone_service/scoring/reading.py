"""The thread in which one model's texts are read: fair among clients, and let go of where nobody waits any more.

Reading goes in turns. A turn reads a chunk of one request's texts, or the first of them where they take long; the
client whose texts have had the thread for the least time is next. So a text that takes long holds up its own request,
and every other one for a turn. A request that ends before its answer, by its deadline or because its client has left,
ends its turn too. Small chunks share a turn: of many requests with one text each, what a turn costs by itself, the way
into the thread and to the template's process and back, would be more than the reading.

Where the device is the slower one, texts wait here and not as tokens: reading ahead of it would take the processor from
it, and be in vain for whoever does not wait for so long. What takes many turns is read ahead all the same, since the
device would run dry while it is read; and so is a small question, which goes ahead of what the device has.
"""

import asyncio
import contextlib
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Readable, Reading
from paragone_models.text.rendering import Turn
from paragone_models.text.sizes import sizes
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.fairness import Backlog, Order
from paragone_service.scoring.request import Call
from paragone_service.watchdog import Post

__all__ = ["ReadingThread"]

_CHUNK, _CHUNK_CHARACTERS = 128, 1 << 17
"""Most conversations of a chunk, and about its most characters: some 0.2 s of a tokenizer, and fifty megabytes."""
_SHARED, _SHARED_CHARACTERS = 32, 1 << 15
"""The same of a turn that several requests share: the first of them waits for the last."""
_TURN_S = 0.25
"""Processor time of a chat template in one turn; a conversation that was begun is read to its end, or its limit."""
_MEMORY_S = 2.0
"""Seconds of reading over which the speed is a mean."""
_USUAL, _SLOWEST = 400_000, 50_000
"""Characters a second: what is expected before anything was read, and the least that is ever expected. Short texts, and
a template's process that starts anew, look slow; that must not send anybody away."""
_REMEMBERED_CLIENTS = 1024


class ReadingThread:
    """Read conversations for one hosted model, one chunk at a time, off the event loop.

    A tokenizer keeps how special tokens are split as state of its own, so there is one thread and no more.

    Args:
        stocked: whether the queue of the device has enough to do; ``go_on`` must be called when it has not any more.
        lacking: tokens after which it has. A turn is not shared by more characters than that for the queue: a token is
            about one at least.
    """

    def __init__(
        self,
        name: str,
        model: PreferenceModel,
        stocked: Callable[[], bool] = lambda: False,
        *,
        lacking: Callable[[], float] = lambda: math.inf,
        limit_s: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.post = Post(limit_s)
        self._name = name
        self._reader = model.reader
        self._stocked = stocked
        self._lacking = lacking
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")
        self._line = _Line()
        self._running: _Running | None = None
        self._closed = False
        self._unread = Backlog()
        self._finished, self._seconds = _USUAL * _MEMORY_S, _MEMORY_S

    def expected_wait_s(self, characters: int, client: Hashable) -> float:
        """Return how long a client waits before its next so many characters are read, as far as is known."""
        return self._unread.ahead(client, characters) / max(_SLOWEST, self._finished / self._seconds)

    async def read(self, conversations: Sequence[Readable], call: Call) -> list[Reading | TextError]:
        """Return what the model sees of each conversation, or why it sees nothing.

        The call's truncation policy counts, and its timings are filled in.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        return [reading async for chunk in self.chunks(conversations, call) for reading in chunk]

    async def chunks(
        self, conversations: Sequence[Readable], call: Call, *, for_queue: bool = False
    ) -> AsyncIterator[list[Reading | TextError]]:
        """Yield the same piece by piece, so that the readings of a large request are never all there at once.

        Args:
            for_queue: whether it may wait while the queue has enough to do.

        Raises:
            ServiceError: ``text_unavailable``, if the model has no tokenizer.
        """
        if self._reader is None:
            raise ServiceError(
                ErrorCode.TEXT_UNAVAILABLE,
                f"model {self._name} was loaded from a folder without a tokenizer and reads no text: add its "
                "tokenizer files to the folder",
            )
        counts = [whole for _, whole in sizes(conversations)]
        left, client = sum(counts), call.client
        self._unread.add(client, left)
        try:
            chunks = list(_chunked(counts))
            waits = for_queue and not call.rested and len(chunks) == 1
            for first, stop in chunks:
                while first < stop:  # others' turns come in between
                    place = _Place(call, conversations[first:stop], counts[first:stop], waits)
                    readings = await self._read(place)
                    read = sum(counts[first : first + len(readings)])
                    left -= read
                    self._unread.add(client, -read)
                    first += len(readings)
                    yield readings
        finally:
            self._unread.add(client, -left)

    async def _read(self, place: "_Place") -> list[Reading | TextError]:
        """Return what was read in the turn of a place: its texts, or the first of them."""
        came = self._clock()
        self._line.join(place)
        self.go_on()
        try:
            readings = await place.outcome
        except asyncio.CancelledError:
            if self._running is not None:
                self._running.end_if_left()
            raise
        place.call.timings.queue_s += place.started - came
        place.call.timings.tokenize_s += self._clock() - place.started
        return readings

    def go_on(self) -> None:
        """Begin a turn, if none runs and somebody may have one: the queue may have less to do than it had."""
        if self._running is not None or self._closed:
            return
        places = self._line.take(stocked=self._stocked(), lacking=self._lacking())
        if not places:
            return
        assert self._reader is not None
        running = self._running = _Running(places, self._clock())
        for place in places:
            place.started = running.started
        conversations = [conversation for place in places for conversation in place.conversations]
        truncation = places[0].call.truncation
        read = functools.partial(self._reader.read, conversations, truncation=truncation, turn=running.turn)
        loop = asyncio.get_running_loop()

        def pass_on(ended: Future[list[Reading | TextError]]) -> None:
            # Only now, and not when the requests end: until then the thread is at work for them.
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._pass_on, running, ended)

        self._thread.submit(self._watched, read).add_done_callback(pass_on)

    def _pass_on(self, running: "_Running", ended: Future[list[Reading | TextError]]) -> None:
        """Hand out what a turn has read, and begin the next one."""
        self._running, seconds = None, self._clock() - running.started
        error = asyncio.CancelledError() if ended.cancelled() else ended.exception()
        readings = [] if error else ended.result()
        characters = [0] * len(running.places)
        for number, place in enumerate(running.places):
            own, readings = readings[: len(place.counts)], readings[len(place.counts) :]
            characters[number] = sum(place.counts[: len(own)])
            if not place.outcome.done():
                self._settle(place, own, error, alone=len(running.places) == 1)
        if not (error or running.turn.over or running.turn.ended):
            fade = math.exp(-seconds / _MEMORY_S)
            self._finished, self._seconds = self._finished * fade + sum(characters), self._seconds * fade + seconds
        whole = sum(characters) or 1
        for place, read in zip(running.places, characters, strict=True):
            self._line.charge(place.call.client, seconds * (read / whole if any(characters) else 1))
        # Not at once: what was read is queued first, and shows how much the queue still lacks.
        asyncio.get_running_loop().call_soon(self.go_on)

    def _settle(
        self, place: "_Place", readings: list[Reading | TextError], error: BaseException | None, *, alone: bool
    ) -> None:
        if isinstance(error, asyncio.CancelledError):
            place.outcome.cancel()
        elif readings or (alone and error is None):
            place.outcome.set_result(readings)
        elif alone and error is not None:
            place.outcome.set_exception(error)
        else:  # the turn did not come to it, or failed, perhaps of another's text
            place.alone = error is not None
            self._line.join(place)

    def _watched(self, read: Callable[[], list[Reading | TextError]]) -> list[Reading | TextError]:
        with self.post.at_work(f"reading for model {self._name}"):
            return read()

    def close(self) -> None:
        """Let the thread end after the chunk it has."""
        self._closed = True
        self._thread.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True, eq=False)
class _Place:
    """A chunk of a request's texts in the line.

    Attributes:
        counts: the characters of each.
        waits: whether its turn is not given while the queue is stocked.
        alone: whether it shares no turn.
        outcome: what was read of it; whoever cancels it has left.
        started: when its turn began.
    """

    call: Call
    conversations: Sequence[Readable]
    counts: Sequence[int]
    waits: bool
    alone: bool = False
    outcome: asyncio.Future[list[Reading | TextError]] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    started: float = math.nan
    characters: int = field(init=False)

    def __post_init__(self) -> None:
        self.characters = sum(self.counts)

    def shares(self, first: "_Place") -> bool:
        """Return whether it may be read in the turn of another."""
        return not (self.alone or first.alone) and self.call.truncation == first.call.truncation


class _Running:
    """A turn of one place or several.

    Attributes:
        turn: as the reader knows it.
    """

    def __init__(self, places: Sequence[_Place], started: float) -> None:
        self.places = places
        self.started = started
        self.turn = Turn(_TURN_S)

    def end_if_left(self) -> None:
        """End it if nobody waits for it any more."""
        if all(place.outcome.cancelled() for place in self.places):
            self.turn.end()


class _Line:
    """Clients that wait for a turn: the one that has had the thread for the least time is next.

    A client that comes, or comes back, starts where the turn is now: nobody saves up while away. Small requests of
    clients that have rested have every other turn. Some turns are not given while the queue is stocked.
    """

    def __init__(self) -> None:
        self._rested: deque[_Place] = deque()
        self._rested_was_last = False
        self._waiting: dict[Hashable, deque[_Place]] = {}
        numbers = itertools.count()
        # By whether the first place of a client waits for the queue.
        self._orders = {True: Order(numbers), False: Order(numbers)}
        self._had_s: dict[Hashable, float] = {}
        self._level_s = 0.0

    def join(self, place: _Place) -> None:
        """Queue a place behind those of its client; whoever cancels its outcome has left the line."""
        if place.call.rested:
            self._rested.append(place)
            return
        places = self._waiting.setdefault(place.call.client, deque())
        places.append(place)
        if len(places) == 1:
            self._enter(place)

    def take(self, *, stocked: bool, lacking: float = math.inf) -> list[_Place]:
        """Return the places whose turn is next, and take them out of the line; none if nobody waits who may have it.

        The first of them has its turn, and those behind it share it as long as they fit.
        """
        others = self._first(stocked) is not None
        self._rested_was_last = self._first_rested() is not None and not (self._rested_was_last and others)
        first = self._first_rested if self._rested_was_last else functools.partial(self._first, stocked)
        taken: list[_Place] = []
        texts = characters = 0
        while (place := first()) is not None:
            texts, characters = texts + len(place.counts), characters + place.characters
            most = min(_SHARED_CHARACTERS, lacking) if place.waits else _SHARED_CHARACTERS
            if taken and not (texts <= _SHARED and characters <= most and place.shares(taken[0])):
                break
            if place.call.rested:
                self._rested.popleft()
            else:
                self._level_s = self._start_s(place.call.client)
                self._remove(place)
            taken.append(place)
        return taken

    def _first_rested(self) -> _Place | None:
        while self._rested and self._rested[0].outcome.done():
            self._rested.popleft()
        return self._rested[0] if self._rested else None

    def _first(self, stocked: bool) -> _Place | None:
        while True:
            orders = [order for waits, order in self._orders.items() if not (stocked and waits)]
            firsts = [first for order in orders if (first := order.first()) is not None]
            if not firsts:
                return None
            _, _, client = min(firsts, key=lambda first: (max(self._level_s, first[0]), first[1]))
            place = self._waiting[client][0]
            if not place.outcome.done():
                return place
            self._remove(place)

    def _enter(self, place: _Place) -> None:
        self._orders[place.waits].add(place.call.client, self._start_s(place.call.client))

    def _remove(self, place: _Place) -> None:
        client = place.call.client
        self._orders[place.waits].remove(client)
        places = self._waiting[client]
        places.popleft()
        if places:
            self._enter(places[0])  # behind those who have had as little
        else:
            del self._waiting[client]

    def charge(self, client: Hashable, seconds: float) -> None:
        """Count the time of a client's turn."""
        had_s = self._had_s[client] = self._start_s(client) + seconds
        if client in self._waiting:
            self._orders[self._waiting[client][0].waits].raise_to(client, had_s)
        if len(self._had_s) > _REMEMBERED_CLIENTS:
            self._had_s = {other: had_s for other, had_s in self._had_s.items() if had_s > self._level_s}

    def _start_s(self, client: Hashable) -> float:
        return max(self._level_s, self._had_s.get(client, 0.0))


def _chunked(counts: Sequence[int]) -> Iterator[tuple[int, int]]:
    first = total = 0
    # Counted in characters, since tokens are not known yet: a chunk takes about as long whatever its texts are.
    for place, count in enumerate(counts):
        if place - first == _CHUNK or (place > first and total + count > _CHUNK_CHARACTERS):
            yield first, place
            first, total = place, 0
        total += count
    if first < len(counts):
        yield first, len(counts)
