"""What a million cached responses take in Redis, and how long a read of a thousand of them lasts.

    python benchmarks/redis_memory.py                  # a Redis of its own; --cluster: three nodes
    python benchmarks/redis_memory.py --entries 100000 --dimension 1

Values are those that the service writes, seals included, through the service's own tier.
"""

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from redis import Redis as Connection

sys.path.append(str(Path(__file__).parent / "reliability"))
from processes import Redis, quantile
from redis_cluster import Cluster

from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.cache.tiers import Codec
from paragone_service.metrics import Metrics

_BLOCK = 20_000
_KEY_BYTES = 24


async def fill(cache: RedisCache, entries: int, dimension: int) -> list[bytes]:
    """Write values of random keys, and return the keys."""
    codec, seal, generator = Codec(dimension), Seal(b"a secret of this benchmark"), np.random.default_rng(0)
    keys: list[bytes] = []
    while len(keys) < entries:
        block = [os.urandom(_KEY_BYTES) for _ in range(min(_BLOCK, entries - len(keys)))]
        values = codec.encode(generator.normal(size=(len(block), dimension)), [100] * len(block), [0] * len(block))
        cache.put((key, seal.close(key, value), False) for key, value in zip(block, values, strict=True))
        while await cache.get(block[-1:]) == [None]:  # noqa: ASYNC110 (written by another task, with no event to wait for)
            await asyncio.sleep(0.01)
        keys += block
    return keys


async def read(cache: RedisCache, keys: Sequence[bytes], size: int, times: int) -> list[float]:
    """Return how long reads of so many random keys took, in milliseconds; every key must be there."""
    generator, took = np.random.default_rng(1), []
    for _ in range(times):
        asked = [keys[index] for index in generator.integers(len(keys), size=size)]
        started = time.perf_counter()
        got = await cache.get(asked)
        took.append(1e3 * (time.perf_counter() - started))
        assert None not in got
        await asyncio.sleep(0.002)
    return took


async def measure(url: str, ports: Sequence[int], arguments: argparse.Namespace) -> None:
    """Fill one Redis or cluster, and print what it takes."""

    def used() -> int:
        total = 0
        for port in ports:
            with Connection(port=port) as connection:
                total += connection.info("memory")["used_memory"]
        return total

    cache = RedisCache(url, ttl_s=86_400, metrics=Metrics())
    await cache.start()
    empty, started = used(), time.perf_counter()
    keys = await fill(cache, arguments.entries, arguments.dimension)
    seconds, taken = time.perf_counter() - started, used() - empty
    print(f"{len(keys):,} values of d = {arguments.dimension}: {taken / 1e6:.1f} MB, {taken / len(keys):.0f} B each")
    print(f"written at {len(keys) / seconds:,.0f} a second")
    for size in (1, 64, 1024):
        took = await read(cache, keys, size, arguments.times)
        median, late = statistics.median(took), quantile(took, 0.95)
        print(f"read of {size:>5}: fastest {min(took):.2f} ms, median {median:.2f} ms, p95 {late:.2f} ms")
    await cache.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=8)
    parser.add_argument("--times", type=int, default=200, help="reads of each size")
    parser.add_argument("--cluster", action="store_true", help="a cluster of three nodes")
    arguments = parser.parse_args()
    if arguments.cluster:
        with Cluster() as cluster:
            asyncio.run(measure(cluster.url, [node.port for node in cluster.nodes], arguments))
    else:
        with Redis() as server:
            asyncio.run(measure(server.url, [server.port], arguments))


if __name__ == "__main__":
    main()
