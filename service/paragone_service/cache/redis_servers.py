"""What differs between one Redis server and a Redis Cluster, for whoever reads and writes many keys at once.

A cluster answers one command for keys of one slot alone, and digests fall into as many slots as there are keys. So
values there are kept under 32 tags, one for each 512 slots in a row: a read of a thousand keys is 32 commands, and up
to 32 nodes have equal shares. What is under one key by itself (quotas, cohorts, reference sets) has no tag.

MOVED, ASK and TRYAGAIN are the driver's to follow. A node that cannot be reached fails the pipeline: the topology is
read anew when the cluster is next asked, by the probe of ``redis_tier.py``.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import ClusterDownError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from paragone.addresses import without_userinfo

__all__ = ["FAILURES", "RedisServers", "connect", "redis_address"]

FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
"""What asking a Redis may raise."""

_CLUSTER = "+cluster://"
_UNREADABLE = (
    "it is no address of a Redis (and is not shown, because of its password): write redis://HOST:PORT, rediss://, "
    "unix:// or redis+cluster://, with %2F for /, %3F for ?, %23 for # and %40 for @ in user, password and options"
)
# The driver's own time-outs run on while the loop is busy. They only end what patience would not.
_TIMEOUT_S = 30.0
_MAX_CONNECTIONS = 16
_KEYS_AN_MGET = 512
_TAGS = 32
# What says that nobody is there, also as the reply to one command of several: of a cluster, another node may be.
_AWAY = (RedisConnectionError, RedisTimeoutError, ClusterDownError, RedisClusterException, OSError)


class RedisServers(Protocol):
    """One server, or a cluster of them."""

    client: Any
    """Connections for what is kept under one key: a ``Redis``, or a ``RedisCluster``."""

    def place(self, key: bytes) -> bytes:
        """Return the key that the value of a digest is kept under."""

    def reads(self, keys: Sequence[bytes]) -> Iterator[Sequence[int]]:
        """Yield which keys one command may ask for, as indices; together all of them, each once."""

    async def ping(self) -> None:
        """Return if everything can be reached; the topology of a cluster is read anew."""

    async def run(self, pipeline: Any) -> list[Any]:
        """Return the reply to each command of a pipeline, an exception for one that was refused.

        Raises:
            RedisError, RedisClusterException, OSError: if some server cannot be reached.
        """

    async def close(self) -> None:
        """Close the connections."""


def connect(url: str) -> RedisServers:
    """Return what a URL names; nothing is connected yet.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``, as redis-py reads it; of a cluster, ``redis+cluster://`` or
            ``rediss+cluster://`` with any of its nodes.

    Raises:
        ValueError: if it cannot be read, or a cluster is asked for a database beside 0; nothing of it is repeated.
    """
    try:
        parts = urlsplit(url)
        # What stands before such an @ was meant as a password, and would be looked up as a host.
        if parts.scheme != "unix" and "@" in f"{parts.path}{parts.query}{parts.fragment}":
            raise ValueError(_UNREADABLE)
        return _Cluster(url.replace(_CLUSTER, "://", 1)) if _CLUSTER in url else _Single(url)
    except RedisClusterException as error:
        raise ValueError(f"{error} (a cluster has database 0 alone, and a host and port for each node)") from None
    except ValueError:
        raise ValueError(_UNREADABLE) from None


def redis_address(url: str) -> str:
    """Return where a Redis is, without the password and the user that its URL may hold.

    >>> redis_address("rediss://me:secret@cache:6380/1")
    'rediss://cache:6380/1'
    """
    return without_userinfo(url).partition("?")[0].partition("#")[0]


class _Single:
    def __init__(self, url: str) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # One retry, for the connection that a restarted Redis has closed; a timeout is not worth a second one.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
            max_connections=_MAX_CONNECTIONS,
            timeout=_TIMEOUT_S,
            decode_responses=False,
        )
        self.client = Redis.from_pool(pool)

    def place(self, key: bytes) -> bytes:
        return key

    def reads(self, keys: Sequence[bytes]) -> Iterator[Sequence[int]]:
        # Several short commands instead of one: Redis serves others between two of them.
        for start in range(0, len(keys), _KEYS_AN_MGET):
            yield range(start, min(start + _KEYS_AN_MGET, len(keys)))

    async def ping(self) -> None:
        await self.client.ping()

    async def run(self, pipeline: Any) -> list[Any]:
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def close(self) -> None:
        await self.client.aclose()


class _Cluster:
    def __init__(self, url: str) -> None:
        self.client: RedisCluster = RedisCluster.from_url(
            url,
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            # None of the driver's own: before each it closes all connections, those of other pipelines too.
            retry=Retry(NoBackoff(), 0),
            max_connections=_MAX_CONNECTIONS,
            decode_responses=False,
        )
        self._tags = _tags()

    def place(self, key: bytes) -> bytes:
        # By its last byte: the first eight are the model's, alike in all of its keys.
        return self._tags[key[-1] % _TAGS] + key

    def reads(self, keys: Sequence[bytes]) -> Iterator[Sequence[int]]:
        by_tag: dict[int, list[int]] = {}
        for index, key in enumerate(keys):
            by_tag.setdefault(key[-1] % _TAGS, []).append(index)
        yield from by_tag.values()

    async def ping(self) -> None:
        await self.client.aclose()  # and so forget the nodes
        pipeline = self.client.pipeline()
        for tag in self._tags:  # of every node: a cluster that lacks one is away, as a whole
            pipeline.get(tag)
        await self.run(pipeline)

    async def run(self, pipeline: Any) -> list[Any]:
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, _AWAY):
                raise reply
        return replies

    async def close(self) -> None:
        await self.client.aclose()


def _tags() -> list[bytes]:
    """Return a tag for each stretch of slots: the least number whose slot lies in it, in braces."""
    found: dict[int, bytes] = {}
    for number in itertools.count():
        name = str(number).encode()
        found.setdefault(key_slot(name) * _TAGS // REDIS_CLUSTER_HASH_SLOTS, b"{%b}" % name)
        if len(found) == _TAGS:
            return [found[stretch] for stretch in range(_TAGS)]
    raise AssertionError
