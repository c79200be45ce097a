"""How clients share: whose turn is next, and how much is ahead of a further piece of work."""

import itertools
import random

import pytest

from paragone_service.scoring.fairness import Backlog, Order


def clients_of(order):
    served = []
    while (first := order.first()) is not None:
        served.append(first[2])
        order.remove(first[2])
    return "".join(served)


def test_who_has_had_least_is_first_and_of_equal_ones_who_came_first():
    order = Order()
    for client, had in zip("abcd", (2, 1, 2, 1), strict=True):
        order.add(client, had)
    assert clients_of(order) == "bdac"
    assert not order


def test_who_gets_more_falls_behind():
    order = Order()
    for client in "abc":
        order.add(client, 0)
    order.raise_to("a", 5)
    order.raise_to("b", 7)
    order.raise_to("a", 9)
    assert (order.had("a"), "a" in order) == (9, True)
    assert clients_of(order) == "cba"


def test_who_comes_back_owes_nothing_of_before():
    order = Order()
    order.add("a", 9)
    order.add("b", 5)
    order.remove("a")
    assert "a" not in order
    order.add("a", 1)
    assert clients_of(order) == "ab"
    order.add("a", 1)
    order.clear()
    assert order.first() is None


def test_orders_with_the_same_numbers_can_be_compared():
    numbers = itertools.count()
    one, two = Order(numbers), Order(numbers)
    one.add("a", 0)
    two.add("b", 0)
    one.add("c", 0)
    one.remove("a")
    assert min(one.first(), two.first()) == (0, 1, "b")


def test_of_anothers_work_no_more_is_ahead_than_will_be_ones_own():
    backlog = Backlog()
    for client, work in (("a", 100), ("b", 1_000), ("c", 10_000)):
        backlog.add(client, work)
    assert backlog.total == 11_100
    assert backlog.ahead("new", 500) == 100 + 500 + 500
    assert backlog.ahead("b", 500) == 100 + 1_000 + 1_500
    backlog.add("c", -20_000)
    assert ("c" in backlog, "b" in backlog, backlog.total) == (False, True, 1_100)
    assert backlog.ahead("new", 10**6) == 1_100


def test_many_backlogs_of_about_one_size_are_estimated_to_a_few_hundredths():
    generator = random.Random(0)
    backlog, work = Backlog(), {}
    for client in range(300):
        work[client] = generator.randrange(1, 3_000)
        backlog.add(client, work[client])
    for most in (7, 600, 1_500, 2_999):
        true = sum(min(own, most) for own in work.values())
        assert true <= backlog.ahead("new", most) <= 1.03 * true
    for client, own in work.items():
        backlog.add(client, -own)
    assert (backlog.total, backlog.ahead("new", 10)) == (0, pytest.approx(0))
