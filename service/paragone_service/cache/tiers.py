"""The order in which the cache is asked: memory, then Redis with one round trip a request; and how both are filled."""

from collections.abc import Sequence
from dataclasses import dataclass

from paragone_service.cache.codec import Codec
from paragone_service.cache.memory_tier import MemoryCache
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.metrics import Metrics

__all__ = ["Cache", "Found"]

_MAX_REMEMBERED = 100_000


@dataclass(frozen=True)
class Found:
    """What the tiers knew: ``values`` as asked for, None for each of the ``misses``."""

    values: list[bytes | None]
    misses: int


class Cache:
    """Keep representations by key.

    Args:
        memory: the first tier.
        redis: the second one, or None.
        metrics: where hits and unsound values are counted.
    """

    def __init__(self, memory: MemoryCache, redis: RedisCache | None, metrics: Metrics) -> None:
        self._memory = memory
        self._redis = redis
        self._metrics = metrics
        self._unsound: set[bytes] = set()
        metrics.watch_cache(lambda: memory.size_bytes, lambda: len(memory))

    async def start(self) -> None:
        """Connect to Redis, if there is one."""
        if self._redis is not None:
            await self._redis.start()

    async def close(self) -> None:
        """Write what is pending and disconnect."""
        if self._redis is not None:
            await self._redis.close()

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._memory.max_bytes > 0 or self._redis is not None

    def peek(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return what memory knows by now; not counted as hits."""
        return self._memory.get(keys)

    async def get(self, keys: Sequence[bytes], codec: Codec) -> Found:
        """Return the value of each key, from memory or else from Redis, whose sound values also go into memory."""
        values = self._memory.get(keys)
        missing = values.count(None)
        from_memory = len(values) - missing
        if not missing or self._redis is None or not self._redis.up:
            self._count(from_memory, 0)
            return Found(values, missing)
        wanted = list(dict.fromkeys(key for key, value in zip(keys, values, strict=True) if value is None))
        known = self._checked(wanted, await self._redis.get(wanted), codec)
        from_redis = 0
        if known:
            for index, key in enumerate(keys):
                if values[index] is None and key in known:
                    values[index] = known[key]
                    from_redis += 1
        self._count(from_memory, from_redis)
        return Found(values, missing - from_redis)

    def put(self, keys: Sequence[bytes], values: Sequence[bytes]) -> list[bytes]:
        """Store new values in memory at once and in Redis soon; return the values that hold (the first writer's)."""
        held = [self._memory.put(key, value) for key, value in zip(keys, values, strict=True)]
        if self._redis is not None:
            self._redis.put((key, value, key in self._unsound) for key, value in zip(keys, held, strict=True))
            self._unsound.difference_update(keys)
        return held

    def _checked(self, keys: list[bytes], raw: list[bytes | None], codec: Codec) -> dict[bytes, bytes]:
        """Return the sound values by key, put into memory; count the others and remember to overwrite them."""
        present = [(key, value) for key, value in zip(keys, raw, strict=True) if value is not None]
        known = {}
        for (key, value), sound in zip(present, codec.sound([value for _, value in present]), strict=True):
            if sound:
                known[key] = self._memory.put(key, value)
            else:
                self._metrics.cache_corrupted.inc()
                if len(self._unsound) < _MAX_REMEMBERED:
                    self._unsound.add(key)
        return known

    def _count(self, from_memory: int, from_redis: int) -> None:
        if from_memory:
            self._metrics.cache_responses.labels("memory").inc(from_memory)
        if from_redis:
            self._metrics.cache_responses.labels("redis").inc(from_redis)
