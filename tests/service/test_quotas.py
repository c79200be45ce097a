"""Quotas: the arithmetic of a bucket in this process and in Redis, and what a client sees of them."""

import asyncio
import math

import pytest

from paragone_service.api_keys import ApiKey, hash_of
from paragone_service.cache.redis_tier import RedisCache
from paragone_service.http.errors import ErrorCode, ServiceError
from paragone_service.metrics import Metrics
from paragone_service.quotas import Quotas
from tests.service.conftest import serving, until

pytestmark = pytest.mark.anyio

KEY = ApiKey("acme", b"a" * 32)
OTHER = ApiKey("other", b"b" * 32)


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture(params=["memory", "redis"])
async def redis(request):
    """A Redis, or None: every rule holds for both."""
    if request.param == "memory":
        yield None
        return
    server = request.getfixturevalue("redis_server")
    cache = RedisCache(server.url, ttl_s=60, metrics=Metrics())
    await cache.start()
    yield cache
    await cache.close()


async def refused(spending, *, requests=0, tokens=0):
    """The seconds to wait, or None."""
    try:
        for _ in range(requests):
            await spending.request()
        if tokens:
            await spending.tokens(tokens)
    except ServiceError as error:
        return error.retry_after_s if error.code == ErrorCode.QUOTA_EXCEEDED else error
    return None


async def test_a_minute_has_as_many_requests_as_the_limit_and_each_key_its_own(redis):
    quotas = Quotas(Metrics(), requests_per_minute=3, redis=redis)
    assert [await refused(quotas.of(KEY), requests=1) for _ in range(4)] == [None, None, None, 20]
    assert await refused(quotas.of(OTHER), requests=3) is None
    assert await refused(quotas.of(None), requests=3) is None


async def test_requests_at_once_take_no_more_than_there_is(redis):
    quotas = Quotas(Metrics(), requests_per_minute=50, redis=redis)
    waits = await asyncio.gather(*(refused(quotas.of(KEY), requests=1) for _ in range(400)))
    # Ours takes milliseconds, in which a fifty-a-minute bucket gains nothing; a slow machine gains one in 1.2 s.
    assert 50 <= waits.count(None) <= 55


async def test_more_tokens_than_a_minute_has_are_run_when_the_bucket_is_full_and_leave_a_debt(redis):
    quotas = Quotas(Metrics(), tokens_per_minute=600, redis=redis)
    assert await refused(quotas.of(KEY), tokens=100) is None
    assert await refused(quotas.of(KEY), tokens=1_800) == 10  # until 600 are there
    assert await refused(quotas.of(OTHER), tokens=1_800) is None
    assert await refused(quotas.of(OTHER), tokens=10) == 121  # 1,200 in debt, and ten more, at ten a second


async def test_what_is_given_back_can_be_spent_and_nothing_beyond_the_limit(redis):
    quotas = Quotas(Metrics(), tokens_per_minute=600, redis=redis)
    spending = quotas.of(KEY)
    await spending.tokens(600)
    assert await refused(quotas.of(KEY), tokens=600) == 60
    await spending.give_back(5_000)
    assert await refused(quotas.of(KEY), tokens=600) is None
    assert await refused(quotas.of(KEY), tokens=600) == 60


async def test_a_bucket_refills_evenly():
    clock = Clock()
    quotas = Quotas(Metrics(), requests_per_minute=6, clock=clock)
    assert await refused(quotas.of(KEY), requests=6) is None
    clock.now += 9.5
    assert await refused(quotas.of(KEY), requests=1) == 1
    clock.now += 0.5
    assert await refused(quotas.of(KEY), requests=1) is None
    clock.now += 3_600
    assert await refused(quotas.of(KEY), requests=6) is None
    assert await refused(quotas.of(KEY), requests=1) == 10


async def test_the_numbers_of_a_key_win_over_those_of_the_server():
    quotas = Quotas(Metrics(), requests_per_minute=1)
    own = ApiKey("own", b"c" * 32, requests_per_minute=3)
    assert [await refused(quotas.of(own), requests=1) for _ in range(4)] == [None, None, None, 20]
    assert Quotas(Metrics()).of(KEY) is None


async def test_replicas_share_a_bucket_and_count_alone_while_redis_is_away(redis_server):
    caches = [RedisCache(redis_server.url, ttl_s=60, metrics=Metrics()) for _ in range(2)]
    for cache in caches:
        await cache.start()
    first, second = (Quotas(Metrics(), requests_per_minute=4, redis=cache) for cache in caches)
    assert await refused(first.of(KEY), requests=2) is None
    assert await refused(second.of(KEY), requests=2) is None
    assert await refused(first.of(KEY), requests=1) == 15
    redis_server.end()
    await until(lambda: gone(caches[0], first))
    assert await refused(first.of(OTHER), requests=4) is None
    assert await refused(first.of(OTHER), requests=1) == 15
    for cache in caches:
        await cache.close()


async def gone(cache, quotas):
    await refused(quotas.of(ApiKey("probe", b"p")), requests=1)
    return not cache.up


async def test_another_type_under_the_key_of_a_bucket_is_an_empty_one_and_it_does_not_stay_for_ever(redis_server):
    cache = RedisCache(redis_server.url, ttl_s=60, metrics=Metrics())
    await cache.start()
    quotas = Quotas(Metrics(), requests_per_minute=1, redis=cache)
    assert await refused(quotas.of(KEY), requests=1) is None
    (place,) = await cache.connection.keys("paragone:quota:requests:*")
    assert 59_000 <= await cache.connection.pttl(place) <= 61_000
    await cache.connection.set(place, "something else")
    assert await refused(quotas.of(KEY), requests=1) is None
    assert await refused(quotas.of(KEY), requests=1) == 60
    assert cache.up
    await cache.close()


async def test_two_thousand_requests_at_once_do_not_make_redis_look_away(redis_server):
    metrics = Metrics()
    cache = RedisCache(redis_server.url, ttl_s=60, metrics=metrics)
    await cache.start()
    quotas = Quotas(Metrics(), requests_per_minute=100_000, tokens_per_minute=100_000, redis=cache)
    await asyncio.gather(*(refused(quotas.of(KEY), requests=1, tokens=1) for _ in range(2_000)))
    assert metrics.redis_opened._value.get() == 0
    standing = quotas.of(KEY)
    await standing.tokens(1)
    assert 97_900 <= int(standing.headers()["ratelimit-remaining"]) <= 99_999
    await cache.close()


def rewards(*texts):
    return {"model": "bt", "items": [{"prompt": "p", "response": text} for text in texts]}


def limits(response):
    return {
        name.removeprefix("ratelimit-"): response.headers[name]
        for name in response.headers
        if name.startswith("ratelimit-")
    }


async def test_a_client_is_told_how_it_stands_and_refused_with_the_time_to_wait(hosted, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"a:{hash_of('one')} requests_per_minute=2\nb:{hash_of('two')}\n")
    async with serving(hosted, api_key_file=file) as client:
        bearer = {"authorization": "Bearer one"}
        answers = [await client.post("/v1/rewards", json=rewards("x"), headers=bearer) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        told = [limits(answer) for answer in answers]
        assert [one["remaining"] for one in told] == ["1", "0", "0"]
        assert {one["limit"] for one in told} == {"2"}
        assert {one["policy"] for one in told} == {'"requests";q=2;w=60'}
        assert [one["reset"] for one in told] == ["30", "60", "30"]
        assert answers[2].headers["retry-after"] == "30"
        assert answers[2].json()["error"]["code"] == "quota_exceeded"
        assert "spent its 2 requests per minute" in answers[2].json()["error"]["message"]
        # What asks no model is not counted, and the other key has no quota.
        assert (await client.get("/metrics", headers=bearer)).status_code == 200
        assert 'paragone_quota_refused_total{quota="requests"} 1.0' in client.app.state.metrics.render().decode()
        other = await client.post("/v1/rewards", json=rewards("x"), headers={"authorization": "Bearer two"})
        assert (other.status_code, limits(other)) == (200, {})


async def test_tokens_are_taken_for_what_is_run_and_not_for_what_is_cached(hosted):
    async with serving(hosted, tokens_per_minute=1_000_000) as client:
        first = await client.post("/v1/rewards", json=rewards("x", "x", "y"))
        tokens = first.json()["usage"]["forward_tokens"]
        assert tokens > 0
        left = int(limits(first)["remaining"])
        assert left == pytest.approx(1_000_000 - tokens, abs=1) or left > 1_000_000 - tokens  # it refills meanwhile
        await asyncio.sleep(tokens / 1_000_000 * 60 + 0.01)  # now it is full again
        cached = await client.post("/v1/rewards", json=rewards("x", "y"))
        assert cached.json()["usage"]["forward_tokens"] == 0
        assert limits(cached)["remaining"] == "1000000"


async def test_over_the_quota_of_tokens_nothing_is_run_and_the_cache_still_answers(hosted):
    async with serving(hosted, tokens_per_minute=60) as client:
        first = await client.post("/v1/rewards", json=rewards("x " * 60))  # over a whole minute's: the bucket was full
        assert first.status_code == 200
        assert limits(first)["remaining"] == "0"
        second = await client.post("/v1/rewards", json=rewards("y"))
        assert (second.status_code, second.json()["error"]["code"]) == (429, "quota_exceeded")
        debt = first.json()["usage"]["forward_tokens"] - 60
        assert int(second.headers["retry-after"]) >= math.floor(debt)
        assert limits(second)["reset"] == second.headers["retry-after"]
        again = await client.post("/v1/rewards", json=rewards("x " * 60))
        assert (again.status_code, again.json()["rewards"]) == (200, first.json()["rewards"])
        reported = await client.post("/v1/rewards", json={**rewards("y"), "on_error": "report"})
        assert reported.status_code == 429


async def test_tokens_of_a_request_that_others_have_run_meanwhile_are_given_back(hosted):
    async with serving(hosted, tokens_per_minute=10_000) as client:
        both = await asyncio.gather(*(client.post("/v1/rewards", json=rewards("a b c")) for _ in range(5)))
        run = sum(answer.json()["usage"]["forward_tokens"] for answer in both)
        last = await client.post("/v1/rewards", json=rewards("a b c"))
        assert int(limits(last)["remaining"]) >= 10_000 - run
