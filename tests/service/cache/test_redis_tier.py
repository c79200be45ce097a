"""The Redis tier, against a real Redis: read in one trip, written behind, first writer wins, and it fails open."""

import asyncio
import logging
import time

import pytest
from processes import Redis as RedisServer
from redis.asyncio import Redis
from serving_setup import free_port

from paragone_service.cache.redis_tier import RedisCache
from paragone_service.cache.seal import Seal
from paragone_service.cache.tiers import Cache, Codec, MemoryCache
from paragone_service.metrics import Metrics
from tests.service.conftest import until

pytestmark = pytest.mark.anyio

CODEC = Codec(2)
KEYS = [bytes([number]) * 24 for number in range(8)]


def values(*numbers):
    return CODEC.encode([[number, -number] for number in numbers], [5] * len(numbers), [0] * len(numbers))


def sealed(key, value):
    return Seal().close(key, value)


def counted(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, labels)


async def holds(raw, entries):
    return await raw.dbsize() == entries


async def has(cache, value):
    return await cache.get(KEYS[:1]) == [value]


@pytest.fixture
async def tier(redis_server):
    metrics = Metrics()
    cache = RedisCache(redis_server.url, ttl_s=1000, metrics=metrics)
    await cache.start()
    yield cache, metrics
    await cache.close()


@pytest.fixture
async def raw(redis_server):
    client = Redis(port=redis_server.port)
    yield client
    await client.aclose()


async def test_what_was_written_is_read_in_one_round_trip(tier, raw):
    cache, _ = tier
    cache.put((key, value, False) for key, value in zip(KEYS[:3], values(1, 2, 3), strict=True))
    await until(lambda: holds(raw, 3))
    before = (await raw.info("commandstats")).get("cmdstat_mget", {"calls": 0})["calls"]
    assert await cache.get([*KEYS[:3], KEYS[7]]) == [*values(1, 2, 3), None]
    assert (await raw.info("commandstats"))["cmdstat_mget"]["calls"] == before + 1


async def test_the_first_writer_wins_unless_a_value_is_to_be_overwritten(tier, raw):
    cache, _ = tier
    await raw.set(KEYS[0], b"theirs")
    await raw.set(KEYS[1], b"spoilt")
    cache.put([(KEYS[0], b"ours", False), (KEYS[1], b"ours", True), (KEYS[2], b"ours", False)])
    await until(lambda: holds(raw, 3))
    assert await raw.mget(KEYS[:3]) == [b"theirs", b"ours", b"ours"]


async def test_entries_expire_at_about_their_time_but_not_all_at_once(tier, raw):
    cache, _ = tier
    keys = [bytes([number]) * 24 for number in range(50)]
    cache.put((key, b"value", False) for key in keys)
    await until(lambda: holds(raw, 50))
    left = [await raw.ttl(key) for key in keys]
    assert 890 <= min(left) < max(left) <= 1100


async def test_what_is_pending_is_written_before_closing(redis_server, raw):
    cache = RedisCache(redis_server.url, ttl_s=1000, metrics=Metrics())
    await cache.start()
    cache.put((index.to_bytes(24, "little"), b"value", False) for index in range(2000))
    await cache.close()
    assert await raw.dbsize() == 2000


async def test_a_redis_that_is_absent_is_said_once_and_then_left_alone(caplog):
    metrics = Metrics()
    cache = RedisCache(f"redis://127.0.0.1:{free_port()}", ttl_s=1000, metrics=metrics)
    with caplog.at_level(logging.WARNING, "paragone.service"):
        await cache.start()
        for _ in range(200):
            assert await cache.get(KEYS) == [None] * len(KEYS)
            cache.put([(KEYS[0], b"value", False)])
    assert [record.message.split(" (")[0] for record in caplog.records] == ["redis is away"]
    assert counted(metrics, "paragone_redis_up") == 0
    assert counted(metrics, "paragone_redis_errors_total", operation="start") == 1
    assert counted(metrics, "paragone_redis_unwritten_total") == 200
    await cache.close()


async def test_a_redis_that_goes_and_comes_back_is_said_once_each(caplog):
    server = RedisServer()
    server.start()
    metrics = Metrics()
    cache = RedisCache(server.url, ttl_s=1000, metrics=metrics)
    with caplog.at_level(logging.WARNING, "paragone.service"):
        await cache.start()
        cache.put([(KEYS[0], b"value", False)])
        await until(lambda: has(cache, b"value"))
        server.end()
        for _ in range(3):
            assert await cache.get(KEYS[:1]) == [None]
        assert not cache.up
        server.start()
        await until(lambda: cache.up)
        assert await cache.get(KEYS[:1]) == [None]
        cache.put([(KEYS[0], b"again", False)])
        await until(lambda: has(cache, b"again"))
    assert [record.message.split(" (")[0] for record in caplog.records] == ["redis is away", "redis is back"]
    assert counted(metrics, "paragone_redis_up") == 1
    assert counted(metrics, "paragone_redis_errors_total", operation="get") == 1
    await cache.close()
    server.end()


async def test_a_redis_that_hangs_is_given_up_within_its_timeout():
    async def never_answer(reader, writer):
        try:
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    cache = RedisCache(f"redis://127.0.0.1:{port}", ttl_s=1000, metrics=Metrics())
    async with asyncio.timeout(5):
        await cache.start()
        assert await cache.get(KEYS) == [None] * len(KEYS)
    assert not cache.up
    await cache.close()
    server.close()


async def test_a_full_redis_is_still_read_and_its_refusals_are_counted(tier, raw):
    cache, metrics = tier
    await raw.set(KEYS[0], b"value")
    await raw.config_set("maxmemory", "1")
    await raw.config_set("maxmemory-policy", "noeviction")
    cache.put([(KEYS[1], b"value", False)])
    await until(lambda: counted(metrics, "paragone_redis_errors_total", operation="set") == 1)
    assert cache.up
    assert await cache.get(KEYS[:2]) == [b"value", None]


async def test_tiers_ask_redis_only_for_what_memory_lacks_and_remember_it(tier, raw):
    redis, metrics = tier
    cache = Cache(MemoryCache(10_000), redis, metrics)
    one, two, three = values(1, 2, 3)
    cache.put(KEYS[:1], [one])
    await raw.set(KEYS[1], sealed(KEYS[1], two))
    found = await cache.get([KEYS[1], KEYS[0], KEYS[1], KEYS[2]], CODEC)
    assert found.values == [two, one, two, None]
    assert found.misses == 1
    await raw.set(KEYS[1], sealed(KEYS[1], three))
    assert (await cache.get([KEYS[1]], CODEC)).values == [two]
    assert counted(metrics, "paragone_cache_responses_total", tier="memory") == 2
    assert counted(metrics, "paragone_cache_responses_total", tier="redis") == 2


async def test_what_another_replica_wrote_first_is_kept_in_redis(tier, raw):
    redis, metrics = tier
    cache = Cache(MemoryCache(10_000), redis, metrics)
    one, two = values(1, 2)
    await raw.set(KEYS[0], sealed(KEYS[0], one))
    assert cache.put(KEYS[:2], [two, two]) == [two, two]
    await until(lambda: holds(raw, 2))
    assert await raw.get(KEYS[0]) == sealed(KEYS[0], one)


def flipped(value, place):
    return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]


OURS = sealed(KEYS[0], values(1)[0])
HUGE = CODEC.encode([[3.4e38, 1.0]], [5], [0])[0]
MANY = CODEC.encode([[1.0, 1.0]], [5], [2**30])[0]


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"x", id="short"),
        pytest.param(OURS[:-1], id="cut"),
        pytest.param(OURS + b"\0", id="longer"),
        pytest.param(bytes(len(OURS)), id="zeros"),
        pytest.param(values(1)[0][2:], id="bare"),
        *(pytest.param(flipped(OURS, place), id=f"bit-{place}") for place in range(len(OURS))),
        pytest.param(sealed(KEYS[0], Codec(3).encode([[1, 2, 3]], [1], [0])[0]), id="another dimension"),
        pytest.param(sealed(KEYS[0], HUGE), id="out of range"),
        pytest.param(sealed(KEYS[0], MANY), id="tokens out of range"),
        pytest.param(sealed(KEYS[1], values(1)[0]), id="of another key"),
        pytest.param(Seal(b"theirs" * 4).close(KEYS[0], values(1)[0]), id="another secret"),
    ],
)
async def test_a_corrupted_value_is_a_miss_counted_and_overwritten(tier, raw, spoilt):
    redis, metrics = tier
    cache = Cache(MemoryCache(10_000), redis, metrics)
    await raw.set(KEYS[0], spoilt)
    assert (await cache.get(KEYS[:1], CODEC)).values == [None]
    assert counted(metrics, "paragone_cache_corrupted_total") == 1
    cache.put(KEYS[:1], values(1))
    await until(lambda: has(redis, OURS))


async def test_with_a_secret_a_value_that_anybody_could_make_does_not_count(tier, raw):
    redis, metrics = tier
    secret = Seal(b"0123456789abcdef")
    cache = Cache(MemoryCache(10_000), redis, metrics, seal=secret)
    await raw.mset({KEYS[0]: OURS, KEYS[1]: secret.close(KEYS[1], values(2)[0])})
    assert (await cache.get(KEYS[:2], CODEC)).values == [None, values(2)[0]]
    assert counted(metrics, "paragone_cache_corrupted_total") == 1


async def test_a_value_of_an_earlier_release_is_a_miss_and_no_damage(tier, raw):
    redis, metrics = tier
    cache = Cache(MemoryCache(10_000), redis, metrics)
    first = b"\x50\x01" + values(1)[0][2:]
    await raw.mset({KEYS[0]: first, KEYS[1]: Seal().close(KEYS[1], first)})  # without a seal, and with one
    assert (await cache.get(KEYS[:2], CODEC)).values == [None, None]
    assert counted(metrics, "paragone_cache_corrupted_total") == 0
    assert counted(metrics, "paragone_cache_outdated_total") == 2
    cache.put(KEYS[:1], values(1))
    await until(lambda: has(redis, OURS))


async def test_a_wrong_type_under_a_key_is_a_miss_counted_and_overwritten(tier, raw):
    redis, metrics = tier
    cache = Cache(MemoryCache(10_000), redis, metrics)
    await raw.lpush(KEYS[0], "an", "element")
    await raw.hset(KEYS[1], "a", "field")
    assert (await cache.get(KEYS[:2], CODEC)).values == [None, None]
    cache.put(KEYS[:1], values(1))
    cache.put(KEYS[1:2], values(2))
    await until(lambda: has(redis, OURS))
    await until(lambda: counted(metrics, "paragone_cache_corrupted_total") == 2)
    assert redis.up


async def test_two_thousand_reads_at_once_share_a_few_pipelines_and_never_open_the_circuit(tier, raw):
    redis, metrics = tier
    keys = [number.to_bytes(24, "little") for number in range(2000)]
    await raw.mset({key: key for key in keys})
    await raw.config_resetstat()

    async def stall():  # a loop that is busy for longer than Redis is waited for, again and again
        for _ in range(8):
            time.sleep(0.3)  # noqa: ASYNC251 (to block is the point)
            await asyncio.sleep(0)

    got = await asyncio.gather(stall(), *(redis.get([key]) for key in keys), stall())
    assert got[1:-1] == [[key] for key in keys]
    assert (await raw.info("commandstats"))["cmdstat_mget"]["calls"] < 50
    assert redis.up
    assert counted(metrics, "paragone_redis_circuit_opened_total") == 0
    assert counted(metrics, "paragone_redis_errors_total", operation="get") is None


async def test_one_late_answer_does_not_open_the_circuit_and_a_silent_redis_does(tier, raw):
    redis, metrics = tier
    await raw.set(KEYS[0], b"value")
    await raw.client_pause(400, all=True)
    assert await redis.get(KEYS[:1]) == [None]
    assert redis.up
    await until(lambda: has(redis, b"value"))
    await raw.client_pause(3000, all=True)
    for _ in range(3):
        assert await redis.get(KEYS[:1]) == [None]
    assert not redis.up
    assert counted(metrics, "paragone_redis_circuit_opened_total") == 1


async def test_more_keys_than_may_wait_are_misses_and_counted(tier):
    redis, metrics = tier
    keys = [number.to_bytes(24, "little") for number in range(150_000)]
    first, second = await asyncio.gather(redis.get(keys), redis.get(keys))
    assert first == second == [None] * len(keys)
    assert counted(metrics, "paragone_redis_unasked_total") == len(keys)
