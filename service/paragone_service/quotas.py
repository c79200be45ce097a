"""Quotas: how many requests a key may send, and how many tokens it may have run, in a minute.

Each quota is a bucket that holds a minute's worth and refills evenly. A request takes one from the first bucket before
its body is read, and from the second the tokens that it is about to have run, once they are counted: what the cache
answers costs none. More tokens than a whole minute's are run when the bucket is full, and leave it in debt.

Replicas share the buckets in Redis, by a script, on Redis' clock. Without one, and while it is away, each process
counts for itself.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from paragone.codes import ErrorCode
from paragone_service.api_keys import ApiKey
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics

__all__ = ["Quotas", "Spending"]

_WINDOW_S = 60
_EVERYBODY = ApiKey("everybody", b"")
_REQUESTS, _TOKENS, _CALLS = "requests", "tokens", "judge_calls"
_OFTEN = {
    _REQUESTS: "send fewer and larger ones",
    _TOKENS: "send fewer responses, or such as are cached",
    _CALLS: "ask a judge for fewer comparisons, or such as are cached",
}

# What ``_taken`` does, for a bucket in Redis. A key of another type, which another program left, is an empty one.
_SCRIPT = """\
local limit, cost, owed = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then redis.call('DEL', KEYS[1]) end
local kept = redis.call('HMGET', KEYS[1], 'level', 'at')
local level, at = tonumber(kept[1] or nil) or limit, tonumber(kept[2] or nil) or now
level = math.min(limit, level + math.max(0, now - at) * limit / 60)
local wait = math.max(0, math.min(cost, limit) - level) * 60 / limit
if cost <= 0 or wait <= 0 or owed then
  wait = 0
  level = math.min(limit, level - cost)
end
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level), 'at', string.format('%.6f', now))
redis.call('PEXPIRE', KEYS[1], math.ceil((limit - level) * 60000 / limit) + 1000)
return {string.format('%.17g', level), string.format('%.17g', wait)}
"""


class _Bucket(NamedTuple):
    level: float
    at: float


class _Standing(NamedTuple):
    """How a quota stands after something was taken from it, or refused.

    Attributes:
        level: what is left; negative in debt.
        wait_s: how long until what was asked for is there; 0 if it was taken.
    """

    limit: int
    level: float
    wait_s: float


def _taken(bucket: _Bucket | None, now: float, limit: int, cost: float, *, owed: bool = False) -> tuple[_Bucket, float]:
    """Return a bucket after ``cost`` was taken, or as it is and the seconds until that much is there.

    Args:
        owed: take it in any case; the bucket may be left in debt.
    """
    level = float(limit) if bucket is None else bucket.level + max(0.0, now - bucket.at) * limit / _WINDOW_S
    level = min(level, float(limit))
    wait_s = max(0.0, min(cost, limit) - level) * _WINDOW_S / limit
    if cost > 0 and wait_s > 0 and not owed:
        return _Bucket(level, now), wait_s
    return _Bucket(min(level - cost, float(limit)), now), 0.0


class Quotas:
    """Keep the buckets of all keys.

    Args:
        requests_per_minute: for keys without a number of their own; None for no limit.
        tokens_per_minute: likewise.
        judge_calls_per_minute: of every key, to judges on other servers; None for no limit.
        redis: where replicas share them.
        clock: in seconds.
    """

    def __init__(
        self,
        metrics: Metrics,
        *,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        judge_calls_per_minute: int | None = None,
        redis: RedisCache | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._defaults = (requests_per_minute, tokens_per_minute)
        self._judge_calls = judge_calls_per_minute
        self._redis = redis
        self._clock = clock
        self._buckets: dict[bytes, _Bucket] = {}

    def of(self, key: ApiKey | None) -> "Spending | None":
        """Return what a request may spend, or None if nothing bounds it.

        Args:
            key: who asks; those without a key share one quota.
        """
        key = key or _EVERYBODY
        requests = self._defaults[0] if key.requests_per_minute is None else key.requests_per_minute
        tokens = self._defaults[1] if key.tokens_per_minute is None else key.tokens_per_minute
        limits = {_REQUESTS: requests, _TOKENS: tokens, _CALLS: self._judge_calls}
        return Spending(self, key, limits) if any(limit is not None for limit in limits.values()) else None

    async def take(self, key: ApiKey, quota: str, limit: int, cost: float, *, owed: bool = False) -> _Standing:
        """Return how a quota stands after ``cost`` was taken from it, or was too much.

        Args:
            owed: take it in any case, since it was spent already.
        """
        place = f"paragone:quota:{quota}:{hashlib.blake2b(key.digest, digest_size=16).hexdigest()}".encode()
        if self._redis is not None:
            reply = await self._redis.evaluate(_SCRIPT, place, (limit, cost, int(owed)))
            if isinstance(reply, list):
                level, wait_s = map(float, reply)
                return _Standing(limit, level, wait_s)
        self._buckets[place], wait_s = _taken(self._buckets.get(place), self._clock(), limit, cost, owed=owed)
        return _Standing(limit, self._buckets[place].level, wait_s)

    def count(self, quota: str) -> None:
        """Count a request that was refused."""
        self._metrics.quota_refused.labels(quota).inc()


class Spending:
    """What one request spends of its key's quotas, and how they stand."""

    def __init__(self, quotas: Quotas, key: ApiKey, limits: Mapping[str, int | None]) -> None:
        self._quotas = quotas
        self._key = key
        self._limits = limits
        self._standings: dict[str, _Standing] = {}
        self._refused: str | None = None

    async def request(self) -> None:
        """Take one request, and see how the tokens stand.

        Raises:
            ServiceError: ``quota_exceeded``.
        """
        await self._take(_REQUESTS, 1)
        await self._take(_TOKENS, 0)

    async def tokens(self, count: int) -> None:
        """Take tokens that are about to be run.

        Raises:
            ServiceError: ``quota_exceeded``.
        """
        await self._take(_TOKENS, count)

    async def judge_call(self) -> None:
        """Take one call to a judge, whose tokens are known and ``owe``d when it has answered.

        Raises:
            ServiceError: ``quota_exceeded``, also where the tokens are spent.
        """
        await self._take(_TOKENS, 1)
        await self._take(_CALLS, 1)

    async def owe(self, count: int) -> None:
        """Take tokens that were run already, all of them, even if that leaves a debt."""
        await self._take(_TOKENS, count, owed=True)

    async def give_back(self, count: int) -> None:
        """Put tokens back that were not run after all."""
        if count > 0:
            await self._take(_TOKENS, -count)

    def headers(self) -> dict[str, str]:
        """Return what tells a client how it stands: the quota that refused it, else the one that is spent furthest."""
        if not self._standings:
            return {}
        told = self._refused or min(self._standings, key=lambda name: self._left(self._standings[name]))
        standing = self._standings[told]
        full_s = (standing.limit - standing.level) * _WINDOW_S / standing.limit
        return {
            "ratelimit-limit": str(standing.limit),
            "ratelimit-remaining": str(max(0, math.floor(standing.level))),
            "ratelimit-reset": str(math.ceil(standing.wait_s or full_s)),
            "ratelimit-policy": ", ".join(
                f'"{name}";q={limit};w={_WINDOW_S}' for name, limit in self._limits.items() if limit is not None
            ),
        }

    @staticmethod
    def _left(standing: _Standing) -> float:
        return standing.level / standing.limit

    async def _take(self, quota: str, cost: float, *, owed: bool = False) -> None:
        limit = self._limits[quota]
        if limit is None:
            return
        standing = self._standings[quota] = await self._quotas.take(self._key, quota, limit, cost, owed=owed)
        if standing.wait_s > 0:
            self._refused = quota
            self._quotas.count(quota)
            raise ServiceError(
                ErrorCode.QUOTA_EXCEEDED,
                f"the key {self._key.name} has spent its {limit} {quota} per minute, and this takes {cost:g}: wait, "
                f"{_OFTEN[quota]}, or have its {quota}_per_minute raised",
                retry_after_s=math.ceil(standing.wait_s),
            )
