"""The door: a wait is expected from the speed seen, and a request that could not be answered in time is refused."""

import contextlib

import pytest

from paragone.codes import ErrorCode
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring.admission import Admission
from paragone_service.scoring.request import Deadline


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def door():
    """A door with 1,000 characters a second."""
    clock = Clock()
    door = Admission("m", Metrics(), max_wait_s=2.5, clock=clock)
    door.clock = clock
    with door.admitted(936, 1, "first", None) as entry:
        clock.now += 1.0
        entry.one_finished()
    assert door.characters_per_s == pytest.approx(1000)
    return door


def enter(stack, door, characters, client, deadline=None):
    stack.enter_context(door.admitted(characters - 64, 1, client, deadline))


def test_a_request_that_would_wait_longer_than_it_may_is_refused_with_an_honest_time(door):
    with contextlib.ExitStack() as stack:
        for client in "abc":
            enter(stack, door, 1000, client)
        with pytest.raises(ServiceError) as caught:
            enter(stack, door, 1000, "d")
        assert caught.value.code is ErrorCode.OVERLOADED
        assert "a wait of 3.0 s is expected, over the 2.5 s" in caught.value.message
        assert caught.value.retry_after_s == 1
        assert door.waiting == 3000
    assert door.waiting == 0
    with door.admitted(936, 1, "d", None):
        pass


def test_the_wait_may_take_half_of_a_named_deadline(door):
    with contextlib.ExitStack() as stack:
        for client in "abc":
            enter(stack, door, 1000, client)
        enter(stack, door, 1000, "d", Deadline(60))
        with pytest.raises(ServiceError, match=r"over the 2\.\d s"):
            enter(stack, door, 1000, "e", Deadline(5))


def test_a_small_question_is_let_in_beside_a_large_job(door):
    with contextlib.ExitStack() as stack:
        enter(stack, door, 1_000_000, "bulk")
        enter(stack, door, 100, "small")
        assert door.expected_wait_s(100, "other") == pytest.approx(0.2)


def test_a_model_that_gets_slower_is_noticed_and_little_to_do_is_not_slowness(door):
    def small():
        with door.admitted(36, 1, "a", Deadline(1e4)) as entry:
            door.clock.now += 0.5
            entry.one_finished()

    for _ in range(20):
        small()
    assert door.characters_per_s == pytest.approx(1000)
    with contextlib.ExitStack() as stack:
        enter(stack, door, 10_000, "waits", Deadline(1e4))
        for _ in range(20):
            small()
    assert door.characters_per_s < 300


def test_a_large_job_counts_as_it_gets_done_and_no_lump_at_its_end_looks_like_a_sprint(door):
    with door.admitted(100_000 - 100 * 64, 100, "bulk", None) as entry:
        for _ in range(100):
            door.clock.now += 1.0
            entry.one_finished()
            assert door.characters_per_s == pytest.approx(1000)
    assert door.characters_per_s == pytest.approx(1000)
    assert door.waiting == 0


def test_what_was_dropped_on_its_way_is_no_work_done(door):
    with contextlib.suppress(RuntimeError), door.admitted(1_000_000, 1, "a", None) as entry:
        door.clock.now += 0.5
        raise RuntimeError
    assert door.characters_per_s < 1000
    assert door.waiting == 0
    known = door.characters_per_s
    entry.one_finished()  # its batch ends later
    assert door.characters_per_s == known


def test_those_who_are_sent_away_are_told_different_times_to_come_back(door):
    with contextlib.ExitStack() as stack:
        for client in "abc":
            enter(stack, door, 1000, client)
        times = []
        for client in range(20):
            with pytest.raises(ServiceError) as caught:
                enter(stack, door, 1000, client)
            times.append(caught.value.retry_after_s)
        assert times == sorted(times)
        assert times[0] == 1
        assert times[-1] == 10  # nineteen more, each of one second's work, of which half will come
        door.clock.now += 60
        with pytest.raises(ServiceError) as caught:
            enter(stack, door, 1000, "late")
        assert caught.value.retry_after_s == 1


def rested(door, client, characters):
    with door.admitted(characters - 64, 1, client, None) as entry:
        return entry.rested


def test_a_rest_earns_the_right_to_go_ahead_with_an_eighth_of_its_time(door):
    assert rested(door, "newcomer", 4_000)
    assert not rested(door, "another newcomer", 5_000)  # no small question
    with door.admitted(36, 1, "asks", None) as entry:
        assert entry.rested
        with door.admitted(36, 1, "asks", None) as another:
            assert not another.rested  # it has something on its way
    assert not rested(door, "asks", 100)
    door.clock.now += 0.79
    assert not rested(door, "asks", 100)
    door.clock.now += 0.81
    assert rested(door, "asks", 100)
    assert not rested(door, "asks", 100)  # that was spent


def judged(door, client, body_bytes, deadline_s=None):
    """Return what a body is refused with, or None, and give back what it has reserved."""
    judgement = door.judged(client, body_bytes, deadline_s)
    if isinstance(judgement, ServiceError):
        return judgement
    judgement.release()
    judgement.release()  # which changes nothing
    return None


def test_a_body_is_judged_by_the_share_of_work_in_its_clients_last_one(door):
    with contextlib.ExitStack() as stack:
        for client in "abc":
            enter(stack, door, 1000, client)
        assert door.busy
        assert judged(door, "cold", 1000) is None  # nothing is known of any body
        door.parsed("cold", 1000, 936, 1)
        refusal = judged(door, "cold", 1000)
        assert refusal.code is ErrorCode.OVERLOADED
        assert "a wait of 3.0 s is expected, over the 2.5 s" in refusal.message
        assert judged(door, "cold", 1000, 7.0) is None  # half of its deadline
        assert judged(door, "cold", 500) is None  # a small one waits behind as much of others
        assert judged(door, "new", 1000) is not None  # judged by what all sent
        door.parsed("warm", 1000, 0, 0)
        assert judged(door, "warm", 10_000) is None
        assert door.reserved == 0
        assert door.waiting == 3000
    assert not door.busy


def test_of_a_burst_the_later_bodies_are_refused_before_any_is_parsed(door):
    door.parsed("somebody", 1000, 936, 1)
    burst = [door.judged(client, 1000, None) for client in range(20)]
    let_in = [one for one in burst if not isinstance(one, ServiceError)]
    assert burst[: len(let_in)] == let_in
    assert len(let_in) == 3
    assert (door.waiting, door.reserved) == (0, 3000)
    assert door.busy
    with contextlib.ExitStack() as stack:
        # Who came first is not sent away for those who came after it; who has sent much more than it seemed is.
        stack.enter_context(door.admitted(936, 1, 0, Deadline(1), reservation=let_in[0]))
        with pytest.raises(ServiceError, match="a wait of"):
            stack.enter_context(door.admitted(1936, 1, 1, Deadline(1), reservation=let_in[1]))
        let_in[2].release()
        assert (door.waiting, door.reserved) == (1000, 0)
    assert door._clients.total == 0
    with door.admitted(36, 1, 3, None) as entry:
        assert entry.rested


def test_a_stranger_is_parsed_in_vain_no_sooner_than_others(door):
    door.parsed("somebody", 1000, 936, 1)
    with contextlib.ExitStack() as stack:
        for client in "abc":
            enter(stack, door, 1000, client)
        assert all(judged(door, stranger, 1000) for stranger in range(100))
        assert [bool(judged(door, "one", 1000)) for _ in range(9)] == [True] * 8 + [False]


def test_only_so_many_clients_are_remembered(door):
    for client in range(10_000):
        door.parsed(client, 100, 100, 1)
    assert len(door._known) < 9_000
