"""The memory tier: bounded, least recently used first out, first writer wins."""

import os
import tracemalloc

import pytest

from paragone_service.cache.tiers import MemoryCache


def test_what_was_put_is_found_and_the_rest_is_not():
    cache = MemoryCache(10_000)
    cache.put(b"a", b"1")
    assert cache.get([b"a", b"b", b"a"]) == [b"1", None, b"1"]


def test_the_first_writer_wins():
    cache = MemoryCache(10_000)
    assert cache.put(b"a", b"1") == b"1"
    assert cache.put(b"a", b"2") == b"1"
    assert cache.get([b"a"]) == [b"1"]


def test_the_least_recently_used_entry_goes_first():
    cache = MemoryCache(1_000)
    names = [bytes([number]) for number in range(20)]
    for name in names:
        cache.put(name, b"value")
        cache.get([names[0]])
    assert cache.size_bytes <= 1_000
    assert cache.get([names[0], names[1], names[-1]]) == [b"value", None, b"value"]


def test_without_room_nothing_is_kept():
    cache = MemoryCache(0)
    assert cache.put(b"a", b"1") == b"1"
    assert len(cache) == 0
    assert cache.size_bytes == 0


@pytest.mark.parametrize("entries", [20_000, 60_000])
def test_the_size_that_is_counted_is_the_memory_that_is_used(entries):
    tracemalloc.start()
    cache = MemoryCache(10**9)
    for _ in range(entries):
        cache.put(os.urandom(24), os.urandom(44))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.75 * cache.size_bytes < used < 1.1 * cache.size_bytes
