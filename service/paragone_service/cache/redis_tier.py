"""The second tier of the cache: Redis, shared by replicas. It fails open, fast, and says so once.

A failed operation opens the circuit: from then on nothing touches Redis until a probe in the background has reached it
again, so that no request waits for a Redis that is away. Values are written after the reply, by one task.
"""

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Iterable, Sequence

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from paragone_service.metrics import Metrics

__all__ = ["RedisCache"]

logger = logging.getLogger("paragone.service")

# A slow Redis must not slow down every request: running a small model again takes less than this.
_TIMEOUT_S = 0.1
_CONNECT_TIMEOUT_S = 0.25
_MAX_CONNECTIONS = 256
_WRITES_A_PIPELINE = 256
# A value and its key are some hundred bytes: a queue of tens of megabytes, and no more, while Redis is slow.
_MAX_PENDING = 200_000
_PROBE_FIRST_S = 0.5
_PROBE_LAST_S = 15.0
_TTL_JITTER = 0.1


class RedisCache:
    """Read and write values in Redis; while it is away every read misses and every write is dropped.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it.
        ttl_s: how long a value is kept, ±10 % so that entries written together do not expire together.

    Raises:
        ValueError: if the URL has an unknown scheme.
    """

    def __init__(self, url: str, *, ttl_s: float, metrics: Metrics) -> None:
        self._redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            # One retry, for the connection that a restarted Redis has closed; a timeout is not worth a second one.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            max_connections=_MAX_CONNECTIONS,
            decode_responses=False,
        )
        self._ttl_s = ttl_s
        self._metrics = metrics
        self._up = True
        self._pending: deque[tuple[bytes, bytes, bool]] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    @property
    def up(self) -> bool:
        """Whether the last thing heard of Redis was an answer."""
        return self._up

    async def start(self) -> None:
        """Try to reach Redis once and start the writer; a Redis that is away is only warned of."""
        self._metrics.redis_up.set(1)
        self._spawn(self._write())
        try:
            await self._ping()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("start", error)

    async def close(self) -> None:
        """Write what is pending, within a second, and close the connections."""
        self._closing = True  # from here on nothing is queued, so the wait below has an end
        if self._up:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), timeout=1.0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(RedisError, OSError, TimeoutError):
            await self._redis.aclose()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the raw value of each key or None, in one round trip; all None while Redis is away."""
        if not self._up:
            return [None] * len(keys)
        try:
            values = await self._redis.mget(keys)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("get", error)
            return [None] * len(keys)
        # Another program may keep something else under a key of ours; that is a miss, and no error.
        return [value if isinstance(value, bytes) else None for value in values]

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
                await self._write_chunk(chunk)
            if not self._pending:
                self._arrived.clear()
                self._idle.set()

    async def _write_chunk(self, chunk: list[tuple[bytes, bytes, bool]]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for key, value, overwrite in chunk:
            # Values that were written together, as by a benchmark, must not all have to be computed again together.
            ttl_s = self._ttl_s * random.uniform(1 - _TTL_JITTER, 1 + _TTL_JITTER)  # noqa: S311 (no secret hangs on it)
            pipeline.set(key, value, ex=max(1, round(ttl_s)), nx=not overwrite)
        try:
            replies = await pipeline.execute(raise_on_error=False)  # one refused value says nothing of the others
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.redis_unwritten.inc(len(chunk))
            self._failed("set", error)
            return
        refused = [reply for reply in replies if isinstance(reply, Exception)]
        if refused:  # a full or read-only Redis still reads; it stays in use
            self._metrics.redis_unwritten.inc(len(refused))
            self._metrics.redis_errors.labels("set").inc(len(refused))
            logger.debug("redis refused %d of %d writes: %s", len(refused), len(chunk), refused[0])

    def _failed(self, operation: str, error: Exception) -> None:
        self._metrics.redis_errors.labels(operation).inc()
        if not self._up or self._closing:
            return  # the log has one line for each time that Redis goes, however many requests find out
        self._up = False
        self._metrics.redis_up.set(0)
        self._metrics.redis_unwritten.inc(len(self._pending))
        self._pending.clear()
        logger.warning(
            "redis is away (%s: %s): answers stay right, cached in this process only until it is back",
            type(error).__name__,
            error,
        )
        self._spawn(self._probe())

    async def _probe(self) -> None:
        wait_s = _PROBE_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            try:
                await self._ping()
            except (RedisError, OSError, TimeoutError):
                # A restart takes a second and is found at once; a machine that is gone is asked four times a minute.
                wait_s = min(2 * wait_s, _PROBE_LAST_S)
                continue
            self._up = True
            self._metrics.redis_up.set(1)
            logger.warning("redis is back")
            return

    async def _ping(self) -> None:
        reply = self._redis.ping()
        assert not isinstance(reply, bool)
        await reply

    def _spawn(self, work: "asyncio._CoroutineLike[None]") -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself keeps no reference: without one a task may be collected half-way
        task.add_done_callback(self._tasks.discard)
