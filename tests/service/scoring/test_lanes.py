"""A lane: first in, first out for each client, fair in tokens among them."""

import pytest

from paragone_service.scoring.tickets import Lane


def drain(lane, quantum, tokens=10, most=10**6):
    order = []
    while lane and len(order) < most:
        order.append(lane.peek(quantum))
        lane.pop(tokens)
    return "".join(order)


def test_one_client_is_a_plain_queue():
    lane = Lane()
    lane.extend("x", "abc")
    lane.extend("x", "de")
    assert list(lane) == list("abcde")
    assert drain(lane, 10) == "abcde"
    assert not lane


@pytest.mark.parametrize(("quantum", "order"), [(10, "aAbBcCdefgh"), (20, "abABcdCefgh"), (0, "aAbBcCdefgh")])
def test_clients_take_turns_of_a_quantum(quantum, order):
    lane = Lane()
    lane.extend("large", "abcdefgh")
    lane.extend("small", "ABC")
    assert drain(lane, quantum) == order


def test_long_entries_count_for_more():
    lane = Lane()
    lane.extend("long", "abc")
    lane.extend("short", "ABCDEFGH")
    order = []
    while lane:
        order.append(lane.peek(1))
        lane.pop(40 if order[-1].islower() else 10)
    assert "".join(order) == "aABCDbEFGHc"


def test_a_client_that_comes_late_is_next_and_owes_nobody_the_past():
    lane = Lane()
    lane.extend("large", "abcdefgh")
    assert drain(lane, 10, most=4) == "abcd"
    lane.extend("late", "ABC")
    assert drain(lane, 10) == "AeBfCgh"


def test_nobody_saves_up_while_away():
    lane = Lane()
    lane.extend("one", "a")
    lane.extend("two", "ABCD")
    assert drain(lane, 10, most=4) == "aABC"
    lane.extend("one", "bcd")
    assert sorted(drain(lane, 10, most=2)) == ["D", "b"]


def test_a_cleared_lane_is_empty():
    lane = Lane()
    lane.extend("one", "ab")
    lane.clear()
    assert (bool(lane), list(lane)) == (False, [])
