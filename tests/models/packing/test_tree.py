"""Prefix trees and passes, without a model: every token placed once, in order, within the budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paragone_models.packing.packer import PromptStore, _plan_isolated, _plan_shared
from paragone_models.packing.tree import MIN_SHARED, common_length, grow, lay_out, pass_ranges, split_long
from paragone_models.text.reader import EncodeItem

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


def arrays(sequences):
    return [np.array(sequence, dtype=np.int64) for sequence in sequences]


@given(SEQUENCES, st.integers(1, 5), st.integers(1, 6))
def test_every_sequence_can_be_read_off_its_path(sequences, min_shared, longest):
    forest = split_long(grow(arrays(sequences), start=0, min_shared=min_shared), longest)
    for sequence, end in zip(sequences, forest.ends, strict=True):
        path = [forest.nodes[index] for index in forest.path(end)]
        assert [token for node in path for token in node.tokens.tolist()] == sequence
        assert [node.start for node in path] == np.cumsum([0, *(len(node.tokens) for node in path[:-1])]).tolist()
    assert all(1 <= len(node.tokens) <= longest for node in forest.nodes)


@given(SEQUENCES)
def test_with_no_least_length_no_token_is_computed_twice(sequences):
    forest = grow(arrays(sequences), start=0, min_shared=1)
    prefixes = {tuple(sequence[: length + 1]) for sequence in sequences for length in range(len(sequence))}
    assert forest.tokens == len(prefixes)


@given(SEQUENCES)
def test_what_is_below_a_node_follows_it_without_a_gap(sequences):
    forest = grow(arrays(sequences), start=0, min_shared=1)
    for index, _ in enumerate(forest.nodes):
        below = [later for later in range(len(forest.nodes)) if index in forest.path(later)]
        assert below == list(range(index, index + len(below)))


@given(SEQUENCES, st.integers(1, 40))
def test_passes_keep_the_budget_and_the_order(sequences, budget):
    forest = split_long(grow(arrays(sequences), start=0, min_shared=2), budget)
    runs = list(pass_ranges(forest, budget))
    assert [index for first, last in runs for index in range(first, last)] == list(range(len(forest.nodes)))
    for first, last in runs:
        layout = lay_out(forest, first, last)
        assert len(layout.tokens) == len(layout.positions) <= budget
        for above in layout.above:
            for node, (begin, end) in layout.rows.items():
                inside = above.first <= begin < end <= above.last
                assert inside == (node != above.node and above.node in forest.path(node))


def test_a_short_common_beginning_is_computed_in_each_sequence():
    forest = grow(arrays([[1, 2, 3, 4], [1, 2, 5, 6]]), start=0, min_shared=3)
    assert [node.tokens.tolist() for node in forest.nodes] == [[1, 2, 3, 4], [1, 2, 5, 6]]


def test_a_prefix_of_prefixes_is_a_node_of_its_own():
    system, first, second = [1] * 5, [2] * 4, [3] * 4
    sequences = [system + prompt + [answer] for prompt in (first, second) for answer in (4, 5)]
    forest = grow(arrays(sequences), start=0, min_shared=4)
    runs = [node.tokens.tolist() for node in forest.nodes]
    assert runs == [system, first, [4], [5], second, [4], [5]]
    assert [node.sequences for node in forest.nodes] == [4, 2, 1, 1, 2, 1, 1]


def test_the_same_sequence_twice_is_computed_once():
    forest = grow(arrays([[1, 2, 3], [1, 2, 3]]), start=0, min_shared=1)
    assert forest.tokens == 3
    assert forest.ends == [0, 0]


@pytest.mark.parametrize(("first", "second", "length"), [([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([], [1], 0)])
def test_the_common_length_ends_at_the_first_difference(first, second, length):
    assert common_length(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)) == length


def test_deep_chains_do_not_exhaust_the_stack():
    sequences = arrays([[1] * length for length in range(1, 1500)])
    assert grow(sequences, start=0, min_shared=1).tokens == 1499


def test_what_is_shared_goes_by_tokens_and_not_by_the_prompt_length():
    stem = list(range(3 * MIN_SHARED))
    items = [EncodeItem([*stem, 100 + tail], ((len(stem), len(stem) + 1),), prompt_length=5) for tail in range(3)]
    assert _plan_shared(items, PromptStore(0), 1000).forest.tokens == len(stem) + 3


def test_a_response_cut_by_its_prompt_length_alone_is_isolated_from_its_siblings():
    items = [EncodeItem([1] * 40 + [2] * tail, ((39 + tail, 40 + tail),), prompt_length=30) for tail in (1, 5)]
    schedule = _plan_isolated(items, PromptStore(0), 1000)
    assert [len(layout.tokens) for layout in schedule.layouts] == [30, 11, 15]
