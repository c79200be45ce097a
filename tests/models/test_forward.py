"""The forward pass of the local engine: batches under a budget, the order kept, padding without effect."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paragone_models.forward import LocalForward, _encode_padded, batches
from paragone_models.spec import ModelSpec
from paragone_models.text.reader import EncodeItem, read_plan
from tests.models import tiny

GATED = ModelSpec(kind="general-preference", dimension=4, gate="softmax", pooling="mean")


def items_of(sequences: list[list[int]], spec: ModelSpec = GATED) -> list[EncodeItem]:
    return [EncodeItem(one, read_plan(spec, 2, len(one)), 2) for one in sequences]


@given(st.lists(st.integers(1, 60), max_size=40), st.integers(1, 100), st.just(math.inf) | st.integers(1, 5000))
def test_every_sequence_runs_once_and_no_batch_is_over_budget_unless_it_is_one_sequence(lengths, budget, squares):
    planned = list(batches(lengths, budget, squares))
    assert sorted(index for batch in planned for index in batch) == list(range(len(lengths)))
    for batch in planned:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (len(batch) * longest <= budget and len(batch) * longest**2 <= squares)


@pytest.mark.parametrize("budget", [1, 64, 10_000])
def test_batches_equal_one_by_one_in_the_order_of_the_items(budget):
    network = tiny.make_network(GATED)
    items = items_of(tiny.sequences(9))
    together = _encode_padded(network, items, max_batch_tokens=budget)
    assert together.shape == (9, 2, tiny.HIDDEN)
    for row, item in enumerate(items):
        alone = _encode_padded(network, [item], max_batch_tokens=10_000)[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=1e-5)


def test_the_hidden_states_are_those_of_the_backbone():
    network = tiny.make_network(GATED)
    sequence = tiny.sequences(1)[0]
    hidden = network.backbone(input_ids=torch.tensor([sequence])).last_hidden_state[0]
    states = _encode_padded(network, items_of([sequence]), max_batch_tokens=64)[0]
    torch.testing.assert_close(states[0], hidden[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[1], hidden[2:].mean(dim=0), atol=1e-5, rtol=1e-5)


def test_hidden_states_come_out_in_float32():
    network = tiny.make_network(GATED)
    network.backbone.bfloat16()
    assert _encode_padded(network, items_of(tiny.sequences(2)), max_batch_tokens=64).dtype == torch.float32


def test_no_items_give_no_states():
    assert _encode_padded(tiny.make_network(GATED), [], max_batch_tokens=64).shape == (0, 2, tiny.HIDDEN)


def test_items_with_different_reads_are_refused():
    items = [EncodeItem([5, 6], ((0, 1),), 1), EncodeItem([5, 6], ((0, 1), (1, 2)), 1)]
    with pytest.raises(ValueError, match="the same number of reads"):
        _encode_padded(tiny.make_network(GATED), items, max_batch_tokens=64)


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(ValueError, match="max_batch_tokens is 0"):
        _encode_padded(tiny.make_network(GATED), [], max_batch_tokens=0)


@pytest.mark.parametrize(("attention", "rows"), [("eager", 1), ("sdpa", 8)])
def test_where_the_tables_of_attention_are_written_out_a_batch_is_small_enough_for_them(attention, rows):
    network = tiny.make_network(GATED)
    network.backbone.set_attn_implementation(attention)
    local = LocalForward(network, max_batch_tokens=100_000)
    local.packer = None  # as of an architecture that cannot be packed
    local.attention = attention
    seen = []
    network.backbone.register_forward_pre_hook(
        lambda _, args, named: seen.append(len(named["input_ids"] if "input_ids" in named else args[0])),
        with_kwargs=True,
    )
    local.encode(items_of([[1 + at % 7 for at in range(1500)] for _ in range(8)]))
    assert max(seen) == rows
    assert sum(seen) == 8
