"""The store of prompts: exact, bounded, least recently used first out."""

import mmap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paragone_models.packing.attention import KeysValues
from paragone_models.packing.packer import Prefix, PromptStore, _size


def prefix(tokens) -> Prefix:
    """Keys that say which token they belong to."""
    array = np.array(tokens, dtype=np.int64)
    keys = torch.from_numpy(array).float()[None, :, None].expand(1, len(array), 4).contiguous()
    return Prefix(array, KeysValues(0, [keys], [keys + 0.5]))


def size_of(length: int) -> int:
    """Return the bytes that a store counts for a prompt of so many tokens."""
    store = PromptStore(1 << 20)
    store.put(prefix(range(length)))
    return store.bytes


def found(store: PromptStore, tokens, *, limit=10**6, at_least=1) -> list[int] | None:
    match = store.match(np.array(tokens, dtype=np.int64), limit=limit, at_least=at_least)
    if match is None:
        return None
    assert match.states.keys[0][0, :, 0].tolist() == match.tokens.tolist()
    assert (match.states.values[0] - match.states.keys[0] == 0.5).all()
    return match.tokens.tolist()


def test_the_longest_known_prefix_is_found():
    store = PromptStore(1 << 20)
    prompt = list(range(100))
    store.put(prefix(prompt))
    assert found(store, [*prompt, 7, 8]) == prompt
    assert found(store, [*prompt[:50], 7, 8]) == prompt[:50]
    assert found(store, [7, *prompt]) is None


def test_a_match_ends_at_its_limit_and_below_the_least_length_there_is_none():
    store = PromptStore(1 << 20)
    store.put(prefix(range(100)))
    assert found(store, range(120), limit=99) == list(range(99))
    assert found(store, range(120), limit=40, at_least=41) is None
    assert found(store, range(120), limit=0) is None


def test_a_longer_prompt_replaces_the_one_it_begins_with_and_a_shorter_one_changes_nothing():
    store = PromptStore(1 << 20)
    store.put(prefix(range(64)))
    store.put(prefix(range(96)))
    assert len(store) == 1
    store.put(prefix(range(64)))
    assert (len(store), store.bytes) == (1, size_of(96))
    assert found(store, range(100)) == list(range(96))


def test_the_least_recently_used_prompt_goes_first():
    store = PromptStore(2 * size_of(64))
    first, second, third = (list(range(start, start + 64)) for start in (0, 100, 200))
    store.put(prefix(first))
    store.put(prefix(second))
    assert found(store, first) == first
    store.put(prefix(third))
    assert found(store, second) is None
    assert found(store, first) == first
    assert store.bytes <= store.max_bytes


def test_a_prompt_over_the_budget_and_a_store_without_one_keep_nothing():
    for store in (PromptStore(0), PromptStore(prefix(range(64)).bytes - 1)):
        store.put(prefix(range(64)))
        assert (len(store), store.bytes) == (0, 0)
        assert found(store, range(64)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_counted_is_all_the_memory_that_is_kept(dtype):
    store = PromptStore(1 << 20)
    put = []
    for length in (33, 64, 100):
        tokens = np.arange(1000, dtype=np.int64)[length : 2 * length]  # a view, as those of a longer sequence are
        # Layers with different heads, and an odd number of bytes.
        keys, values = ([torch.randn(2, length, 5).to(dtype), torch.randn(1, length, 7).to(dtype)] for _ in range(2))
        put.append(Prefix(tokens, KeysValues(0, keys, values)))
        store.put(put[-1])
    kept = [store.exact(prefix.tokens) for prefix in put]
    for before, after in zip(put, kept, strict=True):
        assert after.tokens.tolist() == before.tokens.tolist()
        for name in ("keys", "values"):
            for one, other in zip(getattr(before.states, name), getattr(after.states, name), strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
                assert other.is_contiguous()
                assert other.data_ptr() % 64 == 0
    # Each has one mapping, with its tokens; a part of it keeps all of it.
    sizes = [one.states.keys[0].untyped_storage().nbytes() for one in kept]
    assert [one.states.bytes for one in kept] == [one.states.first(1).bytes for one in kept] == sizes
    assert sum(sizes) < sum(prefix.bytes for prefix in put) + 3 * mmap.PAGESIZE
    assert store.bytes == sum(sizes) + 3 * 2_000 + (1 + 2 + 3) * 250  # and the objects and hashes that find them
    start = kept[0].states.keys[0].data_ptr()
    assert start < kept[0].tokens.ctypes.data < start + sizes[0]
    store.clear()
    assert torch.equal(kept[2].states.keys[0], put[2].states.keys[0])  # whoever still has it still has it


def test_exact_entries_are_told_from_longer_ones():
    store = PromptStore(1 << 20)
    store.put(prefix(range(64)))
    assert store.exact(np.arange(64)) is not None
    assert store.exact(np.arange(63)) is None
    assert store.exact(np.arange(65)) is None


def test_a_cleared_store_is_empty():
    store = PromptStore(1 << 20)
    store.put(prefix(range(64)))
    store.clear()
    assert (len(store), store.bytes, found(store, range(64))) == (0, 0, None)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 130)), max_size=25))
def test_whatever_happens_the_budget_holds_and_matches_are_true_prefixes(steps):
    store = PromptStore(3 * size_of(170) - 1)
    for stem, length in steps:
        tokens = [stem] * 40 + list(range(length))
        match = found(store, tokens)
        assert match is None or match == tokens[: len(match)]
        store.put(prefix(tokens))
        assert store.bytes <= store.max_bytes
        assert store.bytes == sum(_size(entry) for entry in store._entries.values())
    assert {number for numbers in store._by_hash.values() for number in numbers} <= set(store._entries)
