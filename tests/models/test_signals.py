"""Signals of a group: cases by hand, all orders by brute force, and what holds for any table."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paragone_models import signals, tournament
from paragone_models.signals import MAX_ACYCLIC, SIGNALS, WITHIN_GROUP, signal

# 0 beats both others, 1 beats 2.
DECISIVE = [[0.5, 0.8, 0.6], [0.2, 0.5, 0.7], [0.4, 0.3, 0.5]]
CIRCLE = [[0.5, 0.7, 0.3], [0.3, 0.5, 0.7], [0.7, 0.3, 0.5]]
EVEN = np.full((4, 4), 0.5)


def table_of(size, above):
    """Return a table from the probabilities above its diagonal, row by row."""
    table = np.full((size, size), 0.5)
    for (row, column), value in zip(itertools.combinations(range(size), 2), above, strict=True):
        table[row, column], table[column, row] = value, 1 - value
    return table


def best_orders(table):
    """Return all orders, best response first, that contradict a table least."""
    contradictions = {
        order: sum(max(table[behind][before] - 0.5, 0) for before, behind in itertools.combinations(order, 2))
        for order in itertools.permutations(range(len(table)))
    }
    least = min(contradictions.values())
    return [order for order, sum_ in contradictions.items() if sum_ <= least + 1e-9]


@st.composite
def tables(draw, largest=6):
    size = draw(st.integers(2, largest))
    # Few values, so that ties and equal margins come up all the time.
    values = st.sampled_from([0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0])
    pairs = size * (size - 1) // 2
    return table_of(size, draw(st.lists(values, min_size=pairs, max_size=pairs)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("win_rate", [1.9 / 3, 1.4 / 3, 1.2 / 3]),
        ("rank", [1.0, 0.5, 0.0]),
        ("nash", [1.0, 0.0, 0.0]),
        ("elimination", [1.0, 0.5, 0.0]),  # 0 has a bye, 1 beats 2, 0 beats 1
        ("acyclic", [1.0, 0.5, 0.0]),
    ],
)
def test_a_decisive_table(name, expected):
    np.testing.assert_allclose(signal(name, DECISIVE), expected)


def test_references_and_rewards_are_handed_on():
    np.testing.assert_allclose(
        signal("anchor", DECISIVE, against=[[0.1, 0.3], [0.9, 0.5], [0.4, 0.4]]), [0.2, 0.7, 0.4]
    )
    assert signal("reward", DECISIVE, rewards=[3.0, -1.0, 0.5]).tolist() == [3.0, -1.0, 0.5]


@pytest.mark.parametrize("name", ["win_rate", "rank", "elimination", "acyclic"])
@pytest.mark.parametrize("size", [2, 4, 16])
def test_a_group_that_is_even_throughout_has_a_half_each(name, size):
    assert signal(name, np.full((size, size), 0.5)).tolist() == [0.5] * size


def test_two_responses_have_both_ends_of_a_place():
    for name in ("rank", "elimination", "acyclic"):
        assert signal(name, table_of(2, [0.4])).tolist() == [0.0, 1.0]


def test_equal_win_rates_share_the_mean_of_their_places():
    # Rates .65, .475, .475, .4: the two in the middle share 2/3 and 1/3.
    table = table_of(4, [0.7, 0.7, 0.7, 0.5, 0.7 - 0.1, 0.6])
    np.testing.assert_allclose(signal("rank", table), [1.0, 0.5, 0.5, 0.0])


def test_sums_that_differ_by_rounding_are_ties():
    assert signals._places(np.array([0.5, 0.5 + 1e-16, 0.5 - 1e-16, 0.4])).tolist() == [2 / 3, 2 / 3, 2 / 3, 0.0]
    assert signal("rank", CIRCLE).tolist() == [0.5] * 3


def test_a_bracket_lets_the_best_seeds_meet_last_and_gives_them_the_byes():
    assert signals._bracket(8) == [0, 7, 3, 4, 1, 6, 2, 5]
    assert signals._bracket(5) == signals._bracket(8)
    assert signals._bracket(1) == [0]


def test_a_knock_out_by_hand():
    # Seeds by win rate: 0, 1, 2, 3, 4. Of eight places three are free, so 0, 1 and 2 have a bye and 3 meets 4.
    # 3 beats 4; then 3 beats 0 and 2 beats 1; then 3 beats 2.
    table = table_of(5, [0.9, 0.9, 0.4, 0.9, 0.45, 0.9, 0.9, 0.4, 0.9, 0.8])
    assert np.argsort(-table.mean(axis=1)).tolist() == [0, 1, 3, 2, 4]
    # So the seeds are 0, 1, 3, 2, 4: first 2 meets 4 and wins, then 0 beats 2 and 3 meets 1.
    # 3 loses to 1, and 0 beats 1: champion 0, then 1, then 2 and 3 together, then 4.
    np.testing.assert_allclose(signal("elimination", table), [1.0, 0.75, 0.375, 0.375, 0.0])


def test_an_upset_in_the_first_round_costs_the_best_seed_its_place():
    # 0 is the best seed and loses to the weakest one alone, which it meets first.
    table = table_of(4, [0.9, 0.9, 0.4, 0.6, 0.9, 0.9])
    assert np.argsort(-table.mean(axis=1)).tolist() == [0, 1, 2, 3]
    # 3 beats 0, 1 beats 2, 1 beats 3.
    np.testing.assert_allclose(signal("elimination", table), [1 / 6, 1.0, 1 / 6, 2 / 3])


def test_copies_of_a_response_share_their_place_in_a_knock_out():
    copied = np.array([0, 0, 1, 2])
    places = signal("elimination", np.array(DECISIVE)[np.ix_(copied, copied)])
    assert places[0] == places[1] > places[2]
    assert places.mean() == pytest.approx(0.5)


def test_a_circle_of_equal_margins_has_no_best():
    np.testing.assert_allclose(signal("acyclic", CIRCLE), [0.5] * 3)


def test_the_weakest_link_of_a_circle_is_the_one_that_is_given_up():
    # 0 beats 1, 1 beats 2, and 2 beats 0 by least.
    table = table_of(3, [0.9, 0.4, 0.9])
    np.testing.assert_allclose(signal("acyclic", table), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(signal("rank", table), [1.0, 0.5, 0.0])


def test_the_order_may_differ_from_that_of_win_rates():
    # 1 beats 0 narrowly and 2 clearly less than 0 does: all pairs agree with 1, 0, 2, and the rates with 0, 1, 2.
    table = table_of(3, [0.45, 1.0, 0.6])
    np.testing.assert_allclose(signal("rank", table), [1.0, 0.5, 0.0])
    np.testing.assert_allclose(signal("acyclic", table), [0.5, 1.0, 0.0])


def test_a_circle_within_an_order_keeps_to_its_places():
    # 0 beats all; 1, 2, 3 are a circle and beat 4.
    table = table_of(5, [0.6, 0.6, 0.6, 0.6, 0.7, 0.3, 0.6, 0.7, 0.6, 0.6])
    np.testing.assert_allclose(signal("acyclic", table), [1.0, 0.5, 0.5, 0.5, 0.0], atol=1e-12)


@given(tables())
def test_the_acyclic_order_is_the_mean_of_all_best_orders(table):
    orders = np.argsort(best_orders(table), axis=1)  # the place of each response
    np.testing.assert_allclose(signal("acyclic", table), 1 - orders.mean(axis=0) / (len(table) - 1), atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_the_acyclic_order_of_seven_is_the_best_of_all(seed):
    table = table_of(7, np.random.default_rng(seed).random(21))
    ((order),) = best_orders(table)
    np.testing.assert_allclose(signal("acyclic", table), 1 - np.argsort(order) / 6, atol=1e-9)


def test_the_largest_group_with_one_circle_through_all_of_it():
    # Each beats all that follow it, but the last beats the first: giving up that one is cheapest.
    table = np.full((MAX_ACYCLIC, MAX_ACYCLIC), 0.5) + np.triu(np.full((MAX_ACYCLIC,) * 2, 0.2), 1)
    table = table - np.tril(np.full((MAX_ACYCLIC,) * 2, 0.2), -1)
    table[0, -1], table[-1, 0] = 0.45, 0.55
    np.testing.assert_allclose(signal("acyclic", table), np.linspace(1, 0, MAX_ACYCLIC))


@given(tables(), st.randoms(use_true_random=False))
def test_no_signal_but_seeds_of_a_knock_out_depends_on_the_order_of_the_responses(table, random):
    order = list(range(len(table)))
    random.shuffle(order)
    shuffled = table[np.ix_(order, order)]
    for name in WITHIN_GROUP.keys() - {"elimination"}:
        np.testing.assert_allclose(signal(name, shuffled), signal(name, table)[order], atol=1e-7)


@given(tables())
def test_places_have_a_mean_of_a_half_and_a_winner_of_all_pairs_is_first(table):
    for name in ("rank", "elimination", "acyclic"):
        assert signal(name, table).mean() == pytest.approx(0.5)
    winner = tournament.condorcet_winner(table)
    if winner is not None:
        for name in ("elimination", "acyclic", "nash"):
            assert signal(name, table)[winner] == pytest.approx(1.0)


@pytest.mark.parametrize("name", sorted(WITHIN_GROUP))
def test_a_response_that_is_alone_has_no_signal_of_its_group(name):
    with pytest.raises(ValueError, match=f"alone in its group has no {name}: compare it with references"):
        signal(name, [[0.5]])


def test_a_response_that_is_alone_has_what_needs_no_group():
    assert signal("anchor", [[0.5]], against=[[0.2, 0.4]]).tolist() == [pytest.approx(0.3)]
    assert signal("reward", [[0.5]], rewards=[2.0]).tolist() == [2.0]


@pytest.mark.parametrize(
    ("name", "matrix", "more", "message"),
    [
        ("anchor", DECISIVE, {}, "give against="),
        ("anchor", DECISIVE, {"against": [[0.5]]}, r"against must be \[3, R\]"),
        ("reward", DECISIVE, {}, "give rewards="),
        ("reward", DECISIVE, {"rewards": [1.0, 2.0]}, "3 finite numbers"),
        ("reward", DECISIVE, {"rewards": [1.0, 2.0, np.nan]}, "3 finite numbers"),
        ("best", DECISIVE, {}, "no signal 'best': it is one of win_rate, rank"),
        ("acyclic", np.full((17, 17), 0.5), {}, "17 responses are too many .* takes 16: use rank"),
        ("rank", [[0.5, 0.7], [0.7, 0.5]], {}, "not symmetrised"),
        ("rank", [[0.5, np.nan], [np.nan, 0.5]], {}, "every entry must be a probability"),
    ],
)
def test_what_cannot_be_computed_is_refused(name, matrix, more, message):
    with pytest.raises(ValueError, match=message):
        signal(name, matrix, **more)


def test_every_name_is_computed():
    assert set(SIGNALS) == set(WITHIN_GROUP) | {"anchor", "reward"}
