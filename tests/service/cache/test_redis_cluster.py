"""The Redis tier, and all that else is kept in Redis, against a real cluster of three nodes on loopback."""

import asyncio
import logging
import time

import pytest
from redis.crc import key_slot
from redis_cluster import Cluster

from paragone_service.api_keys import ApiKey
from paragone_service.cache.redis_servers import connect
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.cohorts.groups import Head, Member
from paragone_service.cohorts.redis import RedisStore
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.quotas import Quotas
from tests.service.conftest import until

pytestmark = pytest.mark.anyio


def key(number):
    return b"identity" + number.to_bytes(2, "big") * 8  # as those of one model are: their first eight bytes are alike


VECTOR = bytes(32)
KEYS = [key(number) for number in range(640)]


@pytest.fixture(scope="module")
def cluster():
    with Cluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture
async def tier(cluster):
    for node in cluster.primaries:
        node.ask("FLUSHALL")
    cache = RedisCache(cluster.url, ttl_s=1000, metrics=Metrics())
    await cache.start()
    assert cache.up
    yield cache
    await cache.close()


@pytest.fixture
async def other(cluster):
    cache = RedisCache(cluster.url, ttl_s=1000, metrics=Metrics())
    await cache.start()
    yield cache
    await cache.close()


def stored(cluster):
    return [node.ask("DBSIZE") for node in cluster.primaries]


async def written(tier, cluster, keys=KEYS):
    tier.put((one, b"value of " + one, False) for one in keys)

    async def there():
        return sum(stored(cluster)) == len(keys)

    await until(there)


async def test_values_are_spread_over_the_nodes_and_read_by_few_commands(tier, cluster):
    await written(tier, cluster)
    assert all(0.28 < count / len(KEYS) < 0.39 for count in stored(cluster))
    for node in cluster.primaries:
        node.ask("CONFIG", "RESETSTAT")
    assert await tier.get([*KEYS, key(9999)]) == [*(b"value of " + one for one in KEYS), None]
    calls = [node.ask("INFO", "commandstats")["cmdstat_mget"]["calls"] for node in cluster.primaries]
    assert sum(calls) <= 32


async def test_the_first_writer_wins_and_what_is_no_value_is_overwritten(tier, cluster):
    place = connect(cluster.url).place
    owner = {node.port: node for node in cluster.primaries}

    def ask(one, *words):
        node = tier.connection.get_node_from_key(place(one))
        return owner[node.port].ask(words[0], place(one), *words[1:])

    ask(KEYS[0], "SET", b"theirs")
    ask(KEYS[1], "SET", b"spoilt")
    ask(KEYS[2], "LPUSH", b"a list")
    tier.put(
        [(KEYS[0], b"ours", False), (KEYS[1], b"ours", True), (KEYS[2], b"ours", False), (KEYS[3], b"ours", False)]
    )

    async def settled():
        return await tier.get(KEYS[:4]) == [b"theirs", b"ours", b"ours", b"ours"]

    await until(settled)
    assert 890 <= ask(KEYS[3], "TTL") <= 1100


async def test_a_slot_that_moves_takes_its_values_with_it(tier, cluster):
    await written(tier, cluster)
    first, second = cluster.primaries[1:]
    expected = [b"value of " + one for one in KEYS]
    slot = key_slot(connect(cluster.url).place(KEYS[16]))  # of the second third
    assert first.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 20
    cluster.move(slot, first, second)
    assert await tier.get(KEYS) == expected  # by ASK
    cluster.settle(slot, first, second)
    assert await tier.get(KEYS) == expected  # by MOVED
    tier.put([(key(656), b"new", False)])  # 656 = 16 modulo 32: of the same slot

    async def there():
        return await tier.get([key(656)]) == [b"new"]

    await until(there)
    assert second.ask("CLUSTER", "COUNTKEYSINSLOT", slot) == 21
    assert tier.up


async def test_replicas_share_quotas_and_groups_through_a_cluster(tier, other):
    keys = [ApiKey(f"key {number}", key(number)) for number in range(12)]
    quotas = [Quotas(Metrics(), requests_per_minute=2, redis=cache) for cache in (tier, other)]
    for one in keys:
        for quota in quotas:
            await quota.of(one).request()
        with pytest.raises(ServiceError, match="has spent its 2 requests"):
            await quotas[0].of(one).request()
    stores = [RedisStore(cache, keep_s=60, seal=Seal(), metrics=Metrics()) for cache in (tier, other)]
    woken: list[bytes] = []
    for store in stores:
        await store.start(woken.append)
    await asyncio.sleep(0.3)  # a subscription takes a moment, and what is said before it is heard by nobody
    for number in range(12):
        group = key(number)
        head = Head(f"birth {number}", 0, 2, time.time() + 60, "fail", {})
        await stores[0].enter(group, head, 0, b"a")
        await stores[1].enter(group, head, 1, b"b")
        assert not await stores[0].put(group, head, 0, Member(b"a", VECTOR))
        assert await stores[1].put(group, head, 1, Member(b"b", VECTOR))
        assert (await stores[0].read(group)).state == "whole"

    async def heard():
        return set(woken) == {key(number) for number in range(12)}

    await until(heard)
    for store in stores:
        await store.stop()


async def test_a_primary_that_dies_costs_misses_until_its_replica_takes_over(tier, cluster, caplog):
    await written(tier, cluster)
    expected = [b"value of " + one for one in KEYS]
    assert cluster.primaries[0].ask("WAIT", 1, 5000) == 1
    with caplog.at_level(logging.WARNING, "paragone.service"):
        cluster.primaries[0].end()
        for _ in range(3):
            got = await tier.get(KEYS)
            assert all(value in (None, right) for value, right in zip(got, expected, strict=True))

        async def back():
            return await tier.get(KEYS) == expected

        await until(back, timeout_s=30)
    lines = [record.message.split(" (")[0] for record in caplog.records]
    assert lines == ["redis is away", "redis is back"]


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:7000/3", "rediss+cluster:///no-host", "memcached://h"])
def test_a_url_that_names_no_redis_is_refused(url):
    with pytest.raises(ValueError, match=r"cluster|scheme"):
        connect(url)
