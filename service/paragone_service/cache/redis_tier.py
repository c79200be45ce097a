"""The second tier of the cache: Redis, shared by replicas. It fails open, fast, and says so once.

Reads of all requests share a few pipelines: what arrives while they are under way makes the next one. Values are
written after the reply, by one task. So a handful of connections serve any number of requests.

Time here is *patience*: a wait is cut into slices, and a slice in which the event loop was busy counts as one, however
long it was. A process whose loop stalls for a second has not waited for Redis for a second, and its answer may lie in
the socket already.

A refused or broken connection opens the circuit, and so do several time-outs in a row: from then on nothing touches
Redis until a probe in the background has reached it again, so that no request waits for a Redis that is away.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from paragone_service.cache.redis_servers import FAILURES, connect
from paragone_service.metrics import Metrics

__all__ = ["RedisCache"]

logger = logging.getLogger("paragone.service")

Result = TypeVar("Result")

# A slow Redis must not slow down every request: running a small model again takes less than this.
_PATIENCE_S = 0.2
_SLICES = 10
_TIMEOUTS_IN_A_ROW = 3
_READERS = 4
_KEYS_A_READ = 4096
_MAX_UNREAD = 200_000
_WRITES_A_PIPELINE = 256
# A value and its key are some hundred bytes: a queue of tens of megabytes, and no more, while Redis is slow.
_MAX_PENDING = 200_000
_PROBE_FIRST_S = 0.5
_PROBE_LAST_S = 15.0
_TTL_JITTER = 0.1


async def _patiently(work: Coroutine[Any, Any, Result]) -> Result:
    """Return what the work returns.

    Raises:
        TimeoutError: if it takes longer than the patience, slices in which the loop was busy counted once.
    """
    task = asyncio.ensure_future(work)
    try:
        for _ in range(_SLICES):
            await asyncio.wait({task}, timeout=_PATIENCE_S / _SLICES)
            if task.done():
                return task.result()
        raise TimeoutError(f"no answer within {_PATIENCE_S:g} s")
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)  # the driver closes the connection on its way out


class _Read:
    """What one request wants to know: its keys, and a future for their values."""

    __slots__ = ("keys", "values")

    def __init__(self, keys: Sequence[bytes]) -> None:
        self.keys = keys
        self.values: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()

    def settle(self, values: list[bytes | None]) -> None:
        if not self.values.done():  # its client may have left
            self.values.set_result(values)


class _Evaluation:
    """What one request wants a script to do, and a future for its reply; None if there is none."""

    __slots__ = ("arguments", "key", "reply", "script")

    def __init__(self, script: str, key: bytes, arguments: Sequence[bytes | float]) -> None:
        self.script, self.key, self.arguments = script, key, arguments
        self.reply: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def settle(self, reply: object) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)


class RedisCache:
    """Read and write values in Redis; while it is away every read misses and every write is dropped.

    Args:
        url: of a server or a cluster, as ``redis_servers.connect`` reads it.
        ttl_s: how long a value is kept, ±10 % so that entries written together do not expire together.

    Raises:
        ValueError: if the URL has an unknown scheme, or names a cluster's database beside 0.
    """

    def __init__(self, url: str, *, ttl_s: float, metrics: Metrics) -> None:
        self._servers = connect(url)
        self._redis = self._servers.client
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._up = True
        self._timeouts = 0
        self._unread: deque[_Read] = deque()
        self._unread_keys = 0
        self._asked = asyncio.Event()
        self._unevaluated: deque[_Evaluation] = deque()
        self._wanted = asyncio.Event()
        self._pending: deque[tuple[bytes, bytes, bool]] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def up(self) -> bool:
        """Whether Redis is in use: not given up as away."""
        return self._up

    @property
    def connection(self) -> Any:
        """A ``Redis`` or ``RedisCluster``, for others who need it; they count as its users and may find it away."""
        return self._redis

    async def start(self) -> None:
        """Try to reach Redis once and start readers and writer; a Redis that is away is only warned of."""
        self._metrics.redis_up.set(1)
        self._spawn(self._write())
        self._spawn(self._evaluate())
        for _ in range(_READERS):
            self._spawn(self._read())
        try:
            await _patiently(self._servers.ping())
        except FAILURES as error:
            self._metrics.redis_errors.labels("start").inc()
            self._give_up(error)

    async def close(self) -> None:
        """Write what is pending, within a second, and close the connections."""
        self._closing = True  # from here on nothing is queued, so the wait below has an end
        if self._up:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._miss_unread()
        with contextlib.suppress(*FAILURES):
            await self._servers.close()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the raw value of each key or None, in one round trip; all None while Redis is away."""
        if not self._up or self._closing:
            return [None] * len(keys)
        if self._unread_keys + len(keys) > _MAX_UNREAD:
            self._metrics.redis_unasked.inc(len(keys))
            return [None] * len(keys)
        read = _Read(keys)
        self._unread.append(read)
        self._unread_keys += len(keys)
        self._asked.set()
        return await read.values

    async def _read(self) -> None:
        while True:
            await self._asked.wait()
            reads = self._next_reads()
            if not reads:
                self._asked.clear()
                continue
            await self._read_together(reads)

    def _next_reads(self) -> list[_Read]:
        reads: list[_Read] = []
        size = 0
        while self._unread and (not reads or size + len(self._unread[0].keys) <= _KEYS_A_READ):
            read = self._unread.popleft()
            self._unread_keys -= len(read.keys)
            if not read.values.done():  # whose client has left needs no answer
                reads.append(read)
                size += len(read.keys)
        return reads

    async def _read_together(self, reads: Sequence[_Read]) -> None:
        keys = [key for read in reads for key in read.keys]
        pipeline = self._redis.pipeline(transaction=False)
        places, together = [self._servers.place(key) for key in keys], list(self._servers.reads(keys))
        for part in together:
            pipeline.execute_command("MGET", *(places[index] for index in part))
        try:
            replies = await _patiently(self._servers.run(pipeline))
            refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
            if refused is not None:
                raise refused  # a Redis that cannot be read is as good as away
        except FAILURES as error:
            self._failed("get", error)
            for read in reads:
                read.settle([None] * len(read.keys))
            return
        except asyncio.CancelledError:
            for read in reads:
                read.settle([None] * len(read.keys))
            raise
        self._timeouts = 0
        # Another program may keep something else under a key of ours; that is a miss, and no error.
        values: list[bytes | None] = [None] * len(keys)
        for part, reply in zip(together, replies, strict=True):
            for index, value in zip(part, reply, strict=True):
                values[index] = value if isinstance(value, bytes) else None
        start = 0
        for read in reads:
            read.settle(values[start : start + len(read.keys)])
            start += len(read.keys)

    async def evaluate(self, script: str, key: bytes, arguments: Sequence[bytes | float]) -> object:
        """Return what a Lua script answers for a key; None while Redis is away, late, or refuses it.

        Calls of all requests share pipelines, as reads do.
        """
        if not self._up or self._closing or len(self._unevaluated) >= _MAX_UNREAD:
            return None
        evaluation = _Evaluation(script, key, arguments)
        self._unevaluated.append(evaluation)
        self._wanted.set()
        return await evaluation.reply

    async def _evaluate(self) -> None:
        while True:
            await self._wanted.wait()
            chunk = [self._unevaluated.popleft() for _ in range(min(len(self._unevaluated), _WRITES_A_PIPELINE))]
            if not chunk:
                self._wanted.clear()
                continue
            pipeline = self._redis.pipeline(transaction=False)
            for one in chunk:
                pipeline.eval(one.script, 1, one.key, *one.arguments)
            replies: Sequence[object] = [None] * len(chunk)
            try:
                replies = await _patiently(self._servers.run(pipeline))
                self._timeouts = 0
            except FAILURES as error:
                self._failed("script", error)
            finally:
                for one, reply in zip(chunk, replies, strict=True):
                    refused = isinstance(reply, Exception)
                    if refused:  # a full or read-only Redis; it still reads
                        self._metrics.redis_errors.labels("script").inc()
                    one.settle(None if refused else reply)

    def put(self, entries: Iterable[tuple[bytes, bytes, bool]]) -> None:
        """Have values written soon: (key, value, overwrite). Without overwrite the first writer wins.

        Never waits: what does not fit into the queue, or comes while Redis is away, is dropped and counted.
        """
        waiting = list(entries)
        # While Redis is away nothing is queued: at its return the values would be old news, and the queue a burst.
        room = _MAX_PENDING - len(self._pending) if self._up and not self._closing else 0
        if len(waiting) > room:
            self._metrics.redis_unwritten.inc(len(waiting) - room)
        if room <= 0:
            return
        self._pending.extend(waiting[:room])
        self._idle.clear()
        self._arrived.set()

    async def _write(self) -> None:
        while True:
            await self._arrived.wait()
            chunk = [self._pending.popleft() for _ in range(min(len(self._pending), _WRITES_A_PIPELINE))]
            # The queue may be empty by now: whoever finds that Redis is away clears it.
            if chunk:
                try:
                    await self._write_chunk(chunk)
                except FAILURES as error:
                    self._metrics.redis_unwritten.inc(len(chunk))
                    self._failed("set", error)
            if not self._pending:
                self._arrived.clear()
                self._idle.set()

    async def _write_chunk(self, chunk: list[tuple[bytes, bytes, bool]]) -> None:
        kept = await self._set(chunk)
        if not kept:
            return
        # Most are the values of another replica that was first. What is no string at all was never a value: a read
        # takes it for absent, and it would keep its key from being cached for ever.
        pipeline = self._redis.pipeline(transaction=False)
        for key, _, _ in kept:
            pipeline.type(self._servers.place(key))
        types = await _patiently(self._servers.run(pipeline))
        foreign = [
            (key, value, True)
            for (key, value, _), kind in zip(kept, types, strict=True)
            if isinstance(kind, bytes) and kind not in (b"string", b"none")
        ]
        if foreign:
            self._metrics.cache_corrupted.inc(len(foreign))
            await self._set(foreign)

    async def _set(self, chunk: list[tuple[bytes, bytes, bool]]) -> list[tuple[bytes, bytes, bool]]:
        """Write, and return the entries whose key had something already."""
        pipeline = self._redis.pipeline(transaction=False)
        for key, value, overwrite in chunk:
            # Values that were written together, as by a benchmark, must not all have to be computed again together.
            ttl_s = self._ttl_s * random.uniform(1 - _TTL_JITTER, 1 + _TTL_JITTER)  # noqa: S311 (no secret hangs on it)
            pipeline.set(self._servers.place(key), value, ex=max(1, round(ttl_s)), nx=not overwrite)
        replies = await _patiently(self._servers.run(pipeline))  # one refusal says nothing of the others
        self._timeouts = 0
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        if refused:  # a full or read-only Redis still reads; it stays in use
            self._metrics.redis_unwritten.inc(len(refused))
            self._metrics.redis_errors.labels("set").inc(len(refused))
            logger.debug("redis refused %d of %d writes: %s", len(refused), len(chunk), refused[0])
        return [entry for entry, reply in zip(chunk, replies, strict=True) if reply is None]

    def _failed(self, operation: str, error: Exception) -> None:
        self._metrics.redis_errors.labels(operation).inc()
        if isinstance(error, TimeoutError) and self._up:
            # One late answer is no sign that Redis is away; a connection that is refused or breaks is.
            self._timeouts += 1
            if self._timeouts < _TIMEOUTS_IN_A_ROW:
                return
        self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if not self._up or self._closing:
            return  # the log has one line for each time that Redis goes, however many requests find out
        self._up = False
        self._timeouts = 0
        self._metrics.redis_up.set(0)
        self._metrics.redis_opened.inc()
        self._metrics.redis_unwritten.inc(len(self._pending))
        self._pending.clear()
        self._miss_unread()
        logger.warning(
            "redis is away (%s: %s): answers stay right, cached in this process only until it is back",
            type(error).__name__,
            error,
        )
        self._spawn(self._probe())

    def _miss_unread(self) -> None:
        while self._unread:
            read = self._unread.popleft()
            read.settle([None] * len(read.keys))
        self._unread_keys = 0
        while self._unevaluated:
            self._unevaluated.popleft().settle(None)

    async def _probe(self) -> None:
        wait_s = _PROBE_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                await _patiently(self._servers.ping())
            except FAILURES:
                # A restart takes a second and is found at once; a machine that is gone is asked four times a minute.
                wait_s = min(2 * wait_s, _PROBE_LAST_S)
                continue
            self._up = True
            self._metrics.redis_up.set(1)
            logger.warning("redis is back")
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference: without one a task may be collected half-way
        task.add_done_callback(self._tasks.discard)
