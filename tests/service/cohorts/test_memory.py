"""Groups in memory: they expire, settled ones make room for new ones, and those that wait are never dropped."""

import functools
import tracemalloc

import pytest

from paragone.codes import ErrorCode
from paragone_service.cohorts.groups import Head, Member
from paragone_service.cohorts.memory import MemoryStore
from paragone_service.http.errors import ServiceError

pytestmark = pytest.mark.anyio

MEMBER = Member(b"d", bytes(400))


def head(name, **changes):
    fields = {"attempt": 0, "size": 1, "until": 10.0, "on_missing": "fail", "terms": {}}
    return Head(**{"birth": name, **fields, **changes})


async def whole(store, name):
    await store.enter(name.encode(), head(name), 0, b"d")
    assert await store.put(name.encode(), head(name), 0, MEMBER)


async def test_a_group_expires_some_time_after_its_deadline():
    now = [0.0]
    store = MemoryStore(keep_s=5, clock=lambda: now[0])
    await whole(store, "a")
    now[0] = 14.9
    await whole(store, "b")
    assert (await store.read(b"a")).state == "whole"
    now[0] = 15.1
    await whole(store, "c")
    assert await store.read(b"a") is None


async def test_settled_groups_make_room_the_oldest_first_and_waiting_ones_stay():
    store = MemoryStore(keep_s=5, max_bytes=6_000, clock=lambda: 0.0)
    await store.enter(b"w", head("w", size=2), 0, b"d")
    for name in "abcdef":
        await whole(store, name)
    assert await store.read(b"a") is None
    assert (await store.read(b"f")).state == "whole"
    assert (await store.read(b"w")).state == "open"
    for name in "ghij":
        await store.enter(name.encode(), head(name), 0, b"d")
    with pytest.raises(ServiceError) as refused:
        await store.enter(b"k", head("k"), 0, b"d")
    assert refused.value.code is ErrorCode.OVERLOADED
    # Room for the members of the groups that are there.
    assert not await store.put(b"w", head("w", size=2), 0, MEMBER)
    await store.enter(b"w", head("w", size=2), 1, b"d")
    assert await store.put(b"w", head("w", size=2), 1, MEMBER)


async def test_what_is_put_into_another_state_is_ignored():
    store = MemoryStore(keep_s=5, clock=lambda: 0.0)
    await store.enter(b"a", head("old"), 0, b"d")
    await store.enter(b"a", head("new", attempt=1), 0, b"e")
    assert not await store.put(b"a", head("old"), 0, MEMBER)
    await store.close(b"a", head("old"))
    group = await store.read(b"a")
    assert (group.head.birth, group.state) == ("new", "open")


async def test_groups_that_all_have_left_make_room_after_their_deadline():
    now = [0.0]
    store = MemoryStore(keep_s=1_000, max_bytes=3_000, clock=lambda: now[0])
    for name in "abc":
        await store.enter(name.encode(), head(name, size=2), 0, b"d")
    with pytest.raises(ServiceError, match="wait for members"):
        await store.enter(b"d", head("d"), 0, b"d")
    now[0] = 10.1
    await store.enter(b"d", head("d", until=20.0), 0, b"d")
    assert await store.read(b"a") is None
    assert (await store.read(b"c")).state == "closed"
    # What is settled so is forgotten in its time.
    now[0] = 1_010.1
    await store.enter(b"e", head("e", until=2_000.0), 0, b"d")
    assert await store.read(b"c") is None


async def test_a_group_that_begins_anew_again_and_again_leaves_nothing_behind():
    store = MemoryStore(keep_s=5, clock=lambda: 0.0)
    tracemalloc.start()
    try:
        for attempt in range(10_000):
            await store.enter(b"a", head(f"birth {attempt}", attempt=attempt), 0, b"d")
        assert tracemalloc.get_traced_memory()[0] < 500_000
    finally:
        tracemalloc.stop()


async def test_the_lease_of_a_settled_group_is_one_processs_until_it_ends_or_the_table_is_there():
    now = [0.0]
    store = MemoryStore(keep_s=5, clock=lambda: now[0])
    claim = functools.partial(store.claim, b"a", head("a"))
    assert await claim(b"me", 3) == "gone"
    await store.enter(b"a", head("a"), 0, b"d")
    assert await claim(b"me", 3) == "gone"  # it waits for members yet
    assert await store.put(b"a", head("a"), 0, MEMBER)
    assert [await claim(who, 3) for who in (b"me", b"you", b"me")] == ["ours", "theirs", "ours"]
    now[0] = 3.0
    assert [await claim(who, 3) for who in (b"you", b"me")] == ["ours", "theirs"]
    assert [await claim(b"you", 0), await claim(b"me", 3)] == ["ours", "ours"]
    await store.finish(b"a", head("a", birth="b"), b"another group's")
    assert await claim(b"me", 3) == "ours"
    for table in (b"table", b"a second one"):
        await store.finish(b"a", head("a"), table)
    assert (await store.read(b"a")).table == b"table"
    assert [await claim(who, 3) for who in (b"me", b"you")] == ["done", "done"]
