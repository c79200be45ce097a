"""Where reference sets are kept: memory of one process, or a Redis that replicas share.

A set is a head and, by the digest of each prompt, its responses as bytes, in the form that their model keeps.
Sets of one owner (a tenant, or all who have none) have names of their own.
"""

import asyncio
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

from redis.exceptions import RedisError

from paragone.codes import ErrorCode
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics

__all__ = ["Head", "MemorySets", "RedisSets", "Store"]

_PREFIX = b"paragone:references:"
_FIELDS = 4_000
"""Fields of one command: Redis' scripts pass no more than some eight thousand values."""
_TRIES, _AGAIN_S, _RETRY_AFTER_S = 8, 0.25, 5
_WRITE_S = 30.0
_MAX_BYTES = 1_000_000_000
_SET_BYTES, _PROMPT_BYTES = 2_000, 300
"""What Python spends on a set, and on a prompt beside its responses."""


@dataclass(frozen=True)
class Head:
    """What is known of a set.

    Attributes:
        birth: a random name of this very state; a set that was stored anew has another one.
        model: id of the model that it was stored for.
        dimension: numbers of each response, where these are representations.
        items: distinct prompts.
        created: seconds since 1970; so is ``expires``, None for never.
    """

    birth: str
    name: str
    model: str
    identity: str
    dimension: int | None
    items: int
    responses: int
    created: float
    expires: float | None

    @property
    def over(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and self.expires <= time.time()


class Store(Protocol):
    """Keep sets. All methods raise ``ServiceError`` (``not_ready``) if the state cannot be reached."""

    async def put(self, owner: str | None, head: Head, contents: Mapping[bytes, bytes]) -> None:
        """Store a set in place of the one of its name, its contents by prompt."""

    async def head(self, owner: str | None, name: str) -> Head | None:
        """Return what is known of a set, None if there is none."""

    async def get(self, owner: str | None, head: Head, prompts: Sequence[bytes]) -> list[bytes | None]:
        """Return the content for each prompt, None where the set has none."""

    async def heads(self, owner: str | None) -> list[Head]:
        """Return what is known of each set, by name."""

    async def delete(self, owner: str | None, name: str) -> None:
        """Forget a set."""


class _Kept(NamedTuple):
    head: Head
    contents: Mapping[bytes, bytes]
    size_bytes: int


class MemorySets:
    """Keep sets in this process; a restart loses them."""

    def __init__(self, *, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._sets: dict[tuple[str | None, str], _Kept] = {}

    async def put(self, owner: str | None, head: Head, contents: Mapping[bytes, bytes]) -> None:
        """Store a set, as the contract says.

        Raises:
            ServiceError: ``too_many_items``, if there is no room for it.
        """
        self._forget_old()
        place = (owner, head.name)
        size = _SET_BYTES + sum(_PROMPT_BYTES + len(part) for part in contents.values())
        others = self._size_bytes - (self._sets[place].size_bytes if place in self._sets else 0)
        if others + size > self._max_bytes:
            raise ServiceError(
                ErrorCode.TOO_MANY_ITEMS,
                f"the reference sets would take {others + size} bytes of memory, and {self._max_bytes} are the most: "
                "delete others, or give the server a Redis",
            )
        self._sets[place] = _Kept(head, dict(contents), size)
        self._size_bytes = others + size

    async def head(self, owner: str | None, name: str) -> Head | None:
        """Return what is known of a set, as the contract says."""
        kept = self._sets.get((owner, name))
        return None if kept is None or kept.head.over else kept.head

    async def get(self, owner: str | None, head: Head, prompts: Sequence[bytes]) -> list[bytes | None]:
        """Return the content for each prompt, as the contract says."""
        kept = self._sets.get((owner, head.name))
        return [None if kept is None else kept.contents.get(prompt) for prompt in prompts]

    async def heads(self, owner: str | None) -> list[Head]:
        """Return what is known of each set, as the contract says."""
        self._forget_old()
        return sorted((one.head for (of, _), one in self._sets.items() if of == owner), key=lambda head: head.name)

    async def delete(self, owner: str | None, name: str) -> None:
        """Forget a set, as the contract says."""
        kept = self._sets.pop((owner, name), None)
        if kept is not None:
            self._size_bytes -= kept.size_bytes

    def _forget_old(self) -> None:
        self._sets = {place: kept for place, kept in self._sets.items() if not kept.head.over}
        self._size_bytes = sum(kept.size_bytes for kept in self._sets.values())


class RedisSets:
    """Keep sets in Redis: a hash each, and a set of names for each owner.

    Args:
        seal: what heads and contents are sealed with.
    """

    def __init__(self, redis: RedisCache, *, seal: Seal, metrics: Metrics) -> None:
        self._redis = redis
        self._seal = seal
        self._metrics = metrics

    async def put(self, owner: str | None, head: Head, contents: Mapping[bytes, bytes]) -> None:
        """Store a set, as the contract says, in one transaction."""
        key = _key(owner, head.name)
        fields = [(prompt, self._seal.close(_place(head, prompt), one)) for prompt, one in contents.items()]
        pipeline = self._redis.connection.pipeline(transaction=True)
        pipeline.delete(key)
        pipeline.hset(key, "head", self._seal.close(key, json.dumps(asdict(head)).encode()))
        for start in range(0, len(fields), _FIELDS):
            pipeline.hset(key, mapping=dict(fields[start : start + _FIELDS]))
        if head.expires is not None:
            pipeline.pexpireat(key, round(1e3 * head.expires))
        pipeline.sadd(_index(owner), head.name)
        try:
            async with asyncio.timeout(_WRITE_S):
                await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            self._metrics.redis_errors.labels("set").inc()
            raise _away() from error

    async def head(self, owner: str | None, name: str) -> Head | None:
        """Return what is known of a set, as the contract says; one that is damaged is none."""
        (sealed,) = await self._fields(_key(owner, name), [b"head"])
        if sealed is None:
            return None
        opened = self._seal.open(_key(owner, name), sealed)
        if opened is None:
            self._metrics.cache_corrupted.inc()
            return None
        head = Head(**json.loads(opened))
        return None if head.over else head

    async def get(self, owner: str | None, head: Head, prompts: Sequence[bytes]) -> list[bytes | None]:
        """Return the content for each prompt, as the contract says.

        Raises:
            ServiceError: ``reference_unknown``, if some are damaged.
        """
        found: list[bytes | None] = []
        for prompt, sealed in zip(prompts, await self._fields(_key(owner, head.name), prompts), strict=True):
            opened = None if sealed is None else self._seal.open(_place(head, prompt), sealed)
            if sealed is not None and opened is None:
                self._metrics.cache_corrupted.inc()
                raise ServiceError(
                    ErrorCode.REFERENCE_UNKNOWN,
                    f"the reference set {head.name} was damaged, or replaced just now: store it again",
                )
            found.append(opened)
        return found

    async def heads(self, owner: str | None) -> list[Head]:
        """Return what is known of each set, as the contract says."""
        reply = await self._step("return redis.call('SMEMBERS', KEYS[1])", _index(owner), ())
        found = []
        for name in sorted(name.decode() for name in reply):
            head = await self.head(owner, name)
            if head is None:  # it has expired, or was evicted
                await self._step("return {redis.call('SREM', KEYS[1], ARGV[1])}", _index(owner), (name.encode(),))
            else:
                found.append(head)
        return found

    async def delete(self, owner: str | None, name: str) -> None:
        """Forget a set, as the contract says."""
        await self._step("return {redis.call('DEL', KEYS[1])}", _key(owner, name), ())
        await self._step("return {redis.call('SREM', KEYS[1], ARGV[1])}", _index(owner), (name.encode(),))

    async def _fields(self, key: bytes, names: Sequence[bytes]) -> list[bytes | None]:
        fields: list[bytes | None] = []
        for start in range(0, len(names), _FIELDS):
            script = "return redis.call('HMGET', KEYS[1], unpack(ARGV))"
            fields += await self._step(script, key, names[start : start + _FIELDS])
        return fields

    async def _step(self, script: str, key: bytes, arguments: Sequence[bytes]) -> list[bytes]:
        for left in reversed(range(_TRIES)):
            reply = await self._redis.evaluate(script, key, arguments)
            if isinstance(reply, list):
                return reply
            if left:
                await asyncio.sleep(_AGAIN_S)
        raise _away()


def _key(owner: str | None, name: str) -> bytes:
    return _index(owner) + b":" + hashlib.blake2b(name.encode(), digest_size=16).hexdigest().encode()


def _index(owner: str | None) -> bytes:
    return _PREFIX + hashlib.blake2b(json.dumps(owner).encode(), digest_size=8).hexdigest().encode()


def _place(head: Head, prompt: bytes) -> bytes:
    return head.birth.encode() + prompt


def _away() -> ServiceError:
    return ServiceError(
        ErrorCode.NOT_READY,
        "the server's Redis, which has its reference sets, cannot be reached: try again later",
        retry_after_s=_RETRY_AFTER_S,
    )
