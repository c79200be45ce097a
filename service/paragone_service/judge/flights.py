"""Single flight: what several requests want to know at once is asked once, in this process and among replicas.

Within the process a second request joins the first one's task, which is cancelled when nobody waits any more. Among
replicas whoever asks holds a lease in Redis: a key that expires by itself and is renewed while the work goes on. Others
look for the value meanwhile; if the lease is lost before there is one, they ask again. Without Redis, and while it is
away, every process asks for itself.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from paragone.codes import ErrorCode
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.tiers import Cache, Inspector
from paragone_service.http.errors import ServiceError

__all__ = ["Flights"]

_LEASE_MS = 15_000
_RENEWALS = 3
_AFTERGLOW_MS = 2_000
"""How long a lease outlives its work: the value has to reach Redis before others may ask again."""
_FIRST_LOOK_S = 0.05
_LAST_LOOK_S = 1.0
_PREFIX = b"paragone:lease:"
# Taking and renewing are the same: a lease is ours if it is free, or ours already. What never expires, or is no string,
# is none of ours, and would be waited for for ever.
_TAKE = """\
if redis.call('PTTL', KEYS[1]) == -1 or redis.call('TYPE', KEYS[1]).ok ~= 'string' then redis.call('DEL', KEYS[1]) end
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) and 1 or 0
"""
_LEAVE = """\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '0' then return redis.call('DEL', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


@dataclass
class _Flight:
    task: "asyncio.Task[bytes]"
    until: float
    waiters: int = 0


class Flights:
    """Ask for each missing value once.

    Args:
        cache: where values are looked for and put.
        redis: where replicas share leases, or None.
        clock: in seconds.
    """

    def __init__(
        self,
        cache: Cache,
        inspector: Inspector,
        redis: RedisCache | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._inspector = inspector
        self._redis = redis
        self._clock = clock
        self._token = secrets.token_bytes(16)
        self._flights: dict[bytes, _Flight] = {}

    async def value(
        self, key: bytes, ask: Callable[[Callable[[], float]], Awaitable[bytes]], *, left_s: float
    ) -> tuple[bytes, bool]:
        """Return a key's value, and whether it was asked for on behalf of this very call.

        Args:
            ask: asks for it, told how long whoever waits longest has left.
            left_s: how long this call has left.

        Raises:
            ServiceError: whatever asking raised.
        """
        while True:
            flight = self._flights.get(key)
            own = flight is None
            if flight is None:
                flight = self._begin(key, ask, left_s)
            flight.until = max(flight.until, self._clock() + left_s)
            try:
                return await self._join(key, flight), own
            except ServiceError as error:
                # Whoever began has spent a budget of its own, which is not this call's.
                if own or error.code is not ErrorCode.QUOTA_EXCEEDED:
                    raise

    async def close(self) -> None:
        """End what is under way."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _begin(self, key: bytes, ask: Callable[[Callable[[], float]], Awaitable[bytes]], left_s: float) -> _Flight:
        def left() -> float:
            return flight.until - self._clock()

        flight = _Flight(asyncio.ensure_future(self._fly(key, lambda: ask(left))), self._clock() + left_s)
        self._flights[key] = flight
        flight.task.add_done_callback(lambda _: self._forget(key, flight))
        return flight

    def _forget(self, key: bytes, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if not flight.task.cancelled():
            flight.task.exception()  # retrieved, also where nobody waits any more

    async def _join(self, key: bytes, flight: _Flight) -> bytes:
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if not flight.waiters and not flight.task.done():
                self._forget_now(key, flight)
                flight.task.cancel()
                # Awaited, so that a call whose client has left is gone from the judge when its request ends.
                await asyncio.gather(flight.task, return_exceptions=True)

    def _forget_now(self, key: bytes, flight: _Flight) -> None:
        # Whoever comes from here on must not join a task that is being cancelled.
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _fly(self, key: bytes, ask: Callable[[], Awaitable[bytes]]) -> bytes:
        look_s = _FIRST_LOOK_S
        while True:
            taken = await self._take(key)
            if self._redis is not None:
                # Also with the lease in hand: whoever had it before may have left the value.
                (value,) = (await self._cache.get([key], self._inspector)).values
                if value is not None:
                    if taken:
                        await self._leave(key, 0)
                    return value
            if taken is not False:
                return await self._ask(key, ask, leased=taken is True)
            await asyncio.sleep(look_s)
            look_s = min(_LAST_LOOK_S, 2 * look_s)

    async def _ask(self, key: bytes, ask: Callable[[], Awaitable[bytes]], *, leased: bool) -> bytes:
        task = asyncio.ensure_future(ask())
        after_ms = 0
        try:
            while leased:
                done, _ = await asyncio.wait({task}, timeout=_LEASE_MS / 1e3 / _RENEWALS)
                if done:
                    break
                await self._take(key)
            value = await task
            after_ms = _AFTERGLOW_MS
            return self._cache.put([key], [value])[0]
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if leased:
                await self._leave(key, after_ms)

    async def _take(self, key: bytes) -> bool | None:
        """Return whether the lease of a key is ours; None where there are no leases."""
        if self._redis is None:
            return None
        reply = await self._redis.evaluate(_TAKE, _PREFIX + key, (self._token, _LEASE_MS))
        return None if reply is None else reply == 1

    async def _leave(self, key: bytes, after_ms: int) -> None:
        if self._redis is not None:
            await self._redis.evaluate(_LEAVE, _PREFIX + key, (self._token, after_ms))
