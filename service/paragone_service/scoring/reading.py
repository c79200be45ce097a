"""The thread in which one model's texts are read: fair among clients, and let go of where nobody waits any more.

Reading goes in turns. A turn reads a chunk of one request's texts, or the first of them where they take long; the
client whose texts have had the thread for the least time is next. So a text that takes long holds up its own request,
and every other one for a turn. A request that ends before its answer, by its deadline or because its client has left,
ends its turn too.

Where the device is the slower one, texts wait here and not as tokens: reading ahead of it would take the processor from
it, and be in vain for whoever does not wait for so long. What takes many turns is read ahead all the same, since the
device would run dry while it is read; and so is a small question, which goes ahead of what the device has.
"""

import asyncio
import contextlib
import functools
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from paragone.codes import ErrorCode
from paragone_models.errors import TextError
from paragone_models.model import PreferenceModel
from paragone_models.text.reader import Readable, Reading
from paragone_models.text.rendering import Turn
from paragone_models.text.sizes import sizes
from paragone_service.http.errors import ServiceError
from paragone_service.scoring.request import Call
from paragone_service.watchdog import Post

__all__ = ["ReadingThread"]

_CHUNK, _CHUNK_CHARACTERS = 128, 1 << 17
"""Most conversations of a chunk, and about its most characters: some 0.2 s of a tokenizer, and fifty megabytes."""
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
    """

    def __init__(
        self,
        name: str,
        model: PreferenceModel,
        stocked: Callable[[], bool] = lambda: False,
        *,
        limit_s: float = math.inf,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.post = Post(limit_s)
        self._name = name
        self._reader = model.reader
        self._stocked = stocked
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"read-{name}")
        self._line = _Line()
        self._held = False
        self._unread: dict[Hashable, int] = {}
        self._finished, self._seconds = _USUAL * _MEMORY_S, _MEMORY_S

    def expected_wait_s(self, characters: int, client: Hashable) -> float:
        """Return how long a client waits before its next so many characters are read, as far as is known."""
        own = self._unread.get(client, 0)
        # Time is shared, so nobody waits for more of another's work than is its own.
        others = sum(min(unread, own + characters) for other, unread in self._unread.items() if other != client)
        return (own + others) / max(_SLOWEST, self._finished / self._seconds)

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
        self._unread[client] = self._unread.get(client, 0) + left
        try:
            chunks = list(_chunked(counts))
            waits = for_queue and not call.rested and len(chunks) == 1
            for first, stop in chunks:
                while first < stop:  # others' turns come in between
                    came = self._clock()
                    await self._wait_for_turn(call, waits)
                    started = self._clock()
                    readings = await self._turn(conversations[first:stop], counts[first:stop], call)
                    call.timings.queue_s += started - came
                    call.timings.tokenize_s += self._clock() - started
                    read = sum(counts[first : first + len(readings)])
                    left -= read
                    self._count(client, read)
                    first += len(readings)
                    yield readings
        finally:
            self._count(client, left)

    def _count(self, client: Hashable, read: int) -> None:
        left = self._unread.get(client, 0) - read
        if left > 0:
            self._unread[client] = left
        else:
            self._unread.pop(client, None)

    async def _turn(self, chunk: Sequence[Readable], counts: Sequence[int], call: Call) -> list[Reading | TextError]:
        """Read a chunk, or the first of it, and pass the turn on."""
        assert self._reader is not None
        turn, started, loop = Turn(_TURN_S), self._clock(), asyncio.get_running_loop()
        read = functools.partial(self._reader.read, chunk, truncation=call.truncation, turn=turn)
        reading = self._thread.submit(self._watched, read)

        def pass_on(ended: Future[list[Reading | TextError]]) -> None:
            # Only now, and not when the request ends: until then the thread is at work for it.
            sound = not (ended.cancelled() or turn.over or turn.ended or ended.exception())
            characters = sum(counts) if sound else 0
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._pass_on, call.client, started, characters)

        reading.add_done_callback(pass_on)
        try:
            return await asyncio.wrap_future(reading)
        except asyncio.CancelledError:
            turn.end()
            raise

    def go_on(self) -> None:
        """Give the turn to whoever waited for the queue to have less to do."""
        if not self._held:
            self._give_turn()

    async def _wait_for_turn(self, call: Call, waits: bool) -> None:
        if not self._held and not (waits and self._stocked()):
            self._held = True
            return
        turn = self._line.join(call.client, rested=call.rested, waits=waits)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came at the same moment
                self._pass_on(call.client, self._clock(), 0)
            raise

    def _pass_on(self, client: Hashable, started: float, characters: int) -> None:
        """End a client's turn, in which so many characters were read as fast as usual."""
        seconds = self._clock() - started
        if characters:
            fade = math.exp(-seconds / _MEMORY_S)
            self._finished, self._seconds = self._finished * fade + characters, self._seconds * fade + seconds
        self._line.charge(client, seconds)
        self._give_turn()

    def _give_turn(self) -> None:
        following = self._line.next(stocked=self._stocked())
        self._held = following is not None
        if following is not None:
            following.set_result(None)

    def _watched(self, read: Callable[[], list[Reading | TextError]]) -> list[Reading | TextError]:
        with self.post.at_work(f"reading for model {self._name}"):
            return read()

    def close(self) -> None:
        """Let the thread end after the chunk it has."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class _Place(NamedTuple):
    """Somebody's place in the line.

    Attributes:
        waits: whether the turn is not given while the queue is stocked.
    """

    turn: asyncio.Future[None]
    waits: bool


class _Line:
    """Clients that wait for a turn: the one that has had the thread for the least time is next.

    A client that comes, or comes back, starts where the turn is now: nobody saves up while away. Small requests of
    clients that have rested have every other turn. Some turns are not given while the queue is stocked.
    """

    def __init__(self) -> None:
        self._rested: deque[asyncio.Future[None]] = deque()
        self._rested_was_last = False
        self._waiting: dict[Hashable, deque[_Place]] = {}
        self._had_s: dict[Hashable, float] = {}
        self._level_s = 0.0

    def join(self, client: Hashable, *, rested: bool, waits: bool) -> asyncio.Future[None]:
        """Return what is done once it is the client's turn; whoever cancels it has left the line.

        Args:
            waits: whether it is not given while the queue is stocked.
        """
        turn = asyncio.get_running_loop().create_future()
        if rested:
            self._rested.append(turn)
            return turn
        self._waiting.setdefault(client, deque()).append(_Place(turn, waits))
        return turn

    def next(self, *, stocked: bool) -> asyncio.Future[None] | None:
        """Return the turn that is next, and take it out of the line; None if nobody waits who may have it now."""
        while True:
            clients = [client for client, places in self._waiting.items() if not (stocked and places[0].waits)]
            self._rested_was_last = bool(self._rested) and not (self._rested_was_last and clients)
            if self._rested_was_last:
                turn = self._rested.popleft()
            elif clients:
                client = min(clients, key=self._start_s)
                self._level_s = self._start_s(client)
                places = self._waiting.pop(client)
                turn = places.popleft().turn
                if places:
                    self._waiting[client] = places  # behind those who have had as little
            else:
                return None
            if not turn.done():
                return turn

    def charge(self, client: Hashable, seconds: float) -> None:
        """Count the time of a client's turn."""
        self._had_s[client] = self._start_s(client) + seconds
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
