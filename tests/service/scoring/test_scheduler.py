"""Batching: what is put together, in which order, what is refused, and who is told what."""

import asyncio
import logging
import math

import numpy as np
import pytest

from paragone.codes import ErrorCode
from paragone_models.text.reader import EncodeItem
from paragone_service.engine.contract import EngineOutOfMemoryError
from paragone_service.http.errors import ServiceError
from paragone_service.metrics import Metrics
from paragone_service.scoring import devices
from paragone_service.scoring.request import Deadline
from paragone_service.scoring.scheduler import Scheduler
from paragone_service.scoring.tickets import Job
from tests.service.conftest import until

pytestmark = pytest.mark.anyio


FAMILIES = [(7, [60, 51, 55]), (8, [62, 52])]
"""Prompts of 40 tokens with the lengths of their sequences: 60 + 11 + 15 and 62 + 12 tokens to compute."""


def item(tokens, prompt=1):
    return EncodeItem((prompt,) * tokens, ((tokens - 1, tokens),), 1)


class Device:
    """Takes batches when it is let, and remembers them; too long a batch does not fit."""

    def __init__(self, *, memory_tokens=math.inf):
        self.batches = []
        self.free = asyncio.Event()
        self.free.set()
        self.fail = False
        self.memory_tokens = memory_tokens

    async def represent(self, jobs):
        lengths = [len(job.item.token_ids) for job in jobs]
        self.batches.append(lengths)
        await self.free.wait()
        if sum(lengths) > self.memory_tokens:
            raise EngineOutOfMemoryError("too long")
        if self.fail:
            raise RuntimeError("a kernel went wrong")
        return np.array([[length] for length in lengths], dtype=np.float32)


def settle(_, rows):
    return [str(int(row[0])).encode() for row in rows]


class Setup:
    def __init__(self, device=None, **knobs):
        self.device = device or Device()
        self.metrics = Metrics()
        options = {"shares_prompts": False, "max_queue_tokens": 1000, **knobs}
        budget, turn = options.pop("max_batch_tokens", 100), options.pop("turn", None) or asyncio.Lock()
        served = [devices.Device("cpu", self.device.represent, turn, budget)]
        self.scheduler = Scheduler("m", served, settle, metrics=self.metrics, **options)
        self.scheduler.start()

    def submit(self, *lengths, keys=None):
        names = keys or [None] * len(lengths)
        return self.scheduler.submit([Job(key, item(length), 0) for key, length in zip(names, lengths, strict=True)])

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        self.device.free.set()
        await self.scheduler.close()


async def outcomes(tickets):
    return [await asyncio.wait_for(ticket.outcome, 5) for ticket in tickets]


async def test_an_idle_device_starts_at_once_and_the_next_batch_is_what_came_meanwhile():
    async with Setup() as setup:
        setup.device.free.clear()
        first = setup.submit(10)
        await until(lambda: setup.device.batches)
        later = setup.submit(20) + setup.submit(30)
        setup.device.free.set()
        assert await outcomes(first + later) == [b"10", b"20", b"30"]
        assert setup.device.batches == [[10], [20, 30]]


async def test_a_batch_keeps_to_its_budget_in_order_of_arrival_and_is_sorted_inside():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        tickets = setup.submit(60) + setup.submit(30) + setup.submit(20) + setup.submit(70)
        setup.device.free.set()
        assert await outcomes(tickets) == [b"60", b"30", b"20", b"70"]
        assert setup.device.batches[1:] == [[30, 60], [20, 70]]


async def test_a_queue_is_stocked_with_two_batches_of_what_is_no_bulk_and_says_when_it_is_not_any_more():
    async with Setup() as setup:
        ended = []
        setup.scheduler.when_not_stocked = lambda: ended.append(setup.scheduler.queue_tokens)
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        setup.submit(90, 90, 90)  # bulk
        small = [setup.submit(50) for _ in range(4)]
        assert setup.scheduler.stocked()
        setup.scheduler.leave(small[0])
        assert not setup.scheduler.stocked()
        setup.submit(50)
        assert setup.scheduler.stocked()
        assert ended == [420]
        setup.device.free.set()
        await until(lambda: not setup.scheduler.queue_items)
        assert not setup.scheduler.stocked()
        assert len(ended) == 2


async def test_siblings_stock_a_queue_with_what_they_cost():
    async with Setup(shares_prompts=True) as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        siblings = [Job(None, EncodeItem((9,) * 60, ((0, 1),), 50), 0) for _ in range(4)]
        setup.scheduler.submit(siblings)  # 50 + 4 * 10
        assert not setup.scheduler.stocked()
        setup.scheduler.submit(siblings)
        assert not setup.scheduler.stocked()
        setup.scheduler.submit(siblings)
        assert setup.scheduler.stocked()


async def test_the_responses_of_one_request_are_queued_by_length_so_that_batches_are_even():
    async with Setup() as setup:
        tickets = setup.submit(1, 90, 2, 80, 3)
        assert await outcomes(tickets) == [b"1", b"90", b"2", b"80", b"3"]
        assert setup.device.batches == [[90], [1, 2, 3, 80]]


async def test_responses_to_one_prompt_stay_together():
    async with Setup() as setup:
        jobs = [Job(None, item(length, prompt), 0) for length, prompt in ((50, 7), (60, 8), (30, 7), (20, 8), (19, 7))]
        assert await outcomes(setup.scheduler.submit(jobs)) == [b"50", b"60", b"30", b"20", b"19"]
        assert setup.device.batches == [[20, 60], [19, 30, 50]]


@pytest.mark.parametrize(
    ("shares_prompts", "batches"), [(True, [[51, 55, 60], [52, 62]]), (False, [[60], [55], [51], [62], [52]])]
)
async def test_a_prompt_counts_once_where_the_engine_computes_it_once(shares_prompts, batches):
    families = [[EncodeItem((prompt,) * length, ((0, 1),), 40) for length in lengths] for prompt, lengths in FAMILIES]
    async with Setup(shares_prompts=shares_prompts) as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        tickets = [
            ticket for family in families for ticket in setup.scheduler.submit([Job(None, one, 0) for one in family])
        ]
        setup.device.free.set()
        assert len(await outcomes(tickets)) == 5
        assert setup.device.batches[1:] == batches


async def test_siblings_that_fit_into_a_batch_because_they_share_their_prompt_are_not_a_large_request():
    async with Setup(shares_prompts=True) as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        large = setup.submit(*[90] * 2)
        siblings = setup.scheduler.submit([Job(None, EncodeItem((9,) * 60, ((0, 1),), 50), 0) for _ in range(4)])
        setup.device.free.set()
        assert len(await outcomes([*large, *siblings])) == 6
        assert setup.device.batches[1:] == [[60] * 4, [90], [90]]


async def test_a_small_request_overtakes_a_large_one_at_the_next_batch():
    async with Setup() as setup:
        setup.device.free.clear()
        large = setup.submit(*[90] * 5)
        await until(lambda: setup.device.batches)
        small = setup.submit(40, 30)
        setup.device.free.set()
        assert await outcomes(large + small) == [b"90"] * 5 + [b"40", b"30"]
        assert setup.device.batches[:3] == [[90], [30, 40], [90]]


async def test_small_requests_fill_up_the_batches_of_large_ones():
    async with Setup() as setup:
        setup.device.free.clear()
        tickets = setup.submit(*[40] * 4) + setup.submit(15)
        setup.device.free.set()
        assert await outcomes(tickets) == [b"40"] * 4 + [b"15"]
        assert setup.device.batches[0] == [15, 40, 40]


async def test_a_large_request_is_never_held_up_for_ever():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        tickets = setup.submit(*[95] * 2)
        for _ in range(8):
            tickets += setup.submit(60)
        setup.device.free.set()
        await outcomes(tickets)
        assert setup.device.batches.index([95]) <= 4


async def test_a_response_over_the_budget_runs_alone():
    async with Setup() as setup:
        assert await outcomes(setup.submit(250, 10)) == [b"250", b"10"]
        assert setup.device.batches == [[250], [10]]


async def test_a_full_queue_refuses_with_a_time_to_come_back_and_loses_nothing():
    async with Setup(max_queue_tokens=100) as setup:
        setup.device.free.clear()
        running = setup.submit(50)
        await until(lambda: setup.device.batches)
        waiting = setup.submit(60, 30)
        with pytest.raises(ServiceError) as caught:
            setup.submit(5, 6)
        assert caught.value.code is ErrorCode.OVERLOADED
        assert "90 tokens wait for model m, 11 more than fit into 100" in caught.value.message
        assert caught.value.retry_after_s >= 1
        assert (setup.scheduler.queue_items, setup.scheduler.queue_tokens) == (2, 90)
        setup.device.free.set()
        assert await outcomes(running + waiting) == [b"50", b"60", b"30"]
        assert (setup.scheduler.queue_items, setup.scheduler.queue_tokens) == (0, 0)


async def test_a_request_larger_than_the_queue_is_let_in_when_nothing_waits():
    async with Setup(max_queue_tokens=100) as setup:
        assert len(await outcomes(setup.submit(*[90] * 5))) == 5


async def test_a_key_on_its_way_is_joined_and_run_once():
    async with Setup() as setup:
        setup.device.free.clear()
        assert setup.scheduler.join([b"k"]) == {}
        (ticket,) = setup.submit(10, keys=[b"k"])
        assert setup.scheduler.join([b"k"]) == {b"k": ticket}
        await until(lambda: setup.device.batches)
        assert setup.scheduler.join([b"k"]) == {b"k": ticket}
        setup.device.free.set()
        assert await outcomes([ticket]) == [b"10"]
        assert setup.device.batches == [[10]]
        assert setup.scheduler.join([b"k"]) == {}


async def test_what_nobody_waits_for_any_more_is_not_run():
    async with Setup() as setup:
        setup.device.free.clear()
        running = setup.submit(10, keys=[b"running"])
        await until(lambda: setup.device.batches)
        lonely, shared = setup.submit(20, 30, keys=[b"lonely", b"shared"])
        setup.scheduler.join([b"shared"])
        setup.scheduler.leave([*running, lonely, shared])
        assert setup.scheduler.join([b"lonely"]) == {}
        assert (setup.scheduler.queue_items, setup.scheduler.queue_tokens) == (1, 30)
        setup.device.free.set()
        assert await outcomes([*running, shared]) == [b"10", b"30"]
        assert setup.device.batches == [[10], [30]]
        assert setup.metrics.registry.get_sample_value("paragone_responses_dropped_total", {"model": "m"}) == 1


async def test_a_failing_engine_fails_its_batch_and_nothing_else(caplog):
    async with Setup() as setup:
        setup.device.fail = True
        with caplog.at_level(logging.ERROR):
            (error,) = await outcomes(setup.submit(10, keys=[b"k"]))
        assert error.code is ErrorCode.ENGINE_FAILED
        assert error.message == "the engine failed; see the server's log"
        assert "a kernel went wrong" in caplog.text
        setup.device.fail = False
        assert await outcomes(setup.submit(10, keys=[b"k"])) == [b"10"]
        assert setup.metrics.registry.get_sample_value("paragone_batch_failures_total", {"model": "m"}) == 1


async def test_a_batch_that_does_not_fit_is_split_until_it_does_and_later_ones_are_smaller(caplog):
    async with Setup(Device(memory_tokens=40)) as setup:
        with caplog.at_level(logging.WARNING):
            assert await outcomes(setup.submit(20, 20, 20, 20, 20)) == [b"20"] * 5
        assert max(sum(batch) for batch in setup.device.batches[-2:]) <= 40
        assert "out of memory, batches of cpu have 50 tokens from now on" in caplog.text
        splits = setup.metrics.registry.get_sample_value("paragone_batch_splits_total", {"model": "m"})
        assert splits >= 1
        setup.device.batches.clear()
        await outcomes(setup.submit(20, 20, 20))
        assert max(len(batch) for batch in setup.device.batches) <= 2


async def test_a_single_response_that_never_fits_is_an_error_and_the_others_are_answered():
    async with Setup(Device(memory_tokens=40)) as setup:
        error, *others = await outcomes(setup.submit(60, 10, 10))
        assert error.code is ErrorCode.ENGINE_FAILED
        assert error.message == "the device has not enough memory for this response"
        assert others == [b"10", b"10"]


async def test_models_on_one_device_take_turns():
    turn = asyncio.Lock()
    async with Setup(turn=turn) as one, Setup(turn=turn) as other:
        one.device.free.clear()
        first = one.submit(10)
        await until(lambda: one.device.batches)
        second = other.submit(20)
        await asyncio.sleep(0.02)
        assert other.device.batches == []
        one.device.free.set()
        assert await outcomes(first + second) == [b"10", b"20"]


async def test_closing_tells_whoever_still_waits():
    setup = Setup()
    setup.device.free.clear()
    tickets = setup.submit(10, keys=[b"running"])
    await until(lambda: setup.device.batches)
    tickets += setup.submit(20, keys=[b"waiting"])
    await setup.scheduler.close()
    assert [error.code for error in await outcomes(tickets)] == [ErrorCode.SHUTTING_DOWN] * 2


async def test_batches_are_counted_with_their_padding():
    async with Setup() as setup:
        await outcomes(setup.submit(10, 30))
        sample = setup.metrics.registry.get_sample_value
        assert sample("paragone_batch_size_sum", {"model": "m"}) == 2
        assert sample("paragone_batch_tokens_sum", {"model": "m"}) == 40
        assert sample("paragone_padding_ratio_sum", {"model": "m"}) == pytest.approx(1 / 3)


async def test_one_clients_bulk_job_does_not_starve_anothers():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        jobs = [Job(None, item(10), 0) for _ in range(30)]
        large = setup.scheduler.submit(jobs, client="large")
        small = setup.scheduler.submit([Job(None, item(11), 0)] * 10, client="small")
        setup.device.free.set()
        await outcomes(large + small)
        lengths = [sorted(batch) for batch in setup.device.batches[1:]]
        assert min(batch.count(11) for batch in lengths[:2]) >= 3
        last_of_small = max(number for number, batch in enumerate(lengths) if 11 in batch)
        assert last_of_small <= 3 < len(lengths) - 1
        assert sum(map(len, lengths)) == 40


async def test_requests_that_fit_into_a_batch_are_run_one_after_the_other_and_not_all_at_once():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        tickets = []
        for length in (10, 11, 12):
            tickets += setup.scheduler.submit([Job(None, item(length), 0)] * 6, client=length)
        setup.device.free.set()
        await outcomes(tickets)
        ran = [length for batch in setup.device.batches[1:] for length in sorted(batch)]
        assert ran == sorted(ran)


async def test_requests_of_one_client_and_of_nobody_stay_first_in_first_out():
    for client in (None, "one"):
        async with Setup() as setup:
            setup.device.free.clear()
            setup.submit(1)
            await until(lambda setup=setup: setup.device.batches)
            tickets = []
            for length in (90, 80, 70):
                tickets += setup.scheduler.submit([Job(None, item(length), 0)], client=client)
            setup.device.free.set()
            await outcomes(tickets)
            assert setup.device.batches[1:] == [[90], [80], [70]]


async def test_what_is_late_for_everybody_is_dropped_before_the_forward():
    async with Setup() as setup:
        setup.device.free.clear()
        running = setup.submit(10)
        await until(lambda: setup.device.batches)
        late, awaited = setup.scheduler.submit(
            [Job(b"late", item(20), 0), Job(b"awaited", item(30), 0)], deadline=Deadline(1e-6)
        )
        setup.scheduler.join([b"awaited"], deadline=Deadline(60))
        await asyncio.sleep(0.001)
        setup.device.free.set()
        assert await outcomes([*running, awaited]) == [b"10", b"30"]
        (error,) = await outcomes([late])
        assert error.code is ErrorCode.DEADLINE_EXCEEDED
        assert setup.device.batches == [[10], [30]]
        assert setup.scheduler.queue_items == 0
        assert setup.metrics.registry.get_sample_value("paragone_responses_expired_total", {"model": "m"}) == 1


async def test_small_questions_of_the_rested_go_ahead_in_a_batch_of_their_own_every_other_time():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        tickets = setup.submit(*[90] * 3)
        for _ in range(3):
            tickets += setup.scheduler.submit([Job(None, item(12), 0)], rested=True)
        tickets += setup.scheduler.submit([Job(None, item(40), 0)], rested=True)  # not small: waits like any other
        setup.device.free.set()
        assert await outcomes(tickets) == [b"90"] * 3 + [b"12"] * 3 + [b"40"]
        assert setup.device.batches[1:] == [[12, 12, 12], [40], [90], [90], [90]]


async def test_a_stream_of_small_questions_leaves_every_other_batch_to_the_others():
    async with Setup() as setup:
        setup.device.free.clear()
        setup.submit(1)
        await until(lambda: setup.device.batches)
        large = setup.submit(*[90] * 2)
        small = []
        for _ in range(20):
            small += setup.scheduler.submit([Job(None, item(12), 0)], rested=True)
        setup.device.free.set()
        await outcomes(large + small)
        assert [90] in setup.device.batches[1:4]


async def test_while_small_questions_come_no_batch_takes_much_longer_than_the_smallest():
    now = 0.0

    class Slow(Device):
        async def represent(self, jobs):
            nonlocal now
            now += 0.01 + sum(len(job.item.token_ids) for job in jobs) / 1000
            return await super().represent(jobs)

    async with Setup(Slow(), clock=lambda: now, max_batch_tokens=800, max_queue_tokens=10**6) as setup:
        await outcomes(setup.submit(*[10] * 80))
        assert setup.device.batches == [[10] * 80]  # 81 times as long as the fixed part, and nobody else waits
        for _ in range(8):
            await outcomes(setup.scheduler.submit([Job(None, item(1), 0)], client="small", rested=True))
        setup.device.batches.clear()
        await outcomes(setup.submit(*[10] * 80))
        assert max(map(len, setup.device.batches)) <= 10  # an eighth of the budget at the least
        now += 11
        setup.device.batches.clear()
        await outcomes(setup.submit(*[10] * 80))
        assert setup.device.batches == [[10] * 80]  # they do not come any more


async def test_what_cannot_come_in_time_is_dropped_before_it_is_run():
    now = 0.0

    class Slow(Device):
        async def represent(self, jobs):
            nonlocal now
            now += sum(len(job.item.token_ids) for job in jobs)
            return await super().represent(jobs)

    async with Setup(Slow(), clock=lambda: now) as setup:
        await outcomes(setup.submit(1) + setup.submit(100))  # it takes a second for each token
        setup.device.batches.clear()
        hopeless = setup.scheduler.submit([Job(None, item(90), 0)], deadline=Deadline(30))
        in_time = setup.scheduler.submit([Job(None, item(90), 0)], deadline=Deadline(300))
        (late, answer) = await outcomes(hopeless + in_time)
        assert late.code is ErrorCode.DEADLINE_EXCEEDED
        assert answer == b"90"
        assert setup.device.batches == [[90]]
