"""Groups in a Redis that replicas share: members may come to any of them, and a replica that ends loses none.

A group is one hash: a sealed head, its state, by slot a sealed digest and a sealed member, and where its members are
compared once it is settled, who does that and until when, and a sealed table. Every step is one Lua
script on that one key, so that steps of replicas cannot mix, and Redis evicts a group whole or not at all. What has no
sound seal is thrown away, and whoever waits for it is told: a damaged group never becomes a smaller one.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.cohorts.groups import Entered, Group, Head, Member, State, lost
from paragone_service.cohorts.store import Claim
from paragone_service.metrics import Metrics

__all__ = ["RedisStore"]

_PREFIX = b"paragone:cohort:"
_CHANNEL = "paragone:cohorts"
_AWAY_S, _AGAIN_S = 5.0, 0.25
"""How long a step is tried while Redis cannot be reached, and how often."""
_LISTEN_S = 10.0
_LONGEST_LEASE_S = 60.0
_CLAIMS: dict[bytes, Claim] = {b"ours": "ours", b"theirs": "theirs", b"done": "done", b"gone": "gone"}
_STATES: dict[bytes, State] = {b"open": "open", b"whole": "whole", b"closed": "closed"}

# Each replies with Redis' time first. A key of another type, which another program left, is none of ours.
_START = (
    f"local channel = '{_CHANNEL}'\n"
    + """\
local key, time = KEYS[1], redis.call('TIME')
local now = time[1] .. '.' .. string.format('%06d', time[2])
if redis.call('TYPE', key).ok ~= 'hash' then redis.call('DEL', key) end
"""
)
_ENTER = (
    _START
    + """\
local attempt, terms, head, slot, digest, expiry, name = unpack(ARGV)
local kept = redis.call('HMGET', key, 'attempt', 'terms', 'head', 'state')
if not kept[1] or (tonumber(kept[1]) or -1) < tonumber(attempt) then
  redis.call('DEL', key)
  redis.call('HSET', key, 'attempt', attempt, 'terms', terms, 'head', head, 'state', 'open', 'count', 0)
  redis.call('PEXPIREAT', key, expiry)
  if kept[1] then redis.call('PUBLISH', channel, name) end
  kept = {attempt, terms, head, 'open'}
end
local taken, member = false, false
if kept[1] == attempt and kept[2] == terms then
  if kept[4] == 'open' then redis.call('HSETNX', key, 'd' .. slot, digest) end
  member = redis.call('HGET', key, 'm' .. slot)
  if member or kept[4] == 'open' then taken = redis.call('HGET', key, 'd' .. slot) end
end
return {now, kept[1], kept[2], kept[3], kept[4], taken, member}
"""
)
_PUT = (
    _START
    + """\
local head, slot, member, size, name = unpack(ARGV)
local kept = redis.call('HMGET', key, 'head', 'state')
if kept[1] ~= head or kept[2] ~= 'open' then return {now, 0} end
if redis.call('HSETNX', key, 'm' .. slot, member) == 0 then return {now, 0} end
if redis.call('HINCRBY', key, 'count', 1) < tonumber(size) then return {now, 0} end
redis.call('HSET', key, 'state', 'whole')
redis.call('PUBLISH', channel, name)
return {now, 1}
"""
)
_CLOSE = (
    _START
    + """\
local head, name = unpack(ARGV)
local kept = redis.call('HMGET', key, 'head', 'state')
if kept[1] == head and kept[2] == 'open' then
  redis.call('HSET', key, 'state', 'closed')
  redis.call('PUBLISH', channel, name)
end
return {now}
"""
)
_DROP = (
    _START
    + """\
local head, name = unpack(ARGV)
if (redis.call('HGET', key, 'head') or '') == head then
  redis.call('DEL', key)
  redis.call('PUBLISH', channel, name)
end
return {now}
"""
)
# A lease that says more than there ever is, is none. Times have three decimals: Lua would write fewer digits of them.
_CLAIM = (
    _START
    + """\
local head, who, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local kept = redis.call('HMGET', key, 'head', 'state', 'table', 'who', 'until')
if kept[1] ~= head or kept[2] == 'open' then return {now, 'gone'} end
if kept[3] then return {now, 'done'} end
local left = (tonumber(kept[5]) or 0) - tonumber(now)
if kept[4] and kept[4] ~= who and left > 0 and left <= tonumber(ARGV[4]) then return {now, 'theirs'} end
redis.call('HSET', key, 'who', who, 'until', string.format('%.3f', tonumber(now) + lease))
return {now, 'ours'}
"""
)
_FINISH = (
    _START
    + """\
local head, table, name = unpack(ARGV)
local kept = redis.call('HMGET', key, 'head', 'state')
if kept[1] == head and kept[2] ~= 'open' and redis.call('HSETNX', key, 'table', table) == 1 then
  redis.call('PUBLISH', channel, name)
end
return {now}
"""
)
_READ = (
    _START
    + """\
local kept = redis.call('HMGET', key, 'attempt', 'terms', 'head', 'state')
if kept[4] == 'open' then return {now, 'attempt', kept[1], 'terms', kept[2], 'head', kept[3], 'state', kept[4]} end
return {now, unpack(redis.call('HGETALL', key))}
"""
)


class RedisStore:
    """Keep groups in Redis.

    Args:
        keep_s: how long a group is kept after its deadline.
        seal: what heads, digests and members are sealed with.
    """

    def __init__(self, redis: RedisCache, *, keep_s: float, seal: Seal, metrics: Metrics) -> None:
        self._redis = redis
        self._keep_s = keep_s
        self._seal = seal
        self._metrics = metrics
        self._ahead_s = 0.0
        self._listening: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Return Redis' time: replicas whose clocks differ agree on deadlines."""
        return time.time() + self._ahead_s

    async def start(self, wake: Callable[[bytes], None]) -> None:
        """Begin to hear of what other replicas have settled."""
        self._listening = asyncio.create_task(self._listen(wake))
        reply = await self._redis.evaluate(_READ, _PREFIX, ())
        if isinstance(reply, list):  # one that is away is found out by whoever needs it
            self._ahead_s = float(reply[0]) - time.time()

    async def stop(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.gather(self._listening, return_exceptions=True)

    async def enter(self, key: bytes, head: Head, slot: int, digest: bytes) -> Entered:
        """Let a member join, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state is damaged or cannot be reached.
        """
        expiry = round(1e3 * (head.until + self._keep_s))
        place = _digest_place(key, head.attempt, slot)
        sealed = self._seal.close(place, digest)
        arguments = (head.attempt, head.terms_digest(), self._sealed(key, head), slot, sealed, expiry, key)
        reply = await self._step(_ENTER, key, arguments)
        kept, state = await self._opened(key, reply[1], reply[2], reply[3], reply[4])
        taken, member = reply[5], None
        if reply[6] is not None:
            member = await self._member(key, kept, slot, reply[6])
        if taken is not None:
            taken = self._seal.open(place, taken)
            if taken is None:
                raise await self._damaged(key, reply[3])
        return Entered(kept, state, taken, member)

    async def put(self, key: bytes, head: Head, slot: int, member: Member) -> bool:
        """Put a member into its slot, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state cannot be reached.
        """
        sealed = self._seal.close(_member_place(key, head, slot), member.to_bytes())
        reply = await self._step(_PUT, key, (self._sealed(key, head), slot, sealed, head.size, key))
        return bool(reply[1] == 1)

    async def close(self, key: bytes, head: Head) -> None:
        """Settle the group as it is, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state cannot be reached.
        """
        await self._step(_CLOSE, key, (self._sealed(key, head), key))

    async def claim(self, key: bytes, head: Head, who: bytes, lease_s: float) -> Claim:
        """Take, renew or leave the lease of comparing a settled group, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state cannot be reached.
        """
        reply = await self._step(_CLAIM, key, (self._sealed(key, head), who, lease_s, _LONGEST_LEASE_S))
        return _CLAIMS[reply[1]]

    async def finish(self, key: bytes, head: Head, table: bytes) -> None:
        """Keep the comparisons of a group, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state cannot be reached.
        """
        sealed = self._seal.close(_table_place(key, head), table)
        await self._step(_FINISH, key, (self._sealed(key, head), sealed, key))

    async def read(self, key: bytes) -> Group | None:
        """Return the group that is kept, as the contract says.

        Raises:
            ServiceError: ``cohort_lost``, if the state is damaged or cannot be reached.
        """
        reply = await self._step(_READ, key, ())
        fields: dict[bytes, bytes] = dict(zip(reply[1::2], reply[2::2], strict=True))
        if not fields:
            return None
        raw = [fields.pop(name, None) for name in (b"attempt", b"terms", b"head", b"state")]
        head, state = await self._opened(key, *raw)
        if state == "open":
            return Group(head, state)
        members = {}
        for name, sealed in fields.items():
            if name[:1] == b"m" and name[1:].isdigit():
                members[int(name[1:])] = await self._member(key, head, int(name[1:]), sealed)
        # A counter that was damaged may say that a group is whole, or never that it is.
        if (state == "whole") != (len(members) == head.size):
            raise await self._damaged(key, raw[2])
        table, sealed_table = None, fields.get(b"table")
        if sealed_table is not None:
            table = self._seal.open(_table_place(key, head), sealed_table)
            if table is None:
                raise await self._damaged(key, raw[2])
        return Group(head, state, members, table)

    def _sealed(self, key: bytes, head: Head) -> bytes:
        return self._seal.close(b"head" + key, head.to_bytes())

    async def _opened(
        self, key: bytes, attempt: bytes | None, terms: bytes | None, sealed: bytes | None, state: bytes | None
    ) -> tuple[Head, State]:
        """Return head and state, if the fields that scripts look at are those of the sealed head."""
        opened = None if sealed is None else self._seal.open(b"head" + key, sealed)
        if opened is not None and state in _STATES:
            head = Head.from_bytes(opened)
            if str(head.attempt).encode() == attempt and head.terms_digest() == terms:
                return head, _STATES[state]
        raise await self._damaged(key, sealed)

    async def _member(self, key: bytes, head: Head, slot: int, sealed: bytes) -> Member:
        opened = self._seal.open(_member_place(key, head, slot), sealed)
        if opened is None:
            raise await self._damaged(key, self._sealed(key, head))
        return Member.from_bytes(opened)

    async def _damaged(self, key: bytes, head: bytes | None) -> Exception:
        """Throw a damaged group away, if it is still there, and return what those are told who wanted it."""
        self._metrics.cache_corrupted.inc()
        await self._step(_DROP, key, (head or b"", key))
        return lost("was damaged")

    async def _step(self, script: str, key: bytes, arguments: Sequence[bytes | float]) -> list[Any]:
        """Return a script's reply.

        Raises:
            ServiceError: ``cohort_lost``, if there is none for a while.
        """
        end = time.monotonic() + _AWAY_S
        while True:
            reply = await self._redis.evaluate(script, _PREFIX + key.hex().encode(), arguments)
            if isinstance(reply, list):
                self._ahead_s = float(reply[0]) - time.time()
                return reply
            if time.monotonic() >= end:
                raise lost("cannot be reached: its Redis is away, or has no room")
            await asyncio.sleep(_AGAIN_S)

    async def _listen(self, wake: Callable[[bytes], None]) -> None:
        """Hear of groups that were settled elsewhere. What is missed is found out by looking, a second later."""
        while True:
            with contextlib.suppress(RedisError, OSError):
                async with self._redis.connection.pubsub() as news:
                    await news.subscribe(_CHANNEL)
                    while True:
                        message = await news.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_S)
                        if message is not None and isinstance(message["data"], bytes):
                            wake(message["data"])
            await asyncio.sleep(_AGAIN_S)


def _digest_place(key: bytes, attempt: int, slot: int) -> bytes:
    return json.dumps([key.hex(), attempt, slot]).encode()


def _member_place(key: bytes, head: Head, slot: int) -> bytes:
    return json.dumps([key.hex(), head.birth, slot]).encode()


def _table_place(key: bytes, head: Head) -> bytes:
    return json.dumps([key.hex(), head.birth, "table"]).encode()
